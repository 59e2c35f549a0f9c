"""The command on a saved run: films and strips that open, numbers to read, or JSON."""

import json
import os
import shutil
from pathlib import Path

import av
import pytest
from PIL import Image

from stormfast.cli import main
from stormfast.commands.dream import RULE
from stormfast.runs.trained import load

RUN = Path(__file__).parents[1] / "data" / "run-8b83cc7"
SMALL = ["--horizon", "5", "--starts", "2", "--device", "cpu"]
CONTEXT = 4
SIZE = (826, 488)


@pytest.fixture(autouse=True)
def _little_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stormfast.runs.dreams.LEAST_PLAYED", 64)


def num_frames(path: Path) -> int:
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return len(list(container.decode(video=0)))
    with Image.open(path) as film:
        assert film.size == SIZE
        return film.n_frames


def test_each_suffix_gives_a_file_of_that_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".mp4", ".gif", ".webp"):
        path = tmp_path / f"dream{suffix}"
        assert main(["dream", str(RUN), "-o", str(path), *SMALL]) == 0
        assert num_frames(path) == 2 * (CONTEXT + 5)
    numbers, rule, written = capsys.readouterr().out.splitlines()[-3:]
    assert numbers.startswith("Catch at step 100: 2 starts x 5 steps; error on moving pixels ")
    assert "rewards right " in numbers and " of 10; first wrong frame " in numbers
    assert rule == RULE
    assert written == f"Written to {path}"
    assert main(["dream", str(RUN), "-o", str(tmp_path / "dream.png"), *SMALL]) == 0
    with Image.open(tmp_path / "dream.png") as strip:
        assert strip.format == "PNG"
    assert sorted(os.listdir(tmp_path)) == ["dream.gif", "dream.mp4", "dream.png", "dream.webp"]


def test_json_is_all_there_is_on_stdout_and_the_seed_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, pictures = [], []
    for seed in ("1", "1", "2"):
        out = tmp_path / "dream.png"
        assert main(["dream", str(RUN), "--out", str(out), *SMALL, "--seed", seed, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        pictures.append(out.read_bytes())
    assert set(found[0]) == {
        *("moving_error", "still_error", "rewards_right", "rewards", "first_wrong", "first_wrong_of"),
        *("rule", "step", "file", "settings"),
    }
    assert (found[0]["step"], found[0]["rewards"], found[0]["settings"]["seed"]) == (100, 10, 1)
    assert found[0] == found[1] and pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    for path in (damaged, empty):
        shutil.copytree(RUN, path)
    (damaged / "checkpoint" / "state-100.safetensors").write_bytes(b"rubbish")
    shutil.rmtree(empty / "checkpoint")
    out = tmp_path / "out"
    out.mkdir()
    for args, message in (
        ([str(tmp_path / "nothing")], "nothing does not exist"),
        ([str(damaged)], "state-100.safetensors"),
        ([str(empty)], "No checkpoint in"),
        ([str(RUN), "--horizon", "0"], "horizon must be >= 1 and <= 1000, got 0"),
        ([str(RUN), "--starts", "40"], "must be a whole number from 1 to 1000, got 1960"),
        ([str(RUN), "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ([str(RUN), "-o", str(out / "dream.avi")], "in .mp4, .gif, .webp, .png, got"),
        ([str(RUN), "-o", str(out / "nowhere" / "dream.gif")], "nowhere does not; make it, or choose another"),
    ):
        place = [] if "-o" in args else ["-o", str(out / "dream.gif")]
        assert main(["dream", *args, *place]) == 2, args
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.splitlines()) == 1, errors
    assert not list(out.iterdir())


def test_a_model_without_a_decoder_is_told_before_it_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load(RUN, "cpu")
    trained.world_model.decoder = None
    monkeypatch.setattr("stormfast.runs.dreams.load", lambda *args: trained)
    monkeypatch.setattr("stormfast.runs.trained.Trained.play", lambda *args, **options: pytest.fail("played"))
    assert main(["dream", str(RUN), "-o", str(tmp_path / "a.gif")]) == 2
    assert "no decoder to dream with" in capsys.readouterr().err


def test_episodes_that_are_too_short_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stormfast.runs.dreams.newest_stretches", lambda *args: None)
    assert main(["dream", str(RUN), "-o", str(tmp_path / "a.gif"), *SMALL]) == 2
    assert "longer than imagination.context (4 steps), but none of Catch was" in capsys.readouterr().err


def test_help_says_by_what_rule_a_frame_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dream", "--help"]) == 0
    assert RULE in " ".join(capsys.readouterr().out.split())
