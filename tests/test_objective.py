"""A loss is its terms, each times its weight."""

import pytest
import torch

from stormfast.objective import weighted_sum


def test_terms_times_weights_with_gradients():
    terms = {name: torch.tensor(value, requires_grad=True) for name, value in (("a", 2.0), ("b", 5.0), ("c", 7.0))}
    total = weighted_sum(terms, {"c": 0.5, "a": 3.0, "b": 1.0})
    total.backward()
    assert total.item() == 3 * 2 + 5 + 0.5 * 7
    assert {name: term.grad.item() for name, term in terms.items()} == {"a": 3.0, "b": 1.0, "c": 0.5}


def test_a_term_of_weight_zero_is_left_out_whatever_its_value():
    terms = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(float("nan"), requires_grad=True)}
    total = weighted_sum(terms, {"a": 2.0, "b": 0.0})
    total.backward()
    assert total.item() == 4
    assert terms["b"].grad is None


def test_the_sum_is_taken_in_the_order_of_the_terms():
    """In float32 the order decides the last bits, which saved runs depend on: 1e8 + 1 - 1e8 is 0, not 1."""
    values = {"large": 1e8, "one": 1.0, "back": -1e8}
    terms = {name: torch.tensor(value) for name, value in values.items()}
    assert weighted_sum(terms, dict.fromkeys(reversed(terms), 1.0)).item() == 0
    other = {name: terms[name] for name in ("large", "back", "one")}
    assert weighted_sum(other, dict.fromkeys(terms, 1.0)).item() == 1


def test_a_term_of_weight_zero_may_be_absent():
    assert weighted_sum({"a": torch.tensor(2.0)}, {"a": 3.0, "b": 0.0}).item() == 6


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {}])
def test_names_must_be_the_same(weights):
    with pytest.raises(ValueError, match=r"'b'|'c'"):
        weighted_sum({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, weights)


def test_all_weights_zero_are_refused():
    with pytest.raises(ValueError, match="must not be 0"):
        weighted_sum({"a": torch.tensor(1.0)}, {"a": 0.0})
