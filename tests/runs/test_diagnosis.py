"""A saved run is measured on its own replay: which windows, and that each number is that of them all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stormfast import diagnosis
from stormfast.errors import UserError
from stormfast.replay import Replay
from stormfast.runs.diagnosis import CPU, diagnose, joined, last_rows, measured, parts_of, saved_replay
from stormfast.runs.trained import load

RUN = Path(__file__).parents[1] / "data" / "run-8b83cc7"
OF_FRAMES = {
    *("latent_information", "posterior_entropy", "codebook_use", "statistics_kl"),
    *("motion_explained", "still_error", "small_objects", "reward_nonzero", "reward_zero"),
}


@pytest.fixture(scope="module")
def trained():
    return load(RUN, "cpu")


def test_every_number_of_every_draw():
    found = diagnose(RUN, windows=6, horizon=6, play=60, seed=3, device="cpu")
    assert (found.step, found.updates) == (100, 36)
    assert list(found.numbers) == ["all", "recent", "fresh"]
    assert found.numbers["fresh"] != found.numbers["all"]
    for numbers in found.numbers.values():
        assert set(numbers) >= OF_FRAMES
        steps = {name.split("/")[0] for name in numbers if name.startswith("open_loop_")}
        assert steps == {f"open_loop_{n}" for n in (1, 2, 4, 6)}
        assert all(value is None or np.isfinite(value) for value in numbers.values())
        counted = sum(numbers[f"reward_count_{sign}"] for sign in ("negative", "zero", "positive"))
        assert 40 <= counted <= 48  # 6 windows of 8, without last observations
        assert numbers["small_objects"] is None  # Catch's ball is a block of 64 pixels
    assert diagnose(RUN, windows=6, horizon=6, play=60, seed=3, device="cpu") == found
    assert diagnose(RUN, windows=6, horizon=6, play=60, seed=4, device="cpu") != found
    unplayed = diagnose(RUN, windows=6, horizon=6, seed=3, device="cpu")
    assert unplayed.numbers == {draw: found.numbers[draw] for draw in ("all", "recent")}


def test_rewards_that_only_replay_explains_are_told(monkeypatch):
    of_replay = {"reward_nonzero": 0.5, "reward_count_negative": 9.0}

    def planted(trained, replay, *args):
        numbers = measured(trained, replay, *args)
        return numbers | of_replay | ({"reward_nonzero": 3.0} if len(replay) == 77 else {})

    monkeypatch.setattr("stormfast.runs.diagnosis.measured", planted)
    lines = diagnose(RUN, windows=6, horizon=6, play=77, device="cpu").verdicts
    assert any(line.startswith("rewards are memorised") for line in lines)


def test_recent_rows_are_the_last(trained):
    replay = saved_replay(trained)
    assert len(replay) == 102
    assert replay.recency == 1
    for share, least, count in ((0.5, 8, 51), (0.1, 20, 20), (0.1, 500, 102)):
        last = last_rows(replay, share, least)
        assert len(last) == count
        got, expected = (r.read_rows(r.written - count, r.written) for r in (last, replay))
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    drawn = last_rows(replay, 0.1, 20).sample(64, 20, torch.Generator())  # there is one window
    assert torch.equal(drawn.obs[5], expected["obs"][-20:])


def test_the_replay_of_a_run_that_forgets(trained):
    """A full ring, whose oldest row is not in its first slot, and several streams."""
    saved = saved_replay(trained)
    rows = saved.read_rows(np.array([0]), np.array([100]))
    ring = Replay(80, 2, CPU)
    ring.write_rows(np.array([13, 20]), np.array([53, 60]), {name: field[:80] for name, field in rows.items()})
    ring.restore_written(np.array([53, 60]), "x")
    last = last_rows(ring, 0.25, 8)
    assert last.lengths.tolist() == [10, 10]
    got = last.read_rows(np.array([0, 0]), np.array([10, 10]))
    assert torch.equal(got["obs"], torch.cat([rows["obs"][30:40], rows["obs"][70:80]]))


def test_parts_are_the_whole(trained):
    """Shown in parts, for their memory, the windows give the numbers that they give at once."""
    model, batch = trained.world_model, saved_replay(trained).sample(10, 8, torch.Generator().manual_seed(0))
    whole = diagnosis.see(model, batch)
    parts = [diagnosis.see(model, part) for part in parts_of(batch, 4)]
    assert [len(part.frames) for part in parts] == [4, 4, 2]
    joint = joined(parts)
    for name in ("frames", "log_probs", "reward", "reconstruction"):
        torch.testing.assert_close(getattr(joint, name), getattr(whole, name), rtol=1e-4, atol=1e-4)
    assert torch.equal(joint.batch.reward, batch.reward)


def test_without_a_decoder_the_latents_and_rewards_remain(trained, monkeypatch):
    monkeypatch.setattr(trained.world_model, "decoder", None)
    numbers = measured(trained, saved_replay(trained), 5, 6, 0)
    assert {"latent_information", "statistics_kl", "reward_nonzero"} <= set(numbers)
    assert not {"motion_explained", "small_objects", "open_loop_1/reward"} & set(numbers)


def test_windows_longer_than_replay_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"must hold a window of 204 steps, got 102; take a smaller --horizon") as error:
        diagnose(RUN, horizon=200, device="cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="play must be a whole number"):
        diagnose(RUN, windows=6, horizon=6, play=9, device="cpu")
    with pytest.raises(UserError, match=r"windows x \(horizon \+ context\) must be a whole number from 1 to 100000"):
        diagnose(RUN, windows=1_000, horizon=1_000, device="cpu")
