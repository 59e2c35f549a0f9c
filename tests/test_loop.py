"""The loop: schedules, exact resume, signals. Real environments, tiny models."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stormfast import cli
from stormfast.compile import Updates
from stormfast.errors import UserError
from stormfast.loop import crossed, train, update
from stormfast.presets import preset_config
from stormfast.runs.checkpoint import Checkpoint, load_checkpoint
from stormfast.runs.launch import flags
from stormfast.runs.run import env_seed, make_replay
from stormfast.schema import override, to_json
from stormfast.settings import TrainConfig

SMALL = {
    "world_model.channels": (2, 3, 4, 5),
    "world_model.width": 16,
    "imagination.batch_size": 4,
    "imagination.horizon": 3,
    "agent.width": 8,
    "acting.context": 5,
    "world_model.updates_per_step": 0.25,  # what a run takes is its updates
    "agent.updates_per_step": 0.2,
}


def small_config(run_dir: Path, **overrides: Any) -> TrainConfig:
    values = SMALL | {"run_dir": str(run_dir), "device": "cpu", "logging.tensorboard": False, "acting.random_steps": 40}
    return override(
        preset_config("tiny", "standard"),
        values | {name.replace("__", "."): value for name, value in overrides.items()},
    )


def run(config: TrainConfig) -> Path:
    run_dir = Path(config.run_dir or "")
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.json").write_text(to_json(config))
    assert train(config, run_dir).stopped_by == 0
    return run_dir


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_crossed_fires_once_an_interval_for_any_stride() -> None:
    for stride in (1, 3, 4, 7):
        steps = list(range(0, 1000, stride))
        fired = [b for a, b in itertools.pairwise(steps) if crossed(a, b, 50)]
        assert len(fired) == steps[-1] // 50


BATCH_CONTEXTS = {  # of 4 windows of 12 steps, 9 contexts of 4 each
    "imagination__contexts": "batch",
    "imagination__batch_size": 36,
    "agent__updates_per_step": 0.25,
}


@pytest.mark.parametrize(
    ("game", "backend", "num_envs", "learning"),
    [("Catch", "auto", 1, {}), ("Catch", "auto", 3, {}), ("Pong", "ale", 1, {}), ("Catch", "auto", 3, BATCH_CONTEXTS)],
)
def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, game: str, backend: str, num_envs: int, learning: dict[str, Any]
) -> None:
    options = learning | {
        "game": game,
        "env_backend": backend,
        "num_envs": num_envs,
        "logging__save_every": 56,
        **({} if game == "Catch" else {"atari__noop_max": 5}),
    }
    whole = run(small_config(tmp_path / "whole", steps=80, **options))
    torch.manual_seed(123)  # a resume must not lean on what this process drew before
    halves = small_config(tmp_path / "halves", steps=56, **options)
    run(halves)
    run(replace(halves, steps=80, resume=True))
    expected, got = load_checkpoint(whole, "cpu"), load_checkpoint(tmp_path / "halves", "cpu")
    assert got.step == expected.step >= 80
    assert got.meta == expected.meta
    assert got.tensors.keys() == expected.tensors.keys()
    assert any(name.startswith("env.") for name in got.tensors)
    different = [name for name in expected.tensors if not torch.equal(got.tensors[name], expected.tensors[name])]
    assert different == []


def test_metrics_follow_the_intervals_and_are_not_doubled_by_a_resume(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", game="Catch", steps=100, logging__every=25, logging__save_every=50)
    run(config)
    assert [line["step"] for line in logged(tmp_path / "run")] == [25, 50, 75, 100]
    run(replace(config, steps=150, resume=True))
    lines = logged(tmp_path / "run")
    assert [line["step"] for line in lines] == [25, 50, 75, 100, 125, 150]
    assert "world_model/total" in lines[-1] and "agent/total" in lines[-1]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("contexts", "order"), [("replay", "wwwwaa"), ("batch", "wwwawa")])
def test_an_agent_that_starts_from_a_batch_learns_right_after_it(tmp_path: Path, contexts: str, order: str) -> None:
    """Four updates of the world model and two of the agent are due at once."""
    options = {"world_model__updates_per_step": 1.0, "agent__updates_per_step": 0.5, "imagination__contexts": contexts}
    made: list[str] = []

    def updates(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: made.append(name) or {}

    stub = SimpleNamespace(
        config=small_config(tmp_path, **options),
        step=48,
        metrics=SimpleNamespace(add=lambda values: None),
        updates=SimpleNamespace(update_world_model=updates("w"), update_agent=updates("a")),
    )
    assert update(stub, 44) == 4
    assert "".join(made) == order


def test_the_agent_learns_from_its_start_on(tmp_path: Path) -> None:
    config = small_config(
        tmp_path / "run", game="Catch", steps=100, agent__start=75, agent__updates_per_step=0.2, logging__every=25
    )
    run(config)
    learned = {
        line["step"]: [part for part in ("world_model", "agent") if f"{part}/total" in line]
        for line in logged(tmp_path / "run")
    }
    assert learned == {25: [], 50: ["world_model"], 75: ["world_model"], 100: ["world_model", "agent"]}
    steps = [
        value
        for name, value in load_checkpoint(tmp_path / "run", "cpu").tensors.items()
        if name.startswith("optimizer.agent") and name.endswith("step")
    ]
    assert steps and all(value.item() == 5 for value in steps)  # 0.2 an environment step, of 25


def test_the_autoencoder_learns_in_its_updates_and_a_resume_goes_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def noted(name: str, update: Callable[[Updates], dict[str, Tensor]]) -> Callable[[Updates], dict[str, Tensor]]:
        def call(updates: Updates) -> dict[str, Tensor]:
            if updates.learner.device.type != "meta":  # the estimate of memory makes one of each there
                made.append(name)
            return update(updates)

        return call

    for name in ("world_model", "sequence_model"):
        monkeypatch.setattr(Updates, f"update_{name}", noted(name, getattr(Updates, f"update_{name}")))
    config = small_config(
        tmp_path / "run", game="Catch", steps=52, acting__random_steps=40,
        world_model__updates_per_step=1.0, world_model__autoencoder_every=3, world_model__autoencoder_first=2,
    )  # fmt: skip
    run(replace(config, steps=47))
    run(replace(config, resume=True))
    whole, part = "world_model", "sequence_model"
    assert made == [whole, whole, whole, part, part, whole, part, part, whole, part, part, whole]
    assert "sequence_model/dynamics" in logged(tmp_path / "run")[-1]


@pytest.mark.parametrize("given", [{}, {"world_model__loss__reconstruction": 0.0}, {"compile": "graphs"}])
def test_diagnosis_adds_metrics_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        "stormfast.compile.compile_parts", lambda *args: None
    )  # replays alone: compiling takes a minute
    options = {"game": "Catch", "steps": 60, "logging__every": 10, "world_model__dropout": 0.5} | given
    with_it, without = (run(small_config(tmp_path / str(on), logging__diagnose=on, **options)) for on in (True, False))
    saved, plain = load_checkpoint(with_it, "cpu"), load_checkpoint(without, "cpu")
    assert saved.tensors.keys() == plain.tensors.keys()
    assert [name for name in plain.tensors if not torch.equal(saved.tensors[name], plain.tensors[name])] == []
    replays = []
    for checkpoint in (saved, plain):
        replays.append(make_replay(small_config(tmp_path, **options), 3, torch.device("cpu")))
        checkpoint.restore_replay(replays[-1])
    ours, theirs = (replay.read_rows(np.array([0]), replay.written) for replay in replays)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    extra = set()
    for line, bare in zip(logged(with_it), logged(without), strict=True):
        found = {name for name in line if name.startswith("diagnosis/")}
        assert bool(found) == (line["step"] > 40)  # from the first update on
        assert {name: line[name] for name in line.keys() - found - {"seconds"}} == {
            name: bare[name] for name in bare.keys() - {"seconds"}
        }
        extra |= found
    names = {"latent_information", "posterior_entropy", "reward_nonzero"} | (
        set() if "world_model__loss__reconstruction" in given else {"motion_explained"}
    )
    assert extra == {f"diagnosis/{name}" for name in names}


def test_a_dead_posterior_is_told_once_and_not_to_quiet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stormfast.verdicts.DEAD_AFTER", 2)  # updates, of which there is one in four steps from 40 on
    plain = {
        "world_model__centre_frames": False,
        "world_model__focus": 0.0,
        "world_model__decoder_init": "default",
    }
    config = small_config(tmp_path / "run", game="Catch", steps=60, logging__every=5, **plain)
    run(config)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "posterior is dead" in line]
    assert line.startswith("step 50: ")
    assert "after 2 updates" in line
    assert line.endswith("--world-model.centre-frames --world-model.focus 9 --world-model.decoder-init zero")
    (tmp_path / "quiet").mkdir()
    train(replace(config, run_dir=str(tmp_path / "quiet")), tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""
    assert logged(tmp_path / "quiet")[-1]["diagnosis/latent_information"] < 0.5


def test_finished_episodes_are_logged_with_their_return(tmp_path: Path) -> None:
    run(small_config(tmp_path / "run", game="Catch", steps=150, logging__every=150))
    (line,) = logged(tmp_path / "run")
    assert line["episodes"] >= 3
    assert -5 <= line["episode_return"] <= 5
    assert line["episode_length"] == pytest.approx(35, abs=5)


def test_several_environments_count_their_steps_together(tmp_path: Path) -> None:
    run(
        small_config(
            tmp_path / "run", game="Breakout", num_envs=4, steps=80, env_backend="envpool", acting__random_steps=60
        )
    )
    checkpoint = load_checkpoint(tmp_path / "run", "cpu")
    assert checkpoint.step == 80
    assert not any(name.startswith("env.") for name in checkpoint.tensors)  # envpool has no state to save


def test_envpool_run_resumes_with_new_episodes(tmp_path: Path) -> None:
    config = small_config(
        tmp_path / "run", game="Breakout", num_envs=2, steps=60, env_backend="envpool", acting__random_steps=40
    )
    run(config)
    run(replace(config, steps=90, resume=True))
    assert load_checkpoint(tmp_path / "run", "cpu").step == 90


@pytest.mark.parametrize(
    ("protocol", "overrides"),
    [
        ("reference", {"world_model.tokens": "separate"}),
        ("standard", {"agent.state": "hidden"}),
        ("reference", {"agent.state": "latent", "agent.minibatches": 2}),
        ("standard", {"world_model.centre_frames": True, "world_model.decoder_init": "zero", "world_model.focus": 9.0}),
    ],
)
def test_every_variant_trains(tmp_path: Path, protocol: str, overrides: dict[str, Any]) -> None:
    base = override(
        preset_config("tiny", protocol),
        SMALL | {"device": "cpu", "acting.random_steps": 40, "steps": 48, "logging.tensorboard": False},
    )
    run(override(base, {"game": "Breakout", "run_dir": str(tmp_path / "run")} | overrides))
    assert load_checkpoint(tmp_path / "run", "cpu").step == 48


def test_the_mean_frame_is_that_of_the_random_steps_and_stays(tmp_path: Path) -> None:
    """The run stops before its last random step, is resumed over it, and goes on."""

    config = small_config(tmp_path / "run", game="Catch", world_model__centre_frames=True)

    def trained_to(steps: int, resume: bool) -> Checkpoint:
        return load_checkpoint(run(replace(config, steps=steps, resume=resume)), "cpu")

    name = "world_model.encoder.mean_frame"
    assert not trained_to(20, False).tensors[name].any()
    saved = trained_to(45, True)
    replay = make_replay(config, 3, torch.device("cpu"))
    saved.restore_replay(replay)
    rows = replay.read_rows(np.array([0]), replay.written)
    acted = (~rows["is_last"]).cumsum(0)
    before = rows["obs"][acted < 40]  # the row of step 40 follows the updates of step 40
    torch.testing.assert_close(saved.tensors[name].double(), before.double().mean(0) / 255, rtol=0, atol=1e-6)
    assert torch.equal(trained_to(60, True).tensors[name], saved.tensors[name])


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", game="Catch", steps=50, logging__save_every=50)
    run(config)
    with pytest.raises(UserError, match="diverged by step"):
        train(override(replace(config, steps=100, resume=True), {"world_model.learning_rate": 1e30}), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run", "cpu").step == 50


def test_what_diverged_never_replaces_a_checkpoint(tmp_path: Path) -> None:
    """Saves that fall between two metric intervals look at the losses first."""
    options = {"logging__every": 100, "logging__save_every": 20, "world_model__learning_rate": 1e30, "steps": 100}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with pytest.raises(UserError, match=r"diverged by step 60.*checkpoint of step 40 .* intact"):
        train(small_config(run_dir, game="Catch", **options), run_dir)
    assert load_checkpoint(run_dir, "cpu").step == 40


def test_environments_of_neighbouring_runs_are_seeded_far_apart() -> None:
    seeds = sorted(env_seed(seed, None) for seed in range(100))
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 1
    assert all(abs(env_seed(0, None) - env_seed(seed, None)) > 256 for seed in range(1, 10))


def test_what_does_not_fit_in_memory_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit in memory"):
        train(small_config(tmp_path, game="Catch", steps=10, world_model__width=10**6), tmp_path)


def test_an_error_of_the_game_keeps_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = KeyError("what the game lacks")

    def build(*_: object) -> None:
        raise RuntimeError("the game broke") from cause

    monkeypatch.setattr("stormfast.loop.build", build)
    with pytest.raises(RuntimeError, match="the game broke") as caught:
        train(small_config(tmp_path, game="Catch"), tmp_path)
    assert caught.value.__cause__ is cause


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path / "run", game="Catch", steps=50)
    run(config)
    run(replace(config, steps=45, resume=True))
    assert "nothing to do: the run is at step 50" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run", "cpu").step == 50


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as left:
        monkeypatch.setattr(sys, "stderr", left)
        with pytest.raises(BrokenPipeError):
            print("nobody reads this", file=sys.stderr)
        run(small_config(tmp_path / "run", game="Catch", steps=50, logging__every=10))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), writer)  # for what is flushed when it is closed
    assert load_checkpoint(tmp_path / "run", "cpu").step == 50


def test_a_signal_saves_and_leaves_with_one_line(tmp_path: Path, command: list[str]) -> None:
    """SIGINT does the same: tests/runs/test_signals.py, in this process."""
    run_dir = tmp_path / "run"
    config = small_config(run_dir, game="Catch", steps=1_000_000, logging__every=20)
    args = ["train", "--preset", "tiny", *flags(config, preset_config("tiny", "standard"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *args], stderr=subprocess.PIPE, text=True, env=environment)
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped by SIGTERM at step ")
    step = load_checkpoint(run_dir, "cpu").step
    assert step >= 60
    assert cli.main(["train", "--run-dir", str(run_dir), "--resume", "--steps", str(step + 5)]) == 0
    assert load_checkpoint(run_dir, "cpu").step == step + 5
