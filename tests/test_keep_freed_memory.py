"""What a CPU run frees stays with the process."""

import subprocess
import sys

import pytest

from stormfast.device import keep_freed_memory

CODE = """
import resource
from stormfast.device import keep_freed_memory
import torch
def faults():
    for _ in range(16):  # kept memory is used again after some ten tensors
        torch.ones(2**24)  # 64 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
by_default = faults()
assert keep_freed_memory()
print(by_default, faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
def test_a_large_tensor_is_faulted_in_once():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert by_default > 16 * 20  # at least each 2 MB page of each tensor
    assert 3 * kept < by_default  # a new tensor may still lie elsewhere than the last


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
