"""Scoring a run: full episodes, each environment playing its fixed share, with a bootstrap interval.

N environments
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from stormfast.config import EvaluateConfig, TrainConfig
from stormfast.device import resolve_device
from stormfast.envs import make_env
from stormfast.envs.games import SCORES, human_normalised
from stormfast.envs.vector import VectorEnv
from stormfast.errors import UserError
from stormfast.learner import build_models
from stormfast.player import Player
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.runs.directory import load_config, write_whole
from stormfast.runs.progress import Progress
from stormfast.runs.state import without_prefix
from stormfast.video import check_video_path, write_mp4
from stormfast.world_model.inference import InferenceModel

RESAMPLES = 10_000
EPISODES = {"each_env": 100, "first_finished": 20}  # unless told otherwise; the original scores 20, of 5 parallel games


class Policy(Protocol):
    """Whatever turns frames into actions: the Player of act.py, or a random policy."""

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
        rule: each_env fixes beforehand how many episodes each environment plays, as evenly as they divide (the first ones take
            the rest), so that short episodes are not favoured; first_finished takes whichever finish first, as the original does.
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


def summarise(game: str, returns: np.ndarray, seed: int) -> dict[str, Any]:
    """Statistics of episode returns [n], with 95 % percentile intervals of the mean from 10,000 bootstrap resamples.

    std and standard_error (n - 1 in the denominator) are None for a single episode, human_normalised for a game without a
    human score. The normalised interval is the mean's, normalised: the scores of the table count as exact.
    """
    rng, count = np.random.default_rng(seed), len(returns)
    blocks = [
        returns[rng.integers(count, size=(100, count))].mean(1) for _ in range(RESAMPLES // 100)
    ]  # blocks: 10,000 x n may not fit
    low, high = np.percentile(np.concatenate(blocks), [2.5, 97.5])
    mean, std = float(returns.mean()), float(returns.std(ddof=1)) if count > 1 else None
    scored = game in SCORES
    return {
        "mean": mean,
        "mean_interval_95": [float(low), float(high)],
        "std": std,
        "standard_error": None if std is None else std / count**0.5,
        "median": float(np.median(returns)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "human_normalised": human_normalised(game, mean) if scored else None,
        "human_normalised_interval_95": [human_normalised(game, float(low)), human_normalised(game, float(high))]
        if scored
        else None,
    }


def print_table(result: dict[str, Any], console: Console) -> None:
    policy = "random policy" if result["policy"] == "random" else f"agent at step {result['step']:,}"
    table = Table(
        title=f"{result['game']}: {policy}, {len(result['episode_returns'])} episodes",
        show_header=False,
        title_justify="left",
    )
    returns = result["return"]
    low, high = returns["mean_interval_95"]
    table.add_row("mean return", f"{returns['mean']:.2f}  [{low:.2f}, {high:.2f}] 95 % bootstrap interval")
    for name in ("median", "std", "standard_error", "min", "max"):
        table.add_row(name.replace("_", " "), "-" if returns[name] is None else f"{returns[name]:.2f}")
    if returns["human_normalised"] is not None:
        low, high = returns["human_normalised_interval_95"]
        table.add_row("human-normalised", f"{returns['human_normalised']:.3f}  [{low:.3f}, {high:.3f}]")
    table.add_row("mean length", f"{np.mean(result['episode_lengths']):.0f} steps")
    console.print(table)


# --- the command -------------------------------------------------------------------------------------------------


def evaluate(config: EvaluateConfig) -> int:
    """Plays and scores the episodes that config asks for; prints a table, and writes the result beside the run.

    Without config.episodes it plays as many as the run's evaluation.episodes_from goes with (EPISODES).
    The result is RUN/evaluation-STEP.json, STEP being the checkpoint's, or RUN/evaluation-random.json; evaluating the same
    checkpoint again replaces it.
    Raises: UserError for a run, checkpoint, device or video file that cannot be used.
    """
    run_dir = Path(config.run)
    run, device = load_config(run_dir), resolve_device(config.device)
    if config.video is not None:
        check_video_path(Path(config.video))
    result, recorder = _play(config, run, device)
    print_table(result, Console())
    path = run_dir / f"evaluation-{'random' if config.policy == 'random' else result['step']}.json"
    try:
        write_whole(path, (json.dumps(result, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"The result above could not be written to {path}: {error.strerror or error}") from None
    print(f"Written to {path}")
    if config.video is not None:
        write_mp4(Path(config.video), recorder.video())
        print(f"Video of the first episode: {config.video}")
    return 0


def _play(config: EvaluateConfig, run: TrainConfig, device: torch.device) -> tuple[dict[str, Any], Recorder]:
    """Plays the episodes. Returns the result, and the recorder of environment 0's first episode."""
    # Other seeds than training's, which come from (run.seed, step): the agent is not to be scored on games it has played.
    seed = int(np.random.SeedSequence((config.seed, run.seed, 1)).generate_state(1)[0]) % (2**31 - 1024)
    rules = run.evaluation
    num_episodes = EPISODES[rules.episodes_from] if config.episodes is None else config.episodes
    num_envs = min(config.num_envs, num_episodes)
    env = make_env(run.game, run.env, num_envs=num_envs, backend=run.env_backend, seed=seed)
    try:
        policy, step = _policy(config, run, env, device, seed)
        recorder = Recorder(policy)
        with Progress(num_episodes, 0, f"evaluate {run.game}", unit="episodes") as progress:
            episodes = play_episodes(
                env,
                recorder if config.video else policy,
                num_episodes,
                rule=rules.episodes_from,
                count_last_reward=rules.count_last_reward,
                on_finish=lambda done: progress.update(
                    len(done), {"episode_return": float(np.mean([e.game_return for e in done]))}
                ),
            )
    finally:
        env.close()
    resolved = {
        "episodes": num_episodes,
        "num_envs": num_envs,
        "device": str(device),
        "env_seed": seed,
        "env_backend": env.backend,
    }
    result = {
        "game": run.game,
        "protocol": run.protocol,
        "policy": config.policy,
        "step": step,
        "return": summarise(run.game, np.array([e.game_return for e in episodes]), config.seed),
        "episode_returns": [e.game_return for e in episodes],
        "episode_lengths": [e.length for e in episodes],
        "episode_truncated": [e.truncated for e in episodes],
        "settings": dataclasses.asdict(config) | resolved,
        "rules": dataclasses.asdict(rules) | dataclasses.asdict(run.env),
    }
    return result, recorder


def _policy(
    config: EvaluateConfig, run: TrainConfig, env: VectorEnv, device: torch.device, seed: int
) -> tuple[Policy, int | None]:
    """The policy to score, and the step of its checkpoint (None for the random policy)."""
    if config.policy == "random":
        return RandomPolicy(env.num_actions, np.random.default_rng(seed)), None
    checkpoint = load_checkpoint(Path(config.run), device, replay=False)
    torch.manual_seed(seed)
    world_model, agent = build_models(run, env.num_actions, device)
    for name, module in (("world_model", world_model), ("agent", agent)):
        try:
            module.load_state_dict(without_prefix(name, checkpoint.tensors))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"The checkpoint of {config.run} must fit its config.json, but {name}: {reason}") from None
    inference = InferenceModel(
        world_model, torch.float32
    )  # one frame an environment is little work, and scores are then the same everywhere
    return Player(inference, agent, run.acting, env.num_envs), checkpoint.step
