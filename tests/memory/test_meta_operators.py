"""What is remembered has the layout of an operator's own result, and only what is sure to be the same is remembered."""

import pytest
import torch

from stormfast.memory import meta_operators
from stormfast.memory.estimate import count
from stormfast.memory.meta_operators import META, call, layout
from tests.model_fixtures import NUM_ACTIONS, tiny_config

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(meta_operators, "_layouts", {})


def on_meta(*size, dtype=torch.float32):
    return torch.empty(size, dtype=dtype, device=META)


def test_a_count_is_the_same_with_and_without_what_is_remembered(monkeypatch):
    config = tiny_config(values={"world_model.layers": 1, "imagination.horizon": 2})
    first = count(config, NUM_ACTIONS, torch.bfloat16, "cuda", trace=True)
    assert len(meta_operators._layouts) > 100  # most of them used again in the same count
    monkeypatch.setattr(meta_operators, "is_functional", lambda func: False)
    assert count(config, NUM_ACTIONS, torch.bfloat16, "cuda", trace=True) == first


def test_the_second_call_is_not_worked_out_and_makes_new_tensors(monkeypatch):
    x, weight = on_meta(3, 4, 5).transpose(0, 1), on_meta(5)
    arguments = (x, [5], weight, weight, 1e-5)
    first = call(aten.native_layer_norm.default, arguments, {})
    monkeypatch.setattr(meta_operators, "is_all_new", lambda *_: pytest.fail("worked out again"))
    second = call(aten.native_layer_norm.default, arguments, {})
    assert [layout(y) for y in second] == [layout(y) for y in first]
    assert len({y.untyped_storage()._cdata for y in (*first, *second)}) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((on_meta(2, 3, dtype=torch.int64), 1), (on_meta(2, 3, dtype=torch.int64), 1.0)),  # equal, another dtype
        ((on_meta(2, 3), on_meta(2, 3)), (on_meta(2, 3), on_meta(2, 3, dtype=torch.float64))),
        ((on_meta(2, 3), on_meta(2, 3)), (on_meta(3, 2).t(), on_meta(3, 2).t())),
        ((on_meta(2, 3), on_meta(3)), (on_meta(2, 1), on_meta(3))),
    ],
)
def test_what_differs_is_worked_out_anew(one, other):
    for arguments in (one, other, one, other):
        assert layout(call(aten.add.Tensor, arguments, {})) == layout(aten.add.Tensor(*arguments))
    assert len(meta_operators._layouts) == 2


@pytest.mark.parametrize(
    ("func", "arguments"),
    [
        (aten.view.default, (on_meta(2, 3), [6])),  # the same memory
        (aten._unsafe_view.default, (on_meta(2, 3), [6])),  # the same memory, though it does not say so
        (aten.mul_.Tensor, (on_meta(2, 3), on_meta(2, 3))),
        (aten.add.Tensor, (torch.ones(2), torch.ones(2))),  # numbers
        (aten._local_scalar_dense.default, (torch.ones(()),)),
    ],
)
def test_views_writes_and_numbers_are_never_remembered(func, arguments):
    call(func, arguments, {})
    assert meta_operators._layouts == {}


def test_no_more_than_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(meta_operators, "MOST", 3)
    for size in range(10):
        call(aten.neg.default, (on_meta(size),), {})
        assert 0 < len(meta_operators._layouts) <= 3
