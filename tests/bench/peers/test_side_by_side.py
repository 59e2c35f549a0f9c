"""Turns, ratios and the JSON around them: order, figures by hand, what is refused."""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.peers import side_by_side
from bench.peers.side_by_side import CheckError, compare, over_text, take_turns
from stormfast.errors import UserError

CPU = torch.device("cpu")


def test_turns_go_there_and_back() -> None:
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    seconds = take_turns(calls, 4, CPU)
    assert "".join(seen) == "abccbaabccba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert min(min(values) for values in seconds.values()) >= 0


@pytest.mark.parametrize(("slower", "found"), [(1.2, True), (1.0, False)])
def test_a_slower_call_is_found_slower(slower: float, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own, with 5 % noise, and a machine that takes twice as long by the end."""
    rng, clock = random.Random(0), iter(range(1000))

    def takes(seconds: float) -> Callable[[], float]:
        return lambda: seconds * rng.lognormvariate(0, 0.05) * (1 + next(clock) / 32)

    monkeypatch.setattr(side_by_side, "timed", lambda call, device: call())
    over = compare(take_turns({"ours": takes(0.1), "theirs": takes(0.1 * slower)}, 16, CPU), "ours")["theirs"][
        "over_ours"
    ]
    assert (over["low"] > 1.05) == found
    assert over["low"] < slower < over["high"]
    assert over["coverage"] >= 0.99


def test_ratios_by_hand() -> None:
    """Three times as long in each round, whatever else slowed both sides of it."""
    found = compare({"ours": [1.0, 2.0, 10.0, 20.0], "theirs": [3.0, 6.0, 30.0, 60.0]}, "ours")
    over = found["theirs"]["over_ours"]
    assert (over["value"], over["low"], over["high"]) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    assert 0 < over["coverage"] < 0.99  # four rounds are too few
    assert "over_ours" not in found["ours"]
    assert found["ours"]["seconds"] == 6.0
    assert found["ours"]["rounds"] == [1.0, 2.0, 10.0, 20.0]
    uneven = compare({"ours": [1.0] * 16, "theirs": [2.0, 4.0] * 8}, "ours")["theirs"]["over_ours"]
    assert 2 <= uneven["low"] < uneven["value"] < uneven["high"] <= 4


def test_seconds_are_those_of_a_call() -> None:
    found = compare({"ours": [1.0, 1.0, 1.0, 1.0], "theirs": [1.0, 1.0, 1.0, 1.0]}, "ours", {"ours": 10, "theirs": 5})
    assert found["ours"]["seconds"] == 0.1
    assert found["theirs"]["seconds"] == 0.2
    assert found["theirs"]["over_ours"]["value"] == pytest.approx(2)
    assert statistics.median(found["theirs"]["rounds"]) == 0.2


def test_over_text() -> None:
    assert over_text({}) == "1"
    assert (
        over_text({"over_ours": {"value": 2.104, "low": 1.95, "high": 2.3149, "coverage": 0.99}}) == "2.10 (1.95-2.31)"
    )


def given(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"rounds": 4, "threads": None, "json": None, "device": "cpu"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 3}, "--rounds must be even"),
        ({"rounds": 0}, "--rounds must be even"),
        ({"threads": 0}, "--threads must be of 1 to 1024, got 0"),
        ({"json": Path("nowhere/x.json")}, "--json must lie in a directory that can be written, got nowhere/x.json"),
        ({"json": Path("bench")}, "--json must be a file, but bench is a directory"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        side_by_side.check_common(given(**changes))


def test_the_command_makes_the_result_again(tmp_path: Path) -> None:
    options = {"device": "cpu", "threads": None, "preset": ["tiny", "cpu"]}
    result = side_by_side.begin("bench/peers/x.py", options, ("numpy",), CPU)
    assert result["command"] == "python bench/peers/x.py --device cpu --preset tiny --preset cpu"
    assert {"device", "commit", "dirty", "threads", "torch"} <= set(result["machine"])
    assert set(result["versions"]) == {"python", "numpy"}
    side_by_side.add(result, [{"a": 1}], None)
    side_by_side.add(result, [{"a": 2}], tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == result
    assert [row["a"] for row in result["rows"]] == [1, 2]
    assert len(result["load"]) == 3
    line = side_by_side.heading(result)
    assert (
        result["machine"]["commit"] in line
        and result["date"] in line
        and result["machine"]["device"] in line
        and result["command"] in line
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        side_by_side.add(result, [{"a": math.nan}], tmp_path / "x.json")
    result["rows"].clear()
    with pytest.raises(UserError, match=r"x.json cannot be written: "):  # as of a disk that is full by now
        side_by_side.add(result, [{"a": 1}], tmp_path / "x.json" / "x.json")


def run_main(error: BaseException | None, table: Path | None = None) -> int:
    def run(_: argparse.Namespace) -> dict[str, Any]:
        if error:
            raise error
        return {"said": "table"}

    return side_by_side.main_of("x", lambda: argparse.Namespace(table=table), run, lambda result: result["said"])


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(None) == 0
    assert capsys.readouterr().out == "table\n"
    assert run_main(UserError("no such thing")) == 2
    assert capsys.readouterr() == ("", "x: no such thing\n")
    assert run_main(CheckError("a differs from b")) == 1
    assert capsys.readouterr() == ("", "x: nothing more is timed: a differs from b\n")
    assert run_main(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "x: interrupted\n")
    (tmp_path / "good.json").write_text('{"said": "read"}')
    (tmp_path / "bad.json").write_text('{"rows": 1}')
    assert run_main(None, tmp_path / "good.json") == 0
    assert capsys.readouterr().out == "read\n"
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("bad.json", "absent.json", "deep.json"):
        assert run_main(None, tmp_path / name) == 2
        out, error = capsys.readouterr()
        assert (out, len(error.splitlines())) == ("", 1)
        assert "--table must be a file that --json of this script wrote" in error
