"""Verdicts: each at its threshold, with the remedies that are not on already."""

from dataclasses import replace

import pytest

from stormfast.settings import WorldModelConfig, WorldModelLossConfig
from stormfast.verdicts import (
    DEAD_AFTER,
    DEAD_BELOW,
    DRAWN_BELOW,
    FEWEST_REWARDS,
    LAG_ABOVE,
    dead_posterior,
    memorised_rewards,
    remedy,
    verdicts,
)

PLAIN = WorldModelConfig(centre_frames=False, focus=0.0, decoder_init="default")
MENDED = WorldModelConfig(centre_frames=True, focus=9.0, decoder_init="zero", norm_momentum=0.3)
HEALTHY = {
    "latent_information": 12.0,
    "statistics_kl": 0.02,
    "small_objects": 0.8,
    "reward_count_negative": 20.0,
    "reward_predicted_negative": -0.6,
    "reward_true_negative": -1.0,
    "reward_count_positive": 0.0,
    "reward_predicted_positive": None,
    "reward_true_positive": None,
}


def test_a_dead_posterior_is_told_once_it_has_had_its_updates():
    config = PLAIN
    line = dead_posterior(0.0, DEAD_AFTER, config)
    assert "\n" not in line
    assert line.startswith("the posterior is dead: latents hold 0.00 nats of the frame after 1,000 updates")
    assert line.endswith("--world-model.centre-frames --world-model.focus 9 --world-model.decoder-init zero")
    assert not dead_posterior(0.0, DEAD_AFTER - 1, config)
    assert not dead_posterior(DEAD_BELOW, DEAD_AFTER, config)
    assert not dead_posterior(None, DEAD_AFTER, config)


def test_the_remedy_is_what_is_not_on():
    config = replace(PLAIN, focus=4.0)
    assert remedy(config) == "start a new run with --world-model.centre-frames --world-model.decoder-init zero"
    assert remedy(MENDED).startswith("all settings against it are on")
    without = replace(MENDED, loss=WorldModelLossConfig(reconstruction=0))
    assert remedy(without) == "start a new run with --world-model.loss.reconstruction 1"


def test_a_healthy_model_has_no_verdict():
    assert verdicts(HEALTHY, 5_000, WorldModelConfig()) == []
    without_decoder = {name: value for name, value in HEALTHY.items() if name != "small_objects"}
    assert verdicts(without_decoder, 5_000, WorldModelConfig()) == []


@pytest.mark.parametrize(
    ("numbers", "start", "end"),
    [
        ({"latent_information": DEAD_BELOW - 0.01}, "the posterior is dead", "--world-model.decoder-init zero"),
        ({"statistics_kl": LAG_ABOVE + 0.01}, "batch-norm statistics lag", "take --world-model.norm-momentum 0.3"),
        ({"small_objects": DRAWN_BELOW - 0.1}, "small things that move are drawn at 10%", "decoder-init zero"),
        ({"reward_predicted_negative": -0.05}, "negative rewards are not predicted: -0.05 where", "are drawn"),
        (
            {"reward_count_positive": 9.0, "reward_predicted_positive": -0.1, "reward_true_positive": 2.0},
            "positive rewards are not predicted: -0.1 where they are 2 in the mean of 9",
            "are drawn",
        ),
    ],
)
def test_each_trouble_has_its_line(numbers, start, end):
    (line,) = verdicts(HEALTHY | numbers, 5_000, PLAIN)
    assert line.startswith(start)
    assert line.endswith(end)
    assert "\n" not in line


def test_momentum_that_is_already_large_is_not_advised():
    (line,) = verdicts(HEALTHY | {"statistics_kl": 1.0}, 5_000, replace(MENDED, norm_momentum=1.0))
    assert line.endswith("take a smaller --world-model.learning-rate")


def test_too_few_rewards_are_not_judged():
    few = {"reward_count_negative": FEWEST_REWARDS - 1.0, "reward_predicted_negative": 0.0}
    assert verdicts(HEALTHY | few, 5_000, WorldModelConfig()) == []


def test_rewards_are_memorised_where_those_of_fresh_play_are_unknown():
    replay, fresh = {"reward_nonzero": 0.7}, {"reward_nonzero": 2.7, "reward_count_negative": FEWEST_REWARDS}
    line = memorised_rewards(replay, fresh)
    assert line.startswith("rewards are memorised: a cross-entropy of 0.70 nats on those of replay, 2.70 on new ones;")
    assert line.endswith("smaller --world-model.updates-per-step and more --steps")
    for other in ({"reward_nonzero": 1.6}, {"reward_nonzero": None}, {"reward_count_negative": FEWEST_REWARDS - 1.0}):
        assert memorised_rewards(replay, fresh | other) == ""
