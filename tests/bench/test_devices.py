"""What a result says of its machine."""

import json

import pytest
import torch

from bench import devices


def test_the_machine_is_described() -> None:
    machine = devices.describe(torch.device("cpu"))
    assert json.loads(json.dumps(machine)) == machine
    assert machine["device"].endswith(f"{torch.get_num_threads()} cores") and machine["torch"] == torch.__version__
    assert devices.slug("NVIDIA GeForce RTX 3090 (24 GB)") == "nvidia-geforce-rtx-3090-24-gb"


@pytest.mark.gpu
def test_driver_and_clocks_of_a_gpu_are_described() -> None:
    machine = devices.describe(torch.device("cuda"))
    assert machine["driver"] and {"clocks.sm", "clocks.max.sm"} <= machine.keys()
