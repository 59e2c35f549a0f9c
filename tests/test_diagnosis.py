"""The numbers of diagnosis against what they must be where the truth is known, and against loops.

B batch   T time   S categoricals   K classes   C context steps   H imagined steps
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from stormfast import diagnosis
from stormfast.diagnosis import (
    codebook_use,
    in_training,
    latent_information,
    motion_explained,
    open_loop_errors,
    posterior_entropy,
    reward_errors,
    see,
    small_objects,
    statistics_kl,
    still_error,
)
from stormfast.dream_env import Dream, open_loop
from stormfast.world_model.focus import moving_pixels
from stormfast.world_model.heads import NUM_BINS, TwoHot
from tests.model_fixtures import make_batch, no_sync, tiny_learner

B, T, S, K, C = 4, 7, 3, 5, 4


# --- the latent ----------------------------------------------------------------------------------------------------


def one_hot_codes(index):
    """log-probabilities [..., S, K] of latents that are sure; -inf elsewhere."""
    return torch.nn.functional.one_hot(index, K).float().log()


def test_a_constant_code_holds_nothing_however_uncertain_it_is():
    for logits in (torch.randn(S, K), 20 * torch.randn(S, K)):
        log_probs = logits.log_softmax(-1).expand(B, T, S, K)
        assert latent_information(log_probs).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_distinct_codes_hold_their_logarithm(num):
    index = torch.arange(num)[:, None].expand(num, S)  # each categorical tells the frames apart by itself
    log_probs = one_hot_codes(index)[None]
    assert latent_information(log_probs).item() == pytest.approx(S * math.log(num))
    assert posterior_entropy(log_probs).item() == 0
    assert codebook_use(log_probs).item() == pytest.approx(num / K)


def test_a_uniform_posterior_is_all_entropy():
    log_probs = torch.full((B, T, S, K), -math.log(K))
    assert posterior_entropy(log_probs).item() == pytest.approx(S * math.log(K))
    assert latent_information(log_probs).item() == pytest.approx(0, abs=1e-6)
    assert codebook_use(log_probs).item() == pytest.approx(1)


# --- the reconstruction --------------------------------------------------------------------------------------------


RAMP = torch.linspace(0, 0.5, 64).expand(3, 64, 64)


def flying_dot(size=2):
    """Frames [1, T, 3, 64, 64] of a bright dot that moves before RAMP, and of a wall that grows brighter, too slowly to
    count as moving.
    """
    frames = RAMP.expand(1, T, 3, 64, 64).clone()
    frames[..., 40:, :] += 0.01 * torch.arange(T).view(1, T, 1, 1, 1)
    for t in range(T):
        frames[0, t, :, 10 : 10 + size, 5 + 4 * t : 5 + 4 * t + size] = 0.9
    return frames


@pytest.mark.parametrize(
    ("measure", "perfect", "blind"), [(motion_explained, 1, 0), (still_error, 0, 1), (small_objects, 1, 0)]
)
def test_a_perfect_picture_and_the_mean_frame(measure, perfect, blind):
    frames = flying_dot()
    given = frames, RAMP, moving_pixels(frames, None)
    assert measure(frames, *given).item() == pytest.approx(perfect, abs=1e-6)
    assert measure(RAMP.expand_as(frames), *given).item() == pytest.approx(blind, abs=1e-6)
    halfway = measure(RAMP + (frames - RAMP) / 2, *given).item()
    expected = {motion_explained: 0.75, still_error: 0.25, small_objects: 0.5}[measure]
    assert halfway == pytest.approx(expected, abs=1e-6)


def test_small_objects_are_those_that_are_small_and_move():
    for size, found in ((1, True), (2, True), (3, False), (12, False)):  # SMALL is 8
        frames = flying_dot(size)
        share = small_objects(frames, frames, RAMP, moving_pixels(frames, None))
        assert share.isnan().item() is not found, size
    still = flying_dot()[:, :1].expand(1, T, 3, 64, 64)
    assert small_objects(still, still, RAMP, moving_pixels(still, None)).isnan()


def test_small_objects_do_not_see_what_else_is_drawn():
    frames = flying_dot()
    drawn, moving = frames.clone(), moving_pixels(frames, None)
    drawn[..., 40:, :] = 7
    assert small_objects(drawn, frames, RAMP, moving).item() == pytest.approx(1)
    assert still_error(drawn, frames, RAMP, moving) > 100


def test_the_moving_edge_of_what_is_large_is_no_small_object():
    """A paddle of 2 x 8 pixels that moves by one: two pixels at either end move."""
    frames = torch.zeros(1, T, 3, 64, 64)
    for t in range(T):
        frames[0, t, :, 20 + t : 28 + t, 10:12] = 0.9
    moving = moving_pixels(frames, None)
    assert moving[0, 3].sum() == 8
    assert small_objects(frames, frames, torch.zeros(3, 64, 64), moving).isnan()


def test_where_nothing_moves_there_is_nothing_to_explain():
    frames = torch.rand(1, 1, 3, 64, 64).expand(B, T, 3, 64, 64)
    given = frames, torch.zeros(3, 64, 64), moving_pixels(frames, None)
    assert motion_explained(frames, *given).isnan()
    assert not still_error(frames, *given).isnan()


# --- rewards -------------------------------------------------------------------------------------------------------


def test_rewards_by_their_sign_against_a_loop():
    two_hot, logits = TwoHot(), torch.randn(B, T, NUM_BINS)
    reward = torch.tensor([[0, 1, 0, -2, 0, 3, -1]] * B, dtype=torch.float32)
    acted = torch.rand(B, T) < 0.7
    acted[0] = True
    found = {name: value.item() for name, value in reward_errors(two_hot, logits, reward, acted).items()}
    loss, predicted = two_hot.loss(logits, reward), two_hot.decode(logits)
    chosen = [(b, t) for b in range(B) for t in range(T) if acted[b, t]]
    for sign, of_sign in (("negative", lambda r: r < 0), ("zero", lambda r: r == 0), ("positive", lambda r: r > 0)):
        where = [place for place in chosen if of_sign(reward[place])]
        assert found[f"reward_count_{sign}"] == len(where)
        assert found[f"reward_predicted_{sign}"] == pytest.approx(
            np.mean([predicted[p].item() for p in where]), rel=1e-5
        )
        assert found[f"reward_true_{sign}"] == pytest.approx(np.mean([reward[p].item() for p in where]))
    rare = [loss[p].item() for p in chosen if reward[p] != 0]
    common = [loss[p].item() for p in chosen if reward[p] == 0]
    assert found["reward_nonzero"] == pytest.approx(np.mean(rare), rel=1e-5)
    assert found["reward_zero"] == pytest.approx(np.mean(common), rel=1e-5)


# --- the model -----------------------------------------------------------------------------------------------------


def test_the_statistics_of_a_model_stay_and_the_kl_is_that_of_training_mode():
    model = tiny_learner().world_model
    seen = see(model, make_batch())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kl = statistics_kl(model, seen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    model.train()
    exact = see(model, seen.batch).log_probs
    expected = (exact.exp() * (exact - seen.log_probs)).sum((-2, -1)).mean()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-4)
    assert kl > 0.01


def test_statistics_that_do_not_lag_have_no_kl():
    model = tiny_learner().world_model
    for norm in (m for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    batch = make_batch(8)
    model.train()
    see(model, batch)
    model.eval()
    assert statistics_kl(model, see(model, batch)).item() == pytest.approx(0, abs=1e-4)  # but for n / (n - 1)


def test_training_reads_nothing_from_the_device_and_draws_nothing():
    learner, batch = tiny_learner(), make_batch()
    batch.reward[:, ::2] = 0
    before = torch.get_rng_state()
    with no_sync():
        always, at_times = in_training(learner.world_model, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(always) == {"latent_information", "posterior_entropy"}
    assert set(at_times) == {"reward_nonzero", "motion_explained"}
    for value in (always | at_times).values():
        assert value.shape == () and value.isfinite() and not value.requires_grad
    quiet = dataclasses.replace(batch, reward=torch.zeros(B, T))
    assert in_training(learner.world_model, quiet)[1]["reward_nonzero"].isnan()


def test_without_a_decoder_nothing_is_said_of_pictures():
    learner = tiny_learner(values={"world_model.loss.reconstruction": 0.0})
    assert set(in_training(learner.world_model, make_batch())[1]) == {"reward_nonzero"}


# --- imagination ---------------------------------------------------------------------------------------------------


def test_a_dream_that_comes_true_has_no_error_and_a_wrong_one_the_errors_of_a_loop(monkeypatch):
    model, window = tiny_learner().world_model, make_batch(6, C + 5, seed=3)
    dream = open_loop(model, window, C)
    wrong = open_loop_errors(model, window, C)
    assert list(wrong) == [1, 2, 4, 5]
    for n, errors in wrong.items():
        off = true = surprise = 0.0
        count = 0
        for b in range(6):
            for i in range(n):
                if window.is_last[b, C - 1 + i] or window.is_first[b, C : C + i].any():
                    continue
                off += abs(float(dream.reward[b, i]) - float(window.reward[b, C - 1 + i]))
                true += abs(float(window.reward[b, C - 1 + i]))
                chance = float(dream.continuation[b, i])
                surprise -= math.log(1 - chance if dream.real_end[b, i] else chance)
                count += 1
        assert errors["reward"].item() == pytest.approx(off / true, rel=1e-4)
        assert errors["continuation"].item() == pytest.approx(surprise / count, rel=1e-3)
        assert errors["motion_explained"] < 0.5
    assert count < 6 * 5  # some episodes ended
    true = {"imagined": dream.real, "reward": dream.real_reward, "continuation": 1 - dream.real_end.astype(np.float32)}
    monkeypatch.setattr(diagnosis, "open_loop", lambda *args, **options: Dream(**{**vars(dream), **true}))
    for errors in open_loop_errors(model, window, C).values():
        found = {name: value.item() for name, value in errors.items() if name != "still_error"}
        assert found == pytest.approx({"motion_explained": 1, "reward": 0, "continuation": 0})
        assert not errors["still_error"] > 0  # NaN where every pixel of these random frames moves


def test_frames_after_a_reset_are_not_compared(monkeypatch):
    """Wrong frames from the reset on change nothing."""
    model, window = tiny_learner().world_model, make_batch(2, C + 4, resets=False)
    window.is_last[0, C + 1] = window.is_first[0, C + 2] = True

    def pixels():
        return [errors["motion_explained"].item() for errors in open_loop_errors(model, window, C).values()]

    dream, expected = open_loop(model, window, C), pixels()
    imagined = dream.imagined.copy()
    imagined[0, 3:] = 255 - imagined[0, 3:]
    monkeypatch.setattr(diagnosis, "open_loop", lambda *args, **options: dataclasses.replace(dream, imagined=imagined))
    assert pixels() == expected
    imagined[1, 3:] = 255 - imagined[1, 3:]
    assert pixels() != expected
