"""The collector: steps of the real environments -> rows of replay.

N environments
"""

import numpy as np

from stormfast.envs.vector import VectorEnv
from stormfast.player import Player
from stormfast.records import EnvStep, Transition


class Collector:
    """Steps the environments and keeps the books: one replay row a call, and the returns of finished episodes."""

    def __init__(
        self, env: VectorEnv, player: Player, rng: np.random.Generator, *, count_last_reward: bool = True
    ) -> None:
        self.env, self.player, self.rng, self.count_last_reward = env, player, rng, count_last_reward
        self.now: EnvStep = env.reset()
        self.game_return = np.zeros(env.num_envs)
        self.length = np.zeros(env.num_envs, dtype=np.int64)
        self.finished: list[tuple[float, int]] = []  # (return, length) of episodes since they were last taken

    @property
    def is_last(self) -> np.ndarray:
        """[N] bool, environments whose present observation ends an episode: their next step is a reset."""
        return self.now.terminated | self.now.truncated

    @property
    def num_acting(self) -> int:
        """Environment steps that step() will take: streams that are being reset take none."""
        return int((~self.is_last).sum())

    def act(self, *, at_random: bool) -> np.ndarray:
        """Actions [N] int64 for the present observations, random ones or the player's."""
        if at_random:
            return self.rng.integers(self.env.num_actions, size=self.env.num_envs)
        return self.player.act(self.now.obs, self.now.is_first, self.is_last)

    def step(self, action: np.ndarray) -> Transition:
        """One step of every environment with the actions that act() chose."""
        now, is_last = self.now, self.is_last
        self.now = following = self.env.step(action)
        self.count(following, following.terminated | following.truncated)
        return Transition(
            obs=now.obs,
            action=np.where(is_last, 0, action),
            reward=following.reward,
            terminated=following.terminated,
            truncated=following.truncated,
            life_lost=following.life_lost,
            is_first=now.is_first,
            is_last=is_last,
        )

    def count(self, step: EnvStep, done: np.ndarray) -> None:
        self.game_return += step.reward if self.count_last_reward else np.where(done, 0, step.reward)
        self.length += ~step.is_first
        for n in np.flatnonzero(done):
            self.finished.append((float(self.game_return[n]), int(self.length[n])))
            self.game_return[n], self.length[n] = 0, 0

    def take_finished(self) -> list[tuple[float, int]]:
        finished, self.finished = self.finished, []
        return finished
