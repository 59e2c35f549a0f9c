"""Training and evaluating from the command line: what is called, what is written, and how it goes on."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bench import learning
from bench.script import status_of

RETURNS = {"agent": [1.0, 3.0], "random": [-1.0, 0.0]}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run, in place of which their files are written."""
    made: list[list[str]] = []

    def fake(arguments: list[str], signals: Any) -> None:
        made.append(list(arguments))
        value = dict(itertools.pairwise(arguments))
        if arguments[0] == "train":
            group, num = Path(value["--run-dir"]), int(value["--seeds"])
            runs = [(g, k) for g in value["--game"].split(",") for k in range(num)]
            for game, seed in runs:
                run_dir = group / f"{game}-seed{seed}" if len(runs) > 1 else group
                (run_dir / "checkpoint").mkdir(parents=True, exist_ok=True)
                (run_dir / "checkpoint" / "checkpoint.json").write_text("{}")
                (run_dir / "config.json").write_text(json.dumps({"seed": seed, "run_dir": str(run_dir)}))
                lines = [{"step": step, "seconds": step / 10, "episode_return": seed, "other": 1} for step in (10, 20)]
                (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            policy, run_dir = value["--policy"], Path(arguments[1])
            score = {"mean": sum(RETURNS[policy]) / 2, "standard_error": 0.5}
            name = "20" if policy == "agent" else policy
            found = {"return": score, "episode_returns": RETURNS[policy], "step": 20}
            (run_dir / f"evaluation-{name}.json").write_text(json.dumps(found))

    monkeypatch.setattr(learning, "stormfast", fake)
    monkeypatch.setattr(learning, "read_manifest", lambda path: type("Manifest", (), {"step": 20}))
    monkeypatch.setattr(learning, "commit", lambda: ("abc", False))
    return made


def learn(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Returns: the results."""
    places = ["--out", str(tmp_path / "results"), "--run-dir", str(tmp_path / "runs"), "--device", "cpu"]
    assert learning.main([*arguments, "--episodes", "2", *places]) == 0
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("results/*/learning-*.json"))]


def test_games_and_seeds_are_trained_together_and_scored_apart(calls: list[list[str]], tmp_path: Path) -> None:
    found = learn(tmp_path, "--game", "Catch,Pong", "--preset", "tiny", "--seeds", "2", "--agent.entropy", "3e-2")
    assert [result["game"] for result in found] == ["Catch", "Pong"]
    assert [call[0] for call in calls] == ["train"] + ["evaluate"] * 8
    assert calls[0][-2:] == ["--agent.entropy", "3e-2"] and "--resume" not in calls[0]
    first = found[0]["runs"][0]
    assert (first["seed"], first["steps"], first["seconds"], first["agent"]["mean"]) == (0, 20, 2.0, 2.0)
    assert first["standard_errors_above_random"] == pytest.approx(2.5 / 0.5**0.5)
    assert first["curve"][1] == {"step": 20, "seconds": 2.0, "episode_return": 0}
    assert len(first["commands"]) == 3 and first["commands"][0].startswith("stormfast train --game Catch,Pong")
    assert found[0]["commit"] == "abc" and str(tmp_path) not in json.dumps(found)


def test_the_same_command_goes_on(calls: list[list[str]], tmp_path: Path) -> None:
    learn(tmp_path, "--game", "Catch", "--preset", "tiny")
    unsaved = tmp_path / "runs" / "Catch-seed1"
    unsaved.mkdir()
    (unsaved / "config.json").write_text("killed before its first checkpoint")
    calls.clear()
    learn(tmp_path, "--game", "Catch", "--preset", "tiny", "--seeds", "2")
    assert [call[0] for call in calls] == ["train", "evaluate", "evaluate"]  # the first seed has its scores
    assert calls[0][-1] == "--resume"
    (aside,) = (tmp_path / "runs").glob("Catch-seed1-unsaved-*")  # nothing is removed
    assert "killed" in (aside / "config.json").read_text()


def test_curves_are_drawn(calls: list[list[str]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    learn(tmp_path, "--game", "Catch", "--preset", "tiny", "--plot")
    (picture,) = tmp_path.glob("results/*/learning-Catch-tiny.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "commit", "message"),
    [
        ("--game Catch --seed 3", ("abc", False), "--seed cannot be given"),
        ("--game Catch --episodes 1", ("abc", False), "--episodes >= 2"),
        ("--game Catch", ("abc", True), "the checkout has changes"),
        ("--game Catch", ("unknown", None), "STORMFAST_COMMIT"),
    ],
)
def test_bad_input_is_one_line(arguments: str, commit: Any, message: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(learning, "commit", lambda: commit)
    assert status_of("learning", lambda: learning.main(arguments.split())) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and message in err
