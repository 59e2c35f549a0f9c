"""Imagination: contexts encoded, then a rollout."""

from bench.conftest import MeasurePhase


def test_imagination(measure_phase: MeasurePhase) -> None:
    measure_phase("imagination")
