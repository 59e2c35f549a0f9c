"""What a world model sees of a game: numbers that tell a blind one from one that draws, remembers and predicts.

B batch   T time   S categoricals   K classes   N two-hot bins   C context steps   H imagined steps

A number is a 0-d tensor, summed in float64. It is NaN where the windows hold nothing to measure it on, as no reward.
Nothing here waits for the device but open_loop_errors.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stormfast.dream_env import open_loop
from stormfast.records import Batch
from stormfast.world_model import WorldModel
from stormfast.world_model.encoder import normalize_frames
from stormfast.world_model.focus import MOVES, moving_pixels
from stormfast.world_model.heads import TwoHot
from stormfast.world_model.losses import kl_divergence
from stormfast_kernels import unimix_log_probs

AROUND = 9  # pixels of the square around a pixel in which the size of a thing is counted
SMALL = 8  # pixels of that square, at most, that a small thing covers: Pong's ball has 4 or less, its paddles more


@dataclass(frozen=True)
class Seen:
    """Windows of replay, and what a world model makes of each frame. Latents are the modes: nothing is drawn."""

    batch: Batch  # [B, T]
    frames: Tensor  # [B, T, 3, 64, 64] in [0, 1]
    log_probs: Tensor  # [B, T, S, K] of the posterior, after the uniform mix
    reward: Tensor  # [B, T, N] two-hot logits
    reconstruction: Tensor | None  # [B, T, 3, 64, 64]; None without a decoder

    @property
    def moving(self) -> Tensor:
        """[B, T, 1, 64, 64] bool, the pixels that move."""
        return moving_pixels(self.frames, ~self.batch.is_first[:, 1:])

    @property
    def mean_frame(self) -> Tensor:
        """[3, 64, 64], the mean of these frames."""
        return self.frames.mean((0, 1))


@torch.no_grad()
def see(world_model: WorldModel, batch: Batch) -> Seen:
    """What the world model, in evaluation mode, makes of windows [B, T]."""
    frames = normalize_frames(batch.obs)
    prediction = world_model.predict(frames, batch, None)
    return Seen(
        batch=batch,
        frames=frames.unflatten(0, batch.action.shape),
        log_probs=prediction.posterior_log_probs,
        reward=prediction.heads["reward"],
        reconstruction=prediction.reconstruction,
    )


def in_training(world_model: WorldModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The few numbers that training logs: those that are always there, and those that are NaN at times."""
    seen = see(world_model, batch)
    always = {
        "latent_information": latent_information(seen.log_probs),
        "posterior_entropy": posterior_entropy(seen.log_probs),
    }
    at_times = {
        "reward_nonzero": reward_numbers(world_model, seen)["reward_nonzero"],
    }
    if seen.reconstruction is not None:
        at_times["motion_explained"] = motion_explained(seen.reconstruction, seen.frames, seen.mean_frame, seen.moving)
    return always, at_times


# --- the latent --------------------------------------------------------------------------------------------------


def latent_information(log_probs: Tensor) -> Tensor:
    """Mutual information of latent and frame in nats: H(mean posterior) - mean H(posterior), summed over categoricals.

    The sum takes categoricals for independent: what two of them both say counts twice.

    Args: log_probs: [..., S, K] of the posteriors of frames.
    """
    return torch.special.entr(mean_posterior(log_probs)).sum() - posterior_entropy(log_probs)


def posterior_entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of the posterior [..., S, K] of a frame, summed over categoricals."""
    return torch.special.entr(log_probs.double().exp()).sum((-2, -1)).mean()


def codebook_use(log_probs: Tensor) -> Tensor:
    """Share of a categorical's classes in use: exp(H(mean posterior)) / K, the mean over categoricals. 1/K to 1."""
    used = torch.special.entr(mean_posterior(log_probs)).sum(-1).exp()  # [S] classes
    return used.mean() / log_probs.shape[-1]


def mean_posterior(log_probs: Tensor) -> Tensor:
    """[..., S, K] -> [S, K] float64, over all frames."""
    return log_probs.double().exp().flatten(0, -3).mean(0)


@torch.no_grad()
def statistics_kl(world_model: WorldModel, seen: Seen) -> Tensor:
    """KL[posterior by the statistics of these frames || posterior by the running ones] in nats, mean over frames.

    By so much the encoder's batch norms make acting and imagination differ from training.
    """
    encoder = copy.deepcopy(world_model.encoder).train()  # a copy: training mode moves its running statistics
    logits = world_model.posterior(encoder(seen.frames.flatten(0, 1))).unflatten(0, seen.log_probs.shape[:2])
    exact = unimix_log_probs(logits, world_model.config.unimix)
    return kl_divergence(exact.double(), seen.log_probs.double()).mean()


# --- the reconstruction ------------------------------------------------------------------------------------------
# All take: reconstruction and frames [B, T, 3, 64, 64], mean_frame [3, 64, 64], moving [B, T, 1, 64, 64] bool.


def motion_explained(reconstruction: Tensor, frames: Tensor, mean_frame: Tensor, moving: Tensor) -> Tensor:
    """1 - squared error on pixels that move / that of the mean frame there: 1 is perfect, 0 no better than it."""
    return 1 - squared_error_share(reconstruction, frames, mean_frame, moving)


def still_error(reconstruction: Tensor, frames: Tensor, mean_frame: Tensor, moving: Tensor) -> Tensor:
    """Squared error on pixels that do not move / that of the mean frame there: 0 is perfect, 1 no better than it."""
    return squared_error_share(reconstruction, frames, mean_frame, ~moving)


