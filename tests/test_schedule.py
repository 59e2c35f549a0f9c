"""When updates are due, and which step of one schedule lacks an update of another; against stepping through."""

import itertools
import random

import pytest

from stormfast.schedule import due, first_unpaired


@pytest.mark.parametrize("per_step", [0, 0.25, 0.3, 1, 2.5])
def test_due_counts_the_same_over_any_partition(per_step: float) -> None:
    start, cuts = 64, [0, 1, 7, 63, 64, 65, 66, 100, 103, 200]
    pieces = sum(due(a, b, per_step, start) for a, b in itertools.pairwise(cuts))
    assert pieces == due(0, 200, per_step, start) == int((200 - start) * per_step)
    assert due(0, start, per_step, start) == 0


@pytest.mark.parametrize(("rate", "start", "leading", "expected"), [
    (1, 64, 1, None),
    (0.25, 71, 1, None),  # the leading one has an update at every step
    (0.5, 66, 0.5, None),
    (0.5, 65, 0.5, 67),  # one has its updates at even steps, the other at odd ones
    (0.25, 64, 0.5, None),
    (0.5, 64, 0.75, None),
    (0.3, 64, 0.5, 71),
    (1.25, 64, 1.5, None),
    (2, 64, 1, 65),
    (0.5, 64, 0, 66),
    (0, 64, 0, None),
    (1 / 63, 64, 63 / 64, 64 + 63 * 63),
])  # fmt: skip
def test_the_first_unpaired_step_is_found_by_stepping_through(
    rate: float, start: int, leading: float, expected: int | None
) -> None:
    found = first_unpaired(rate, start, leading, 64)
    lacking = [t + 1 for t in range(5_000) if due(t, t + 1, rate, start) > due(t, t + 1, leading, 64)]
    assert found == (lacking[0] if lacking else None)
    assert found == expected


def test_where_no_step_is_unpaired_no_stretch_of_steps_is() -> None:
    rng = random.Random(0)
    for rate, start, leading in ((0.5, 66, 0.5), (0.25, 71, 1), (1.25, 64, 1.5)):
        assert first_unpaired(rate, start, leading, 64) is None
        cuts = list(itertools.accumulate(rng.randrange(5) for _ in range(3_000)))
        assert all(due(a, b, rate, start) <= due(a, b, leading, 64) for a, b in itertools.pairwise(cuts))
