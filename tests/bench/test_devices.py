"""What a result says of its machine."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from bench import devices

CPU = torch.device("cpu")


def test_the_machine_is_described() -> None:
    machine = devices.describe(CPU)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["device"].endswith(f"{torch.get_num_threads()} cores") and machine["torch"] == torch.__version__
    assert devices.slug("NVIDIA GeForce RTX 3090 (24 GB)") == "nvidia-geforce-rtx-3090-24-gb"


def test_a_copy_counts_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(devices, "best_seconds", lambda copy, device: copy() is None or 1e-3)
    assert devices.copy_bandwidth(CPU) == pytest.approx(2 * (1 << 20) / 1e-3)


@pytest.mark.parametrize(("output", "found"), [("580.1, 1980, 3201, 1980, 3201", True), ("", False)])
def test_clocks_come_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, output: str, found: bool) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-ab"))

    def run(command: list[str], **options: object) -> SimpleNamespace:
        assert command[:2] == ["nvidia-smi", "--id=GPU-1234-ab"]
        return SimpleNamespace(stdout=output)

    monkeypatch.setattr(subprocess, "run", run)
    clocks = devices._nvidia_smi(torch.device("cuda"))
    assert clocks == (dict(zip(("driver", *devices.CLOCKS), output.split(", "), strict=True)) if found else {})
