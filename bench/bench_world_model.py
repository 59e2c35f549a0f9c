"""The world-model update: forward, losses, backward, optimiser."""

from bench.conftest import MeasurePhase


def test_world_model(measure_phase: MeasurePhase) -> None:
    measure_phase("world_model")
