"""The proof that a slowdown is seen: what is planted, what counts as held, and all of it on a small checkout."""

import json
import os
import time
from pathlib import Path

import pytest

from bench import planted
from bench.comparing import verdicts
from bench.comparing.ratios import Ratio
from bench.comparing.sides import Choice, Timing
from bench.comparing.verdicts import Compared, Comparison
from bench.planted import Plant, Trial
from tests.bench.synthetic_checkout import make_checkout

ROOT = Path(__file__).parents[2]
QUICK = Choice(rounds=10, launches=2, patience=60)


def comparison(failures: dict[str, str] | None = None, **values: float) -> Comparison:
    benches = {
        f"bench/bench_{name}.py::test_{name}": Compared(Ratio(x, x - 0.01, x + 0.01, 0.99, (x,)), 1.0, x)
        for name, x in values.items()
    }
    return Comparison("in turn", 1.1, QUICK, Timing(failures={"old": {}, "new": failures or {}}), benches)


def test_what_is_planted_takes_a_fifth_more_processor_time() -> None:
    def work() -> float:
        started = time.thread_time()
        while time.thread_time() - started < 0.02:
            pass
        return started

    names = {"work": work}
    exec(planted.SLOWED.format(factor=1.2, target="work"), names)
    started = time.thread_time()
    assert names["work"]() >= started  # it returns what it did
    assert time.thread_time() - started == pytest.approx(0.024, rel=0.05)


def test_the_slowed_method_is_there(tmp_path: Path) -> None:
    plant = Plant()
    (tmp_path / "stormfast").mkdir()
    (tmp_path / plant.file).write_text((ROOT / plant.file).read_text())
    plant.into(tmp_path)
    code = (tmp_path / plant.file).read_text()
    assert code.endswith("Learner.update_world_model = slowed(Learner.update_world_model)\n")
    compile(code, plant.file, "exec")
    assert "    def update_world_model(" in code
    assert all((ROOT / path).exists() for path in planted.PATHS)


def test_held_means_flagged_where_it_is_and_nowhere_else() -> None:
    expected, allowed = ("::test_world_model",), ("bench_step.py::",)
    held = Trial("planted 20%", comparison(world_model=1.2, agent=1.0, step=1.0), expected, allowed)
    assert held.held and not held.missed and not held.false_alarms
    assert Trial("planted 20%", comparison(world_model=1.2, step=1.15), expected, allowed).held
    missed = Trial("planted 20%", comparison(world_model=1.1, agent=1.0), expected, allowed)
    assert missed.missed == ["::test_world_model"] and not missed.held
    alarmed = Trial("planted 20%", comparison(world_model=1.2, agent=1.2), expected, allowed)
    assert alarmed.false_alarms == ["bench/bench_agent.py::test_agent"] and not alarmed.held
    assert Trial("unchanged 1", comparison(world_model=1.0)).held
    assert not Trial("unchanged 1", comparison(world_model=1.2)).held
    assert not Trial("unchanged 1", comparison()).held  # nothing was compared
    failed = Trial("unchanged 1", comparison({"bench/bench_x.py": "ImportError"}, agent=1.0))
    assert failed.false_alarms == ["bench/bench_x.py"] and not failed.held
    assert planted.reasons([held, missed, alarmed, failed, Trial("unchanged 2", comparison())]) == [
        "planted 20%: ::test_world_model was not flagged",
        "planted 20%: bench/bench_agent.py::test_agent was flagged or failed",
        "unchanged 1: bench/bench_x.py was flagged or failed",
        "unchanged 2: no bench could be compared",
    ]
    rows = planted.table([held, missed]).splitlines()
    assert rows[2] == "| planted 20% | 3 | test_world_model 1.200 (1.190 - 1.210) | 1.000 - 1.000 | 0 | yes |"
    assert rows[3] == "| planted 20% | 2 | none | 1.000 - 1.100 | 1 | NO |"
    record = planted.record([held, missed], Plant())
    assert (
        record["held"] is False
        and record["comparisons"][0]["benches"][0] == verdicts.as_json(held.comparison)["benches"][0]
    )


@pytest.mark.slow
def test_a_planted_slowdown_is_caught_and_unchanged_code_is_not_flagged(tmp_path: Path) -> None:
    """20 % in encode, which is 4 ms of the 7 of `both`: 11 % there."""
    root = make_checkout(tmp_path / "checkout")
    (tmp_path / "scratch").mkdir()
    plant = Plant("stormfast/work.py", "encode", 0.2, ("[encode]",), ("::test_both",))
    trials = planted.prove(root, plant, Choice(rounds=20, launches=2, patience=60), 1.1, 2, tmp_path / "scratch")
    assert [trial.name for trial in trials] == ["planted 20%", "unchanged 1", "unchanged 2"]
    assert all(trial.held for trial in trials), planted.reasons(trials)
    assert all(len(trial.comparison.benches) == 3 for trial in trials)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert planted.main(["--rounds", "1", "--launches", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "planted: --rounds x --launches must be at least 8 for an interval, got 1 x 1\n"
    assert planted.main(["--unchanged", "-1"]) == 2
    assert capsys.readouterr().err == "planted: --unchanged must be at least 0, got -1\n"
    assert planted.main(["--rounds", "many"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith("planted: argument --rounds: invalid int value: 'many'; `")
        and err.count("\n") == 1
    )


def test_the_file_is_written_before_anything_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def leave(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(planted, "prove", lambda *_: [Trial("unchanged 1", comparison(agent=1.0))])
    monkeypatch.setattr(planted, "use_threads", lambda count: None)
    monkeypatch.setattr(planted, "print", leave, raising=False)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # pytest's own stdout stays
    assert planted.main(["--json", str(tmp_path / "x.json")]) == 141
    assert json.loads((tmp_path / "x.json").read_text())["held"] is True
