"""Several runs on one device: which they are, where they are kept, how they are resumed.

stormfast train --game Pong,Breakout --seeds 5

    runs/20260102-030405/         or the --run-dir you gave: the group
      Pong-seed0/ Pong-seed1/     runs like any other: `stormfast evaluate` and `train --resume` take each alone
      Pong-seed0.log ...          what each process printed

The same command with --resume (and the --run-dir) goes on with all of them: finished runs are skipped, and runs that
have not started yet start, with the settings of the others. A higher --seeds therefore adds runs to a group.

Each run is a process of its own, with the same result, to the bit, as that run started alone with as many CPU threads.
Threads of one process would not do: a run draws from torch's default generators, of which a process has one set, and a
run that dies must not end the others.

How many at once: all with CUDA, one a core without. Measured on two cores of an AMD EPYC that had other work (Catch,
bfloat16, torch 2.13, before the learner was last changed; medians of 3): an environment step takes this much CPU time,
and two seeds so get at most

    preset   one thread   spread over two   two at once, 1 thread each   one after the other, 2 threads
    cpu          97 ms           133 ms                  20.6 steps/s                     15.0 steps/s
    tiny         37 ms            74 ms                  53   steps/s                     27   steps/s

and less where a core is shared, which threads that wait for each other feel most: cpu once gave 5.7 steps/s at once and
1.0 one after the other, with 1.0 to 1.4 cores of other work. CUDA has not been measured.
"""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stormfast.envs.games import find
from stormfast.errors import UserError
from stormfast.memory.estimate import num_fitting
from stormfast.plan import Plan, plan
from stormfast.runs.command import begin, flags
from stormfast.runs.directory import CONFIG, RUNS, has_checkpoint, load_config
from stormfast.runs.manifest import DIRECTORY, read_manifest
from stormfast.runs.opened import check_free, make_default, told_as_run_dir
from stormfast.runs.processes import Planned, Process, watch
from stormfast.runs.progress import log_line
from stormfast.schema import check_name
from stormfast.settings import SEED, LaunchConfig, TrainConfig

MOST_ACTIONS = 18  # of an Atari game; what a game of more adds is small beside the rest
ReadConfig = Callable[[list[str]], LaunchConfig]  # the arguments of `stormfast train` -> what they ask for


def train_several(launch: LaunchConfig, args: Sequence[str], read_config: ReadConfig) -> int:
    """Trains all runs that are asked for, at most launch.parallel at once.

    Args:
        launch: what args ask for.
        args: those of `stormfast train`; read again, by read_config, for each run that is resumed.
    Returns: 0 when every run got its steps, 1 when one failed, 128 + the signal that stopped them.
    Raises: UserError, before any run starts, for what is wrong with the settings or in the way of a directory.
    """
    games = [replace(launch.one_run(), game=game) for game in launch.games]
    decided = None if launch.resume else plan_of(games)  # first: what it refuses leaves no directory
    with told_as_run_dir(launch.run_dir or RUNS):
        planned_runs = resumed_runs(launch, args, read_config) if launch.resume else new_runs(launch)
    todo = [planned for planned in planned_runs if planned.start_step < planned.config.steps]
    decided = decided or plan_of([planned.config for planned in todo or planned_runs])
    group = planned_runs[0].run_dir.parent
    with told_as_run_dir(group):
        group.mkdir(parents=True, exist_ok=True)
    parallel = as_many_as_fit(num_at_once(launch, len(todo), decided), todo, decided)
    environment, threads = process_environment(parallel)
    done = f", {len(planned_runs) - len(todo)} of them finished already" if len(todo) < len(planned_runs) else ""
    log_line(f"{len(planned_runs)} runs in {group}{done}; {parallel} at once, CPU threads of each: {threads}")
    if not todo:
        return 0
    started = time.monotonic()
    processes, stopped_by = watch(todo, parallel, environment)
    log_line(summary(processes, todo, time.monotonic() - started))
    if stopped_by:
        begun = any(has_checkpoint(planned.run_dir) for planned in planned_runs)  # else there is nothing to resume
        again = [
            *args,
            *([] if launch.run_dir else ["--run-dir", str(group)]),
            *(["--resume"] if begun and not launch.resume else []),
        ]
        log_line(f"go on with `stormfast train {shlex.join(again)}`")
        return 128 + stopped_by
    return int(any(process.failed for process in processes) or len(processes) < len(todo))


def summary(processes: Sequence[Process], todo: Sequence[Planned], seconds: float) -> str:
    """The last word: how many runs got their steps, and how fast all together."""
    finished = [process for process in processes if process.popen.returncode == 0]
    steps = sum(process.step - process.planned.start_step for process in processes)
    rate = f"{steps:,} steps in {seconds:,.1f} s, {steps / max(seconds, 1e-9):,.1f} steps/s in all"
    line = f"{len(finished)} of {len(todo)} runs finished: {rate}"
    return line + (
        f"; score one with `stormfast evaluate {shlex.quote(str(finished[0].planned.run_dir))}`" if finished else ""
    )


# --- which runs ----------------------------------------------------------------------------------------------------


