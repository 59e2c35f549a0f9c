"""Several runs of one command: which they are, what is refused before any starts, and that each is the run its seed
makes alone.
"""

import json
import os
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stormfast import cli
from stormfast.commands.train import read_config
from stormfast.loop import train
from stormfast.memory.estimate import estimate
from stormfast.plan import Plan
from stormfast.presets import preset_config
from stormfast.runs import launch as seeds
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.runs.directory import load_config
from stormfast.runs.launch import (
    as_many_as_fit,
    new_runs,
    num_at_once,
    pairs,
    process_environment,
    resumed_runs,
    train_several,
)
from stormfast.runs.manifest import File, Manifest, ReplayFiles
from stormfast.runs.processes import Planned
from stormfast.settings import LaunchConfig, TrainConfig
from tests.model_fixtures import create, plan_on

TINY = ["--game", "Catch", "--preset", "tiny", "--device", "cpu", "--logging.no-tensorboard"]
SMALL = "--world-model.channels 2 3 4 5 --world-model.width 16 --imagination.batch-size 4 --acting.random-steps 40"

BAD = [
    (["--seeds", "0"], "seeds must be >= 1 and <= 1000, got 0"),
    (["--seeds", "-2"], "seeds must be >= 1 and <= 1000, got -2"),
    (["--seeds", "1001"], "seeds must be >= 1 and <= 1000, got 1001"),
    (["--seeds", "two"], "--seeds must be an integer, got 'two'."),
    (["--seeds", "2", "--parallel", "0"], "parallel must be >= 1 and <= 1000, got 0"),
    (["--parallel", "0"], "parallel must be >= 1 and <= 1000, got 0"),
    (
        ["--seeds", "2", "--seed", str(2**31 - 1025)],
        "seed + seeds - 1, the seed of the last run, must be >= 0 and < 2147482624, got 2147482623 + 2 - 1 = ",
    ),
    (["--seeds", "2", "--run-dir", "file"], "--run-dir must be a directory, but file is a file"),
    (
        ["--seeds", "2", "--run-dir", "file/below"],
        "--run-dir must be a directory that can be written, but file/below: Not a directory",
    ),
    (["--seeds", "2", "--run-dir", 300 * "a"], "--run-dir must be a directory that can be written"),
    (["--seeds", "2", "--run-dir", ""], "run_dir must not be empty, got ''"),
    (["--seeds", "2", "--run-dir", "", "--resume"], "run_dir must not be empty, got ''"),
    (["--seeds", "2", "--run-dir", "run"], "--run-dir must be a directory for several runs, but run is a run"),
    (["--seeds", "2", "--run-dir", "group"], "group/Catch-seed1 is there already. Add --resume"),
    (["--seeds", "2", "--run-dir", "mixed"], "--run-dir must be new or empty, but mixed/Catch-seed1 holds other files"),
    (["--seeds", "2", "--resume"], "--resume needs the --run-dir of the runs to go on with"),
    (["--seeds", "2", "--resume", "--run-dir", "none"], "none holds none of the runs to go on with"),
    (
        ["--seeds", "2", "--resume", "--run-dir", "group", "--agent.gamma", "0.5"],
        "A resumed run keeps its settings, but agent.gamma was 0.985",
    ),
    (["--game", "Catch,Bongo"], "Unknown game 'Bongo'."),
    (["--game", "Catch,"], "--game must name a game before and after each comma, got 'Catch,'"),
    (["--parallel", "2"], "--parallel is for several runs, and this is one, got 2; leave --parallel out"),
    (["--game", "Catch,Pong,Catch"], "--game must name each game once, got 'Catch,Pong,Catch'"),
    (["--seeds", "2", "--agent.gamma", "2"], "agent.gamma must be > 0 and <= 1, got 2.0"),
    (["--seeds", "2", "--device", "cuda:99"], "device cuda:99 was asked for, but"),
    (["--seeds", "2", "--atari.sticky", "0.5"], "--atari.sticky is for Atari games, and Catch is none, got 0.5"),
    (["--game", "Pong,Catch", "--atari.sticky", "0.5"], "--atari.sticky is for Atari games, and Catch is none"),
    (["--seeds", "2", "--env-backend", "ale", "--run-dir", "new"], "--env-backend is for Atari games, and Catch is"),
]


