"""Learned scales of the losses."""

import math

import pytest
import torch

from stormfast.world_model.harmony import LossScales
from tests.model_fixtures import make_batch, tiny_learner

TERMS = {"reconstruction": 5.0, "reward": 0.04, "termination": 0.3, "dynamics": 3.0, "representation": 2.0}
WEIGHTS = {"reconstruction": 1.0, "reward": 1.0, "termination": 1.0, "dynamics": 0.5, "representation": 0.1}


def terms(requires_grad=False):
    return {name: torch.tensor(x, dtype=torch.float64, requires_grad=requires_grad) for name, x in TERMS.items()}


def test_the_scales_found_are_the_best_for_constant_losses():
    scales = LossScales().double()
    optimizer = torch.optim.Adam(scales.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        scales(terms(), WEIGHTS).backward()
        optimizer.step()
    losses = [5.0, 0.04, 0.5 * 3.0 + 0.1 * 2.0]
    best = [(loss + math.sqrt(loss**2 + 4 * loss)) / 2 for loss in losses]
    torch.testing.assert_close(scales.log_scale.exp().detach(), torch.tensor(best).double(), rtol=1e-3, atol=0)


def test_gradients_are_divided_by_the_scale_and_those_of_other_terms_are_not():
    scales = LossScales().double()
    with torch.no_grad():
        scales.log_scale.copy_(torch.tensor([4.0, 0.25, 2.0]).log())
    values = terms(requires_grad=True)
    scales(values, WEIGHTS).backward()
    expected = {"reconstruction": 1 / 4, "reward": 4.0, "termination": 1.0, "dynamics": 0.25, "representation": 0.05}
    assert {name: value.grad.item() for name, value in values.items()} == pytest.approx(expected)


def test_they_are_learned_with_the_world_model_and_only_where_asked_for():
    for balance, learned in (("fixed", []), ("harmony", ["scales.log_scale"])):
        learner = tiny_learner(values={"world_model.balance": balance})
        before = {name: x.clone() for name, x in learner.world_model.named_parameters() if "scale" in name}
        assert list(before) == learned
        learner.update_world_model(make_batch())
        for name, x in learner.world_model.named_parameters():
            if name in before:
                assert (x != before[name]).all()
