"""How the runs of a study are made: each is trained, evaluated and written down, by processes of its own.

What a run still lacks is found on disk, so a study that was stopped goes on with the same command.
"""

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stormfast.device import device_name, resolve_device
from stormfast.plan import Plan
from stormfast.runs.launch import as_many_as_fit, new_run, num_at_once, num_cores, plan_of, process_environment
from stormfast.runs.processes import Planned, watch
from stormfast.runs.progress import log_line
from stormfast.runs.study_results import read_curve, read_result, write_entry
from stormfast.runs.study_runs import (
    Series,
    StudyRun,
    commits_of,
    is_trained,
    note_commit,
    put_aside,
    trained_step,
    training,
)
from stormfast.settings import LaunchConfig, TrainConfig
from stormfast.study import changed_settings


def make_runs(
    series: Series,
    runs: Sequence[StudyRun],
    parallel: int | None,
    on_result: Callable[[], object],
    *,
    low_priority: bool = False,
) -> int:
    """Trains, evaluates and writes down runs, each in processes of its own.

    Args:
        parallel: how many at once; None takes as many as `stormfast train`.
        on_result: called after each.
        low_priority: they run when nothing else wants the CPU.
    Returns: 0, 1 where one failed, or 128 + the signal that stopped them. Raises: UserError before the first starts.
    """
    if series.replace_older:
        for run in runs:
            put_aside(series, run)
    by_directory = {run.run_dir: run for run in runs}
    todo = [training(run) for run in runs]
    decided = plan_for(runs, todo)
    at_once = as_many_as_fit(num_at_once(LaunchConfig(parallel=parallel), len(todo), decided), todo, decided)
    environment, threads = process_environment(num_cores())  # one thread each, or OMP_NUM_THREADS
    device = device_name(resolve_device(runs[0].config.device), int(threads))
    log_line(f"{len(runs)} runs in {series.out}; {at_once} at once on {device}, CPU threads of each: {threads}")

    def go_on(planned: Planned) -> Planned | None:
        run = by_directory[planned.run_dir]
        follower = next_of(series, run)
        if follower is None:
            record(series, run, device)
            on_result()
        return follower

    waiting = [next_of(series, run) or go_on(planned) for run, planned in zip(runs, todo, strict=True)]
    starting = [planned for planned in waiting if planned]
    processes, stopped_by = watch(
        starting,
        at_once,
        environment,
        before=lambda planned: note_commit(by_directory[planned.run_dir], series.commit),
        after=go_on,
        low_priority=low_priority,
    )
    if stopped_by:
        log_line("stopped; the same command goes on")
        return 128 + stopped_by
    return int(any(process.failed for process in processes) or len(processes) < len(starting))


def plan_for(runs: Sequence[StudyRun], todo: Sequence[Planned]) -> Plan:
    """The plan of runs, which is one for all. Raises: UserError where an arm has none on one of its games."""
    arms: dict[str, list[TrainConfig]] = {run.arm: [] for run in runs}
    for run, planned in zip(runs, todo, strict=True):
        arms[run.arm].append(planned.config)
    return [plan_of(configs) for configs in arms.values()][-1]


def next_of(series: Series, run: StudyRun) -> Planned | None:
    """What a run needs next: training, a score of its agent, a score of random actions, or nothing."""
    if not is_trained(run):
        return training(run)
    evaluate = Planned(run.config, evaluation_flags(series, run, "agent"), run.config.steps, "evaluate", run.name)
    if evaluation_of(series, run, "agent") is None:
        return evaluate
    if random_of(series, run) is None:
        return dataclasses.replace(evaluate, flags=evaluation_flags(series, run, "random"))
    return None


def evaluation_flags(series: Series, run: StudyRun, policy: str) -> tuple[str, ...]:
    words = f"--policy {policy} --episodes {series.episodes} --device {run.config.device}"
    return (str(run.run_dir), *words.split())


def evaluation_of(series: Series, run: StudyRun, policy: str) -> dict[str, Any] | None:
    """What `stormfast evaluate` has found for a run, of as many episodes as are wanted, or None."""
    name = trained_step(run) if policy == "agent" else policy
    path = run.run_dir / f"evaluation-{name}.json"
    try:
        found = json.loads(path.read_bytes())
        matches = len(found["episode_returns"]) == series.episodes and "mean" in found["return"]
        return found if matches else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # it is evaluated again


def random_of(series: Series, run: StudyRun) -> dict[str, Any] | None:
    """The score of random actions on the run's game by its rules, by whichever run of the study has it, or None."""
    known = read_result(run.result).get("random")
    if known and not (series.replace_older and known.get("commit") != series.commit):
        return dict(known)
    rules = rules_of(run.config)
    for other in series.runs():
        found, commit = evaluation_of(series, other, "random"), commits_of(other)[-1]
        fits = other.config.game == run.config.game and rules_of(other.config) == rules
        if found and fits and not (series.replace_older and commit != series.commit):
            score = {"mean": found["return"]["mean"], "sem": found["return"]["standard_error"]}
            return score | {"episodes": series.episodes, "commit": commit}
    return None


def rules_of(config: TrainConfig) -> list[dict[str, Any]]:
    """What the score of random actions depends on."""
    return [dataclasses.asdict(group) for group in (config.env, config.atari, config.evaluation)]


def record(series: Series, run: StudyRun, device: str) -> None:
    """Writes a run's result. Raises: UserError where it cannot."""
    config, commits = run.config, commits_of(run)
    agent, random = evaluation_of(series, run, "agent"), random_of(series, run)
    assert agent is not None and random is not None
    curve = read_curve(run.run_dir, series.study.show)
    entry = {
        "seed": config.seed,
        "mean_return": agent["return"]["mean"],
        "sem": agent["return"]["standard_error"],
        "episodes": series.episodes,
        "minutes": round(float(curve["seconds"][-1] or 0) / 60, 2),  # of the training loop
        "steps": agent["step"],
        "commit": commits[-1],
        **({"begun_at": commits[0]} if commits[0] != commits[-1] else {}),
        "device": device,
        "command": command_of(config),
        "settings": changed_settings(config),
        "episode_returns": agent["episode_returns"],
        "curve": curve,
    }
    about: dict[str, Any] = {"game": config.game, "preset": config.preset, "protocol": config.protocol}
    about |= {"study": series.name, "arm": run.arm, "device": device, "commit": series.commit}
    about |= {"command": study_command(series, run), "random": random}
    write_entry(run.result, about, entry)
    log_line(f"{run.name}: mean return {entry['mean_return']:.2f}, random actions {random['mean']:.2f}")


def command_of(config: TrainConfig) -> str:
    """The command that trains such a run, without its directory."""
    planned = new_run(config, Path("runs"), config.game, config.seed)
    return shlex.join(
        ["stormfast", "train", *(word for word in planned.flags if not word.startswith(("--run-dir=", "--device=")))]
    )


def study_command(series: Series, run: StudyRun) -> str:
    """The command that makes a result file."""
    words = ["stormfast", "study", series.name, "--games", run.config.game, "--preset", run.config.preset]
    words += ["--arms", run.arm] if len(series.study.arms) > 1 else []
    words += ["--steps", str(series.steps)] if series.steps else []
    words += ["--seeds", str(series.seeds), "--episodes", str(series.episodes)]
    return shlex.join(words + (["--demonstration", series.demonstration] if series.demonstration else []))
