"""Everything counted is as bench/counts.json says, and what would slow a step down unseen by a clock goes red by name.

Kernels are compiled in a process without Triton's interpreter: tests/kernels/test_ahead_of_time.py holds those of storm and fast.
"""

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import counts
from bench.counted import graphs, kernels, phases
from stormfast.agent import Agent
from stormfast.errors import UserError
from stormfast.learner import Learner
from stormfast.settings import PRESETS
from stormfast.world_model import WorldModel
from stormfast_kernels import launch

Case, Resources = kernels.report.Case, kernels.report.Resources
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "counts.py"


@pytest.fixture(scope="module")
def saved() -> dict[str, int]:
    """The committed counts, which are of the version of torch that constraints.txt has."""
    about, found = counts.read(counts.SAVED)
    if counts.version(about["torch"]) != counts.version(torch.__version__):
        pytest.skip(f"counted with torch {about['torch']}, and here is {torch.__version__}")
    return found


def below(saved: dict[str, int], prefix: str) -> dict[str, int]:
    return {name: value for name, value in saved.items() if name.startswith(prefix)}


def lines(saved: dict[str, int], counted: dict[str, int]) -> list[str]:
    return list(map(str, counts.differences(saved, counted)))


# --- the gate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_phases_ask_for_what_is_written_down(preset, saved):
    found = lines(below(saved, f"{preset}."), phases.of_preset(preset))
    assert not found, "\n".join([*found, f"if all are meant: {counts.RENEW}"])


@pytest.mark.parametrize("preset", ["fast", "tiny"])  # the others, four seconds each: in the slow test
def test_parts_compile_as_often_as_is_written_down(preset, saved):
    found = lines(below(saved, f"compiled.{preset}."), graphs.of_preset(preset))
    assert not found, "\n".join([*found, f"if all are meant: {counts.RENEW}"])


def test_the_file_holds_every_group_and_preset_and_says_where_it_comes_from():
    about, found = counts.read(counts.SAVED)
    assert {counts.group_of(name) for name in found} == set(counts.GROUPS)
    assert {name.split(".")[0] for name in found} == {*PRESETS, "compiled", "kernels"}
    assert {re.split(r"[./]", name)[1] for name in found if counts.group_of(name) != "phases"} == set(PRESETS)
    assert all(about[key] for key in ("device", "commit", "date", "command"))
    assert min(found.values()) >= 0 and len(found) > 2000


def test_the_file_is_of_the_versions_that_are_installed_for_the_tests():
    """So that to move to another torch or triton means to count anew, not to count no more."""
    about, _ = counts.read(counts.SAVED)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for library in ("torch", "triton"):
        assert counts.version(about[library]) == pinned[library].split(";")[0].strip(), counts.RENEW


