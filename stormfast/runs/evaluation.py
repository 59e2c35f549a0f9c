"""Evaluating a run: its agent, or random actions on the same footing, on full episodes by the run's rules."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from stormfast.envs import make_env
from stormfast.runs.trained import Trained, draws_of, env_seed
from stormfast.schema import check_whole_number
from stormfast.scoring import EPISODES, Episode, Policy, RandomPolicy, Recorder, Score, play_episodes, score
from stormfast.settings import TrainConfig


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    config: TrainConfig  # of the run
    step: int | None  # of the checkpoint; None for random actions
    score: Score
    episodes: list[Episode]
    num_envs: int
    env_seed: int
    env_backend: str
    frames: np.ndarray | None  # [T, 64, 64, 3] uint8 of the first episode, where it was filmed

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "game": self.config.game,
            "protocol": self.config.protocol,
            "policy": "random" if self.step is None else "agent",
            "step": self.step,
            "return": self.score.statistics(),
            "episode_returns": [episode.game_return for episode in self.episodes],
            "episode_lengths": [episode.length for episode in self.episodes],
            "episode_truncated": [episode.truncated for episode in self.episodes],
            "rules": asdict(self.config.evaluation) | asdict(self.config.env) | asdict(self.config.atari),
        }


def default_episodes(config: TrainConfig) -> int:
    """How many episodes the run's rules score."""
    return EPISODES[config.evaluation.episodes_from]


def evaluate(
    config: TrainConfig,
    trained: Trained | None,
    *,
    episodes: int | None = None,
    num_envs: int = 5,
    seed: int = 0,
    film: bool = False,
    on_finish: Callable[[list[Episode]], None] = lambda episodes: None,
) -> Evaluation:
    """Plays full episodes by the rules of a run and scores them.

    Args:
        config: of the run.
        trained: its agent; None plays random actions.
        episodes: how many; by default as many as the rules go with.
        num_envs: environments stepped together; never more than episodes.
        seed: of environments and policy.
        film: keep the frames of the first episode.
        on_finish: called with all episodes so far whenever one more counts.
    Raises: UserError for a game that cannot be made, or fewer episodes than one.
    """
    seed_of_games, rules = env_seed(config.seed, seed), config.evaluation
    count = default_episodes(config) if episodes is None else episodes
    check_whole_number("episodes", count)
    check_whole_number("num_envs", num_envs)
    num_envs = min(num_envs, count)
    env = make_env(
        config.game, config.env, config.atari, num_envs=num_envs, backend=config.env_backend, seed=seed_of_games
    )
    device = torch.device("cpu") if trained is None else trained.device
    with contextlib.closing(env), draws_of(seed_of_games, device):
        policy: Policy = RandomPolicy(env.num_actions, np.random.default_rng(seed_of_games))
        if trained is not None:
            policy = trained.player(num_envs)
        recorder = Recorder(policy)
        played = play_episodes(
            env,
            recorder if film else policy,
            count,
            rule=rules.episodes_from,
            count_last_reward=rules.count_last_reward,
            on_finish=on_finish,
        )
    return Evaluation(
        config=config,
        step=None if trained is None else trained.step,
        score=score(config.game, [episode.game_return for episode in played], seed),
        episodes=played,
        num_envs=num_envs,
        env_seed=seed_of_games,
        env_backend=env.backend,
        frames=recorder.video() if film else None,
    )
