"""The agent update: actor and critic on one rollout batch, all its minibatches."""

from bench.conftest import MeasurePhase


def test_agent(measure_phase: MeasurePhase) -> None:
    measure_phase("agent")
