"""What a CPU run frees stays with the process."""

import subprocess
import sys

import pytest

from stormfast.device import keep_freed_memory

CODE = """
import resource
from stormfast.device import keep_freed_memory
import torch
if {keep}:
    assert keep_freed_memory()
for _ in range(16):
    torch.ones(2**24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
def test_a_large_tensor_is_faulted_in_once():
    faults = {}
    for keep in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True
        )
        faults[keep] = int(done.stdout)
    assert faults[False] > 16 * 20  # at least each 2 MB page of each tensor
    assert 3 * faults[True] < faults[False]  # a new tensor may still lie elsewhere than the last


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
