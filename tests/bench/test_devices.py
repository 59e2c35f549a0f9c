"""What a benchmark says of its machine."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import devices

CPU = torch.device("cpu")


def test_copy_bandwidth_counts_bytes_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices.COPY_BYTES, "cpu", 4000)
    monkeypatch.setattr(devices, "_seconds_of_copies", lambda source, target, copies: 1e-3 * copies)
    assert devices.copy_bandwidth(CPU) == pytest.approx(8_000_000)
    monkeypatch.undo()
    monkeypatch.setitem(devices.COPY_BYTES, "cpu", 1 << 20)
    assert 1e6 < devices.copy_bandwidth(CPU) < 1e13


def test_the_machine_is_told() -> None:
    assert devices.slug("NVIDIA GeForce RTX 3090 (24 GB)") == "nvidia-geforce-rtx-3090-24-gb"
    machine = devices.describe(CPU)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["device"].endswith(f"{torch.get_num_threads()} cores")
    assert machine["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "expected one device"), (["tpu"], "got 'tpu'"), (["cpu", "cpu"], "got 2 arguments")]
)
def test_a_bad_argument_is_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, devices.__file__, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr


def test_the_name_of_the_device_and_the_commit_are_printed() -> None:
    done = subprocess.run([sys.executable, devices.__file__, "cpu"], capture_output=True, text=True, check=True)
    name, _ = done.stdout.split()
    assert name == devices.slug(name) and name.endswith("-cores")


def test_clocks_come_from_nvidia_smi_where_it_knows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-ab"))
    asked: list[str] = []

    def answer(*command: str) -> str:
        asked.extend(command)
        return "580.1, 1980, 3201, 1980, 3201"

    monkeypatch.setattr(devices, "_output", answer)
    found = devices._nvidia_smi(torch.device("cuda"))
    assert found == {
        "driver": "580.1",
        "clocks.sm": "1980",
        "clocks.mem": "3201",
        "clocks.max.sm": "1980",
        "clocks.max.mem": "3201",
    }
    assert "--id=GPU-1234-ab" in asked
    monkeypatch.setattr(devices, "_output", lambda *command: "")
    assert devices._nvidia_smi(torch.device("cuda")) == {}
