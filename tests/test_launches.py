"""No phase of training waits for the device, and none launches more operators than its budget: a proof without a GPU.

tests/data/launch_budgets.json holds the exact counts. After a change that is meant to change them:

    python -m tests.test_launches

The case tiny is the preset as a CPU runs it. storm and fast have those presets' layers, steps and minibatches at small widths,
in bfloat16 and with the operators that a GPU has: launches depend on none of the sizes that were made small.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stormfast import full_step
from stormfast.compile import Captured, capture_phases
from stormfast.config import ProfileConfig, TrainConfig, override
from stormfast.counting import Counts, count
from stormfast.full_step import count_phases, time_phases
from stormfast.profile import training_config
from stormfast.run import Run, build
from stormfast.train import advance
from stormfast_kernels import dispatch, launch

BUDGETS = Path(__file__).parent / "data" / "launch_budgets.json"
REGENERATE = "`python -m tests.test_launches` writes them anew"
SLACK = 0.05  # a count may fall by this much before its budget must follow
HOST_PHASES = {"env"}  # not of the device: what it counts on a CPU is the host's work

SMALL: dict[str, Any] = {
    "world_model.channels": (4, 4, 4, 4),
    "world_model.categoricals": 4,
    "world_model.classes": 8,
    "world_model.batch_size": 2,
    "imagination.batch_size": 4,
    "agent.width": 8,
    "acting.random_steps": 64,
    "precision": "bfloat16",
}
HEAD_SIZE = 16  # the smallest that the attention kernel takes
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"precision": "float32"},
    "storm": SMALL | {"world_model.width": 8 * HEAD_SIZE},
    "fast": SMALL | {"world_model.width": 4 * HEAD_SIZE},
}


def fused_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if training and p > 0 else x


@contextmanager
def operators_as_on_a_gpu() -> Iterator[None]:
    """What a CPU splits is one operator, as a GPU has it: our kernels, which run their references inside, dropout, and
    attention with dropout, which here goes without. The numbers that come out mean nothing."""

    def attention(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
        return scaled_dot_product_attention(*args, **kwargs)

    scaled_dot_product_attention = F.scaled_dot_product_attention
    with ExitStack() as patches:
        for owner, name, other in (
            (dispatch, "backend", lambda device: "triton"),
            (launch, "INTERPRETED", False),
            (F, "dropout", fused_dropout),
            (F, "scaled_dot_product_attention", attention),
        ):
            patches.enter_context(mock.patch.object(owner, name, other))
        yield


@contextmanager
def warm_run(config: TrainConfig) -> Iterator[Run]:
    """A run past its random steps and its first updates of each kind, on Catch."""
    with TemporaryDirectory() as directory, build(config, Path(directory)) as run:
        while run.step < config.acting.random_steps + 4:
            advance(run)
        yield run


def case_config(case: str) -> TrainConfig:
    return override(training_config(ProfileConfig(preset=case, device="cpu")), CASES[case])  # type: ignore[arg-type]


def counted(case: str) -> dict[str, Counts]:
    """Counts of each phase that is the device's."""
    if case == "tiny":
        with warm_run(case_config(case)) as run:
            counts = count_phases(run)
    else:
        with operators_as_on_a_gpu(), warm_run(case_config(case)) as run:
            counts = count_phases(run)
    return {phase: counts[phase] for phase in counts if phase not in HOST_PHASES}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Counts]]:
    return request.param, counted(request.param)


def test_no_phase_but_acting_reads_from_the_device(case: tuple[str, dict[str, Counts]]) -> None:
    reads = {phase: counts.host_reads for phase, counts in case[1].items()}
    (action,) = reads.pop("act")
    assert action.startswith("cpu at stormfast/act.py")
    assert not any(reads.values()), reads


def test_launches_are_within_their_budgets(case: tuple[str, dict[str, Counts]]) -> None:
    name, counts = case
    budget = json.loads(BUDGETS.read_text())[name]
    assert counts.keys() == budget.keys(), f"the phases have changed; {REGENERATE}"
    for phase, most in budget.items():
        launches = counts[phase].launches
        assert launches <= most, f"{name}: {phase} launches {launches} operators, and its budget is {most}; if that is meant, {REGENERATE}"
        assert launches >= (1 - SLACK) * most, f"{name}: {phase} launches only {launches} operators of its budget {most}; {REGENERATE}"


def test_the_kernels_are_launched_as_on_a_gpu(case: tuple[str, dict[str, Counts]]) -> None:
    name, counts = case
    steps = counts["imagination"].operators["stormfast.cached_attention_step"]
    config = case_config(name)
    assert steps == (0 if name == "tiny" else config.world_model.layers * config.imagination.horizon)


def launches(config: TrainConfig) -> dict[str, int]:
    with warm_run(config) as run:
        return {phase: counts.launches for phase, counts in count_phases(run).items()}


def test_launches_do_not_depend_on_widths():
    wider = {"world_model.channels": (3, 5, 6, 7), "world_model.width": 48, "world_model.categoricals": 5, "world_model.classes": 7}
    wider |= {"world_model.batch_size": 3, "world_model.batch_length": 9, "imagination.batch_size": 7, "agent.width": 9}
    tiny = case_config("tiny")
    assert launches(override(tiny, wider)) == launches(tiny)


def test_captured_phases_are_counted_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with warm_run(case_config("tiny")) as run:
        eager = count_phases(run)
        capture_phases(run.phases, run.collector.player)
        monkeypatch.setattr(full_step, "compile_mode", lambda run: "graphs")
        times = time_phases(run, 2)
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
        captured = run.collector.player.decide
        assert isinstance(captured, Captured)
        assert count_phases(run) == eager
        assert run.collector.player.decide is captured


def test_a_step_of_the_loop_reads_an_action_and_nothing_else():
    with warm_run(case_config("tiny")) as run:
        counts = count(lambda: [advance(run) for _ in range(5)], torch.device("cpu"))
    assert len(counts.host_reads) == 5
    assert {read.partition(":")[0] for read in counts.host_reads} == {"cpu at stormfast/act.py"}


def write_budgets() -> None:
    """Writes and prints what is counted now."""
    budgets = {case: {phase: counts.launches for phase, counts in counted(case).items()} for case in CASES}
    BUDGETS.write_text(json.dumps(budgets, indent=2) + "\n")
    print(json.dumps(budgets, indent=2))


if __name__ == "__main__":
    write_budgets()