def squared_error_share(reconstruction: Tensor, frames: Tensor, mean_frame: Tensor, where: Tensor) -> Tensor:
    error, base = (
        ((drawn - frames).square() * where).sum(dtype=torch.float64) for drawn in (reconstruction, mean_frame)
    )
    return ratio(error, base)


def small_objects(reconstruction: Tensor, frames: Tensor, mean_frame: Tensor, moving: Tensor) -> Tensor:
    """Share of their brightness at which small moving things are drawn: 1 is right, 0 is the mean frame in their place.

    A pixel is of a small moving thing if it moves and differs from the mean frame by more than MOVES, and at most SMALL
    pixels of the AROUND x AROUND around it differ so, moving or not. The share is the factor by which their difference
    to the mean frame comes nearest to that of the reconstruction, in the least squares.
    """
    shown = frames - mean_frame
    thing = shown.abs().amax(2, keepdim=True) > MOVES
    crowd = F.avg_pool2d(thing.flatten(0, 1).float(), AROUND, stride=1, padding=AROUND // 2, divisor_override=1)
    small = shown * (moving & thing & (crowd.unflatten(0, thing.shape[:2]) <= SMALL))
    drawn = (small * (reconstruction - mean_frame)).sum(dtype=torch.float64)
    return ratio(drawn, small.square().sum(dtype=torch.float64))


# --- rewards -----------------------------------------------------------------------------------------------------


def reward_numbers(world_model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """reward_errors of the steps at which an action was taken."""
    acted = ~seen.batch.is_last
    return reward_errors(world_model.two_hot, seen.reward, seen.batch.reward, acted)


def reward_errors(two_hot: TwoHot, logits: Tensor, reward: Tensor, acted: Tensor) -> dict[str, Tensor]:
    """How the reward head does on the rewards that are rare, beside those that are zero.

    Args: logits: [B, T, N]. reward: [B, T], the true ones. acted: [B, T] bool, the steps that count.
    Returns: reward_nonzero and reward_zero, the mean cross-entropy there in nats; and for negative, zero and positive
        rewards how many there are, as reward_count_SIGN, and their predicted and true mean, as reward_predicted_SIGN
        and reward_true_SIGN.
    """
    loss, predicted = two_hot.loss(logits, reward), two_hot.decode(logits)
    numbers = {
        "reward_nonzero": mean_where(loss, acted & (reward != 0)),
        "reward_zero": mean_where(loss, acted & (reward == 0)),
    }
    for sign, of_sign in (("negative", reward < 0), ("zero", reward == 0), ("positive", reward > 0)):
        keep = acted & of_sign
        numbers[f"reward_count_{sign}"] = keep.sum(dtype=torch.float64)
        numbers[f"reward_predicted_{sign}"] = mean_where(predicted, keep)
        numbers[f"reward_true_{sign}"] = mean_where(reward, keep)
    return numbers


# --- imagination -------------------------------------------------------------------------------------------------


def open_loop_errors(
    world_model: WorldModel, window: Batch, context: int, *, seed: int = 0
) -> dict[int, dict[str, Tensor]]:
    """How the model's imagination of real play departs from it, n = 1, 2, 4, 8 ... H steps after the last frame it saw.

    An episode that ends within a window counts up to its end.

    Args:
        world_model: in evaluation mode, with a decoder.
        window: [B, C + H] real steps.
        context: C, steps that the model sees.
        seed: of the latents drawn.
    Returns: for each n
        motion_explained and still_error of frame n;
        reward: sum of |predicted - true| over steps 1 to n / sum of |true|: 0 is perfect, 1 as good as predicting 0;
        continuation: cross-entropy in nats of the end of the episode, mean over steps 1 to n.
    Raises: ValueError as open_loop does. Waits for the device.
    """
    dream = open_loop(world_model, window, context, seed=seed)
    real, imagined = (torch.from_numpy(frames) / 255 for frames in (dream.real, dream.imagined))  # [B, H+1, 3, 64, 64]
    same, acted = torch.from_numpy(dream.same_episode), torch.from_numpy(dream.acted)  # [B, H]
    moving = moving_pixels(real, same)[:, 1:]
    mean_frame = real.mean((0, 1))
    true, predicted, ended, continuation = map(
        torch.from_numpy, (dream.real_reward, dream.reward, dream.real_end, dream.continuation)
    )
    off = torch.where(acted, (predicted - true).abs(), 0)
    surprise = F.binary_cross_entropy(continuation, (~ended).float(), reduction="none")

    def at(n: int) -> dict[str, Tensor]:
        there = same[:, n - 1, None, None, None]
        still, moves = (mask[:, n - 1] & there for mask in (~moving, moving))
        pair = imagined[:, n], real[:, n], mean_frame
        return {
            "motion_explained": 1 - squared_error_share(*pair, moves),
            "still_error": squared_error_share(*pair, still),
            "reward": ratio(off[:, :n].sum(dtype=torch.float64), (true * acted)[:, :n].abs().sum(dtype=torch.float64)),
            "continuation": mean_where(surprise[:, :n], acted[:, :n]),
        }

    return {n: at(n) for n in doublings(acted.shape[1])}


def doublings(most: int) -> list[int]:
    """1, 2, 4, 8 ... and `most`."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def mean_where(x: Tensor, keep: Tensor) -> Tensor:
    """Mean of x where keep, of the same shape, is True."""
    if x.shape != keep.shape:
        raise ValueError(f"values {tuple(x.shape)} and mask {tuple(keep.shape)} must match")
    return ratio(torch.where(keep, x, 0).sum(dtype=torch.float64), keep.sum(dtype=torch.float64))


def ratio(total: Tensor, weight: Tensor) -> Tensor:
    """total / weight, both 0-d; NaN where the weight is 0."""
    return torch.where(weight > 0, total / weight, torch.nan)
