"""The world model's objective: reconstruction, reward, continuation, dynamics and representation.

B batch   T time   S categoricals   K classes   N two-hot bins
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stormfast.batch import Batch
from stormfast.config import WorldModelConfig
from stormfast.world_model.heads import TwoHot, upcast
from stormfast.world_model.latent import kl_divergence
from stormfast_kernels import unimix_log_probs


@dataclass(frozen=True)
class Prediction:
    """What the world model says of a batch of windows."""

    posterior: Tensor  # [B, T, S, K] logits, from each frame alone
    posterior_log_probs: Tensor  # [B, T, S, K] after the uniform mix, at least float32
    prior: Tensor  # [B, T, S, K] logits of the NEXT step's posterior
    reconstruction: Tensor  # [B, T, 3, 64, 64]
    reward: Tensor  # [B, T, N] two-hot logits of the reward of action t
    termination: Tensor  # [B, T] logit that action t ends the episode
    hidden: Tensor  # [B, T, D]


def world_model_loss(
    prediction: Prediction, frames: Tensor, batch: Batch, two_hot: TwoHot, config: WorldModelConfig, *, mark_resets: bool
) -> dict[str, Tensor]:
    """Every term of the loss as a 0-d tensor, `total` among them.

    Args:
        frames: [B*T, 3, 64, 64] in [0, 1], what reconstruction is compared with.
        mark_resets: leave out what has no target: reward and continuation of an episode's last observation, the KL across a reset.
    Source: STORM, arXiv 2310.09615, eq. (3)-(5); free bits per step (`standard`) or on the batch mean (`reference`).
    """
    acted = ~batch.is_last if mark_resets else None
    follows = ~batch.is_first[:, 1:] if mark_resets else None
    ended = (batch.terminated | batch.life_lost) if config.life_loss_terminates else batch.terminated
    reconstructed = upcast(prediction.reconstruction).flatten(0, 1)
    if reconstructed.shape != frames.shape:
        raise ValueError(f"reconstruction [B*T, 3, 64, 64] and frames must match, got {tuple(reconstructed.shape)} and {tuple(frames.shape)}")
    reconstruction = (reconstructed - frames).square().sum((1, 2, 3)).mean()
    reward = masked_mean(two_hot.loss(prediction.reward, batch.reward), acted)
    termination_logit = upcast(prediction.termination)
    termination = masked_mean(F.binary_cross_entropy_with_logits(termination_logit, ended.to(termination_logit.dtype), reduction="none"), acted)
    posterior = prediction.posterior_log_probs[:, 1:]
    prior = unimix_log_probs(prediction.prior[:, :-1], config.unimix)
    dynamics, dynamics_kl = free_bits_mean(kl_divergence(posterior.detach(), prior), follows, config)
    representation, representation_kl = free_bits_mean(kl_divergence(posterior, prior.detach()), follows, config)
    total = reconstruction + reward + termination + config.dynamics_scale * dynamics + config.representation_scale * representation
    return {
        "total": total,
        "reconstruction": reconstruction,
        "reward": reward,
        "termination": termination,
        "dynamics": dynamics,
        "dynamics_kl": dynamics_kl,
        "representation": representation,
        "representation_kl": representation_kl,
    }


def masked_mean(x: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of x [B, T] where keep [B, T] is True; the plain mean where keep is None."""
    if keep is None:
        return x.mean()
    if x.shape != keep.shape:
        raise ValueError(f"loss {tuple(x.shape)} and mask {tuple(keep.shape)} must match")
    return torch.where(keep, x, 0).sum() / keep.sum().clamp(min=1)


def free_bits_mean(kl: Tensor, keep: Tensor | None, config: WorldModelConfig) -> tuple[Tensor, Tensor]:
    """(KL with free bits, plain KL), both averaged over batch and time."""
    mean = masked_mean(kl, keep)
    if config.free_bits_per == "batch":
        return mean.clamp(min=config.free_bits), mean
    return masked_mean(kl.clamp(min=config.free_bits), keep), mean
