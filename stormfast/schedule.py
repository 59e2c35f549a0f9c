"""When updates are due, by environment steps. No torch here: settings are checked with it."""

PERIOD = 4_096  # steps: two rates whose denominators are at most 64 repeat within them


def due(before: int, after: int, per_step: float, start: int) -> int:
    """Updates owed between two step counts at `per_step` updates a step, none before `start`. Exact for any parts."""
    owed = [int(max(0, step - start) * per_step) for step in (before, after)]
    return owed[1] - owed[0]


def first_unpaired(per_step: float, start: int, leading: float, leading_start: int) -> int | None:
    """The first step that owes more updates at `per_step` from `start` on than at `leading` from `leading_start` on.

    Looks at each of PERIOD steps: where none is found, none is in any number of steps taken together. None is sought
    before `start`, where nothing is owed.
    """
    for step in range(start, start + PERIOD):
        if due(step, step + 1, per_step, start) > due(step, step + 1, leading, leading_start):
            return step + 1
    return None