@pytest.mark.slow
def test_the_script_finds_everything_as_written_down():
    """All presets, kernels too: under an environment that asks for Triton's interpreter, and from another directory."""
    pytest.importorskip("triton", reason="triton is not installed, so there is no compiler: pip install triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, SCRIPT, "--check"], env=environment, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- planted faults ----------------------------------------------------------------------------------------------


def planted(monkeypatch, owner, name, around):
    """Wraps a method in around(original, *args)."""
    original = getattr(owner, name)
    monkeypatch.setattr(
        owner, name, functools.wraps(original)(lambda *args, **kwargs: around(original, *args, **kwargs))
    )


def test_an_extra_launch_goes_red(monkeypatch, saved):
    def update(original, learner, batch):
        batch.reward.abs()
        return original(learner, batch)

    planted(monkeypatch, Learner, "update_world_model", update)
    found = counts.differences(below(saved, "tiny."), phases.of_preset("tiny"))
    assert {difference.name for difference in found} == {"tiny.world_model.launches", "tiny.loop.launches"}
    assert all(difference.worse and difference.new == saved[difference.name] + 1 for difference in found)


def test_a_host_read_goes_red(monkeypatch, saved):
    def update(original, learner, rollout):
        losses = original(learner, rollout)
        float(next(iter(losses.values())))
        return losses

    planted(monkeypatch, Learner, "update_agent_on", update)
    reads = {name: value for name, value in phases.of_preset("fast").items() if name.endswith("host_reads")}
    found = counts.differences({name: saved[name] for name in reads}, reads)
    assert all(difference.worse for difference in found)  # one a minibatch, in the phase and in the loop around it
    assert list(map(str, found)) == ["fast.agent.host_reads rose from 0 to 4", "fast.loop.host_reads rose from 4 to 8"]


def test_a_matrix_product_more_goes_red(monkeypatch, saved):
    def loss(original, agent, rollout, *args):
        agent.log_policy(rollout.state)
        return original(agent, rollout, *args)

    planted(monkeypatch, Agent, "loss", loss)
    found = counts.differences(below(saved, "tiny."), phases.of_preset("tiny"))
    names = {"tiny.loop.launches", *(f"tiny.agent.{quantity}" for quantity in ("launches", "flops", "bytes"))}
    assert {difference.name for difference in found} == names
    assert all(difference.worse for difference in found)


def test_a_graph_break_and_a_recompilation_go_red(monkeypatch, saved):
    def broken(original, agent, rollout):
        torch._dynamo.graph_break()
        return original(agent, rollout)

    def update(original, learner, batch):
        learner.world_model.turn = not getattr(
            learner.world_model, "turn", False
        )  # compiled code takes it as a constant
        return original(learner, batch)

    def losses(original, model, *args):
        return {name: value + model.turn for name, value in original(model, *args).items()}

    planted(monkeypatch, Agent, "loss", broken)
    planted(monkeypatch, Learner, "update_world_model", update)
    planted(monkeypatch, WorldModel, "loss_with_uniform", losses)
    found = counts.differences(below(saved, "compiled.tiny."), graphs.of_preset("tiny"))
    assert all(difference.worse for difference in found)
    assert {difference.name.removeprefix("compiled.tiny.") for difference in found} == {
        "Agent.loss.graph_breaks",
        "WorldModel.loss_with_uniform.graphs",
        "WorldModel.loss_with_uniform.recompilations",
    }


def row(found: Resources) -> kernels.report.Row:
    made = launch.Launch(SimpleNamespace(__name__="unimix_sample_kernel"), (512,), {}, 4)
    return kernels.report.Row(Case("storm", "sample", "bf16", (1024, 32, 32), made), 90, found)


GOOD = Resources(
    registers=40, shared=512, stack=0, spilled=0, instructions=400, wide_loads=2, wide_stores=2, tensor_core=0
)


def test_a_kernel_that_takes_more_goes_red():
    before, after = (
        kernels.flat([row(found)])
        for found in (GOOD, replace(GOOD, instructions=401, registers=48, spilled=4, stack=8))
    )
    assert list(before) == [f"kernels.storm/sample/bf16.sm_90.{what}" for what in kernels.QUANTITIES]
    assert lines(before, after) == [
        "kernels.storm/sample/bf16.sm_90.instructions rose from 400 to 401",
        "kernels.storm/sample/bf16.sm_90.registers rose from 40 to 48",
        "kernels.storm/sample/bf16.sm_90.stack rose from 0 to 8",
        "kernels.storm/sample/bf16.sm_90.spilled rose from 0 to 4",
    ]


# --- comparing ---------------------------------------------------------------------------------------------------


def test_differences_say_what_rose_fell_came_and_went():
    found = counts.differences({"a.x": 1, "a.y": 5, "a.z": 2, "gone": 3}, {"a.x": 1, "a.y": 4, "a.z": 3, "new": 0})
    assert list(map(str, found)) == [
        "a.z rose from 2 to 3",
        "a.y fell from 5 to 4",
        "gone is gone: it was 3",
        "new is new: 0",
    ]
    assert [difference.worse for difference in found] == [True, False, False, False]
    assert counts.differences({"a": 1}, {"a": 1}) == []


def test_nested_and_flat_counts_are_the_same_and_a_line_each_on_disk(tmp_path):
    flat = {
        "storm.act.launches": 3,
        "storm.act.host_reads": 1,
        "storm.agent.launches": 7,
        "kernels.storm/a/bf16.sm_90.registers": 40,
    }
    assert counts.nest(flat)["storm"] == {"act": {"launches": 3, "host_reads": 1}, "agent": {"launches": 7}}
    assert counts.flatten(counts.nest(flat)) == flat
    counts.save(tmp_path / "counts.json", flat)
    about, again = counts.read(tmp_path / "counts.json")
    assert again == flat
    assert {"device", "commit", "date", "command", "torch", "triton"} <= set(about)
    assert '      "act": {"launches": 3, "host_reads": 1},' in (tmp_path / "counts.json").read_text().splitlines()


# --- the command line --------------------------------------------------------------------------------------------

COUNTED = {
    "phases": {"tiny.act.launches": 3, "tiny.act.host_reads": 1},
    "compiled": {"compiled.tiny.Agent.loss.graphs": 1},
    "kernels": {"kernels.a.sm_90.instructions": 400},
}
ALL = COUNTED["phases"] | COUNTED["compiled"] | COUNTED["kernels"]


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A file of what will be counted, in no time."""
    monkeypatch.setattr(counts, "count_group", lambda group: dict(COUNTED[group]))
    monkeypatch.setattr(sys, "argv", ["bench/counts.py", "--write"])
    counts.save(tmp_path / "counts.json", ALL)
    return tmp_path / "counts.json"


def edited(file: Path, about: dict | None = None, **counted: int) -> None:
    was, found = counts.read(file)
    file.write_text(json.dumps({"about": was | (about or {}), "counts": counts.nest(found | counted)}))


def test_equal_counts_pass(file, capsys):
    assert counts.main(["--check", "--file", str(file)]) == 0
    assert capsys.readouterr() == ("4 counts are those of counts.json\n", "")


@pytest.mark.parametrize(("before", "line", "rose"), [(2, "rose from 2 to 3", 1), (4, "fell from 4 to 3", 0)])
def test_a_rise_fails_and_so_does_a_fall_that_is_not_written_down(file, capsys, before, line, rose):
    edited(file, **{"tiny.act.launches": before})
    assert counts.main(["--check", "--file", str(file)]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"tiny.act.launches {line}"
    assert last.startswith(f"{rose} of 4 counts rose, {1 - rose} differ otherwise;") and counts.RENEW in last
    assert counts.main(["--check", "--groups", "compiled,kernels", "--file", str(file)]) == 0
    assert counts.main(["--write", "--file", str(file)]) == 0
    assert counts.read(file)[1] == ALL


def test_a_count_that_came_or_went_is_not_as_written_down(file, capsys, monkeypatch):
    edited(file, **{"tiny.env.launches": 1})
    monkeypatch.setitem(COUNTED, "compiled", COUNTED["compiled"] | {"compiled.tiny.Agent.other.graphs": 1})
    assert counts.main(["--check", "--file", str(file)]) == 1
    assert set(capsys.readouterr().err.splitlines()[:2]) == {
        "tiny.env.launches is gone: it was 1",
        "compiled.tiny.Agent.other.graphs is new: 1",
    }


@pytest.mark.parametrize(
    ("library", "left_out", "named"), [("torch", ["phases", "compiled"], "0.1.0"), ("triton", ["kernels"], "3.0.0")]
)
def test_counts_of_another_compiler_are_left_out_and_fail_the_check(file, capsys, library, left_out, named):
    here = counts.describe(torch.device("cpu"))[library]
    edited(file, about={library: named}, **{name: 10**6 for group in left_out for name in COUNTED[group]})
    assert counts.main(["--check", "--file", str(file)]) == 1
    out, err = capsys.readouterr()
    *lines, last = err.splitlines()
    assert lines == [
        f"{group} are left out: counted with {library} {named}, and here is {counts.version(here)}"
        for group in left_out
    ]
    assert (
        last.startswith(f"{','.join(left_out)} could not be checked; install the versions of counts.json")
        and counts.RENEW in last
    )
    others = [group for group in counts.GROUPS if group not in left_out]
    assert out == f"{sum(len(COUNTED[group]) for group in others)} counts are those of counts.json\n"
    assert counts.main(["--check", "--groups", ",".join(others), "--file", str(file)]) == 0


def test_a_check_of_nothing_fails(file, capsys):
    edited(file, about={"torch": "0.1.0", "triton": "0.1.0"})
    assert counts.main(["--check", "--file", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "phases,compiled,kernels could not be checked" in err


def test_another_build_of_the_same_version_counts_the_same(file):
    edited(file, about={"torch": counts.version(torch.__version__) + "+cu130"})
    assert counts.main(["--check", "--file", str(file)]) == 0


def test_a_missing_triton_leaves_the_kernels_out_and_fails_the_check(file, capsys, monkeypatch):
    edited(file, about={"triton": "3.7.1"}, **{"kernels.a.sm_90.instructions": 1})
    monkeypatch.setattr(launch, "triton", None)
    assert counts.main(["--check", "--file", str(file)]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == "kernels are left out: counted with triton 3.7.1, and here is none" and last.startswith(
        "kernels could not be checked"
    )


@pytest.mark.parametrize(
    "error",
    [ImportError("no module named stormfast.full_step"), AttributeError("no survey"), UserError("needs triton")],
)
def test_a_group_that_an_older_checkout_lacks_is_left_out_with_a_line(file, capsys, monkeypatch, error):
    def count_group(group):
        if group == "compiled":
            raise error
        return COUNTED[group]

    monkeypatch.setattr(counts, "count_group", count_group)
    assert counts.main(["--json", str(file)]) == 0
    assert capsys.readouterr().err == f"compiled are left out: {type(error).__name__}: {error}\n"
    assert counts.read(file)[1] == COUNTED["phases"] | COUNTED["kernels"]


def test_what_cannot_be_counted_here_is_not_written_down(file, capsys, monkeypatch):
    def count_group(group):
        raise UserError("the report needs cuobjdump")

    monkeypatch.setattr(counts, "count_group", count_group)
    for does in ("--write", "--check"):
        assert counts.main([does, "--file", str(file)]) == 2
        assert capsys.readouterr() == ("", "counts: the report needs cuobjdump\n")
    assert counts.read(file)[1] == ALL


def test_the_tables_have_a_row_a_thing(file, capsys):
    assert counts.main([]) == 0
    tables = [table.splitlines() for table in capsys.readouterr().out.split("\n\n")]
    assert [table[0].split()[0] for table in tables] == list(counts.GROUPS)
    assert tables[0] == ["phases    launches  host_reads", "tiny act         3           1"]
    assert tables[1][1].split() == ["tiny", "Agent", "loss", "1"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "must hold counts"),
        ("[]", "lacks one"),
        ("[" * 100_000, "must hold counts"),
        ('{"about": {"torch": 2}, "counts": {}}', "must name the version of torch, but it is 2"),
        ('{"about": {"triton": []}, "counts": {}}', "must name the version of triton, but it is []"),
        ('{"about": {}, "counts": 3}', "lacks one"),
        ('{"about": {}, "counts": {"a": {"b": "3"}}}', 'a.b is "3"'),
        ('{"about": {}, "counts": {"a": {"b": true}}}', "a.b is true"),
        ('{"about": {}, "counts": {"a": {"b": 1.5}}}', "a.b is 1.5"),
    ],
)
def test_a_file_without_counts_is_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "counts.json"
    if content is not None:
        path.write_text(content)
    assert counts.main(["--check", "--file", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err and words in err and "--write" in err


def test_a_file_that_cannot_be_written_is_named_before_counting(file, capsys, monkeypatch):
    monkeypatch.setattr(counts, "count_group", lambda group: pytest.fail("counted"))
    for path in (file.parent, file.parent / "missing" / "counts.json", file / "below", Path("/dev/null")):
        for arguments in (["--json", str(path)], ["--write", "--file", str(path)]):
            assert counts.main(arguments) == 2
            assert str(path) in capsys.readouterr().err


def test_an_interrupted_count_is_one_line(file, capsys, monkeypatch):
    def count_group(group):
        raise KeyboardInterrupt

    monkeypatch.setattr(counts, "count_group", count_group)
    assert counts.main(["--check", "--file", str(file)]) == 130
    assert capsys.readouterr() == ("", "counts: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "phases,graphs"], "must be some of phases,compiled,kernels, got 'phases,graphs'"),
        (["--groups", ""], "got ''"),
        (["--write", "--groups", "phases"], "leave out --groups"),
        (["--write", "--check"], "not allowed with"),
    ],
)
def test_bad_options_are_refused(capsys, arguments, message):
    assert counts.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        counts.main(["--help"])
    assert stopped.value.code == 0
    assert (counts.__doc__ or "").partition("\n")[2].strip() in capsys.readouterr().out
