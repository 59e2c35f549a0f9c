"""Imagination: replayed contexts, then H steps in which the actor acts and the world model predicts.

B rollouts   C context steps   H horizon   S categoricals   D width   F features of an agent state
"""

from dataclasses import replace

import torch
from torch import Tensor

from stormfast.agent import Agent
from stormfast.records import Batch, Rollout, stretches
from stormfast.settings import ImaginationConfig
from stormfast.world_model.heads import upcast
from stormfast.world_model.inference import InferenceModel, copy_over, inference_copy, pairs
from stormfast.world_model.transformer import KVCache


class Imagination:
    """Rolls the policy out inside the world model.

    Owns the K/V cache, made once, and a copy of the actor for inference.
    """

    def __init__(
        self,
        inference: InferenceModel,
        agent: Agent,
        config: ImaginationConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.world_model, self.agent, self.config = inference.model, agent, config
        self.actor = inference_copy(agent.actor, dtype)
        self.actor_pairs = pairs(self.actor, agent.actor)
        self.cache: KVCache = self.world_model.sequence.new_cache(
            config.batch_size, config.context + config.horizon, dtype, device
        )

    @torch.no_grad()
    def __call__(self, windows: Batch, latent: Tensor | None = None) -> Rollout:
        """Imagines config.horizon steps from replayed windows. Source: STORM, arXiv 2310.09615, section 3.2.

        Args:
            windows: [B, C], each a context; [B / k, C + k - 1] where k contexts are cut from each window.
            latent: [B / k, C + k - 1, S*K], latents of the frames, with any k; without, the frames are encoded.
        """
        model = self.world_model
        batch, horizon, device = self.config.batch_size, self.config.horizon, windows.action.device
        wanted, got = (self.config.num_windows, self.config.window_length), tuple(windows.action.shape)
        if latent is None and got != wanted:
            raise ValueError(f"imagination starts from windows {wanted}, got {got}")
        copy_over(self.actor_pairs)
        observed = self.config.context if latent is None else 0
        uniform = torch.rand(
            observed + horizon + 1, batch, model.config.categoricals, device=device
        )  # every latent's draw, in one launch
        action_uniform = torch.rand(horizon, batch, device=device)
        if latent is None:
            drawn = uniform[:observed].flatten(0, 1)[: windows.action.numel()]  # as many as there are frames
            latent = self.observe(windows.obs, drawn.unflatten(0, windows.action.shape[::-1]).transpose(0, 1))
        context = windows
        if got[1] > self.config.context:
            unseen = replace(windows, obs=windows.obs[:, :, :0])  # the latents stand for the frames from here on
            latent, context = stretches(latent, self.config.context), unseen.stretches(self.config.context)
        latent, hidden = self.prefill(context, latent, uniform[observed])
        states, actions, log_probs, hiddens = [self.agent.state(latent, hidden)], [], [], []
        for t in range(horizon):
            self.cache.reserve(model.sequence.tokens.per_step)
            latent, hidden, action, log_prob = self.step(
                states[-1], latent, action_uniform[t], uniform[observed + 1 + t]
            )
            states.append(self.agent.state(latent, hidden))
            actions.append(action)
            log_probs.append(log_prob)
            hiddens.append(hidden)
        reward, continuation = self.predict_reward_and_continuation(
            torch.stack(hiddens, 1)
        )  # once, after the rollout: neither feeds back into it
        return Rollout(
            state=torch.stack(states, 1),
            action=torch.stack(actions, 1),
            log_prob=torch.stack(log_probs, 1),
            reward=reward,
            continuation=continuation,
            alive=self.alive_at_start(context),
        )

    def observe(self, obs: Tensor, uniform: Tensor) -> Tensor:
        """Sampled latents [B, C, S*K] of frames [B, C, 3, 64, 64]; uniform [B, C, S]."""
        return self.world_model.sample(self.world_model.encode(obs), uniform)

    def step(
        self, state: Tensor, latent: Tensor, action_uniform: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The actor acts and the world model predicts: the next latent and hidden state, the action and its
        log-probability.

        Args: state: [B, F] of latent [B, S*K] and its hidden state. action_uniform: [B]. uniform: [B, S].
        """
        log_policy = self.agent.log_policy(state, self.actor)
        action = self.agent.sample_action(log_policy, action_uniform)
        hidden = self.world_model.sequence.step_reserved(latent, action, self.cache)
        latent = self.world_model.sample(self.world_model.prior(hidden), uniform)
        return latent, hidden, action, log_policy.gather(-1, action[:, None]).squeeze(-1)

    def prefill(self, context: Batch, latent: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """First latent [B, S*K] and hidden state [B, D] of each rollout; fills the cache with what lies before.

        "posterior" is what the player sees at the last context frame: that frame's latent and the hidden state of its
        past, zeros where it begins an episode; the action taken there is forgotten. "prior" goes one step further, into
        the predicted successor.

        Args: latent: [B, C, S*K] of the context frames. uniform: [B, S].
        """
        model, cache = self.world_model, self.cache
        is_first = context.is_first if model.config.separate_episodes else None
        if self.config.start == "prior":
            hidden = model.sequence.prefill(latent, context.action, is_first, cache)
            return model.sample(model.prior(hidden), uniform), hidden
        hidden = model.sequence.prefill(
            latent[:, :-1], context.action[:, :-1], None if is_first is None else is_first[:, :-1], cache
        )
        if is_first is not None:
            hidden = hidden * ~is_first[:, -1:]
            cache.begin_anew(is_first[:, -1])
        return latent[:, -1].contiguous(), hidden  # laid out as later ones are: one compiled step serves all

    def predict_reward_and_continuation(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and chance to go on of imagined steps: hidden [B, H, D] -> two of [B, H]."""
        model = self.world_model
        logit = upcast(model.termination(hidden).squeeze(-1))
        continuation = (logit <= 0).to(logit.dtype) if self.config.continuation == "threshold" else (-logit).sigmoid()
        return model.two_hot.decode(model.reward(hidden)), continuation

    def alive_at_start(self, context: Batch) -> Tensor:
        """0 where nothing follows the first state: it is the last of its episode, or lies beyond it; else 1.

        [B] float.
        """
        last = context.is_last[:, -1]
        if self.config.start == "prior":
            last = last | context.terminated[:, -1]
            if self.world_model.config.life_loss_terminates:
                last = last | context.life_lost[:, -1]
        return (~last).to(torch.get_default_dtype())
