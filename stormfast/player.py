"""The player: frames -> actions, by the agent on what the world model makes of them.

N environments   C acting context   S categoricals   D width
"""

import numpy as np
import torch
from torch import Tensor

from stormfast.agent import Agent
from stormfast.device import to_device_packed
from stormfast.history import append_step, hidden_state
from stormfast.records import OBS_SHAPE
from stormfast.settings import ActingConfig
from stormfast.world_model.inference import InferenceModel


class Player:
    """The policy with its memory: the last C latents and actions of each environment, on the device, in buffers made
    once.
    """

    def __init__(self, inference: InferenceModel, agent: Agent, config: ActingConfig, num_envs: int) -> None:
        self.inference, self.agent, self.config, self.num_envs = inference, agent, config, num_envs
        self.world_model = world_model = inference.model
        features = world_model.config.categoricals * world_model.config.classes
        device = world_model.device
        self.frames = torch.zeros(
            num_envs, config.context, *OBS_SHAPE, dtype=torch.uint8, device=device
        )  # [N, C, 3, 64, 64], oldest first
        self.latent = torch.zeros(num_envs, config.context, features, device=device)  # [N, C, S*K], of those frames
        self.action = torch.zeros(num_envs, config.context, dtype=torch.int64, device=device)  # [N, C]
        self.length = torch.zeros(num_envs, dtype=torch.int64, device=device)  # [N] steps remembered

    @torch.no_grad()
    def act(self, obs: np.ndarray, is_first: np.ndarray, is_last: np.ndarray | None = None) -> np.ndarray:
        """Samples an action for each environment and remembers the step.

        Args:
            obs: [N, 3, 64, 64] uint8, current frames. is_first: [N] bool, frames that begin an episode.
            is_last: [N] bool, frames at which nothing will be done (the environment is about to reset), or None.
        Returns: [N] int64. Reading it is the one host sync of acting.
        """
        skip = np.zeros(self.num_envs, np.bool_) if is_last is None else is_last
        return self.act_on_device(*to_device_packed([obs, is_first, skip], self.latent.device)).cpu().numpy()

    @torch.no_grad()
    def act_on_device(self, frames: Tensor, first: Tensor, skipped: Tensor) -> Tensor:
        """act() on the device: frames [N, 3, 64, 64] uint8, first and skipped [N] bool -> actions [N]. No host sync."""
        uniform = torch.rand(2, self.num_envs, self.world_model.config.categoricals, device=frames.device)
        action_uniform = torch.rand(self.num_envs, device=frames.device)
        return self.act_with_uniform(frames, first, skipped, uniform, action_uniform)

    def act_with_uniform(
        self, frames: Tensor, first: Tensor, skipped: Tensor, uniform: Tensor, action_uniform: Tensor
    ) -> Tensor:
        """act_on_device() with its uniform numbers given, [2, N, S] and [N], so that it compiles to the same draws."""
        if self.config.reset_context:
            self.length *= ~first
        with self.inference.autocast():
            action, latent = self.policy(frames, uniform, action_uniform)
        self.remember(frames, latent, action, skipped)
        return action

    def policy(self, frames: Tensor, uniform: Tensor, action_uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [N], and the latents [N, S*K] of the frames."""
        model, agent = self.world_model, self.agent
        latent = model.sample(model.encode(frames), uniform[0])
        hidden, has_past = self.hidden(), self.length > 0
        seen = latent if self.config.latent == "posterior" else model.sample(model.prior(hidden), uniform[1])
        log_policy = agent.log_policy(agent.state(seen, hidden))
        if self.config.latent == "prior":  # nothing predicted yet: the original acts at random there
            log_policy = torch.where(has_past[:, None], log_policy, -np.log(agent.num_actions))
        return agent.sample_action(log_policy, action_uniform), latent

    def hidden(self) -> Tensor:
        """Hidden state of the past, [N, D]; zeros where there is none."""
        return hidden_state(self.world_model.sequence, self.latent, self.action, self.length)

    @torch.no_grad()
    def refresh(self) -> None:
        """Encodes and samples the remembered frames anew, after the world model has changed, as the original does at
        each step.

        Latents of older encoders in the context cost return while learning goes on. UpNDown, cpu preset, after 12,000
        steps: 543 over the last 9 training episodes without this, 1,505 over 4 with it; the same weights held still
        make 1,557 (30 episodes).
        """
        uniform = torch.rand(
            self.num_envs, self.config.context, self.world_model.config.categoricals, device=self.latent.device
        )
        with self.inference.autocast():
            self.latent.copy_(self.world_model.sample(self.world_model.encode(self.frames), uniform))

    def remember(self, frames: Tensor, latent: Tensor, action: Tensor, skip: Tensor) -> None:
        """Appends a step to each memory, dropping the oldest where it is full, except where `skip` [N] bool.

        Args: frames: [N, 3, 64, 64] uint8. latent: [N, S*K]. action: [N].
        """
        append_step(self.length, skip, (self.frames, frames), (self.latent, latent), (self.action, action))

    def memory(self) -> dict[str, Tensor]:
        return {"frames": self.frames, "latent": self.latent, "action": self.action, "length": self.length}

    def state(self) -> dict[str, Tensor]:
        """A copy of the memory, for a checkpoint."""
        return {name: tensor.clone() for name, tensor in self.memory().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over a state. Raises: ValueError where shapes differ."""
        for name, tensor in self.memory().items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"player {name} must be {tuple(tensor.shape)}, got {tuple(state[name].shape)}")
            tensor.copy_(state[name])
