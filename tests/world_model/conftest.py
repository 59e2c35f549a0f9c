"""The world model is tested in float64, where two ways to compute the same thing agree to rounding."""

from collections.abc import Iterator

import pytest

from tests.model_fixtures import double_precision


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with double_precision():
        yield
