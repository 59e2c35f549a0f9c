"""Acting: from the present frame to an action on the host, and the acting context encoded anew after an update."""

import pytest

from bench.conftest import MeasurePhase


@pytest.mark.parametrize("phase", ["act", "refresh"])
def test_act(phase: str, measure_phase: MeasurePhase) -> None:
    measure_phase(phase)
