"""The world model's objective: reconstruction, reward, continuation, dynamics and representation.

B batch   T time   S categoricals   K classes   N two-hot bins
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormfast.objective import weighted_sum
from stormfast.records import Batch
from stormfast.settings import WorldModelConfig
from stormfast.world_model.focus import focus_weight, moving_pixels, unusual_pixels
from stormfast.world_model.harmony import LossScales
from stormfast.world_model.heads import NUM_BINS, TwoHot, mlp, upcast
from stormfast_kernels import unimix_log_probs

# Term of the loss -> its head on the hidden state, [..., D] -> [..., OUT]. The model makes those whose weight is not 0.
HEADS: dict[str, Callable[[WorldModelConfig], nn.Module]] = {
    "reward": lambda config: mlp(config.width, config.width, NUM_BINS, zero=config.head_init == "zero"),
    "termination": lambda config: mlp(config.width, config.width, 1),
}


@dataclass(frozen=True)
class Prediction:
    """What the world model predicts for a batch of windows."""

    posterior: Tensor  # [B, T, S, K] logits, from each frame alone
    posterior_log_probs: Tensor  # [B, T, S, K] after the uniform mix, at least float32
    prior: Tensor  # [B, T, S, K] logits of the NEXT step's posterior
    reconstruction: Tensor | None  # [B, T', 3, 64, 64]; None where nothing is drawn
    heads: dict[str, Tensor]  # output of each head: reward [B, T, N] two-hot logits, termination [B, T, 1] logit
    hidden: Tensor  # [B, T, D]


def world_model_loss(
    prediction: Prediction,
    frames: Tensor,
    batch: Batch,
    two_hot: TwoHot,
    config: WorldModelConfig,
    scales: LossScales | None = None,
    decoded: Tensor | None = None,
    mean_frame: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every term of the loss as a 0-d tensor, and their weighted sum as `total`; the KL terms also without free bits.

    Args:
        frames: [B*T, 3, 64, 64] in [0, 1], what reconstruction is compared with.
        scales: the learned ones of config.balance "harmony".
        decoded: [T'] steps that are reconstructed; None for all.
        mean_frame: [3, 64, 64] in [0, 1], which config.focus_on "mean_frame" needs.
    Source: STORM, arXiv 2310.09615, eq. (3)-(5); free bits per step (`standard`) or on the batch mean (`reference`).
    """
    windows = frames.unflatten(0, batch.is_first.shape)
    shown = windows if decoded is None else windows.index_select(1, decoded)
    weight, follows = None, following(batch, config)
    if config.focus_on == "motion" and config.focus:
        weight = focus_weight(moving_pixels(windows, follows, decoded), config.focus)
    elif config.focus:
        assert mean_frame is not None
        weight = focus_weight(unusual_pixels(shown, mean_frame), config.focus)
    predicted, kl = predicted_terms(prediction, batch, follows, two_hot, config)
    terms = {"reconstruction": squared_error(prediction.reconstruction, shown.flatten(0, 1), weight), **predicted}
    return {"total": (scales or weighted_sum)(terms, config.loss.weights()), **terms, **kl}


def sequence_loss(
    prediction: Prediction, batch: Batch, two_hot: TwoHot, config: WorldModelConfig, scales: LossScales | None = None
) -> dict[str, Tensor]:
    """world_model_loss of what is predicted alone, without the reconstruction."""
    terms, kl = predicted_terms(prediction, batch, following(batch, config), two_hot, config)
    return {"total": (scales or weighted_sum)(terms, config.loss.weights() | {"reconstruction": 0.0}), **terms, **kl}


def following(batch: Batch, config: WorldModelConfig) -> Tensor | None:
    """[B, T-1] bool, whether step t + 1 follows step t in one episode; None where episodes are not told apart."""
    return ~batch.is_first[:, 1:] if config.separate_episodes else None


def predicted_terms(
    prediction: Prediction, batch: Batch, follows: Tensor | None, two_hot: TwoHot, config: WorldModelConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of what is predicted from the hidden states, 0-d, and the KL terms without free bits.

    With config.separate_episodes what has no target is left out: reward and termination of an episode's last
    observation, and the KL across a reset.

    Args: follows: of following().
    """
    acted = ~batch.is_last if config.separate_episodes else None
    ended = (batch.terminated | batch.life_lost) if config.life_loss_terminates else batch.terminated
    logit = upcast(prediction.heads["termination"].squeeze(-1))
    posterior = prediction.posterior_log_probs[:, 1:]
    prior = unimix_log_probs(prediction.prior[:, :-1], config.unimix)
    dynamics, dynamics_kl = free_bits_mean(kl_divergence(posterior.detach(), prior), follows, config)
    representation, representation_kl = free_bits_mean(kl_divergence(posterior, prior.detach()), follows, config)
    terms = {
        "reward": masked_mean(two_hot.loss(prediction.heads["reward"], batch.reward), acted),
        "termination": masked_mean(
            F.binary_cross_entropy_with_logits(logit, ended.to(logit.dtype), reduction="none"), acted
        ),
        "dynamics": dynamics,
        "representation": representation,
    }
    return terms, {"dynamics_kl": dynamics_kl, "representation_kl": representation_kl}


def squared_error(reconstruction: Tensor | None, frames: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over B*T of the squared error summed over a frame; 0 where there is no reconstruction.

    Args: reconstruction: [B, T, 3, 64, 64]. frames: [B*T, 3, 64, 64]. weight: [B, T, 1, 64, 64], or None for 1.
    """
    if reconstruction is None:
        return frames.new_zeros(())
    reconstructed = upcast(reconstruction).flatten(0, 1)
    if reconstructed.shape != frames.shape:
        got = f"{tuple(reconstructed.shape)} and {tuple(frames.shape)}"
        raise ValueError(f"reconstruction [B*T, 3, 64, 64] and frames must match, got {got}")
    error = (reconstructed - frames).square()
    return (error if weight is None else error * weight.flatten(0, 1)).sum((1, 2, 3)).mean()


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
    if config.loss.free_bits_per == "batch":
        return mean.clamp(min=config.loss.free_bits), mean
    return masked_mean(kl.clamp(min=config.loss.free_bits), keep), mean


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL[p || q] of categoricals given as log-probabilities, summed over S: [..., S, K] -> [...]."""
    if log_p.shape != log_q.shape:
        raise ValueError(f"KL needs equal shapes, got {tuple(log_p.shape)} and {tuple(log_q.shape)}")
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))
