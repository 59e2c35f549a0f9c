"""The rows of the kernels: bytes and operations against real tensors and by hand; each is tested, benched, listed."""

import inspect

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.kernel_cases import CASES, PRESETS, UNIMIX, Work, attention_step, attention_work, bytes_moved, preset_cases
from stormfast.presets import preset_config
from stormfast_kernels import dispatch, sample_categorical_with_log_probs, unimix_log_probs
from stormfast_kernels.attention import cached_attention_step_reference
from tests.conftest import ROOT


def nbytes(*arrays: Tensor) -> int:
    return sum(x.numel() * x.itemsize for x in arrays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_sampling_are_those_of_its_tensors(dtype: torch.dtype) -> None:
    shape = (3, 5, 7)
    logits, uniform = torch.randn(shape).to(dtype).requires_grad_(), torch.rand(shape[:-1])
    sample, index, log_probs = sample_categorical_with_log_probs(logits, uniform, UNIMIX)
    grad_sample, grad_log_probs = torch.randn_like(sample), torch.randn_like(log_probs)
    (gradient,) = torch.autograd.grad((sample, log_probs), logits, (grad_sample, grad_log_probs))
    expected = {
        "rollout-sample": nbytes(logits, uniform, sample, index),
        "rollout-mode": nbytes(logits, sample, index),
        "model-sample": nbytes(logits, uniform, sample, index, log_probs),
        "model-sample-gradient": nbytes(logits, grad_sample, grad_log_probs, gradient),
        "prior-log-probs": nbytes(logits, unimix_log_probs(logits, UNIMIX)),
        "prior-log-probs-gradient": nbytes(logits, grad_log_probs, gradient),
    }
    assert {name: CASES[name].work(shape, dtype).bytes for name in expected} == expected
    assert {preset_config(preset, "standard").world_model.unimix for preset in PRESETS} == {UNIMIX}


def test_work_of_an_attention_step_is_that_of_its_tensors_and_of_its_products() -> None:
    batch, heads, head_dim, length = 3, 2, 8, 5
    query, key, value = torch.randn(3, batch, heads, head_dim).unbind()
    caches, position = torch.randn(2, batch, heads, length + 1, head_dim), torch.tensor(length)
    first = torch.zeros(batch, dtype=torch.int64)
    out = cached_attention_step_reference(query, key, value, caches[0], caches[1], position, first)
    moved = nbytes(query, key, value, out, caches[:, :, :, length], caches[:, :, :, :length], position)
    shape = tuple(caches[0].shape)
    assert bytes_moved(attention_step(shape, torch.float32, with_first=False)) == moved
    assert bytes_moved(attention_step(shape, torch.float32)) == moved + nbytes(first)
    with FlopCounterMode(display=False) as counter:
        weights = (query.unsqueeze(-2) @ caches[0].transpose(-1, -2) * head_dim**-0.5).softmax(-1)
        torch.testing.assert_close((weights @ caches[1]).squeeze(-2), out)
    softmax = batch * heads * (length + 1) * 6
    assert CASES["attention-step"].flops(shape) == counter.get_total_flops() + softmax


def test_work_of_a_rollout_is_averaged_over_its_lengths() -> None:
    """storm: 1024 * 8 * 64 numbers of 2 bytes are 1 MiB; lengths 8..23 are 15.5 on average."""
    expected = Work((6 + 2 * 15.5) * 2**20 + 8, 1024 * 8 * 16.5 * (4 * 64 + 6))
    assert attention_work((1024, 8, 24, 64), range(8, 24), torch.bfloat16) == expected


def test_every_case_is_benched_tested_and_listed() -> None:
    """By the file of its kernel: bench/bench_FILE.py times one of its cases, tests/kernels/test_FILE.py exists."""
    readme = (ROOT / "kernels" / "README.md").read_text()
    for case in preset_cases("tiny"):
        file = inspect.getsourcefile(case.launch.kernel.fn)
        assert file is not None
        stem = file.rpartition("/")[2]
        same_kernel = {other.case.name for other in preset_cases("tiny") if other.kernel == case.kernel}
        benches = (ROOT / "bench" / f"bench_{stem}").read_text()
        assert any(f'"{name}"' in benches for name in same_kernel), f"bench/bench_{stem} times no {case.kernel}"
        assert (ROOT / "tests" / "kernels" / f"test_{stem}").exists()
        assert f"| {case.case.name} |" in readme, f"{case.case.name} is missing from kernels/README.md; `make counts`"
    missing = {function for function, _ in dispatch._implementations if f"| `{function}(" not in readme}
    assert not missing, f"the table of functions in kernels/README.md lacks {missing}"
