"""The runner of the comparisons: order of timing, ratios by hand, results, refusals."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.peers import runner
from bench.peers.runner import OURS, CheckError, interleave, paired_ratio, summarize, time_interleaved
from stormfast.errors import UserError

CPU = torch.device("cpu")


def test_rounds_alternate_in_order() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) or len(seen) for name in "abc"}
    assert interleave(calls, 4) == {"a": [1, 6, 7, 12], "b": [2, 5, 8, 11], "c": [3, 4, 9, 10]}
    assert "".join(seen) == "abccbaabccba"


@pytest.mark.parametrize(("factor", "found"), [(1.2, True), (1.0, False)])
def test_a_slower_call_is_found(factor: float, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated clock with 5 % noise, on a machine that becomes twice as slow meanwhile."""
    rng, calls = random.Random(0), iter(range(1000))

    def simulated(seconds: float) -> Callable[[], float]:
        return lambda: seconds * rng.lognormvariate(0, 0.05) * (1 + next(calls) / 64)

    monkeypatch.setattr(runner, "timed", lambda call, device: call())
    seconds = time_interleaved({OURS: simulated(0.1), "theirs": simulated(0.1 * factor)}, 32, CPU)
    ratio = summarize(seconds)["theirs"]["over_ours"]
    assert (ratio["low"] > 1.05) == found
    assert ratio["low"] < factor < ratio["high"]
    assert ratio["coverage"] >= 0.99


def test_ratios_by_hand() -> None:
    """1 - 2 (1 + 10) / 1024 is less than 0.99, so of 10 ratios none is left out; of 12 one at each end is."""
    ten, twelve = ([float(i + 1) for i in range(count)] for count in (10, 12))
    assert paired_ratio([1.0] * 10, ten) == {"value": 5.5, "low": 1.0, "high": 10.0, "coverage": 1 - 2 / 1024}
    assert paired_ratio([1.0] * 12, twelve) == {"value": 6.5, "low": 2.0, "high": 11.0, "coverage": 1 - 2 * 13 / 4096}
    assert paired_ratio([1.0, 2.0], [3.0, 6.0]) == {"value": 3.0, "low": 3.0, "high": 3.0, "coverage": 0.5}


def test_seconds_are_those_of_one_call() -> None:
    rows = summarize({OURS: [1.0] * 4, "theirs": [1.0, 1.0, 3.0, 3.0]}, {OURS: 10, "theirs": 5})
    assert rows[OURS] == {"seconds": 0.1, "seconds_iqr": 0.0, "rounds": [0.1] * 4}
    assert rows["theirs"]["seconds"] == pytest.approx(0.4)
    assert rows["theirs"]["over_ours"]["value"] == pytest.approx(4.0)


def run(error: Exception | None, *words: str) -> int:
    """A comparison of one row, after which `error` is raised."""

    def measure(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, list[Any]]]:
        yield {"rows": [{"name": "a", "seconds": 0.0012} | summarize({OURS: [1.0, 1.0], "x": [2.0, 2.0]})["x"]]}
        if error:
            raise error

    return runner.main("fake", "about", measure, words, rounds=4, packages=("numpy", "absent"))


def test_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    assert run(None, "--rounds", "2", "--json", str(path)) == 0
    result = json.loads(path.read_text())
    assert result["command"] == f"python -m bench.peers.fake --rounds 2 --json {path}"
    assert {"device", "commit", "dirty", "threads", "torch"} <= set(result["machine"])
    assert set(result["versions"]) == {"python", "numpy"}
    assert result["rows"][0]["over_ours"]["value"] == 2.0
    printed = capsys.readouterr().out
    assert result["machine"]["device"] in printed and result["machine"]["commit"] in printed
    assert "| name | ms | ms iqr | over ours |" in printed
    assert "| a | 2000 | 0 | 2.00 (2.00-2.00) |" in printed


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CheckError("a differs"), 1),
        (UserError("no such thing"), 2),
        (ImportError("no module"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_stops_it_is_one_line_and_keeps_the_rows(
    error: Exception, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error, "--json", str(tmp_path / "x.json")) == status
    out, err = capsys.readouterr()
    measured, line = err.splitlines()
    assert out == "" and measured == "fake: 1 rows measured"
    assert line.startswith("fake: ") and (str(error) or "interrupted") in line
    assert len(json.loads((tmp_path / "x.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    "words",
    ["--rounds 3", "--rounds 0", "--rounds x", "--threads 0", "--json nowhere/x.json", "--device gpu", "--unknown"],
)
def test_bad_options_are_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None, *words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fake: ") and err.count("\n") == 1
