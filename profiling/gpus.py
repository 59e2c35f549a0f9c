"""What devices can do at best: dense matrix products and memory moved, per second. Each with its source.

Datasheet rates are at the rated boost clock: bfloat16 on the tensor cores with float32 sums and without sparsity,
float32 on the ordinary cores (torch multiplies float32 matrices there unless TF32 is allowed, and nothing here allows
it). A GeForce card may clock higher than rated and reach a little more. No device reaches its memory's datasheet
rate, which is that of the interface.
"""

from dataclasses import dataclass

from stormfast.device import device_name, resolve_device
from stormfast.errors import UserError
from stormfast.measure.peaks import Peaks, measure_peaks


@dataclass(frozen=True)
class Device:
    title: str
    peaks: Peaks
    source: str


def datasheet(title: str, bfloat16: float, float32: float, gigabytes: float, source: str) -> Device:
    """bfloat16, float32: TFLOP/s. gigabytes: GB/s, read and written."""
    return Device(title, Peaks(bfloat16 * 1e12, float32 * 1e12, gigabytes * 1e9), f"{source}, datasheet rates")


AMPERE = "NVIDIA Ampere GA102 GPU Architecture whitepaper v2, appendix A"
ADA = "NVIDIA Ada GPU Architecture whitepaper, appendix A"
BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A"
HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper, H100 SXM5; bandwidth from the datasheet"
DEVICES = {
    "rtx3090": datasheet("RTX 3090", 71, 35.6, 936, AMPERE),
    "rtx4090": datasheet("RTX 4090", 165.2, 82.6, 1008, ADA),
    "rtx5090": datasheet("RTX 5090", 209.5, 104.8, 1792, BLACKWELL),
    "a100": datasheet("A100 SXM 80 GB", 312, 19.5, 2039, "NVIDIA A100 80 GB datasheet"),
    "h100": datasheet("H100 SXM", 989.4, 66.9, 3350, HOPPER),
    "h200": Device(
        "H200",
        Peaks(790e12, 66.9e12, 4300e9),
        "bfloat16 and bandwidth are measured ceilings of a large matrix product and a large copy "
        "(datasheet: 989 TFLOP/s, 4,800 GB/s); float32 is the datasheet's",
    ),
}


def find(name: str) -> Device:
    """A device of the table, or this machine's for "measured", which takes some seconds. Raises: UserError."""
    if name == "measured":
        device = resolve_device("auto")
        return Device(device_name(device), measure_peaks(device), "measured: a large matrix product and a large copy")
    if name not in DEVICES:
        raise UserError(
            f"--device must be some of {','.join(DEVICES)},measured, got '{name}'; --peaks TFLOPs,GB/s takes any other"
        )
    return DEVICES[name]


def given(text: str) -> Device:
    """Of "TFLOPs,GB/s". Raises: UserError."""
    try:
        teraflops, gigabytes = (float(number) for number in text.split(","))
    except ValueError:
        teraflops = gigabytes = -1
    if not (0 < teraflops < float("inf") and 0 < gigabytes < float("inf")):
        raise UserError(f"--peaks must be two positive numbers TFLOPs,GB/s such as 165.2,1008, got '{text}'")
    rates = Peaks(teraflops * 1e12, teraflops * 1e12, gigabytes * 1e9)
    return Device(f"{teraflops:g} TFLOP/s, {gigabytes:g} GB/s", rates, "given as --peaks")
