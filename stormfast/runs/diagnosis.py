"""A run's world model diagnosed on the run's own replay, and on play that it was not trained on.

B windows   T steps a window   C context steps   H imagined steps
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stormfast.diagnosis import (
    Seen,
    codebook_use,
    latent_information,
    motion_explained,
    open_loop_errors,
    posterior_entropy,
    reward_numbers,
    see,
    small_objects,
    statistics_kl,
    still_error,
)
from stormfast.errors import UserError
from stormfast.loop import updates_by
from stormfast.records import Batch
from stormfast.replay import Replay
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.runs.run import make_replay
from stormfast.runs.trained import Trained, load
from stormfast.schema import check_whole_number, override
from stormfast.verdicts import memorised_rewards, verdicts
from stormfast.world_model import WorldModel

CPU = torch.device("cpu")
RECENT = 0.1  # share of the rows of each stream
MOST_STEPS = 100_000  # of all imagined stretches, context and horizon: 1.2 GB of frames, of which copies are made

Numbers = dict[str, float | None]  # by name; None where the windows hold nothing to measure it on


@dataclass(frozen=True)
class Diagnosis:
    """Numbers of a run's last checkpoint.

    Attributes:
        step: environment steps trained for. updates: of the world model.
        numbers: draw of windows, all, recent or fresh, -> its numbers, those of diagnosis.py; open_loop_N/... of N
            steps.
        verdicts: what is wrong by the numbers of the windows drawn from all of replay, and by how they differ from
            those of fresh play, each in a line.
    """

    step: int
    updates: int
    numbers: dict[str, Numbers]
    verdicts: list[str]


def diagnose(
    run_dir: Path, *, windows: int = 64, horizon: int = 16, play: int = 0, seed: int = 0, device: str = "auto"
) -> Diagnosis:
    """Measures a run's world model on windows of its replay, drawn uniformly from all of it and from its last tenth,
    and of fresh play of its agent.

    Args:
        windows: B. horizon: H.
        play: steps of fresh play, at least a window; 0 for none. None of it is kept.
        seed: of windows, play and imagination.
    Raises: UserError for what is no run, a checkpoint that is missing or damaged, a game that cannot be made, and
        replay or play shorter than a window.
    """
    trained = load(run_dir, device)
    context = trained.config.imagination.context
    check_whole_number("windows", windows)
    check_whole_number("horizon", horizon)
    check_whole_number("windows x (horizon + context)", windows * (horizon + context), most=MOST_STEPS)
    check_whole_number("seed", seed, least=0)
    replay, longest = saved_replay(trained), max(trained.config.world_model.batch_length, context + horizon)
    if replay.lengths.max() < longest:
        raise UserError(
            f"replay of {run_dir} must hold a window of {longest} steps, got {replay.lengths.max()}; "
            "take a smaller --horizon, or train on first"
        )
    draws = {"all": replay, "recent": last_rows(replay, RECENT, longest)}
    if play:
        check_whole_number("play", play, least=longest)
        draws["fresh"] = trained.play(play, seed=seed)
    numbers = {name: measured(trained, rows, windows, horizon, seed) for name, rows in draws.items()}
    updates, settings = updates_by(trained.step, trained.config), trained.config.world_model
    lines = verdicts(numbers["all"], updates, settings)
    if play and (line := memorised_rewards(numbers["all"], numbers["fresh"])):
        lines.append(line)
    return Diagnosis(trained.step, updates, numbers, lines)


def saved_replay(trained: Trained) -> Replay:
    """The rows of a run's checkpoint, on the CPU, without its demonstration, to be drawn from uniformly."""
    config = override(
        trained.config,
        {"replay.recency": 1.0, "replay.demonstration": None, "replay.demonstration_share": 0.0},
    )
    replay = make_replay(config, trained.num_actions, CPU)
    load_checkpoint(trained.run_dir, CPU).restore_replay(replay)
    return replay


def last_rows(replay: Replay, share: float, least: int) -> Replay:
    """A replay of the last rows of each stream: a share of them, or the `least` where that is more."""
    count = np.minimum(replay.lengths, np.maximum(least, (replay.lengths * share).astype(np.int64)))
    rows = replay.read_rows(replay.written - count, replay.written)
    last = Replay(int(count.max()) * replay.num_streams, replay.num_streams, CPU, keep_last_obs=replay.keep_last_obs)
    last.write_rows(np.zeros_like(count), count, rows)
    last.restore_written(count, replay.id)
    return last


def measured(trained: Trained, replay: Replay, windows: int, horizon: int, seed: int) -> Numbers:
    """Every number on windows drawn from a replay."""
    model, settings, context = trained.world_model, trained.config.world_model, trained.config.imagination.context
    generator = torch.Generator().manual_seed(seed)
    batch = replay.sample(windows, settings.batch_length, generator)
    parts = [see(model, on_device(part, trained.device)) for part in parts_of(batch, settings.batch_size)]
    numbers = of_frames(model, joined(parts))
    numbers["statistics_kl"] = mean(statistics_kl(model, part) for part in parts)
    if model.decoder is not None:
        window = on_device(replay.sample(windows, context + horizon, generator), trained.device)
        for n, errors in open_loop_errors(model, window, context, seed=seed).items():
            numbers |= {f"open_loop_{n}/{name}": value for name, value in errors.items()}
    return {name: None if value.isnan() else float(value) for name, value in numbers.items()}


def of_frames(model: WorldModel, seen: Seen) -> dict[str, Tensor]:
    """The numbers of frames that the model was shown; without a decoder those of the reconstruction are absent."""
    latent: tuple[Callable[[Tensor], Tensor], ...] = (latent_information, posterior_entropy, codebook_use)
    numbers = {measure.__name__: measure(seen.log_probs) for measure in latent}
    if seen.reconstruction is not None:
        drawn = seen.reconstruction, seen.frames, seen.mean_frame, seen.moving
        numbers |= {measure.__name__: measure(*drawn) for measure in (motion_explained, still_error, small_objects)}
    return numbers | reward_numbers(model, seen)


def parts_of(batch: Batch, size: int) -> Iterator[Batch]:
    """Windows in parts of as many as a training batch has: no more memory is needed at once than there."""
    for start in range(0, len(batch.action), size):
        yield Batch(**{name: value[start : start + size] for name, value in vars(batch).items()})


def on_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: value.to(device) for name, value in vars(batch).items()})


def joined(parts: list[Seen]) -> Seen:
    """Parts as one."""
    batch = Batch(**{name: torch.cat([getattr(part.batch, name) for part in parts]) for name in vars(parts[0].batch)})
    reconstructions = [part.reconstruction for part in parts if part.reconstruction is not None]
    return Seen(
        batch=batch,
        frames=torch.cat([part.frames for part in parts]),
        log_probs=torch.cat([part.log_probs for part in parts]),
        reward=torch.cat([part.reward for part in parts]),
        reconstruction=torch.cat(reconstructions) if reconstructions else None,
    )


def mean(values: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
