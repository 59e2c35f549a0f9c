"""Dreams of runs: which stretches of play, and what training keeps and leaves alone.

C context steps   H imagined steps
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stormfast.loop import train
from stormfast.presets import preset_config
from stormfast.records import Transition
from stormfast.replay import Replay
from stormfast.runs import dreams
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.schema import flatten, override, to_json
from stormfast.settings import SINCE, TrainConfig, from_json

NAMES = {f"dream/{name}" for name in ("moving_error", "still_error", "rewards_right", "first_wrong")}
SMALL = {
    "game": "Catch",
    "device": "cpu",
    "steps": 60,
    "acting.random_steps": 40,
    "logging.tensorboard": False,
    "logging.every": 20,
    "logging.save_every": 30,
    "logging.dreams": True,
    "world_model.updates_per_step": 0.25,
}


def run(path: Path, *, quiet: bool = False, **changes: Any) -> Path:
    values = SMALL | {"run_dir": str(path)} | {name.replace("__", "."): value for name, value in changes.items()}
    config: TrainConfig = override(preset_config("tiny", "standard"), values)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(to_json(config))
    train(config, path, quiet=quiet)
    return path


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


# --- which stretches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_stretches_are_the_longest_and_then_the_newest_that_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, context, length, num = np.array([40, 0, 25]), 3, 12, 4
    is_first = rng.random(65) < 0.1
    starts = dreams.choose_starts(is_first, lengths, context, length, num)
    fits = {}  # first row -> (steps in the episode, newness)
    for begin, end in ((0, 40), (40, 65)):
        for start in range(begin, end - length + 1):
            after = [t for t in range(start + 1, start + length) if is_first[t]]
            steps = (after[0] if after else start + length) - start - context
            if steps > 0:
                fits[start] = (steps, start - end)
    assert starts
    taken: set[int] = set()
    for start in starts:
        free = {s: key for s, key in fits.items() if not taken & set(range(s, s + context + key[0]))}
        assert fits[start] == max(free.values())
        taken |= set(range(start, start + context + fits[start][0]))
    left = {s for s, key in fits.items() if not taken & set(range(s, s + context + key[0]))}
    assert len(starts) == num or not left


def filled(num_streams: int, rows: int, capacity: int, every: int = 1_000) -> Replay:
    """Replay whose obs say stream and row; episodes of `every` rows."""
    replay, n = Replay(capacity, num_streams, torch.device("cpu")), num_streams
    for t in range(rows):
        obs = np.zeros((n, 3, 64, 64), np.uint8)
        obs[:, 0, 0, 0], obs[:, 0, 0, 1] = np.arange(n), t
        zeros = np.zeros(n, np.bool_)
        replay.append(
            Transition(
                obs=obs,
                action=np.full(n, t % 3),
                reward=np.full(n, t, np.float32),
                terminated=zeros,
                truncated=zeros,
                life_lost=zeros,
                is_first=zeros | (t % every == 0),
                is_last=zeros | (t % every == every - 1),
            )
        )
    return replay


@pytest.mark.parametrize("capacity", [400, 120])  # the second has overwritten its oldest rows
def test_the_newest_rows_of_replay_are_taken(capacity: int) -> None:
    window = dreams.newest_stretches(filled(2, 100, capacity), context=4, horizon=8, num=5)
    assert window is not None
    assert window.action.shape == (5, 12)
    place = sorted(zip(window.obs[:, 0, 0, 0, 0].tolist(), window.obs[:, 0, 0, 0, 1].tolist(), strict=True))
    assert place in (
        [(0, 64), (0, 76), (0, 88), (1, 76), (1, 88)],
        [(0, 76), (0, 88), (1, 64), (1, 76), (1, 88)],
    )
    assert torch.equal(window.reward, window.obs[:, :, 0, 0, 1].float())
    assert torch.equal(window.action, window.obs[:, :, 0, 0, 1].long() % 3)


def test_a_short_replay_gives_a_shorter_horizon_and_short_episodes_give_none() -> None:
    window = dreams.newest_stretches(filled(1, 10, 100), context=4, horizon=45, num=4)
    assert window is not None and window.action.shape == (1, 10)
    assert dreams.newest_stretches(filled(1, 40, 100, every=4), context=4, horizon=8, num=4) is None
    assert dreams.newest_stretches(filled(1, 3, 100), context=4, horizon=8, num=4) is None


# --- while training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_dreams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("dreams") / "on", logging__tensorboard=True)


def test_each_save_keeps_a_dream_and_its_numbers(with_dreams: Path) -> None:
    assert sorted(path.name for path in (with_dreams / "dreams").iterdir()) == ["30.webp", "60.webp"]
    for step in (30, 60):
        with Image.open(with_dreams / "dreams" / f"{step}.webp") as film:
            assert film.n_frames == 30 if step == 30 else 49  # all rows there are, of context and 45 steps at most
    found = {line["step"]: {name for name in line if name.startswith("dream/")} for line in lines(with_dreams)}
    assert found == {20: set(), 30: NAMES, 40: set(), 60: NAMES}


def test_a_strip_of_each_is_in_tensorboard(with_dreams: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(with_dreams / "tensorboard"))
    board.Reload()
    images = board.Images("dream")
    assert [image.step for image in images] == [30, 60]
    assert images[0].width > 1_000
    assert set(board.Tags()["scalars"]) >= NAMES


def test_dreams_change_nothing_else(with_dreams: Path, tmp_path: Path) -> None:
    without = run(tmp_path / "off", logging__dreams=False)
    assert not (without / "dreams").exists()
    saved, plain = load_checkpoint(with_dreams, "cpu"), load_checkpoint(without, "cpu")
    assert saved.meta == plain.meta
    assert saved.tensors.keys() == plain.tensors.keys()
    assert any(name.startswith("rng.") for name in plain.tensors)
    assert [name for name in plain.tensors if not torch.equal(saved.tensors[name], plain.tensors[name])] == []
    for line, bare in zip(lines(with_dreams), lines(without), strict=True):
        assert {k: v for k, v in line.items() if k not in NAMES | {"seconds"}} == {
            k: v for k, v in bare.items() if k != "seconds"
        }


def test_a_dream_that_cannot_be_kept_is_one_line_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "dreams").write_text("in the way")
    run(path)
    told = [line for line in capsys.readouterr().err.splitlines() if "not kept" in line]
    assert [line.partition(":")[0] for line in told] == ["step 30", "step 60"]
    assert all("the dream is not kept: " in line and "--logging.no-dreams" in line for line in told)
    assert load_checkpoint(path, "cpu").step == 60
    assert lines(path)[-1].keys() >= NAMES
    (tmp_path / "quiet").mkdir()
    (tmp_path / "quiet" / "dreams").write_text("in the way")
    with pytest.warns(UserWarning, match="the dream is not kept"):
        run(tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("too much")])
def test_no_memory_for_a_dream_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def dream(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(dreams, "open_loop", dream)
    path = run(tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if "not kept" in line]
    assert [line.partition(":")[0] for line in told] == ["step 30", "step 60"]
    assert all("no memory left for it" in line for line in told)
    assert load_checkpoint(path, "cpu").step == 60
    assert not any(name.startswith("dream/") for line in lines(path) for name in line)


def test_a_model_without_a_decoder_does_not_dream(tmp_path: Path) -> None:
    path = run(tmp_path / "run", world_model__loss__reconstruction=0.0)
    assert not (path / "dreams").exists()
    assert not any(name.startswith("dream/") for line in lines(path) for name in line)


def test_runs_of_earlier_versions_do_not_dream_until_they_are_asked_to() -> None:
    config = replace(TrainConfig(), game="Catch")
    assert config.logging.dreams
    values = json.loads(to_json(config))
    del values["logging"]["dreams"]
    assert from_json(json.dumps(values)).logging.dreams is SINCE["logging.dreams"] is False
    assert "logging.dreams" in flatten(config)
