"""Does it learn? Trains a preset on a game from the command line, scores agent and random policy alike, and keeps the evidence.

    .venv/bin/python bench/learning.py --game Assault --seeds 0

Each seed is a new run under runs/learning. Writes bench/results/DEVICE/learning-GAME-PRESET.json (commands, seeds, curves, scores,
machine, commit) and a picture of the curves, over those of the last call. Arguments it does not know go to `stormfast train`.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # so that it runs as a script, on this checkout

from bench import devices  # noqa: E402

RESULTS = ROOT / "bench" / "results"
OURS = ("--seed", "--run-dir", "--resume")  # arguments of `stormfast train` that this script gives itself


def commit() -> str:
    """The commit checked out, with -dirty where files other than the results differ from it; empty outside git."""
    head, dirty = devices.commit()
    return "" if dirty is None else head + "-dirty" * dirty


def stormfast(*arguments: str) -> tuple[str, float]:
    """Runs the command as a user would, from the root of the repository. Returns the command line and its wall-clock seconds."""
    command = [sys.executable, "-m", "stormfast", *arguments]
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT)
    return " ".join(["stormfast", *arguments]), time.monotonic() - started


def learn(game: str, seed: int, run: str, train_flags: list[str], episodes: int) -> dict[str, Any]:
    """Trains one seed into `run`, relative to the root, then plays `episodes` with the agent and with the random policy, on the same games."""
    trained, wall_seconds = stormfast("train", "--game", game, "--seed", str(seed), "--run-dir", run, *train_flags)
    evaluated, _ = stormfast("evaluate", run, "--episodes", str(episodes))
    compared, _ = stormfast("evaluate", run, "--episodes", str(episodes), "--policy", "random")
    run_dir = ROOT / run
    (agent_file,) = run_dir.glob("evaluation-[0-9]*.json")
    agent, random = (json.loads(path.read_text()) for path in (agent_file, run_dir / "evaluation-random.json"))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = (
        "step",
        "seconds",
        "episodes",
        "episode_return",
        "world_model/total",
        "world_model/dynamics_kl",
        "agent/entropy",
    )
    apart = agent["return"]["mean"] - random["return"]["mean"]
    error = (agent["return"]["standard_error"] ** 2 + random["return"]["standard_error"] ** 2) ** 0.5
    return {
        "seed": seed,
        "commands": [trained, evaluated, compared],
        "seconds": lines[-1]["seconds"],  # of the training loop alone
        "wall_seconds": round(wall_seconds, 1),  # of the whole command: imports, building and the last save too
        "steps": agent["step"],
        "agent": agent["return"] | {"episode_returns": agent["episode_returns"]},
        "random": random["return"] | {"episode_returns": random["episode_returns"]},
        "standard_errors_above_random": apart / error if error else None,
        "config": json.loads((run_dir / "config.json").read_text()),
        "curve": [{name: line[name] for name in kept if name in line} for line in lines],
        "commit_at_end": commit(),  # evaluation ran the code as it was by then
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Training returns against minutes, with the random policy's mean and the final score of each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for run in result["runs"]:
        points = [line for line in run["curve"] if "episode_return" in line]
        minutes, returns = [line["seconds"] / 60 for line in points], [line["episode_return"] for line in points]
        (drawn,) = axes.plot(minutes, returns, label=f"seed {run['seed']}, training episodes", alpha=0.6)
        end, agent, label = run["seconds"] / 60, run["agent"], f"seed {run['seed']}, evaluated (standard error)"
        axes.errorbar(
            end, agent["mean"], agent["standard_error"], fmt="o", capsize=3, color=drawn.get_color(), label=label
        )
    axes.axhline(result["runs"][0]["random"]["mean"], color="grey", linestyle="--", label="random policy")
    axes.set(
        xlabel="minutes of training",
        ylabel="episode return",
        title=f"{result['game']}, preset {result['preset']}\n{result['device']}",
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """This script's arguments, checked, and those for `stormfast train`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--game", required=True)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=30, help="to evaluate with, 2 at least (default: 30)")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="run although the working tree differs from its commit"
    )
    known, train_flags = parser.parse_known_args()
    if known.episodes < 2:
        parser.error(f"--episodes must be >= 2, for a standard error, got {known.episodes}")
    for flag in train_flags:
        name, _, value = flag.partition("=")
        if name.replace("_", "-") in OURS:
            parser.error(f"{name} is given by this script; leave it out (--seeds says which seeds)")
        if Path(value or name).is_absolute():
            parser.error(
                f"results must name no path of this machine, got {flag}; give it relative to the root of the repository"
            )
    if not commit():
        parser.exit(2, "Results name the commit they come from, but this is no git checkout; clone the repository.\n")
    if commit().endswith("-dirty") and not known.allow_dirty:
        parser.exit(
            2,
            "Results name the commit they come from, but the working tree has changes; commit them, or add --allow-dirty.\n",
        )
    return known, train_flags


def main() -> int:
    known, train_flags = arguments()
    result: dict[str, Any] = {
        "game": known.game,
        "preset": known.preset,
        "device": devices.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [],
    }
    folder = RESULTS / devices.slug(result["device"])
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"learning-{known.game}-{known.preset}"
    started = time.strftime("%Y%m%d-%H%M%S")
    for seed in known.seeds:
        run = f"runs/learning/{known.game}-{known.preset}-{seed}-{started}"
        result["runs"].append(learn(known.game, seed, run, ["--preset", known.preset, *train_flags], known.episodes))
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, stem.with_suffix(".png"))
    for run in result["runs"]:
        apart = run["standard_errors_above_random"]
        distance = "no spread" if apart is None else f"{apart:.1f} standard errors apart"
        print(
            f"seed {run['seed']}: agent {run['agent']['mean']:.2f}, random {run['random']['mean']:.2f}, {distance}, {run['seconds'] / 60:.1f} min"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
