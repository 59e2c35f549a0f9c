"""The agent: an actor and a critic that only ever see imagined states, and their losses.

B rollouts   H horizon   F features of a state   A actions   N two-hot bins
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stormfast.objective import weighted_sum
from stormfast.records import Rollout, WindowRollout
from stormfast.replay_value import replay_returns
from stormfast.returns import ReturnScale, lambda_return
from stormfast.settings import AgentConfig, WorldModelConfig
from stormfast.world_model.heads import NUM_BINS, TwoHot, mlp, upcast


@dataclass(frozen=True)
class Targets:
    """Targets of one agent update. No gradient."""

    value: Tensor  # [B, H+1] critic, decoded
    slow_value: Tensor  # [B, H+1] slow critic, decoded
    returns: Tensor  # [B, H] lambda-returns of value
    slow_returns: Tensor  # [B, H] lambda-returns of slow_value
    scale: Tensor  # [] return scale S
    advantage: Tensor  # [B, H] (returns - value) / max(return_floor, S)
    weight: Tensor  # [B, H] of each imagined step in the losses


class Agent(nn.Module):
    """Actor, critic and slow critic on concat(latent, hidden), or either alone.

    Source: STORM, arXiv 2310.09615, section 3.2.
    """

    def __init__(self, config: AgentConfig, world_model: WorldModelConfig, num_actions: int) -> None:
        super().__init__()
        sizes = {"latent": world_model.categoricals * world_model.classes, "hidden": world_model.width}
        features = sum(sizes.values()) if config.state == "both" else sizes[config.state]
        self.actor = mlp(features, config.width, num_actions)
        self.critic = mlp(features, config.width, NUM_BINS, zero=config.head_init == "zero")
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_scale = ReturnScale(config.percentile_decay)
        self.two_hot = TwoHot(config.read_out)
        self.config, self.num_actions = config, num_actions

    def state(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """What actor and critic see: [..., S*K] and [..., D] -> [..., F]."""
        if self.config.state == "both":
            return torch.cat([latent, hidden.to(latent.dtype)], -1)
        return latent if self.config.state == "latent" else hidden

    def log_policy(self, state: Tensor, actor: nn.Module | None = None) -> Tensor:
        """Log-probabilities of the actions, [..., F] -> [..., A], at least float32; by a copy of the actor where one is
        given.
        """
        log_probs = upcast((actor or self.actor)(state)).log_softmax(-1)
        if self.config.unimix == 0:
            return log_probs
        return ((1 - self.config.unimix) * log_probs.exp() + self.config.unimix / self.num_actions).log()

    def sample_action(self, log_policy: Tensor, uniform: Tensor) -> Tensor:
        """Inverse-CDF draw: log-probabilities [..., A] and uniform numbers [...] -> int64 [...]."""
        return (log_policy.exp().cumsum(-1) <= uniform[..., None]).sum(-1).clamp(max=self.num_actions - 1)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves: the slow critic only follows."""
        return [*self.actor.parameters(), *self.critic.parameters()]

    def loss(self, rollout: Rollout) -> dict[str, Tensor]:
        """All loss terms of a rollout, `total` among them. Moves the running return percentiles.

        Each imagined step weighs as much as it is likely to be reached (weight_by_continuation); log-probabilities that
        differ from the rollout's own (agent.minibatches > 1) are importance-weighted.
        """
        config = self.config
        log_policy = self.log_policy(rollout.state[:, :-1])
        value_logits = self.critic(rollout.state)
        targets = self.targets(rollout, value_logits)
        log_prob = log_policy.gather(-1, rollout.action[..., None]).squeeze(-1)
        ratio = 1.0 if config.minibatches == 1 else (log_prob - rollout.log_prob).exp().detach()
        weight = targets.weight
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        value_log_probs = upcast(value_logits[:, :-1]).log_softmax(-1)
        terms = {
            "policy": -(weight * ratio * log_prob * targets.advantage).mean(),
            "value": (weight * self.two_hot.cross_entropy(value_log_probs, targets.returns)).mean(),
            "slow_value": (weight * self.two_hot.cross_entropy(value_log_probs, targets.slow_returns)).mean(),
            "entropy": (weight * entropy).mean(),
        }
        if isinstance(rollout, WindowRollout):
            terms["replay_value"] = self.replay_value(rollout, value_log_probs[:, 0], targets.slow_returns[:, 0])
        weights = {"policy": 1.0, "value": 1.0, "slow_value": 1.0, "entropy": -config.entropy}
        weights["replay_value"] = config.replay_value
        return {
            "total": weighted_sum(terms, weights),
            **terms,
            "entropy": entropy.mean(),  # of every imagined step, reached or not
            "return_scale": targets.scale,
            "imagined_return": targets.returns.mean(),
            "imagined_reward": rollout.reward.mean(),
        }

    def replay_value(self, rollout: WindowRollout, value_log_probs: Tensor, imagined: Tensor) -> Tensor:
        """Cross-entropy of the critic at the first states to the returns of what was really done there, 0-d.

        The mean over all steps but each window's last, where a step whose return is not known counts 0.

        Args: value_log_probs: [B, N] of the first states. imagined: [B], lambda-returns from them.
        """
        replayed = rollout.replayed
        shape = replayed.reward.shape
        returns = replay_returns(replayed, imagined.unflatten(0, shape), self.config.gamma, self.config.lam)
        loss = self.two_hot.cross_entropy(value_log_probs.unflatten(0, shape)[:, :-1], returns)
        return (replayed.known[:, :-1] * loss).mean()

    @torch.no_grad()
    def targets(self, rollout: Rollout, value_logits: Tensor) -> Targets:
        """What actor and critic are moved towards. value_logits: [B, H+1, N], the critic's; moves the return
        percentiles.
        """
        config = self.config
        value = self.two_hot.decode(value_logits)
        slow_value = self.two_hot.decode(self.slow_critic(rollout.state))
        discount = config.gamma * rollout.continuation
        returns = lambda_return(rollout.reward, discount, value, config.lam, config.bootstrap)
        slow_returns = lambda_return(rollout.reward, discount, slow_value, config.lam, config.bootstrap)
        scale = self.return_scale.update(
            returns
        )  # over all imagined steps, reached or not, as upstream and DreamerV3 take it
        return Targets(
            value=value,
            slow_value=slow_value,
            returns=returns,
            slow_returns=slow_returns,
            scale=scale,
            advantage=(returns - value[:, :-1]) / scale.clamp(min=config.return_floor),
            weight=reach_probability(rollout) if config.weight_by_continuation else torch.ones_like(rollout.reward),
        )

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """EMA step of the slow critic towards the critic."""
        torch._foreach_lerp_(
            [*self.slow_critic.parameters()], [*self.critic.parameters()], 1 - self.config.slow_critic_decay
        )


def reach_probability(rollout: Rollout) -> Tensor:
    """Chance that imagined step t is reached at all: alive * continuation[0] * ... * continuation[t-1], [B, H]."""
    reached = torch.cat([rollout.alive[:, None], rollout.continuation[:, :-1]], 1)
    return reached.cumprod(1)
