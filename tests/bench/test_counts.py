"""Everything counted is as bench/counts.json says, and what would slow a step down unseen by a clock goes red by name.

Kernels are compiled in a process without Triton's interpreter: tests/kernels/test_ahead_of_time.py checks storm and
fast.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import count_runs, counts
from stormfast.agent import Agent
from stormfast.errors import UserError
from stormfast.learner import Learner
from stormfast.measure.phases import count_phases, warm_run
from stormfast.presets import PRESETS
from stormfast.replay import Replay
from stormfast.schema import override
from stormfast.settings import TrainConfig
from stormfast.world_model import WorldModel
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def saved() -> dict[str, int]:
    """The committed counts, which are of the version of torch in constraints.txt."""
    about, found = counts.read(counts.SAVED)
    if counts.version(about["torch"]) != counts.version(torch.__version__):
        pytest.skip(f"counted with torch {about['torch']}, and here is {torch.__version__}")
    return found


def below(saved: dict[str, int], prefix: str) -> dict[str, int]:
    return {name: value for name, value in saved.items() if name.startswith(prefix)}


# --- the gate ----------------------------------------------------------------------------------------------------


@pytest.mark.counts
@pytest.mark.parametrize("preset", PRESETS)
def test_phases_ask_for_what_is_written_down(preset, saved):
    found = counts.differences(below(saved, f"{preset}."), count_runs.phases_of(preset))
    assert not found, "\n".join([*map(str, found), f"if all are meant: {counts.UPDATE}"])


@pytest.mark.parametrize("preset", ["fast", "tiny"])  # the others, four seconds each: in the slow test
def test_parts_compile_as_often_as_is_written_down(preset, saved):
    found = counts.differences(below(saved, f"compiled.{preset}."), count_runs.compiled_of(preset))
    assert not found, "\n".join([*map(str, found), f"if all are meant: {counts.UPDATE}"])


def test_the_file_holds_every_group_and_preset_of_the_versions_that_are_installed_for_the_tests():
    """So that to move to another torch or triton means to count anew, not to count no more."""
    about, found = counts.read(counts.SAVED)
    assert {counts.group_of(name) for name in found} == set(counts.GROUPS)
    assert {name.split(".")[0] for name in found} == {*PRESETS, "compiled", "kernels"}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for library in ("torch", "triton"):
        assert counts.version(about[library]) == pinned[library].split(";")[0].strip(), counts.UPDATE


@pytest.mark.slow
def test_the_script_finds_everything_as_written_down():
    """All presets, kernels too, under an environment that asks for Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed, so there is no compiler: pip install triton")
    command = [sys.executable, "-m", "bench.counts", "--check"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- what counts rest on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_no_phase_but_acting_reads_from_the_device_and_kernels_launch_as_on_a_gpu(preset):
    config = count_runs.small_config(preset)
    with count_runs.operators_of(preset), warm_run(config, count_runs.WARMUP) as run:
        found = count_runs.device_phases(run)
    reads = {phase: counted.host_reads for phase, counted in found.items()}
    (action,) = reads.pop("act")
    assert action.startswith("cpu at stormfast/") and not any(reads.values()), reads
    steps = found["imagination"].operators["stormfast.cached_attention_step"]
    on_gpu = preset in count_runs.ON_GPU
    assert steps == (config.world_model.layers * config.imagination.horizon if on_gpu else 0)


def test_launches_do_not_depend_on_widths():
    def launches(config: TrainConfig) -> dict[str, int]:
        with warm_run(config, count_runs.WARMUP) as run:
            return {phase: counted.launches for phase, counted in count_phases(run).items()}

    wider = {"world_model.channels": (3, 5, 6, 7), "world_model.width": 48, "world_model.categoricals": 5}
    wider |= {"world_model.batch_size": 3, "world_model.batch_length": 9, "imagination.batch_size": 7, "agent.width": 9}
    tiny = count_runs.small_config("tiny")
    assert launches(override(tiny, wider)) == launches(tiny)


def part(function) -> count_runs.CompiledPart:
    torch._dynamo.reset()
    return count_runs.CompiledPart(function, torch.compile, {"fullgraph": True, "dynamic": False})


def broken_once(x):
    x = x + 1
    torch._dynamo.graph_break()
    return 2 * x


def broken_in_a_loop(x):
    for _ in range(2):
        x = x + 1
        torch._dynamo.graph_break()
    return x


@pytest.mark.parametrize(
    ("function", "sizes", "expected"),
    [
        (lambda x: 2 * x, (2, 2, 2), (1, 0, 0)),
        (lambda x: 2 * x, (2, 2, 3, 2, 4), (3, 0, 2)),  # another shape is a recompilation
        (broken_once, (1, 1), (2, 1, 0)),
        (broken_in_a_loop, (1, 1), (0, 1, 0)),  # no graph is left
    ],
)
def test_graphs_breaks_and_recompilations_are_counted(function, sizes, expected):
    compiled = part(function)
    for size in sizes:
        assert compiled(torch.zeros(size)).tolist() == function(torch.zeros(size)).tolist()
    assert (compiled.graphs, compiled.graph_breaks, compiled.recompilations) == expected


# --- planted faults ----------------------------------------------------------------------------------------------


def planted(monkeypatch, owner, name, around):
    """Wraps a method in around(original, *args)."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, functools.wraps(original)(lambda *args: around(original, *args)))


def test_launches_and_matrix_products_more_go_red(monkeypatch, saved):
    def update(original, learner, batch):
        batch.reward.abs()
        return original(learner, batch)

    def loss(original, agent, rollout):
        agent.log_policy(rollout.state)
        return original(agent, rollout)

    def append(original, replay, rows):
        torch.ones(3)
        return original(replay, rows)

    planted(monkeypatch, Learner, "update_world_model", update)
    planted(monkeypatch, Agent, "loss", loss)
    planted(monkeypatch, Replay, "append", append)
    found = counts.differences(below(saved, "tiny."), count_runs.phases_of("tiny"))
    agent = {f"tiny.agent.{quantity}" for quantity in ("launches", "flops", "bytes")}
    names = agent | {f"tiny.{name}.launches" for name in ("world_model", "append", "loop")}
    assert {difference.name for difference in found} == names and all(difference.worse for difference in found)


def test_a_host_read_goes_red(monkeypatch, saved):
    def update(original, learner, rollout):
        losses = original(learner, rollout)
        float(next(iter(losses.values())))
        return losses

    planted(monkeypatch, Learner, "update_agent_on", update)
    reads = {name: value for name, value in count_runs.phases_of("fast").items() if name.endswith("host_reads")}
    found = counts.differences({name: saved[name] for name in reads}, reads)
    # one for each minibatch, in the phase and in the loop around it
    assert list(map(str, found)) == ["fast.agent.host_reads rose from 0 to 4", "fast.loop.host_reads rose from 4 to 8"]


def test_a_graph_break_and_a_recompilation_go_red(monkeypatch, saved):
    def broken(original, agent, rollout):
        torch._dynamo.graph_break()
        return original(agent, rollout)

    def update(original, learner, batch):
        learner.world_model.odd = not getattr(learner.world_model, "odd", False)  # compiled code takes it as a constant
        return original(learner, batch)

    def losses(original, model, *args):
        return {name: value + model.odd for name, value in original(model, *args).items()}

    planted(monkeypatch, Agent, "loss", broken)
    planted(monkeypatch, Learner, "update_world_model", update)
    planted(monkeypatch, WorldModel, "loss_with_uniform", losses)
    found = counts.differences(below(saved, "compiled.tiny."), count_runs.compiled_of("tiny"))
    assert all(difference.worse for difference in found)
    assert {difference.name.split(".", 2)[2] for difference in found} == {
        "Agent.loss.graph_breaks",
        "WorldModel.loss_with_uniform.graphs",
        "WorldModel.loss_with_uniform.recompilations",
    }


# --- comparing and the command line ------------------------------------------------------------------------------

COUNTED = {
    "phases": {"tiny.act.launches": 3, "tiny.act.host_reads": 1},
    "compiled": {"compiled.tiny.Agent.loss.graphs": 1},
    "kernels": {"kernels.a/b.sm_90.instructions": 400},
}
ALL = COUNTED["phases"] | COUNTED["compiled"] | COUNTED["kernels"]


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A file of what will be counted, in no time."""
    monkeypatch.setattr(counts, "count_group", lambda group: dict(COUNTED[group]))
    monkeypatch.setattr(counts, "SAVED", tmp_path / "counts.json")
    counts.save(counts.SAVED, ALL)
    return counts.SAVED


def edit(file: Path, about: dict | None = None, **counted: int) -> None:
    was, found = counts.read(file)
    file.write_text(json.dumps({"about": was | (about or {}), "counts": counts.nest(found | counted)}))


def test_differences_say_what_rose_fell_came_and_went():
    found = counts.differences({"a.x": 1, "a.y": 5, "a.z": 2, "gone": 3}, {"a.x": 1, "a.y": 4, "a.z": 3, "new": 0})
    assert [(d.name, d.old, d.new, d.worse) for d in found] == [
        ("a.z", 2, 3, True),
        ("a.y", 5, 4, False),
        ("gone", 3, None, False),
        ("new", None, 0, False),
    ]


def test_a_file_reads_as_it_was_written_a_line_a_thing(file):
    about, again = counts.read(file)
    assert again == ALL and {"device", "commit", "date", "command", "torch", "triton"} <= set(about)
    assert '      "act": {"launches": 3, "host_reads": 1}' in file.read_text().splitlines()


@pytest.mark.parametrize(("before", "word"), [(2, "rose"), (4, "fell")])
def test_a_rise_fails_and_so_does_a_fall_that_is_not_written_down(file, capsys, before, word):
    assert counts.main(["--check"]) == 0
    edit(file, **{"tiny.act.launches": before})
    assert counts.main(["--check"]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"tiny.act.launches {word} from {before} to 3" and counts.UPDATE in last
    assert counts.main(["--check", "--groups", "compiled,kernels"]) == 0
    assert counts.main(["--write"]) == 0
    assert counts.read(file)[1] == ALL


def test_the_tables_show_every_count(file, capsys):
    assert counts.main([]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[:2] == [["phases", "launches", "host_reads"], ["tiny", "act", "3", "1"]]
    assert ["tiny", "Agent", "loss", "1"] in rows and ["a/b", "sm_90", "400"] in rows


def is_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> bool:
    out, err = capsys.readouterr()
    return out == "" and err.count("\n") == 1 and all(word in err for word in words)


def test_counts_of_another_version_are_not_compared_and_fail_the_check(file, capsys):
    edit(file, about={"triton": "0.1.0"})
    assert counts.main(["--check"]) == 2
    assert is_one_line(capsys, "kernels cannot be compared", "triton 0.1.0", counts.UPDATE)
    assert counts.main(["--check", "--groups", "phases,compiled"]) == 0


@pytest.mark.parametrize("mode", ["--write", "--check"])
def test_what_cannot_be_counted_here_is_never_written_down(file, capsys, monkeypatch, mode):
    def count_group(group):
        raise UserError("needs triton")

    monkeypatch.setattr(counts, "count_group", count_group)
    assert counts.main([mode]) == 2
    assert is_one_line(capsys, "counts: error: needs triton") and counts.read(file)[1] == ALL


@pytest.mark.parametrize("content", [None, "[]", '{"about": {}, "counts": {"a": true}}'])
def test_a_file_without_counts_is_one_line(file, capsys, content):
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert counts.main(["--check"]) == 2
    assert is_one_line(capsys, str(file), counts.UPDATE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "phases,graphs"], "must be some of phases,compiled,kernels, got 'phases,graphs'"),
        (["--write", "--groups", "phases"], "leave out --groups"),
    ],
)
def test_bad_options_are_refused_before_anything_is_counted(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(counts, "count_group", lambda group: pytest.fail("counted"))
    assert counts.main(arguments) == 2
    assert is_one_line(capsys, message)
