"""The records that flow: frames -> replay -> world model -> imagination -> agent -> actions.

N environments   B batch   T time   H horizon   F features of an agent state

A row of replay is what happened at one observation: the observation, the action taken there, and what that action
brought. The last observation of an episode has a row too (is_last): nothing was done there, so its action is 0, its
reward 0, and only the frame itself may be learned from.
"""

from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

OBS_SHAPE = (3, 64, 64)  # uint8 RGB, of every game


@dataclass(frozen=True)
class EnvStep:
    """What one call of reset() or step() of a vector environment returns."""

    obs: np.ndarray  # [N, 3, 64, 64] uint8 RGB
    reward: np.ndarray  # [N] float32, unclipped game score of this step
    terminated: np.ndarray  # [N] bool, the game is over; obs is the episode's last
    truncated: np.ndarray  # [N] bool, the time limit ended the episode; obs is its last
    life_lost: np.ndarray  # [N] bool, a life fewer than before the step
    is_first: np.ndarray  # [N] bool, obs is the first of an episode; the action given was ignored, reward is 0


@dataclass(frozen=True)
class Transition:
    """One row for each of N streams, as the player hands it to replay."""

    obs: np.ndarray  # [N, 3, 64, 64] uint8
    action: np.ndarray  # [N] int64, taken at obs
    reward: np.ndarray  # [N] float32, of that action
    terminated: np.ndarray  # [N] bool, that action ended the game
    truncated: np.ndarray  # [N] bool, the time limit came with it
    life_lost: np.ndarray  # [N] bool, it cost a life
    is_first: np.ndarray  # [N] bool, obs is the first of its episode
    is_last: np.ndarray  # [N] bool, obs is the last of its episode: no action was taken here


@dataclass(frozen=True)
class Batch:
    """Windows of replay, on the learner's device. Fields as in Transition, [B, T] each."""

    obs: Tensor  # [B, T, 3, 64, 64] uint8
    action: Tensor  # [B, T] int64
    reward: Tensor  # [B, T] float32
    terminated: Tensor  # [B, T] bool
    truncated: Tensor  # [B, T] bool
    life_lost: Tensor  # [B, T] bool
    is_first: Tensor  # [B, T] bool
    is_last: Tensor  # [B, T] bool

    def __post_init__(self) -> None:
        lead = tuple(self.action.shape)
        for f in fields(self):
            shape = tuple(getattr(self, f.name).shape)
            if shape[:2] != lead or len(lead) != 2 or (f.name != "obs" and len(shape) != 2):
                raise ValueError(f"batch field {f.name} must start with [B, T] = {lead}, got {shape}")

    def copy_(self, other: "Batch") -> None:
        """Takes over another's values, all but the frames."""
        for f in fields(self):
            if f.name != "obs":
                getattr(self, f.name).copy_(getattr(other, f.name))

    def stretches(self, length: int) -> "Batch":
        """As the function of that name, of each field."""
        return Batch(**{f.name: stretches(getattr(self, f.name), length) for f in fields(self)})


def stretches(x: Tensor, length: int) -> Tensor:
    """All stretches of `length` steps of each window, in order: [B, T, ...] -> [B * (T - length + 1), length, ...]."""
    return x.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1)


@dataclass(frozen=True)
class LearnedBatch:
    """What the world model learned from last: windows, and the latents that it sampled. No gradient."""

    windows: Batch  # [B, T], without frames: obs is [B, T, 0]
    latent: Tensor  # [B, T, S*K]


@dataclass(frozen=True)
class Rollout:
    """Imagined trajectories: H actions and the H + 1 states around them. No gradient."""

    state: Tensor  # [B, H+1, F] what actor and critic see
    action: Tensor  # [B, H] int64
    log_prob: Tensor  # [B, H] float32, of the action under the policy that took it
    reward: Tensor  # [B, H] float32, game score of action t
    continuation: Tensor  # [B, H] float32 in [0, 1], chance that the episode goes on after action t (no discount)
    alive: Tensor  # [B] float32, 0 where the context ended an episode, so that nothing can follow it; else 1

    def __post_init__(self) -> None:
        batch, horizon = self.action.shape
        for name in ("log_prob", "reward", "continuation"):
            if getattr(self, name).shape != (batch, horizon):
                raise ValueError(
                    f"rollout {name} must be [B, H] = {(batch, horizon)}, got {tuple(getattr(self, name).shape)}"
                )
        if self.state.shape[:2] != (batch, horizon + 1) or self.alive.shape != (batch,):
            state, alive = tuple(self.state.shape), tuple(self.alive.shape)
            raise ValueError(
                f"rollout of actions {(batch, horizon)} must have state [B, H+1, F] and alive [B], got {state} "
                f"and {alive}"
            )


@dataclass(frozen=True)
class Replayed:
    """What was really done at K steps of each of W windows."""

    reward: Tensor  # [W, K] float32, game score of the action taken there
    ended: Tensor  # [W, K] bool, that action ended the episode
    known: Tensor  # [W, K] bool, the window tells what followed, if anything did


@dataclass(frozen=True)
class WindowRollout(Rollout):
    """Imagined trajectories from K steps of each of W windows, in their order (B = W * K), beside what was done."""

    replayed: Replayed
