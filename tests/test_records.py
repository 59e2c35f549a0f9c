"""The records refuse shapes that do not fit together."""

import dataclasses

import pytest
import torch

from stormfast.records import Batch
from tests.model_fixtures import make_batch

FIELDS = [f.name for f in dataclasses.fields(Batch)]


def test_a_batch_that_fits():
    batch = make_batch(3, 5)
    assert batch.obs.shape == (3, 5, 3, 64, 64)
    assert all(getattr(batch, name).shape == (3, 5) for name in FIELDS if name != "obs")


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "action"])
@pytest.mark.parametrize("cut", [(slice(0, 2),), (slice(None), slice(0, 1)), (0,)])
def test_a_field_of_another_shape_is_refused(name, cut):
    batch = make_batch(3, 5)
    with pytest.raises(ValueError, match=rf"batch field {name} must start with \[B, T\] = \(3, 5\)"):
        dataclasses.replace(batch, **{name: getattr(batch, name)[cut]})


def test_a_scalar_field_with_a_trailing_dimension_is_refused():
    batch = make_batch(3, 5)
    with pytest.raises(ValueError, match="batch field reward"):
        dataclasses.replace(batch, reward=batch.reward[..., None])  # would broadcast against [B, T] to [3, 5, 5] later


def test_a_batch_of_one_row_without_time_is_refused():
    batch = make_batch(3, 5)
    with pytest.raises(ValueError, match="batch field"):
        Batch(**{name: getattr(batch, name)[:, 0] for name in FIELDS})


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_batch(2, 2).reward = torch.zeros(2, 2)
