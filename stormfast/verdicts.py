"""What is wrong with a world model by its numbers of diagnosis, each in one line with its remedy."""

import math
from collections.abc import Mapping

from stormfast.settings import WorldModelConfig

# World models of Pong, preset cpu, from scratch: 9 to 20 nats after 500 updates where the latents live, 0.0 through
# 1,000 updates where they are dead. Breakout without the remedies has 1.2 after 300. Twice 500, as other presets learn
# with a smaller step.
DEAD_AFTER = 1_000  # updates of the world model
DEAD_BELOW = 0.5  # nats
LAG_ABOVE = 0.1  # nats; norm_momentum 0.1 at a learning rate of 6e-4 leaves 0.19 to 0.26, 0.3 leaves 0.02
DRAWN_BELOW = 0.2  # of the brightness; Pong has 0.14 at step 20,053 without the remedies, 0.44 at step 4,001 with them
PREDICTED_BELOW = 0.1  # of the mean reward of that sign
FEWEST_REWARDS = 5  # of one sign, below which nothing is said of them
MEMORISED_ABOVE = 1.0  # nats of cross-entropy on rewards of fresh play above that on replay


def verdicts(numbers: Mapping[str, float | None], updates: int, config: WorldModelConfig) -> list[str]:
    """All that is wrong. Args: numbers: by name, None where there was nothing to measure. updates: of the model."""
    lines = [
        dead_posterior(numbers["latent_information"], updates, config),
        lagging_statistics(numbers["statistics_kl"], config),
        undrawn_small_objects(numbers.get("small_objects"), config),
        *(unpredicted_rewards(numbers, sign) for sign in ("negative", "positive")),
    ]
    return [line for line in lines if line]


def dead_posterior(information: float | None, updates: int, config: WorldModelConfig) -> str:
    """A line where the latents say nothing of the frames though the model has had its updates; else nothing."""
    if information is None or information >= DEAD_BELOW or updates < DEAD_AFTER:
        return ""
    found = f"the posterior is dead: latents hold {abs(information):.2f} nats of the frame after {updates:,} updates"
    return f"{found} (alive from {DEAD_BELOW}), so imagination is blind; {remedy(config)}"


def remedy(config: WorldModelConfig) -> str:
    """What makes latents see, of that which is not on already."""
    flags = {
        "--world-model.loss.reconstruction 1": config.loss.reconstruction > 0,
        "--world-model.centre-frames": config.centre_frames,
        "--world-model.focus 9": config.focus > 0,
        "--world-model.decoder-init zero": config.decoder_init == "zero",
    }
    missing = [flag for flag, is_on in flags.items() if not is_on]
    if missing:
        return f"start a new run with {' '.join(missing)}"
    return "all settings against it are on: start a new run with another --seed or a larger --world-model.focus"


def lagging_statistics(kl: float | None, config: WorldModelConfig) -> str:
    """A line where the running batch-norm statistics lag behind the weights."""
    if kl is None or kl <= LAG_ABOVE:
        return ""
    found = f"batch-norm statistics lag: the posterior by running ones is {kl:.2f} nats from that by a batch's own"
    larger = min(1.0, max(0.3, 3 * config.norm_momentum))
    flag = "a smaller --world-model.learning-rate"
    if config.norm_momentum < larger:
        flag = f"--world-model.norm-momentum {larger:g}"
    return f"{found} (at most {LAG_ABOVE}), so acting and imagination see other latents than training; take {flag}"


def undrawn_small_objects(share: float | None, config: WorldModelConfig) -> str:
    """A line where small things that move are not in the reconstruction."""
    if share is None or share >= DRAWN_BELOW:
        return ""
    found = f"small things that move are drawn at {share:.0%} of their brightness (right from {DRAWN_BELOW:.0%})"
    return f"{found}; {remedy(config)}"


def unpredicted_rewards(numbers: Mapping[str, float | None], sign: str) -> str:
    """A line where the mean prediction on rewards of a sign, negative or positive, is next to nothing."""
    count, predicted, true = (numbers.get(f"reward_{what}_{sign}") for what in ("count", "predicted", "true"))
    if not count or count < FEWEST_REWARDS or predicted is None or not true or math.isnan(true):
        return ""
    if predicted / true >= PREDICTED_BELOW:
        return ""
    found = f"{sign} rewards are not predicted: {predicted:.3g} where they are {true:.3g} in the mean of {count:.0f}"
    return f"{found}; train longer, and see first that small things are drawn"


def memorised_rewards(replay: Mapping[str, float | None], fresh: Mapping[str, float | None]) -> str:
    """A line where rewards are known in replay and not in play that the model was not trained on."""
    known, new = (numbers["reward_nonzero"] for numbers in (replay, fresh))
    counts = [fresh.get(f"reward_count_{sign}") or 0.0 for sign in ("negative", "positive")]
    if known is None or new is None or sum(counts) < FEWEST_REWARDS or new - known <= MEMORISED_ABOVE:
        return ""
    found = f"rewards are memorised: a cross-entropy of {known:.2f} nats on those of replay, {new:.2f} on new ones"
    return f"{found}; give it more play an update, by a smaller --world-model.updates-per-step and more --steps"
