"""Learning curves side by side: what is drawn is what the runs logged."""

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from bench import compare_runs


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    for name, shift in (("eager", 0.0), ("compiled", 0.25)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"game": "Catch"}))
        lines = [{"step": step, "episode_return": step / 100 + shift} for step in (100, 200, 300)]
        lines[0]["world_model/dynamics_kl"] = 2.0
        if name == "compiled":
            del lines[1]["episode_return"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [f"{name}={tmp_path / name}" for name in ("eager", "compiled")]


def test_curves_are_those_of_the_runs(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.png"
    assert compare_runs.main([*runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step\teager\tcompiled",
        "100\t1.00\t1.25",
        "200\t2.00\t-",
        "300\t3.00\t3.25",
    ]
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["runs"]["eager"]["curves"]["world_model/dynamics_kl"] == [[100, 2.0]]
    assert found["runs"]["compiled"]["config"] == {"game": "Catch"}
    assert {"commit", "device", "date", "command"} <= found["about"].keys()
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "out", "message"),
    [
        (["nothing"], "x.png", "runs must be given as NAME=RUN, got nothing"),
        (["a=missing"], "x.png", "a run must be a directory with config.json and metrics.jsonl, but FileNotFoundError"),
        (["a=b"], "x.json", "--out must be a picture ending in .png, got x.json"),
    ],
)
def test_bad_input_is_one_line(words: list[str], out: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_runs.main([*words, "--out", out]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_one_line(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_runs.main([*runs, "--out", str(tmp_path / "missing" / "x.png")]) == 2
    assert "--out must be in a directory that can be written" in capsys.readouterr().err
