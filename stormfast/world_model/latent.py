"""The discrete latent: S categoricals of K classes, sampled with a straight-through gradient, and their KL.

S categoricals   K classes   logits are [..., S, K] everywhere; a flat latent is [..., S*K], category-major.
"""

from torch import Tensor, nn

from stormfast_kernels import sample_categorical, sample_categorical_with_log_probs


class LatentHead(nn.Module):
    """Linear features -> logits [..., S, K]; used for the posterior (from frames) and the prior (from history)."""

    def __init__(self, features: int, categoricals: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, categoricals * classes)
        self.shape = (categoricals, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).unflatten(-1, self.shape)


def sample_latent(logits: Tensor, uniform: Tensor | None, unimix: float) -> Tensor:
    """One-hot sample [..., S*K] with the straight-through gradient; the mode where uniform is None.

    Args:
        logits: [..., S, K].
        uniform: [..., S] in [0, 1), one number a categorical.
    """
    return sample_categorical(logits, uniform, unimix)[0].flatten(-2)


def sample_latent_with_log_probs(logits: Tensor, uniform: Tensor | None, unimix: float) -> tuple[Tensor, Tensor]:
    """sample_latent, and the log-probabilities [..., S, K] that the KL needs, from one pass over the logits."""
    sample, _, log_probs = sample_categorical_with_log_probs(logits, uniform, unimix)
    return sample.flatten(-2), log_probs
