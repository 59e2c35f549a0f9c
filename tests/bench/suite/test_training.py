"""A run in many calls, with a stand-in for stormfast that keeps its files as it does: steps, checkpoint, metrics, score."""

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest

from bench.suite import training as module
from bench.suite.process import Signals
from bench.suite.record import Record, only_one, open_record
from bench.suite.run import Around, environment
from bench.suite.training import Training, curve, go_on, ms_per_step, saved_step
from stormfast.errors import UserError
from stormfast.schema import to_json
from stormfast.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[3]
MACHINE = {
    "device": "Fake GPU",
    "commit": "abc",
    "dirty": False,
    "torch": "2",
    "cuda": None,
    "triton": None,
    "python": "3",
    "threads": 1,
}
CONFIG = to_json(TrainConfig())
FAKE = """
import json, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
if words[0] == "evaluate":
    run, episodes = Path(words[1]), int(value("--episodes"))
    step = json.loads((run / "checkpoint/checkpoint.json").read_text())["step"]
    time.sleep(0.01 * episodes)
    found = {"return": {"mean": 3.0, "mean_interval_95": [2, 4], "human_normalised": 0.5}, "episode_returns": [3.0] * episodes}
    (run / f"evaluation-{step}.json").write_text(json.dumps(found))
    sys.exit(0)
if value("--game") == "Pongg":
    print("stormfast: error: Unknown game 'Pongg'.", file=sys.stderr)
    sys.exit(2)
run, steps, resume = Path(value("--run-dir")), int(value("--steps")), "--resume" in words
manifest = run / "checkpoint" / "checkpoint.json"
assert resume == manifest.exists() == (run / "config.json").exists(), "what a run that began looks like"
(run / "config.json").write_text(CONFIG)
step = json.loads(manifest.read_text())["step"] if resume else 0
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
print("training", flush=True)
if value("--game") == "Dies":
    sys.exit("it broke")
with open(run / "metrics.jsonl", "a") as log:
    while step < steps and not stopped:
        time.sleep(0.01)
        step += 1
        log.write(json.dumps({"step": step, "seconds": step / 100, "world_model/total": 1.0, "episode_return": 1.0}) + "\\n")
if value("--game") == "Hangs":
    time.sleep(60)
manifest.parent.mkdir(exist_ok=True)
manifest.write_text(json.dumps({"step": step}))
sys.exit(143 if stopped else 0)
"""


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return open_record(tmp_path, dict(MACHINE), fresh=False)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(f"CONFIG = {CONFIG!r}\n{FAKE}")
    return path


def make(
    tmp_path: Path, fake: Path, game: str = "Pong", steps: int = 30, episodes: int = 3, more: tuple[str, ...] = ()
) -> Training:
    return Training(game, "tiny", 0, steps, episodes, tmp_path / "a run", "cpu", more, (str(fake),))


def call(training: Training, record: Record, seconds: float = math.inf) -> tuple[int, dict]:
    status = go_on(training, record, Around(environment(os.environ), Signals(), time.monotonic() + seconds))
    return status, json.loads(record.path.read_text())["training"][-1]


def test_a_run_in_one_call(tmp_path: Path, fake: Path, record: Record) -> None:
    status, row = call(make(tmp_path, fake, more=("--num-envs", "4")), record)
    assert status == 0
    assert (row["status"], row["step"], row["reason"]) == ("finished", 30, "")
    assert row["evaluation"]["mean"] == 3.0 and row["evaluation"]["episodes"] == 3
    assert row["ms_per_step"] == pytest.approx(10) and row["training_seconds"] == 0.3
    (made,) = row["calls"]
    assert made["steps"] == [0, 30] and made["commit"] == "abc" and made["wall_seconds"] > 0.2
    train = "stormfast train --game Pong --preset tiny --seed 0 --steps 30 --run-dir RUN --device cpu --logging.no-tensorboard --num-envs 4"
    assert made["command"] == train and row["evaluate_command"] == "stormfast evaluate RUN --episodes 3 --device cpu"
    assert "| Pong | tiny, 0 | finished | 30 of 30 |" in record.path.with_suffix(".md").read_text()


