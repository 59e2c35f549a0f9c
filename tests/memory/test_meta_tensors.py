"""Storages are counted while they live and once; casts on meta tensors are autocast's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stormfast.memory.meta_tensors import META, LiveBytes, meta_autocast, storage_bytes


def test_storages_count_while_they_live_and_views_do_not():
    with LiveBytes() as live:
        a = torch.zeros(100, device=META)
        b = a.view(10, 10)[1:]
        assert live.now == 400
        c = a + 1
        del a
        assert live.now == 800
        del b
        assert live.now == 400
        c.mul_(2)
        assert (live.now, live.peak.num_bytes) == (400, 800)
        torch.zeros(1_000)  # of the host
    assert live.peak.num_bytes == 800
    del c
    assert live.now == 0


def test_a_phase_has_its_own_peak():
    with LiveBytes(trace=True) as live:
        kept = torch.zeros(1_000, device=META)
        temporary = torch.zeros(5_000, device=META)
        del temporary
        live.begin()
        assert live.peak.num_bytes == 4_000
        x = torch.zeros(3, device=META)
        y = torch.zeros(70, device=META, dtype=torch.bfloat16)
    assert live.peak.num_bytes == 4_000 + 12 + 140
    assert [block.shape for block in live.peak.blocks] == [(70,), (3,)]
    assert live.peak.op == "aten.zeros.default"
    del kept, x, y


def test_a_trace_holds_what_comes_and_goes():
    with LiveBytes(trace=True) as live:
        kept = torch.zeros(10, device=META)
        live.begin()
        a = torch.zeros(100, device=META)
        b = a + 1
        del a
        c = b.view(10, 10).mul(2)
        del kept
        peak = live.traced_peak()
    found = [(event.operator, event.block.num_bytes, event.made) for event in peak.events]
    assert found == [
        (0, 400, True),
        (1, 400, True),
        (2, 400, False),
        (3, 400, True),
        (4, 40, False),
    ]  # a view is an operator too
    assert (peak.before, peak.num_bytes) == (40, 840)
    with LiveBytes() as live:
        b.view(10, 10) + c
    assert live.traced_peak().events == ()


def test_what_backward_saves_is_alive_until_then():
    weight = torch.zeros(8, 8, device=META, requires_grad=True)
    with LiveBytes() as live:
        loss = torch.zeros(4, 8, device=META).matmul(weight).exp().sum()
        forward = live.now
        loss.backward()
        assert forward >= 2 * 4 * 8 * 4
        assert live.now == 4 + 8 * 8 * 4  # the loss and the gradient


def test_the_host_reads_zeros():
    with LiveBytes():
        assert torch.empty(3, dtype=torch.int64, device=META).cpu().numpy().tolist() == [0, 0, 0]
        assert torch.ones((), device=META).item() == 0


def test_storage_bytes_counts_shared_ones_once():
    a = torch.zeros(10)
    assert storage_bytes([a, a[2:], torch.zeros(3, dtype=torch.uint8)]) == 43


class Everything(nn.Module):
    """What a model calls under autocast; returns what each made."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 4, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1)
        self.bn, self.linear, self.norm = nn.BatchNorm2d(4), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, frames):
        convolved = self.conv(frames)
        normed = self.bn(convolved)
        token = self.linear(normed[..., :8])
        layer_normed = self.norm(token)
        attended = F.scaled_dot_product_attention(token, layer_normed, token)
        return [
            convolved,
            normed,
            self.up(normed),
            token,
            layer_normed,
            attended,
            token @ token.mT,
            token.softmax(-1),
            token.exp(),
            token.sum(),
            token + 1,
        ]


@pytest.mark.parametrize("enabled", [True, False])
def test_casts_are_those_of_the_cpu(enabled):
    frames = torch.zeros(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        expected = Everything()(frames)
    with META:
        model = Everything()
    with meta_autocast("cpu"), torch.autocast("meta", dtype=torch.bfloat16, enabled=enabled):
        found = model(frames.to(META))
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]


def test_cuda_computes_more_in_float32():
    """torch's list: layer_norm, softmax, exp and sum autocast to float32 there."""
    with META:
        model = Everything()
    with meta_autocast("cuda"), torch.autocast("meta", dtype=torch.bfloat16, enabled=True):
        found = [x.dtype for x in model(torch.zeros(2, 3, 16, 16, device=META))]
    half, full = torch.bfloat16, torch.float32
    assert found == [half, half, half, half, full, half, half, full, full, full, half]


def test_a_weight_is_cast_once_a_block():
    linear = nn.Linear(8, 8, bias=False, device=META)
    x = torch.zeros(1, 8, device=META)
    with meta_autocast("cuda"), LiveBytes() as live:
        with torch.autocast("meta", dtype=torch.bfloat16, enabled=True), torch.no_grad():
            for _ in range(3):
                linear(x)
            assert live.now == 8 * 8 * 2
        assert live.now == 0


def test_autocast_comes_back_after_an_error():
    original = torch.autocast
    with pytest.raises(ValueError, match="unpack"), meta_autocast("cuda"):
        _, _ = (torch.autocast,)
    assert torch.autocast is original