def pairs(launch: LaunchConfig) -> list[tuple[str, int]]:
    """(game, seed) of each run; the first seed of every game first, so that a table fills evenly."""
    games = launch.games
    if len({find(game).slug for game in games}) < len(games):  # they name the directories
        raise UserError(f"--game must name each game once, got '{launch.game}'")
    last = launch.seed + launch.seeds - 1
    if last not in SEED:
        raise UserError(
            f"seed + seeds - 1, the seed of the last run, must be {SEED}, got {launch.seed} + {launch.seeds} - 1 "
            f"= {last}"
        )
    return [(game, launch.seed + k) for k in range(launch.seeds) for game in games]


def new_runs(launch: LaunchConfig) -> list[Planned]:
    """The runs of a launch, none of which may exist yet. Raises: UserError; OSError as the file system gives it."""
    settings, wanted = launch.one_run(), pairs(launch)
    group = Path(launch.run_dir) if launch.run_dir else make_default(RUNS)
    if group.exists() and not group.is_dir():
        raise UserError(f"--run-dir must be a directory, but {group} is a file; choose another")
    if (group / CONFIG).exists():
        raise UserError(f"--run-dir must be a directory for several runs, but {group} is a run; choose another")
    planned_runs = [new_run(settings, group, *pair) for pair in wanted]
    for planned in planned_runs:
        if has_checkpoint(planned.run_dir):
            raise UserError(
                f"{planned.run_dir} is there already. Add --resume to go on with the runs in {group}, or choose "
                "another --run-dir."
            )
        check_free(planned.run_dir, planned.config.game)
    return planned_runs


def plan_of(configs: Sequence[TrainConfig]) -> Plan:
    """The plan of the first of some runs, which differ in game and seed alone. Raises: UserError where one has none."""
    plans = {game: plan(config) for game, config in {config.game: config for config in configs}.items()}
    return plans[configs[0].game]


def new_run(settings: TrainConfig, group: Path, game: str, seed: int) -> Planned:
    """A run that begins, with these settings but for its game, seed and directory."""
    config = replace(settings, game=game, seed=seed, run_dir=str(group / f"{find(game).slug}-seed{seed}"), resume=False)
    return Planned(config, tuple(begin(config)))


def resumed_runs(launch: LaunchConfig, args: Sequence[str], read_config: ReadConfig) -> list[Planned]:
    """The runs of a launch whose group exists: those that saved go on, the others begin with the same settings.

    Raises: UserError for a group without any of them, and for settings that a resume may not change.
    """
    if launch.run_dir is None:
        raise UserError(
            "--resume needs the --run-dir of the runs to go on with: the directory that holds them, as "
            "`stormfast train` printed it"
        )
    check_name("run_dir", launch.run_dir)
    group, planned_runs = Path(launch.run_dir), {}
    for game, seed in pairs(launch):
        path = group / f"{find(game).slug}-seed{seed}"
        if has_checkpoint(path):
            one = [
                "--game",
                game,
                "--seed",
                str(seed),
                "--seeds",
                "1",
                "--run-dir",
                str(path),
            ]  # of a flag given twice the last counts
            config = read_config([*args, *one]).one_run()
            planned_runs[game, seed] = Planned(
                config, tuple(flags(config, replace(load_config(path), run_dir=None))), _saved_step(path)
            )
    if not planned_runs:
        raise UserError(
            f"{group} holds none of the runs to go on with, such as {path.name}; give their --game and --seed, or "
            "leave --resume out"
        )
    settings = next(iter(planned_runs.values())).config
    return [planned_runs.get(pair) or new_run(settings, group, *pair) for pair in pairs(launch)]


def _saved_step(path: Path) -> int:
    try:
        return read_manifest(path / DIRECTORY).step
    except UserError:  # the run itself reports it when it starts, and the others go on
        return 0


# --- sharing the machine -------------------------------------------------------------------------------------------


def num_at_once(launch: LaunchConfig, num_runs: int, decided: Plan) -> int:
    """Runs at once: as many as launch.parallel says; else all with CUDA, and one a core without."""
    most = launch.parallel or (num_runs if decided.device.type == "cuda" else num_cores())
    return max(1, min(most, num_runs))


def as_many_as_fit(parallel: int, todo: Sequence[Planned], decided: Plan) -> int:
    """On CUDA no more runs at once than fit in its memory together; a lower number is logged.

    Runs that start at the same time each find all memory free, so they cannot check this themselves. At least one: a
    run that does not fit alone reports it.
    """
    if decided.device.type != "cuda" or parallel == 1:
        return parallel
    fitting = max(1, num_fitting(todo[0].config, decided, MOST_ACTIONS))  # all have the same sizes
    if fitting < parallel:
        log_line(f"{fitting} at once, not {parallel}: no more fit in the memory that is free on {decided.device}")
    return min(parallel, fitting)


def process_environment(parallel: int) -> tuple[dict[str, str], str]:
    """The environment of a run and its number of CPU threads: its share of the cores, unless OMP_NUM_THREADS is set."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // parallel))
    # TERM: no display that is redrawn in place, whatever FORCE_COLOR says: a run prints into a log
    return os.environ | {"OMP_NUM_THREADS": threads, "TERM": "dumb"}, threads


def num_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