def test_a_run_in_many_calls(tmp_path: Path, fake: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_EVALUATION", 0.5)
    monkeypatch.setattr(module, "GRACE", 1.0)
    training = make(tmp_path, fake, steps=250)
    status, row = call(training, record, seconds=2)
    assert (status, row["status"]) == (3, "paused") and 0 < row["step"] < 250 and row["evaluation"] is None
    for _ in range(10):
        before = row["step"]
        status, row = call(training, record, seconds=2)
        assert row["step"] > before or row["step"] == 250
        if status != 3:
            break
    assert (status, row["status"], row["step"]) == (0, "finished", 250)
    assert (
        len(row["calls"]) >= 2
        and "--resume" not in row["calls"][0]["command"]
        and row["calls"][-1]["command"].endswith("--resume")
    )
    assert [made["steps"][0] for made in row["calls"][1:]] == [made["steps"][1] for made in row["calls"][:-1]]
    assert row["wall_seconds"] == pytest.approx(sum(made["wall_seconds"] for made in row["calls"]))
    again, same = call(training, record)
    assert again == 0 and same["calls"] == row["calls"]  # nothing is left to do


def test_more_episodes_are_another_evaluation(tmp_path: Path, fake: Path, record: Record) -> None:
    call(make(tmp_path, fake), record)
    _, row = call(make(tmp_path, fake, episodes=5), record)
    assert row["evaluation"]["episodes"] == 5 and len(row["calls"]) == 1


def test_an_evaluation_that_never_fits_is_a_failure(
    tmp_path: Path, fake: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_EVALUATION", 0.5)
    monkeypatch.setattr(module, "GRACE", 0.5)
    slow = make(tmp_path, fake, episodes=1000)
    status, row = call(slow, record, seconds=2)
    assert (status, row["status"]) == (3, "trained") and "the next call has more time" in row["reason"]
    status, row = call(slow, record, seconds=2)
    assert (
        (status, row["status"]) == (1, "failed")
        and "1000 episodes did not fit in" in row["reason"]
        and "fewer --episodes" in row["reason"]
    )


def test_a_run_that_breaks_is_a_failure(tmp_path: Path, fake: Path, record: Record) -> None:
    status, row = call(make(tmp_path, fake, "Dies"), record)
    assert (status, row["status"], row["step"]) == (1, "failed", 0)
    assert row["reason"] == "stormfast train ended with 1: it broke"
    status, row = call(make(tmp_path, fake), record)  # what it left behind is no hindrance
    assert status == 0


def test_a_run_that_does_not_save_in_time_is_told(tmp_path: Path, fake: Path, record: Record) -> None:
    status, row = call(make(tmp_path, fake, "Hangs", steps=10), record, seconds=2)
    assert (status, row["status"]) == (1, "failed") and "did not save within" in row["reason"]


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, fake: Path, record: Record) -> None:
    with pytest.raises(UserError, match=r"^Unknown game 'Pongg'\.$"):
        call(make(tmp_path, fake, "Pongg"), record)
    assert not (tmp_path / "a run").exists() and not record.path.exists()


def test_other_peoples_files_are_left_alone(tmp_path: Path, fake: Path, record: Record) -> None:
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match=r"thesis\.txt; choose another"):
        call(make(tmp_path, fake), record)
    assert (tmp_path / "a run" / "thesis.txt").read_text() == "years"
    (tmp_path / "b").write_text("")
    with pytest.raises(UserError, match="--run-dir must be a folder"):
        call(Training("Pong", "tiny", 0, 1, 1, tmp_path / "b", "cpu", (), (str(fake),)), record)


