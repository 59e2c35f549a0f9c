"""Launches, host reads and work are what they are by hand, and torch's own FLOP counter agrees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stormfast.measure.op_counts import OpWork, count
from stormfast_kernels.attention import cached_attention_step_op

CPU, META = torch.device("cpu"), torch.device("meta")
X = torch.arange(12.0).view(3, 4)
MASK, INDEX = X > 5, torch.tensor([2, 0])


def test_views_and_fresh_memory_are_no_launches():
    def function() -> None:
        y = X.t()[1:].unsqueeze(0).expand(2, -1, -1).reshape(2, 9).detach()  # the reshape of an expanded tensor copies
        torch.empty(3), torch.empty_like(y), y.new_empty(2), y.split(1)
        (y + 1).mul_(2)

    assert count(function, CPU).operators == {"clone": 1, "add": 1, "mul_": 1}


def test_a_backward_pass_and_an_optimiser_are_counted():
    w = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, foreach=True)

    def function() -> None:
        (w * w).sum().backward()
        optimizer.step()

    # ones_like begins the backward pass, and add is where the two gradients of w meet
    assert count(function, CPU).operators == {"mul": 3, "sum": 1, "ones_like": 1, "add": 1, "_foreach_add_": 1}


def test_a_registered_operator_is_one_launch():
    token, cache = torch.rand(2, 3, 16), torch.zeros(2, 3, 5, 16)
    counts = count(
        lambda: cached_attention_step_op(token, token, token, cache, cache.clone(), torch.tensor(2), None), CPU
    )
    assert counts.operators == {"clone": 1, "stormfast.cached_attention_step": 1}
    assert counts.work == [
        OpWork("stormfast.cached_attention_step", torch.float32, 2 * 2 * (2 * 3 * 5 * 16), 4 * (4 * 96 + 2 * 480) + 8)
    ]


READS: dict[str, Callable[[], Any]] = {
    "_local_scalar_dense": lambda: X[0, 0].item(),
    "_local_scalar_dense ": lambda: bool((X > 0).all()),
    "nonzero": lambda: X.nonzero(),
    "index": lambda: X[MASK],
    "index_put_": lambda: X.clone().__setitem__(MASK, torch.ones(6)),
    "masked_select": lambda: X.masked_select(MASK),
    "_unique2": lambda: X.unique(),
    "equal": lambda: torch.equal(X, X + 1),
    "repeat_interleave": lambda: torch.repeat_interleave(INDEX),
    "cpu": lambda: X.cpu(),
    "tolist": lambda: X.tolist(),
}


@pytest.mark.parametrize("name", READS)
def test_a_host_read_is_told_with_its_line(name: str) -> None:
    (line,) = count(READS[name], CPU).host_reads
    assert line.startswith(f"{name.strip()} at {Path(__file__).parent.name}/{Path(__file__).name}:")
    assert f'"{name}": lambda' in line


NO_READS: dict[str, Callable[[], Any]] = {
    "gather": lambda: X[INDEX],
    "where": lambda: torch.where(MASK, X, 0.0),
    "fill under a mask": lambda: X.clone().__setitem__(MASK, 1.0),
    "output size given": lambda: torch.repeat_interleave(INDEX, output_size=2),
    "one for all": lambda: X.repeat_interleave(2, 0),
    "sort": lambda: X.sort(),
    "numpy of host memory": lambda: X.numpy(),
}


@pytest.mark.parametrize("name", NO_READS)
def test_what_does_not_wait_is_no_host_read(name: str) -> None:
    assert count(NO_READS[name], CPU).host_reads == []


def test_host_memory_next_to_a_device_is_left_out():
    device = torch.zeros(3, device=META)

    def function() -> None:
        host = torch.ones(3) + 1
        host.sum().item()
        device.add_(1)
        device.copy_(host, non_blocking=True)
        device.copy_(host)  # pageable memory and no non_blocking: the host waits

    counts = count(function, META)
    assert counts.operators == {"add_": 1, "copy_": 2}
    (line,) = counts.host_reads
    assert "device.copy_(host)  #" in line


def test_compiled_functions_are_counted_as_written():
    compiled = torch.compile(lambda x: (x + 1).sin() * 2, backend="aot_eager")
    compiled(X)
    assert count(lambda: compiled(X), CPU).operators == {"add": 1, "sin": 1, "mul": 1}


def test_work_of_a_matrix_product():
    a, b = torch.rand(3, 5), torch.rand(7, 5).bfloat16()
    counts = count(lambda: (a @ a.t(), b[:1].expand(7, 5) @ b.t()), CPU)
    expected = [
        OpWork("mm", torch.float32, 2 * 3 * 5 * 3, 4 * (15 + 15 + 9)),
        OpWork("mm", torch.bfloat16, 2 * 7 * 5 * 7, 2 * (5 + 35 + 49)),
    ]
    assert counts.work == expected
    assert counts.flops == expected[0].flops + expected[1].flops
    assert counts.bytes == expected[0].bytes + expected[1].bytes


def test_work_of_a_convolution_and_its_backward_pass():
    frames, weight = torch.rand(2, 3, 8, 8), torch.rand(5, 3, 4, 4, requires_grad=True)
    counts = count(lambda: F.conv2d(frames, weight, stride=2, padding=1).backward(torch.ones(2, 5, 4, 4)), CPU)
    flops = 2 * (2 * 5 * 4 * 4) * (3 * 4 * 4)
    frames_bytes, weight_bytes, out_bytes = 4 * frames.numel(), 4 * weight.numel(), 4 * 2 * 5 * 4 * 4
    assert counts.work == [
        OpWork("convolution", torch.float32, flops, frames_bytes + weight_bytes + out_bytes),
        OpWork(
            "convolution_backward", torch.float32, flops, frames_bytes + 2 * weight_bytes + out_bytes
        ),  # of the weight alone
    ]


def test_attention_on_a_cpu_has_the_flops_of_its_matrix_products():
    q, k, v = (torch.rand(2, 3, 6, 16, requires_grad=True) for _ in range(3))

    def function() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    fused = count(function, CPU)
    assert [work.operator.removeprefix("_scaled_dot_product_") for work in fused.work] == [
        "flash_attention_for_cpu",
        "flash_attention_for_cpu_backward",
    ]
    product = 2 * (2 * 3) * 6 * 6 * 16
    assert [work.flops for work in fused.work] == [2 * product, 5 * product]  # the backward pass makes the scores anew
    with sdpa_kernel(SDPBackend.MATH):
        assert count(function, CPU).flops == 6 * product


def test_flops_are_those_of_torchs_counter():
    torch.manual_seed(0)
    frames = torch.rand(3, 3, 16, 16)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 2, 4, 2, 1), nn.Flatten(), nn.Linear(512, 7)
    )
    with FlopCounterMode(display=False) as torchs:
        model(frames).sum().backward()
    ours = count(lambda: model(frames).sum().backward(), CPU)
    assert ours.flops == torchs.get_total_flops() > 0
