"""The command on a saved run: tables and verdicts to read, or JSON."""

import json
import shutil
from pathlib import Path

from stormfast.cli import main
from stormfast.commands.diagnose import AHEAD, MEASURES

RUN = Path(__file__).parents[1] / "data" / "run-8b83cc7"
SMALL = ["--windows", "6", "--horizon", "6", "--play", "60", "--device", "cpu"]


def test_tables_and_verdicts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["diagnose", str(RUN), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "world model at step 100, after 36 updates" in out
    assert [text for name, row in MEASURES.items() for text in (name, *row) if text not in out] == []
    assert [label for label in AHEAD.values() if label not in out] == []
    last = out.splitlines()[-1]
    assert last.startswith(
        "negative rewards are not predicted: -0.000"
    )  # its reward head begins at 0, and has learned little
    assert "posterior is dead" not in out  # it is, but too young to be told


def test_json_is_all_there_is_on_stdout(capsys):
    assert main(["diagnose", str(RUN), *SMALL, "--json", "--seed", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"step", "updates", "numbers", "verdicts", "settings"}
    assert found["settings"]["seed"] == 1
    for numbers in found["numbers"].values():
        assert set(MEASURES) <= set(numbers)
        assert {f"open_loop_{n}/{name}" for n in (1, 2, 4, 6) for name in AHEAD} <= set(numbers)


def test_bad_input_is_one_line(tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(RUN, damaged)
    (damaged / "checkpoint" / "replay-0-102.safetensors").write_bytes(b"rubbish")
    for args, message in (
        ([str(tmp_path / "nothing")], "nothing does not exist"),
        ([str(damaged)], "replay-0-102.safetensors"),
        ([str(RUN), "--windows", "0"], "windows must be >= 1 and <= 1000, got 0"),
        ([str(RUN), "--horizon", "200"], "must hold a window of 204 steps, got 102"),
        ([str(RUN), "--play", "-1"], "play must be >= 0 and <= 100000, got -1"),
        ([str(RUN), "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    ):
        assert main(["diagnose", *args]) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.splitlines()) == 1, errors


def test_tables_fit_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["diagnose", str(RUN), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(name in out for name in MEASURES)
