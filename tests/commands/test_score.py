"""The command: what it prints of runs on disk, in any terminal, and what it refuses."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from stormfast.aggregates import Estimate
from stormfast.cli import main
from stormfast.commands.score import estimate, number
from tests.scored_runs import write_run


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "group"
    for seed, (pong, up) in enumerate(((-20.7, 11_693.2), (14.6, 533.4), (-3.05, 6_113.3))):
        write_run(path / f"Pong-seed{seed}", game="Pong", seed=seed, evaluated={100: pong}, minutes=seed + 1)
        write_run(path / f"UpNDown-seed{seed}", game="UpNDown", seed=seed, evaluated={100: up}, minutes=seed + 1)
    write_run(path / "Pong-seed3", game="Pong", seed=3, saved=60, evaluated={})
    write_run(path / "Catch-seed0", game="Catch", saved=60, evaluated={60: 4.5})
    return path


def score(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    status = main(["score", *map(str, args)])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return str(out)


def rows(out: str) -> dict[str, list[str]]:
    """The words of each line, by the first of them; of lines that begin alike the last."""
    return {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words}


def test_tables(group: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = score(capsys, group, "--baselines", "storm,bbf")
    assert "preset tiny, protocol standard: 7 runs of 3 games" in out
    found = rows(out)
    assert found["Pong"] == ["3", "-3.05", "±", "10.19", "0.500", "-20.70", "14.60", "11.28", "16.70", "2.00"]
    assert found["UpNDown"] == ["3", "6,113", "±", "3,222", "0.500", "533.4", "11,693", "7,985", "12,102", "2.00"]
    assert found["Catch"] == ["1", "(1", "unfinished)", "4.50", "-", "-", "-", "-", "-", "1.20"]
    assert found["ours"] == ["3", "0.500", "0.500", "0.500", "0.500", "2.00"]
    assert found["BBF"][0] == "-" and found["BBF"][3:] == ["-", "-", "-"]
    assert "human-normalised, 2 of the 26 games of Atari 100k" in out
    assert re.search(r"P\(ours > STORM\) = 0\.\d{3} \[0\.\d\d, 0\.\d\d\]", out)
    assert "not in the aggregates: Catch" in out
    assert "unfinished, scored as they are: Catch seed 0 (step 60 of 100)" in out
    assert f"missing: Pong seed 3 (60 of 100 steps): `stormfast evaluate {group}/Pong-seed3`" in out


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_width_cuts_a_number(
    group: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    whole = score(capsys, group)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert score(capsys, group) == whole
    assert "…" not in whole
    tables = [line for line in whole.splitlines() if not re.match("missing|unfinished|not in|pooled|preset", line)]
    assert max(len(line.rstrip()) for line in tables) <= 90


def test_json(group: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = (group / "Pong*", "--json", "--baselines", "none", "--against", "iris", "--seed", "3")
    (block,) = json.loads(score(capsys, *args))["blocks"]
    assert (block["preset"], block["protocol"], block["aggregated_games"]) == ("tiny", "standard", ["Pong"])
    assert block["games"][0]["returns"] == [-20.7, 14.6, -3.05]
    (ours,) = block["aggregates"]
    assert ours["aggregates"]["iqm"]["value"] == pytest.approx(0.5)
    assert block["improvement"]["against"] == "IRIS"
    assert json.loads(score(capsys, *args))["blocks"] == [block]


def test_runs_that_were_not_evaluated(group: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = score(capsys, group / "Pong-seed3").splitlines()[:2]
    assert first == "preset tiny, protocol standard: no run has been evaluated"
    assert second.startswith("missing: Pong seed 3 ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "PATHS is missing"),
        ("nowhere", "nowhere does not exist; give runs"),
        ("nowhere/*", "'nowhere/*' must match runs, directories that hold runs, or result files, but it matches"),
        (".", ". must be a run or hold runs"),
        (". --baselines stormy", "Unknown baseline 'stormy'. Did you mean 'STORM'?"),
        (". --against none", "Unknown baseline 'none'"),
        (". --seed -1", "--seed must be a whole number of 0 or more, got -1"),
    ],
)
def test_bad_input_is_one_line(
    args: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", *args.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and message in err


@pytest.mark.slow  # where cores are shared: it starts Python, and imports scipy
def test_torch_is_not_imported(group: Path, command: list[str], tmp_path: Path) -> None:
    """A table of 130 runs must not wait for it."""
    code = command[-1].replace("sys.exit(main())", "main(); sys.exit('torch' in sys.modules)")
    done = subprocess.run(
        [*command[:-1], code, "score", str(group)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "STORM" in done.stdout


def test_digits() -> None:
    assert [number(value) for value in (None, 0.0, -20.7, 533.4, 11693.2)] == ["-", "0.00", "-20.70", "533.4", "11,693"]
    assert estimate(Estimate(1.22214, (1.128, 1.3085))) == "1.222 [1.13, 1.31]"