@pytest.fixture
def no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file, a run and a group in it, where starting a process fails."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    create(replace(preset_config("tiny", "standard"), run_dir="run"))
    (tmp_path / "mixed" / "Catch-seed1").mkdir(parents=True)
    (tmp_path / "mixed" / "Catch-seed1" / "thesis.tex").write_text("")
    make_run(tmp_path / "group" / "Catch-seed1", seed=1, step=100)
    return tmp_path


def make_run(path: Path, *, seed: int, step: int | None, base: TrainConfig | None = None) -> TrainConfig:
    """A run directory with a config.json and, unless step is None, a checkpoint.json of that step."""
    base = base or replace(preset_config("tiny", "standard"), game="Catch", steps=500, device="cpu")
    config = replace(base, seed=seed, run_dir=str(path))
    create(config)
    if step is not None:
        (path / "checkpoint").mkdir()
        manifest = Manifest(step, File("state.safetensors", 0, ""), ReplayFiles("", 1, (0,), ()), {})
        (path / "checkpoint" / "checkpoint.json").write_text(manifest.to_json())
    return config


@pytest.mark.parametrize(("args", "expected"), BAD, ids=[" ".join(args)[:50] for args, _ in BAD])
def test_bad_input_is_one_line_before_any_run_starts(
    args: list[str], expected: str, no_process: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(no_process.rglob("*"))
    assert cli.main(["train", *TINY[:4], *args]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"stormfast: error: {expected}")
    assert line.count("\n") == 1
    assert sorted(no_process.rglob("*")) == before


def test_a_new_group_is_planned_once_and_what_fails_there_is_no_matter_of_its_directory(
    no_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail_at_pong(config: TrainConfig) -> Plan:
        asked.append(config.game)
        if config.game == "Pong":
            raise OSError("no such library")
        return plan_on("cpu")

    monkeypatch.setattr(seeds, "plan", fail_at_pong)
    monkeypatch.setattr(seeds, "watch", lambda *_: ([], 0))
    launch = LaunchConfig(game="Catch", preset="tiny", seeds=2, run_dir="new")
    assert train_several(launch, [], read_config) == 1  # as the stand-in starts none
    assert asked == ["Catch"]
    with pytest.raises(OSError, match="no such library"):
        train_several(replace(launch, game="Catch,Pong", run_dir="other"), [], read_config)
    assert not Path("other").exists()


def test_one_run_is_no_process_of_its_own(no_process: Path) -> None:
    assert cli.main(["train", *TINY, "--seeds", "1", "--steps", "20", "--run-dir", "one"]) == 0
    assert load_checkpoint(no_process / "one", "cpu").step == 20
    assert type(load_config(no_process / "one")) is TrainConfig
    assert "seeds" not in json.loads((no_process / "one" / "config.json").read_text())


def test_pairs_take_the_first_seed_of_every_game_first() -> None:
    launch = LaunchConfig(game="Pong, Breakout", seed=3, seeds=2)
    assert pairs(launch) == [("Pong", 3), ("Breakout", 3), ("Pong", 4), ("Breakout", 4)]
    assert launch.is_several
    assert not LaunchConfig().is_several


def test_each_run_has_its_game_seed_and_directory_and_the_settings_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    args = "--game Pong,Krull --seeds 2 --seed 5 --preset tiny --protocol reference"
    args += " --world-model.channels 2 4 8 16 --agent.gamma 0.1 --atari.noop-max 3"
    launch = read_config(
        [
            *args.split(),
            "--run-dir=--my runs",
            "--logging.no-tensorboard",
            "--world-model.separate-episodes",
            "--agent.learning-rate",
            "1e-7",
        ]
    )
    planned_runs = new_runs(launch)
    assert [planned.run_dir for planned in planned_runs] == [
        Path("--my runs") / name for name in ("Pong-seed5", "Krull-seed5", "Pong-seed6", "Krull-seed6")
    ]
    for planned, (game, seed) in zip(planned_runs, pairs(launch), strict=True):
        assert planned.config == replace(launch.one_run(), game=game, seed=seed, run_dir=f"--my runs/{game}-seed{seed}")
        assert read_config(list(planned.flags)).one_run() == planned.config  # what the process is told makes just that


def test_a_group_without_a_name_is_named_as_single_runs_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (new_runs(LaunchConfig(preset="tiny", seeds=2))[0].run_dir.parent for _ in range(2))
    assert first != second
    assert first.parent == second.parent == Path("runs")
    assert time.strptime(first.name[:15], "%Y%m%d-%H%M%S")


def test_resume_goes_on_with_what_began_skips_what_is_finished_and_begins_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "group"
    odd = [
        make_run(group / f"Catch-seed{seed}", seed=seed, step=step) for seed, step in ((1, 500), (2, 100), (3, None))
    ]
    assert [entry.name for entry in (group / "Catch-seed3").iterdir()] == ["config.json"]  # ended before it saved
    args = ["--game", "Catch", "--seed", "1", "--seeds", "4", "--run-dir", str(group), "--resume"]
    finished, going, unborn, new = resumed_runs(read_config(args), args, read_config)
    assert [planned.start_step for planned in (finished, going, unborn, new)] == [500, 100, 0, 0]
    assert going.config == replace(odd[1], resume=True)
    assert list(going.flags) == [f"--run-dir={group}/Catch-seed2", "--resume"]
    assert read_config(list(going.flags)).one_run() == going.config
    for planned, seed in ((unborn, 3), (new, 4)):  # the same settings as the others have, though none were given
        assert planned.config == replace(odd[0], seed=seed, run_dir=str(group / f"Catch-seed{seed}"))
        assert not planned.config.resume
        assert read_config(list(planned.flags)).one_run() == planned.config
    longer = [*args, "--steps", "900"]
    assert [planned.config.steps for planned in resumed_runs(read_config(longer), longer, read_config)] == [900] * 4
    started: list[Planned] = []
    monkeypatch.setattr(
        seeds, "watch", lambda planned_runs, parallel, environment: (started.extend(planned_runs), ([], 0))[1]
    )
    assert cli.main(["train", *args]) == 1  # as the stand-in starts none
    assert [planned.name for planned in started] == ["Catch-seed2", "Catch-seed3", "Catch-seed4"]


def test_a_group_that_is_finished_has_nothing_to_do(
    tmp_path: Path, no_process: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "done" / f"Catch-seed{seed}", seed=seed, step=500)
    assert cli.main(["train", "--game", "Catch", "--seeds", "2", "--run-dir", "done", "--resume"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("2 runs in done, 2 of them finished already")


@pytest.mark.parametrize("where", [[], ["--run-dir", "s2"]])
def test_what_is_advised_after_a_stop_works(
    where: list[str], no_process: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With --resume once a run has saved; before that there is nothing to resume, and the same command begins."""
    begin = [False]

    def stopped(planned_runs: list[Planned], *_: object) -> tuple[list, int]:
        create(planned_runs[0].config)  # its process ended before it saved
        (planned_runs[0].run_dir / "metrics.jsonl").touch()
        if begin[0]:
            (planned_runs[0].run_dir / "checkpoint").mkdir(exist_ok=True)
            (planned_runs[0].run_dir / "checkpoint" / "checkpoint.json").touch()
        return [], signal.SIGTERM

    def advised(args: list[str]) -> list[str]:
        assert cli.main(args) == 128 + signal.SIGTERM
        line = capsys.readouterr().err.splitlines()[-1]
        return shlex.split(line.partition("`stormfast ")[2].rstrip("`"))

    monkeypatch.setattr(seeds, "watch", stopped)
    again = advised(["train", *TINY, "--seeds", "2", *where])
    assert "--resume" not in again and "--run-dir" in again
    begin[0] = True
    resumed = advised(again)
    assert resumed == [*again, "--resume"]
    assert advised(resumed) == resumed


def test_on_cuda_no_more_at_once_than_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(preset_config("tiny", "standard"), precision="bfloat16")
    todo, decided = [Planned(config, ())] * 20, plan_on("cuda:0", "graphs", torch.bfloat16)
    each = estimate(config, 18, torch.bfloat16, captured=True).total
    free = [0]
    monkeypatch.setattr("stormfast.memory.estimate.available_memory", lambda device: free[0])
    for free[0], expected in ((7 * each, 7), (7 * each - 1, 6), (each - 1, 1), (8 * each, 8), (100 * each, 8)):
        assert as_many_as_fit(8, todo, decided) == expected
        lines = capsys.readouterr().err.splitlines()
        told = [f"{expected} at once, not 8: no more fit in the memory that is free on cuda:0"] if expected < 8 else []
        assert lines == told
    assert as_many_as_fit(8, todo, plan_on("cpu")) == 8


def test_how_many_at_once_and_their_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [num_at_once(LaunchConfig(), n, plan_on("cpu")) for n in (0, 1, 5, 20)] == [1, 1, 5, 8]
    assert [num_at_once(LaunchConfig(parallel=12), n, plan_on("cpu")) for n in (5, 20)] == [5, 12]
    assert [process_environment(n)[0]["OMP_NUM_THREADS"] for n in (1, 3, 8, 12)] == ["8", "2", "1", "1"]
    assert [num_at_once(LaunchConfig(), n, plan_on("cuda:0")) for n in (1, 20)] == [1, 20]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment, threads = process_environment(8)
    assert (environment["OMP_NUM_THREADS"], threads) == ("3", "3")  # what the user says goes


# --- real processes ------------------------------------------------------------------------------------------------


def metrics(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(got: Path, expected: Path) -> None:
    """To the bit: metrics, weights, optimisers, generators, environments."""
    assert metrics(got) == metrics(expected)
    ours, theirs = load_checkpoint(got, "cpu"), load_checkpoint(expected, "cpu")
    assert (ours.step, ours.meta, ours.tensors.keys()) == (theirs.step, theirs.meta, theirs.tensors.keys())
    assert [name for name in theirs.tensors if not torch.equal(ours.tensors[name], theirs.tensors[name])] == []


def train_alone(like: Path, run_dir: Path) -> Path:
    config = replace(load_config(like), run_dir=str(run_dir))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train(config, create(config)).stopped_by == 0
    finally:
        torch.set_num_threads(threads)
    return run_dir


def test_a_run_of_a_group_is_the_single_run_of_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One process, which takes seconds to start: the other run of the group is finished already."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    settings = read_config([*TINY, *SMALL.split(), "--steps", "50", "--logging.every", "10"]).one_run()
    finished = make_run(tmp_path / "group" / "Catch-seed6", seed=6, step=50, base=settings)
    args = "train --game Catch --seed 6 --seeds 2 --run-dir group --resume"
    assert cli.main(args.split()) == 0
    lines = capfd.readouterr().err.splitlines()
    seventh = tmp_path / "group" / "Catch-seed7"
    assert load_config(seventh) == replace(finished, seed=7, run_dir=str(seventh))
    assert_same_run(seventh, train_alone(seventh, tmp_path / "alone"))
    assert any(line.startswith("Catch-seed7: finished at step 50, saved in group/Catch-seed7") for line in lines)
    assert lines[-1].startswith("1 of 1 runs finished: 50 steps in ")
    assert sorted(entry.name for entry in (tmp_path / "group").iterdir()) == [
        "Catch-seed6",
        "Catch-seed7",
        "Catch-seed7.log",
    ]


@pytest.mark.slow
def test_two_seeds_are_the_two_single_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    args = "--seed 6 --seeds 2 --steps 50 --run-dir group --logging.every 10"
    assert cli.main(["train", *TINY, *SMALL.split(), *args.split()]) == 0
    lines = capfd.readouterr().err.splitlines()
    for seed in (6, 7):
        assert load_config(tmp_path / "group" / f"Catch-seed{seed}").seed == seed
        assert_same_run(
            tmp_path / "group" / f"Catch-seed{seed}",
            train_alone(tmp_path / "group" / f"Catch-seed{seed}", tmp_path / f"alone-{seed}"),
        )
        assert any(
            line.startswith(f"Catch-seed{seed}: finished at step 50, saved in group/Catch-seed{seed}") for line in lines
        )
    assert metrics(tmp_path / "alone-6") != metrics(tmp_path / "alone-7")
    assert (
        lines[0] == "2 runs in group; 2 at once, CPU threads of each: 1"
        if seeds.num_cores() > 1
        else "1 at once" in lines[0]
    )
    assert (
        lines[-1].startswith("2 of 2 runs finished: 100 steps in ")
        and " steps/s in all; score one with `stormfast evaluate group/" in lines[-1]
    )
    assert sorted(entry.name for entry in (tmp_path / "group").iterdir()) == [
        "Catch-seed6",
        "Catch-seed6.log",
        "Catch-seed7",
        "Catch-seed7.log",
    ]


def start(command: list[str], args: list[str], where: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "train", *args], cwd=where, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_metrics(process: subprocess.Popen[str], runs: list[Path]) -> None:
    deadline = time.monotonic() + 120
    while not all((run / "metrics.jsonl").exists() and len(metrics(run)) >= 5 for run in runs):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.1)


@pytest.mark.slow
def test_ctrl_c_saves_all_and_resume_goes_on_past_one_that_is_damaged(tmp_path: Path, command: list[str]) -> None:
    args = [*TINY, "--seeds", "3", "--parallel", "2", "--steps", "100000", "--logging.every", "20"]
    process = start(command, args, tmp_path)
    while not (groups := list(tmp_path.glob("runs/*/Catch-seed1"))):
        assert process.poll() is None
        time.sleep(0.1)
    group = groups[0].parent
    runs = [group / f"Catch-seed{seed}" for seed in range(3)]
    wait_for_metrics(process, runs[:2])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors and "failed" not in errors
    assert (
        errors.splitlines()[-1]
        == f"go on with `stormfast train {' '.join(args)} --run-dir {group.relative_to(tmp_path)} --resume`"
    )
    steps = [load_checkpoint(run, "cpu").step for run in runs[:2]]
    assert min(steps) >= 100 and not runs[2].exists()
    for state in (runs[0] / "checkpoint").glob("state-*"):
        state.write_bytes(state.read_bytes()[:-1])

    end = max(steps) + 40
    resumed = start(
        command, ["--game", "Catch", "--seeds", "3", "--steps", str(end), "--run-dir", str(group), "--resume"], tmp_path
    )
    _, errors = resumed.communicate(timeout=300)
    lines = errors.splitlines()
    assert resumed.returncode == 1, errors
    assert any(line.startswith("Catch-seed0: stormfast: error: ") and "cut short" in line for line in lines)
    assert f"Catch-seed0: failed with status 2 at step {steps[0]}; its log is {group}/Catch-seed0.log" in lines
    assert [load_checkpoint(run, "cpu").step for run in runs[1:]] == [end, end]
    assert f"2 of 3 runs finished: {2 * end - steps[1]} steps in " in lines[-1]
    assert_same_run(runs[2], train_alone(runs[2], tmp_path / "alone"))


@pytest.mark.slow
def test_a_batch_system_that_signals_every_process_has_every_run_saved(tmp_path: Path, command: list[str]) -> None:
    process = start(
        command,
        [*TINY, "--seeds", "2", "--parallel", "2", "--steps", "100000", "--run-dir", "group", "--logging.every", "20"],
        tmp_path,
    )
    runs = [tmp_path / "group" / f"Catch-seed{seed}" for seed in range(2)]
    wait_for_metrics(process, runs)
    processes = Path(f"/proc/{process.pid}/task/{process.pid}/processes").read_text().split()
    assert len(processes) == 2
    for pid in (process.pid, *map(int, processes)):
        os.kill(pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "failed" not in errors and "killed" not in errors.replace("once more to kill them", ""), errors
    assert all(load_checkpoint(run, "cpu").step >= 100 for run in runs)


@pytest.mark.slow
def test_games_side_by_side(tmp_path: Path, command: list[str]) -> None:
    pytest.importorskip("ale_py")
    args = [
        "--game",
        "Catch,Pong",
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--steps",
        "80",
        "--run-dir",
        "group",
        "--logging.no-tensorboard",
    ]
    process = start(command, args, tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert [load_config(tmp_path / "group" / f"{game}-seed0").game for game in ("Catch", "Pong")] == ["Catch", "Pong"]
    scored = subprocess.run(
        [*command, "evaluate", "group/Pong-seed0", "--episodes", "1", "--num-envs", "1", "--policy", "random"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
