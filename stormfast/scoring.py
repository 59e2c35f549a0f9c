"""Scoring: full episodes of any policy in any environment, and what their returns say.

N environments
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from stormfast.envs.games import find, human_normalised
from stormfast.envs.vector import VectorEnv

RESAMPLES = 10_000
EPISODES = {"each_env": 100, "first_finished": 20}  # by default; the original scores 20, of 5 parallel games


class Policy(Protocol):
    """Whatever turns frames into actions: a Player, or a random policy."""

    def act(self, obs: np.ndarray, is_first: np.ndarray, is_last: np.ndarray) -> np.ndarray:
        """obs [N, 3, 64, 64] uint8, is_first and is_last [N] bool -> action [N] int64."""


@dataclass(frozen=True)
class Episode:
    env: int
    game_return: float  # sum of unclipped rewards
    length: int  # environment steps
    truncated: bool  # ended by the time limit


# --- playing -----------------------------------------------------------------------------------------------------


def play_episodes(
    env: VectorEnv,
    policy: Policy,
    num_episodes: int,
    *,
    rule: Literal["each_env", "first_finished"] = "each_env",
    count_last_reward: bool = True,
    on_finish: Callable[[list[Episode]], None] = lambda episodes: None,
) -> list[Episode]:
    """Plays full episodes from fresh resets.

    Args:
        rule: each_env fixes beforehand how many episodes each environment plays, as evenly as they divide (the first
            ones take the rest), so that short episodes are not favoured; first_finished takes whichever finish first,
            as the original does.
        count_last_reward: False leaves the reward of an episode's last step out, as the original does.
        on_finish: called with all episodes so far whenever one more counts.
    Returns: num_episodes episodes, in the order they finished.
    """
    share, rest = divmod(num_episodes, env.num_envs)
    left = np.array([share + (n < rest) for n in range(env.num_envs)])
    if rule == "first_finished":
        left[:] = num_episodes
    episodes: list[Episode] = []
    game_return, length = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    now = env.reset()
    while len(episodes) < num_episodes:
        now = env.step(policy.act(now.obs, now.is_first, now.terminated | now.truncated))
        done = now.terminated | now.truncated
        game_return += now.reward if count_last_reward else np.where(done, 0, now.reward)
        length += ~now.is_first
        for n in np.flatnonzero(done):
            if left[n] and len(episodes) < num_episodes:
                left[n] -= 1
                episodes.append(
                    Episode(
                        int(n), float(game_return[n]), int(length[n]), bool(now.truncated[n] and not now.terminated[n])
                    )
                )
                on_finish(episodes)
            game_return[n], length[n] = 0, 0
    return episodes


class RandomPolicy:
    """Uniformly random actions."""

    def __init__(self, num_actions: int, rng: np.random.Generator) -> None:
        self.num_actions, self.rng = num_actions, rng

    def act(self, obs: np.ndarray, is_first: np.ndarray, is_last: np.ndarray) -> np.ndarray:
        return self.rng.integers(self.num_actions, size=len(obs))


class Recorder:
    """A policy that keeps the frames of environment 0's first episode, as the policy sees them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.frames: list[np.ndarray] = []  # [3, 64, 64] uint8
        self.ended = False

    def act(self, obs: np.ndarray, is_first: np.ndarray, is_last: np.ndarray) -> np.ndarray:
        if not self.ended:
            self.frames.append(obs[0].copy())
            self.ended = bool(is_last[0])
        return self.policy.act(obs, is_first, is_last)

    def video(self) -> np.ndarray:
        """[T, 64, 64, 3] uint8."""
        return np.stack(self.frames).transpose(0, 2, 3, 1)


# --- scoring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Statistics of the returns of n episodes. What a single episode or an unscored game does not have is None."""

    returns: tuple[float, ...]  # [n]
    mean: float
    mean_interval_95: tuple[float, float]  # percentile interval, of 10,000 bootstrap resamples
    std: float | None  # n - 1 in the denominator
    standard_error: float | None
    median: float
    min: float
    max: float
    human_normalised: float | None  # 0 is the random policy of the published table, 1 its human
    human_normalised_interval_95: tuple[float, float] | None  # the mean's, normalised: the table counts as exact

    def statistics(self) -> dict[str, Any]:
        """All but the returns, as JSON types."""
        values = {name: value for name, value in vars(self).items() if name != "returns"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def score(game: str, returns: Sequence[float] | np.ndarray, seed: int = 0) -> Score:
    """The score of episode returns [n] of a game. seed: of the bootstrap."""
    returns = np.asarray(returns, dtype=np.float64)
    rng, count = np.random.default_rng(seed), len(returns)
    # in blocks: 10,000 x n may not fit
    blocks = [returns[rng.integers(count, size=(100, count))].mean(1) for _ in range(RESAMPLES // 100)]
    low, high = (float(bound) for bound in np.percentile(np.concatenate(blocks), [2.5, 97.5]))
    mean, std = float(returns.mean()), float(returns.std(ddof=1)) if count > 1 else None
    scored = find(game).scores is not None
    return Score(
        returns=tuple(returns.tolist()),
        mean=mean,
        mean_interval_95=(low, high),
        std=std,
        standard_error=None if std is None else std / count**0.5,
        median=float(np.median(returns)),
        min=float(returns.min()),
        max=float(returns.max()),
        human_normalised=human_normalised(game, mean) if scored else None,
        human_normalised_interval_95=(human_normalised(game, low), human_normalised(game, high)) if scored else None,
    )