def put(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """The text of each file that a folder holds."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize(
    "files",
    [
        {".git/HEAD": "ref", "config.json": "{}"},
        {".git/HEAD": "ref", "config.json": CONFIG},
        {"config.json": CONFIG},  # begun by another than the suite, and it may be running
        {".lock": "theirs", "config.json": '{"hidden_size": 768}'},
        {".lock": "", "config.json": CONFIG, ".git/HEAD": "ref"},
        {".lock": "", "config.json": CONFIG, "tensorboard/thesis.txt": "years"},
        {".lock": "", "config.json": CONFIG, "checkpoint/thesis.txt": "years"},
        {".lock": "", "config.json": CONFIG, "calls.json": "[]"},
    ],
)
@pytest.mark.parametrize("game", ["Pong", "Pongg"])
def test_what_this_call_did_not_make_is_not_removed(
    files: dict[str, str], game: str, tmp_path: Path, fake: Path, record: Record
) -> None:
    put(tmp_path / "a run", files)
    with pytest.raises(UserError, match=r"choose another|is damaged"):
        call(make(tmp_path, fake, game), record)
    assert tree(tmp_path / "a run") == files and not record.path.exists()


@pytest.mark.parametrize("files", [{}, {".git/HEAD": "ref"}])
def test_bad_input_leaves_a_folder_that_was_there(
    files: dict[str, str], tmp_path: Path, fake: Path, record: Record
) -> None:
    put(tmp_path / "a run", files)
    with pytest.raises(UserError, match="Unknown game"):
        call(make(tmp_path, fake, "Pongg"), record)
    assert (tmp_path / "a run").is_dir() and tree(tmp_path / "a run") == files


def test_what_a_killed_call_left_unsaved_gives_way(tmp_path: Path, fake: Path, record: Record) -> None:
    """Links go, not what they lead to."""
    training, others = make(tmp_path, fake), tmp_path / "others"
    put(others, {"events.out.tfevents.1": "theirs"})
    left = (".lock", "metrics.jsonl", "checkpoint/state-9.safetensors", "checkpoint/.replay-0-9.safetensors.tmp")
    put(training.run_dir, {"config.json": CONFIG} | dict.fromkeys(left, "{}"))
    (training.run_dir / "tensorboard").symlink_to(others)
    status, _ = call(training, record)
    assert status == 0 and tree(others) == {"events.out.tfevents.1": "theirs"}
    assert set(tree(training.run_dir)) == {
        ".lock",
        "config.json",
        "metrics.jsonl",
        "calls.json",
        "checkpoint/checkpoint.json",
        "evaluation-30.json",
    }


@pytest.mark.parametrize("text", ["{", "3", '["x"]', '[{"wall_seconds": 1, "commit": "abc"}]'])
def test_damaged_calls_are_told_before_training(text: str, tmp_path: Path, fake: Path, record: Record) -> None:
    training = make(tmp_path, fake)
    call(training, record)
    (training.run_dir / "calls.json").write_text(text)
    with pytest.raises(UserError, match=r"calls\.json is damaged"):
        call(make(tmp_path, fake, steps=40), record)
    assert saved_step(training.run_dir) == 30


@pytest.mark.parametrize("name", ["evaluation-30.json", "metrics.jsonl"])
def test_other_damage_is_one_line(name: str, tmp_path: Path, fake: Path, record: Record) -> None:
    call(make(tmp_path, fake), record)
    (tmp_path / "a run" / name).write_text("{\n")
    with pytest.raises(UserError, match="is damaged"):
        call(make(tmp_path, fake), record)


def test_two_at_once_is_one_too_many(tmp_path: Path, fake: Path, record: Record) -> None:
    (tmp_path / "a run").mkdir()
    with only_one(tmp_path / "a run" / ".lock", ""), pytest.raises(UserError, match="another suite trains in"):
        call(make(tmp_path, fake), record)


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    assert saved_step(tmp_path) is None
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        saved_step(tmp_path)


def test_a_run_in_the_repository_is_named_from_its_root(tmp_path: Path) -> None:
    inside = Training("Pong", "storm", 0, 1, 1, ROOT / "runs" / "suite" / "x", "cuda")
    assert "--run-dir runs/suite/x --device" in inside.told(inside.train_command())
    assert inside.train_command()[:3] == ["-m", "stormfast", "train"]


def test_time_of_a_step_is_of_those_that_learned() -> None:
    """Random play 1 ms a step, then compiling, then 10 ms with one slow interval of saving."""
    lines = [{"step": 100, "seconds": 0.1}, {"step": 200, "seconds": 60.0, "world_model/total": 1.0}]
    for i, took in enumerate((1.0, 1.0, 5.0, 1.0, 1.0)):
        lines.append({"step": 300 + 100 * i, "seconds": lines[-1]["seconds"] + took, "world_model/total": 1.0})
    assert ms_per_step(lines) == pytest.approx(10)
    assert ms_per_step(lines[:2]) is None and ms_per_step([]) is None


def test_a_curve_is_thinned() -> None:
    lines = [{"step": i, "seconds": 1.0 * i, **({"episode_return": 2.0} if i % 2 else {})} for i in range(1000)]
    points = curve(lines)
    assert len(points) <= 200 and points[0] == {"step": 1, "seconds": 1.0, "episode_return": 2.0}
    assert curve(lines[:3]) == [{"step": 1, "seconds": 1.0, "episode_return": 2.0}] and curve([]) == []


def test_the_interpreter_is_this_one() -> None:
    assert module.interpreter() == sys.executable
