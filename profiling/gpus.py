"""What devices can do at best: dense matrix products a second, and memory moved a second. Each with its source.

Datasheet rates are at the rated boost clock, bfloat16 on the tensor cores with float32 sums and without sparsity, float32 on the
ordinary cores (torch multiplies float32 matrices so unless TF32 is allowed, and nothing here allows it). A GeForce card may
clock higher than rated, and reach a little more. No device reaches its memory's rate: the datasheet's is the wires'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stormfast.errors import UserError

PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True)
class Device:
    title: str
    bfloat16_flops: float  # a second
    float32_flops: float  # a second
    bytes_per_second: float  # read and written
    source: str

    def flops(self, precision: str) -> float:
        return self.bfloat16_flops if precision == "bfloat16" else self.float32_flops


def datasheet(title: str, bfloat16: float, float32: float, gigabytes: float, source: str) -> Device:
    """Rates in TFLOP/s and GB/s."""
    return Device(title, bfloat16 * 1e12, float32 * 1e12, gigabytes * 1e9, f"{source}, datasheet rates")


AMPERE = "NVIDIA Ampere GA102 GPU Architecture whitepaper v2, appendix A"
ADA = "NVIDIA Ada GPU Architecture whitepaper, appendix A"
BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A"
DEVICES = {
    "rtx3090": datasheet("RTX 3090", 71, 35.6, 936, AMPERE),
    "rtx4090": datasheet("RTX 4090", 165.2, 82.6, 1008, ADA),
    "rtx5090": datasheet("RTX 5090", 209.5, 104.8, 1792, BLACKWELL),
    "a100": datasheet("A100 SXM 80 GB", 312, 19.5, 2039, "NVIDIA A100 80 GB datasheet"),
    "h100": datasheet(
        "H100 SXM",
        989.4,
        66.9,
        3350,
        "NVIDIA H100 Tensor Core GPU Architecture whitepaper, H100 SXM5; bandwidth from the datasheet",
    ),
    "h200": Device(
        "H200",
        790e12,
        66.9e12,
        4300e9,
        "bfloat16 and bandwidth are measured ceilings of a large matrix product and a large copy (datasheet: 989 TFLOP/s, 4,800 GB/s); "
        "float32 is the datasheet's",
    ),
}


def measured() -> tuple[Device, dict[str, object]]:
    """This machine's CUDA device, or its CPU; and what there is to say about it. Takes some seconds."""
    import torch  # here, as all else in this file needs none of it

    from bench.devices import describe
    from stormfast.device import resolve_device
    from stormfast.measure.peaks import measure_peaks

    device = resolve_device("auto")
    peaks, about = measure_peaks(device), describe(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    source = f"measured on this machine{threads}: a large matrix product and a large copy, stormfast/measure/peaks.py"
    return Device(str(about["device"]), peaks.bfloat16_flops, peaks.float32_flops, peaks.copy_bytes, source), about


def given(text: str) -> Device:
    """Of "TFLOPs,GB/s". Raises: UserError."""
    try:
        teraflops, gigabytes = (float(number) for number in text.split(","))
    except ValueError:
        teraflops = gigabytes = -1
    if not (0 < teraflops < float("inf") and 0 < gigabytes < float("inf")):
        raise UserError(f"--peaks must be two positive numbers TFLOPs,GB/s such as 165.2,1008, got '{text}'")
    return Device(
        f"{teraflops:g} TFLOP/s, {gigabytes:g} GB/s",
        teraflops * 1e12,
        teraflops * 1e12,
        gigabytes * 1e9,
        "given as --peaks",
    )


def check_names(names: Sequence[str]) -> None:
    """Raises: UserError for a name that is neither of DEVICES nor "measured"."""
    for name in names:
        if name not in DEVICES and name != "measured":
            raise UserError(
                f"--device must be some of {','.join(DEVICES)},measured, got '{name}'; --peaks TFLOPs,GB/s takes any other device"
            )
