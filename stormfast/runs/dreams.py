"""A run's dreams: from the newest rows of a replay, at each save of a run, and at its last checkpoint.

N dreams   C context steps   H imagined steps
"""

import warnings
from pathlib import Path

import numpy as np
import torch

from stormfast.device import out_of_memory
from stormfast.dream_env import Dream, open_loop
from stormfast.dream_film import DreamFilm
from stormfast.envs.games import find
from stormfast.errors import UserError
from stormfast.records import Batch
from stormfast.replay import Replay
from stormfast.runs.directory import DREAMS
from stormfast.runs.progress import log_line
from stormfast.runs.run import Run
from stormfast.runs.trained import load
from stormfast.schema import check_whole_number
from stormfast.video import write_video
from stormfast.world_model import WorldModel

HORIZON = 45  # three seconds of a game at frame skip 4
STARTS = 4  # dreams at each save, which the numbers are of
FILMED = 1  # of them: drawing and encoding takes most of the time
MOST_FRAMES = 1_000  # of a film: over a minute; a .webp of as many takes 1.2 GB while it is written
LEAST_PLAYED = 512  # steps


def film_of(
    run_dir: Path, *, horizon: int = HORIZON, starts: int = STARTS, seed: int = 0, device: str = "auto"
) -> DreamFilm:
    """Dreams of a run's last checkpoint, from play of its agent.

    Args: horizon: H. starts: N; fewer where the game's episodes give no more. seed: of games and dreams.
    Raises: UserError for what is no run, a checkpoint that is missing or damaged, and a model without a decoder.
    """
    trained = load(run_dir, device)
    context = trained.config.imagination.context
    check_whole_number("horizon", horizon)
    check_whole_number("starts", starts)
    check_whole_number("starts x (horizon + context)", starts * (horizon + context), most=MOST_FRAMES)
    trained.check_decoder()
    rows = trained.play(max(LEAST_PLAYED, 2 * starts * (context + horizon)), seed=seed)
    dream = newest_dream(trained.world_model, rows, context, horizon, starts, seed)
    if dream is None:
        raise UserError(
            f"a dream needs an episode that is longer than imagination.context ({context} steps), but none of "
            f"{trained.config.game} was; try another --seed"
        )
    return DreamFilm(dream, find(trained.config.game).slug, trained.step)


def dream_at_save(run: Run) -> DreamFilm | None:
    """Dreams of a run as it is, from its newest rows; None where it has no decoder, too few rows, or no memory for
    them, which costs the run a line and not its checkpoint.

    All that is drawn at random comes from generators of its own, and the weights are only read: the run goes on as it
    would have without. Waits for the device.
    """
    model, context = run.learner.world_model, run.config.imagination.context
    if not run.config.logging.dreams or model.decoder is None:
        return None
    seed = int(np.random.SeedSequence((run.config.seed, run.step, 3)).generate_state(1)[0])
    try:
        dream = newest_dream(model, run.replay, context, HORIZON, STARTS, seed)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        tell_not_kept(run, "there is no memory left for it")
        return None
    return None if dream is None else DreamFilm(dream, find(run.config.game).slug, run.step, FILMED)


def keep_dream(run: Run, film: DreamFilm) -> None:
    """Writes RUN/dreams/STEP.webp, and a strip to TensorBoard where it is on. One line where that fails."""
    folder = run.run_dir / DREAMS
    try:
        folder.mkdir(exist_ok=True)
        write_video(folder / f"{run.step}.webp", film.frames())
        run.log.write_picture(run.step, "dream", film.strip())
    except (OSError, UserError) as error:
        tell_not_kept(run, str(error))


def tell_not_kept(run: Run, reason: str) -> None:
    line = f"step {run.step}: the dream is not kept: {reason}; --logging.no-dreams leaves dreams out"
    if run.quiet:
        warnings.warn(line, stacklevel=3)
    else:
        log_line(line)


def newest_dream(
    world_model: WorldModel, replay: Replay, context: int, horizon: int, num: int, seed: int
) -> Dream | None:
    """The model's imagination of the newest play; None where there is none."""
    window = newest_stretches(replay, context, horizon, num)
    return None if window is None else open_loop(world_model, window, context, seed=seed)


def newest_stretches(replay: Replay, context: int, horizon: int, num: int) -> Batch | None:
    """Up to N windows [N, C + H] of real play for dreams, on the replay's device.

    The context lies in one episode. Those in which that episode goes on for most of the H steps come first, and among
    them the newest; no two share a step of the episode. H is shorter where replay is. Syncs.

    Returns: None where no episode is longer than the context.
    """
    looked_at = min(replay.num_streams, 2 * num)  # streams: more would cost memory and give nothing
    lengths = np.where(np.arange(replay.num_streams) < looked_at, replay.lengths, 0)
    length = min(context + horizon, int(lengths.max()))
    if length <= context:
        return None
    counts = np.minimum(lengths, max(length, 2 * num * length // looked_at))  # rows, twice as many as are asked for
    rows = replay.read_rows(replay.written - counts, replay.written)
    starts = choose_starts(rows["is_first"].numpy(), counts, context, length, num)
    if not starts:
        return None
    windows = {name: torch.stack([field[start : start + length] for start in starts]) for name, field in rows.items()}
    windows["action"] = windows["action"].long()
    return Batch(**{name: window.to(replay.device) for name, window in windows.items()})


def choose_starts(is_first: np.ndarray, lengths: np.ndarray, context: int, length: int, num: int) -> list[int]:
    """The first rows of up to N windows of `length` rows, as newest_stretches chooses them.

    Args: is_first: [rows] bool, of one stream after the other. lengths: [streams] rows of each.
    """
    found = []  # (steps of the episode after the context, age, first row)
    for begin, rows in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        episode = is_first[begin : begin + rows].cumsum()
        for start in range(rows - length + 1):
            window = episode[start : start + length]
            steps = int((window == window[context - 1]).sum()) - context
            if steps > 0 and window[0] == window[context - 1]:
                found.append((steps, rows - start, int(begin) + start))
    chosen: dict[int, int] = {}  # first row -> row after the last one of the episode
    for steps, _, start in sorted(found, key=lambda window: (-window[0], window[1])):
        end = start + context + steps
        if len(chosen) < num and all(end <= other or start >= until for other, until in chosen.items()):
            chosen[start] = end
    return list(chosen)
