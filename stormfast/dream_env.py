"""The world model as an environment: predicted frames, rewards and ends, behind the interface of a real game.

N dreams   C context steps   H horizon   L steps remembered   S categoricals   K classes   D width

A dream starts from a stretch of real play, the context, and shows its last frame. From then on each action is answered
by the model alone: whoever plays real games by reset() and step() plays dreams too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stormfast.envs.vector import VectorEnv, first_step
from stormfast.history import append_step, hidden_state
from stormfast.records import Batch, EnvStep
from stormfast.world_model import WorldModel
from stormfast.world_model.heads import upcast

Contexts = Callable[[int], Batch]  # number of windows -> that many windows of real play, [N, C]


class DreamEnv(VectorEnv):
    """N dreams, stepped together; each that ends starts anew from another context, as a real vector environment would.

    A dream terminates at random, with the model's predicted probability that the episode has ended, and is truncated
    after `horizon` steps. To a model trained with life_loss_terminates a lost life is such an end. The model sees the
    last L steps, as many as its training windows have.

    Args:
        world_model: in evaluation mode, with a decoder.
        contexts: where dreams start; asked for N windows at each reset.
        horizon: steps after which a dream is cut off.
        seed: of all that is drawn: latents and ends.
    Attributes:
        latent: [N, S*K] and hidden: [N, D], what actor and critic see of the present step.
        continuation: [N] float32, predicted chance that the episode went on after the last action; 1 after a reset.
    Raises: ValueError for a model without a decoder, which can show nothing, and for a horizon below 1.
    """

    def __init__(
        self, world_model: WorldModel, contexts: Contexts, num_envs: int = 1, *, horizon: int = 1_000, seed: int = 0
    ) -> None:
        if world_model.decoder is None:
            raise ValueError("a dream needs a world model with a decoder: one trained with loss.reconstruction > 0")
        if horizon < 1:
            raise ValueError(f"a dream needs a horizon of 1 step or more, got {horizon}")
        super().__init__(num_envs, world_model.num_actions, "dream")
        self.world_model, self.contexts, self.horizon = world_model, contexts, horizon
        config, device = world_model.config, world_model.device
        self.generator = torch.Generator(device).manual_seed(seed)
        features, steps = config.categoricals * config.classes, config.batch_length
        dtype = next(world_model.parameters()).dtype
        self.latents = torch.zeros(num_envs, steps, features, dtype=dtype, device=device)  # [N, L, S*K] of past steps
        self.actions = torch.zeros(num_envs, steps, dtype=torch.int64, device=device)  # [N, L]
        self.length = torch.zeros(num_envs, dtype=torch.int64, device=device)  # [N] past steps
        self.latent = self.latents[:, 0].clone()
        self.hidden = torch.zeros(num_envs, config.width, dtype=dtype, device=device)
        self.continuation = torch.ones(num_envs, device=device)
        self.elapsed = np.zeros(num_envs, np.int64)
        self.over = np.zeros(num_envs, np.bool_)

    def reset(self, context: Batch | None = None) -> EnvStep:
        """Starts every dream anew, from the windows [N, C] given, or from those that `contexts` gives."""
        self._given = context
        return super().reset()

    def _reset(self) -> EnvStep:
        obs = self._start(torch.ones(self.num_envs, dtype=torch.bool, device=self.world_model.device), self._given)
        self._given = None
        return first_step(obs)

    def _step(self, action: np.ndarray) -> EnvStep:
        is_first = self.over.copy()
        device = self.world_model.device
        frames, reward, continuation = self.imagine(torch.from_numpy(action.astype(np.int64)).to(device))
        uniform = torch.rand(self.num_envs, generator=self.generator, device=device)
        ended = (uniform >= continuation).cpu().numpy() & ~is_first
        self.elapsed = np.where(is_first, 0, self.elapsed + 1)
        obs = frames.cpu().numpy()
        if is_first.any():
            where = torch.from_numpy(is_first).to(device)
            obs = np.where(is_first[:, None, None, None], self._start(where, None), obs)
        truncated = (self.elapsed >= self.horizon) & ~ended
        self.over = ended | truncated
        return EnvStep(
            obs=obs,
            reward=np.where(is_first, 0, reward.float().cpu().numpy()).astype(np.float32),
            terminated=ended,
            truncated=truncated,
            life_lost=np.zeros(self.num_envs, np.bool_),
            is_first=is_first,
        )

    @torch.no_grad()
    def imagine(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next frames [N, 3, 64, 64] uint8, rewards [N] and continuation [N] that follow actions [N]."""
        model = self.world_model
        never = torch.zeros_like(action, dtype=torch.bool)
        append_step(self.length, never, (self.latents, self.latent), (self.actions, action))
        self.hidden = hidden_state(model.sequence, self.latents, self.actions, self.length)
        self.latent = model.sample(model.prior(self.hidden), self._uniform())
        self.continuation = (-upcast(model.termination(self.hidden).squeeze(-1))).sigmoid()
        return self._frames(), model.two_hot.decode(model.reward(self.hidden)), self.continuation

    @torch.no_grad()
    def _start(self, where: Tensor, context: Batch | None) -> np.ndarray:
        """Starts the dreams in `where` [N] bool from a context each. Returns its last frame, [N, 3, 64, 64] uint8."""
        model = self.world_model
        context = self.contexts(self.num_envs) if context is None else context
        num, steps = context.action.shape
        if num != self.num_envs:
            raise ValueError(f"reset() needs a context for each of {self.num_envs} dreams, got {num}")
        logits = model.encode(context.obs)  # [N, C, S, K]
        uniform = torch.rand(num, steps, model.config.categoricals, generator=self.generator, device=model.device)
        encoded = model.sample(logits, uniform)
        latents, actions, length = self.latents.clone(), self.actions.clone(), torch.zeros_like(self.length)
        never = torch.zeros_like(where)
        for t in range(steps):
            if model.config.separate_episodes:
                length *= ~context.is_first[:, t]
            if t < steps - 1:
                append_step(length, never, (latents, encoded[:, t]), (actions, context.action[:, t]))
        self.latents[where], self.actions[where], self.length[where] = latents[where], actions[where], length[where]
        self.latent = torch.where(where[:, None], encoded[:, -1], self.latent)
        past = hidden_state(model.sequence, self.latents, self.actions, self.length)
        self.hidden = torch.where(where[:, None], past, self.hidden)
        self.continuation = torch.where(where, 1.0, self.continuation)
        begins = where.cpu().numpy()
        self.elapsed, self.over = np.where(begins, 0, self.elapsed), self.over & ~begins
        return context.obs[:, -1].cpu().numpy()

    def _uniform(self) -> Tensor:
        categoricals = self.world_model.config.categoricals
        return torch.rand(self.num_envs, categoricals, generator=self.generator, device=self.world_model.device)

    def _frames(self) -> Tensor:
        frames = self.world_model.decode(self.latent)
        return (frames.clamp(0, 1) * 255).round().to(torch.uint8)

    def _close(self) -> None:
        pass


