"""Numbers of dreams that are right for a known number of frames."""

import dataclasses

import numpy as np
import pytest

from stormfast.commands.dream import RULE
from stormfast.dream_score import UNSEEN, WRONG, score_dream
from tests.dream_fixtures import H, make_dream


@pytest.mark.parametrize("right", [1, 2, 7, H])
def test_a_model_that_is_right_for_k_frames_is_wrong_from_frame_k_on(right: int) -> None:
    assert score_dream(make_dream(right)).first_wrong == right


def test_a_perfect_dream_has_no_error_and_no_wrong_frame() -> None:
    score = score_dream(make_dream(None, None))
    assert (score.first_wrong, score.first_wrong_of) == (0, (0, 0))
    assert (score.moving_error, score.still_error) == (0, 0)
    assert score.metrics() == {
        "dream/moving_error": 0,
        "dream/still_error": 0,
        "dream/rewards_right": 1,
        "dream/first_wrong": 0,
    }


@pytest.mark.parametrize(
    ("right", "expected"),
    [((5, 2, None), 5), ((5, None, 2, 9), 5), ((None, None, 3), 0), ((3, None), 3), ((8,), 8), ((None, 3, 3), 3)],
)
def test_of_several_dreams_the_frame_by_which_half_are_wrong_counts(right, expected) -> None:
    score = score_dream(make_dream(*right))
    assert score.first_wrong == expected
    assert score.first_wrong_of == tuple(count or 0 for count in right)


def test_errors_are_those_of_a_loop() -> None:
    dream = make_dream(4, 6)
    real, imagined = dream.real / 255, dream.imagined / 255
    mean = real.mean((0, 1))
    sums = {True: np.zeros(2), False: np.zeros(2)}
    for n in range(2):
        for t in range(1, H + 1):
            around = [real[n, s] for s in (t - 1, t + 1) if s <= H]
            moves = np.any([np.abs(real[n, t] - other).max(0) > 0.05 for other in around], 0)
            for kind in (True, False):
                where = moves == kind
                sums[kind] += [((x - real[n, t])[:, where] ** 2).sum() for x in (imagined[n, t], mean)]
    score = score_dream(dream)
    assert score.moving_error == pytest.approx(sums[True][0] / sums[True][1], rel=1e-5)
    assert score.still_error == pytest.approx(sums[False][0] / sums[False][1], rel=1e-5, abs=1e-9)


def test_what_appears_where_nothing_moves_is_wrong_and_noise_is_not() -> None:
    still = np.zeros((1, H + 1, 3, 64, 64), np.uint8)
    noisy = still + 12  # less than 0.05 of 255
    assert score_dream(make_dream(None, real=still, imagined=noisy)).first_wrong == 0
    ghost = still.copy()
    ghost[:, 5:, :, 40:50, 40:50] = 200
    score = score_dream(make_dream(None, real=still, imagined=ghost))
    assert score.first_wrong == 5
    assert (score.moving_error, score.still_error) == (None, None)  # nothing moves, and the mean frame has no error
    assert set(score.metrics()) == {"dream/rewards_right", "dream/first_wrong"}
    assert "moving pixels -, on the rest -" in str(score)


def test_what_follows_the_end_of_the_episode_does_not_count() -> None:
    same, acted = np.ones((1, H), bool), np.ones((1, H), bool)
    same[0, 4:], acted[0, 5:] = False, False  # frames 1 to 4 are of the episode, and so are 5 actions
    ended = make_dream(5, same_episode=same, acted=acted)
    assert score_dream(ended).first_wrong == 0
    assert score_dream(ended).moving_error == 0
    assert score_dream(ended).rewards == 5
    assert score_dream(dataclasses.replace(make_dream(4), same_episode=same)).first_wrong == 4


def test_rewards_are_right_within_half_of_one_or_of_themselves() -> None:
    real, predicted = np.zeros((2, 1, H), np.float32)
    real[0, :6] = [0, 0, 1, -1, 100, 100]
    predicted[0, :6] = [0.4, 0.6, 0.6, 0, 140, 160]
    score = score_dream(make_dream(None, real_reward=real, reward=predicted))
    assert (score.rewards_right, score.rewards) == (H - 3, H)
    assert f"rewards right {H - 3} of {H}; first wrong frame none" in str(score)


def test_the_rule_that_the_command_prints_is_the_one_that_counts() -> None:
    assert f"over {WRONG} of the mean frame's and over {UNSEEN**0.5:.2f} squared" in RULE
    assert RULE.count(".") == RULE.count("0.") + 1  # one sentence