@dataclass(frozen=True)
class Dream:
    """Real episodes and the model's imagination of them, from the same start and by the same actions.

    An end is what the model was trained to predict as one: with life_loss_terminates a lost life, too, in real_end and
    in continuation alike. The real episode then goes on after it.
    """

    context: np.ndarray  # [N, C, 3, 64, 64] uint8, what the model was shown
    real: np.ndarray  # [N, H+1, 3, 64, 64] uint8; the first frame is the context's last
    imagined: np.ndarray  # [N, H+1, 3, 64, 64] uint8; the first frame is the real one
    action: np.ndarray  # [N, H] int64
    real_reward: np.ndarray  # [N, H] float32
    reward: np.ndarray  # [N, H] float32, predicted
    real_end: np.ndarray  # [N, H] bool, the action ended the episode
    continuation: np.ndarray  # [N, H] float32, predicted chance that it did not
    acted: np.ndarray  # [N, H] bool, the action was taken in the episode of the context
    same_episode: np.ndarray  # [N, H] bool, so is the frame after it


def open_loop(world_model: WorldModel, window: Batch, context: int, *, seed: int = 0) -> Dream:
    """The model's imagination of real play: it sees the first C steps of each window, then only the actions.

    Args:
        world_model: in evaluation mode, with a decoder.
        window: [N, C + H] real steps; the model goes on also where an episode ends.
        context: C, at least 1.
    Raises: ValueError for windows that are not longer than the context.
    """
    num, length = window.action.shape
    if not 1 <= context < length:
        raise ValueError(f"the context must be 1 or more and shorter than the window of {length} steps, got {context}")
    shown = Batch(**{name: value[:, :context] for name, value in vars(window).items()})
    env = DreamEnv(world_model, lambda count: shown, num, seed=seed)
    first = env.reset().obs
    steps = [env.imagine(window.action[:, t]) for t in range(context - 1, length - 1)]
    frames, reward, continuation = (torch.stack(list(part), 1).cpu() for part in zip(*steps, strict=True))
    done = slice(context - 1, length - 1)
    ended = window.terminated | window.life_lost if world_model.config.life_loss_terminates else window.terminated
    same = window.is_first[:, context:].cumsum(1) == 0  # [N, H]
    acted = torch.cat([torch.ones_like(same[:, :1]), same[:, :-1]], 1) & ~window.is_last[:, done]
    return Dream(
        context=shown.obs.cpu().numpy(),
        real=window.obs[:, context - 1 :].cpu().numpy(),
        imagined=np.concatenate([first[:, None], frames.numpy()], 1),
        action=window.action[:, done].cpu().numpy(),
        real_reward=window.reward[:, done].float().cpu().numpy(),
        reward=reward.float().numpy(),
        real_end=ended[:, done].cpu().numpy(),
        continuation=continuation.float().numpy(),
        acted=acted.cpu().numpy(),
        same_episode=same.cpu().numpy(),
    )
