"""Does it learn? Trains a preset on a game from the command line, scores agent and random policy alike, and keeps the evidence.

    python bench/learning.py --game Assault --preset cpu --seeds 0 --episodes 30

Writes bench/results/DEVICE/learning-GAME-PRESET.json (commands, seeds, curves, scores, machine, commit) and a picture of the curves.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def device_name() -> str:
    """The GPU, or the CPU with the number of cores that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    return f"{model[1] if model else platform.processor()} {torch.get_num_threads()} cores"


def stormfast(*arguments: str) -> tuple[str, float]:
    """Runs the command as a user would. Returns the command line and its wall-clock seconds."""
    command = [sys.executable, "-m", "stormfast", *arguments]
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT)
    return " ".join(["stormfast", *arguments]), time.monotonic() - started


def learn(game: str, seed: int, run_dir: Path, train_flags: list[str], episodes: int) -> dict[str, Any]:
    """Trains one seed, then plays `episodes` with the agent and with the random policy, on the same games."""
    trained, seconds = stormfast("train", "--game", game, "--seed", str(seed), "--run-dir", str(run_dir), *train_flags)
    evaluated, _ = stormfast("evaluate", str(run_dir), "--episodes", str(episodes))
    stormfast("evaluate", str(run_dir), "--episodes", str(episodes), "--policy", "random")
    (agent_file,) = run_dir.glob("evaluation-[0-9]*.json")
    agent, random = (json.loads(path.read_text()) for path in (agent_file, run_dir / "evaluation-random.json"))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "seconds", "episodes", "episode_return", "world_model/total", "world_model/dynamics_kl", "agent/entropy")
    apart = agent["return"]["mean"] - random["return"]["mean"]
    error = (agent["return"]["standard_error"] ** 2 + random["return"]["standard_error"] ** 2) ** 0.5
    return {
        "seed": seed,
        "commands": [trained, evaluated, evaluated + " --policy random"],
        "train_seconds": round(seconds, 1),
        "steps": agent["step"],
        "agent": agent["return"] | {"episode_returns": agent["episode_returns"]},
        "random": random["return"] | {"episode_returns": random["episode_returns"]},
        "standard_errors_above_random": apart / error if error else None,
        "config": json.loads((run_dir / "config.json").read_text()),
        "curve": [{name: line[name] for name in kept if name in line} for line in lines],
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Training returns against minutes, with the random policy's mean and the final score of each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for run in result["runs"]:
        points = [(line["seconds"] / 60, line["episode_return"]) for line in run["curve"] if "episode_return" in line]
        (line,) = axes.plot(*zip(*points, strict=True), label=f"seed {run['seed']}, training episodes", alpha=0.6)
        minutes = run["train_seconds"] / 60
        axes.errorbar(
            minutes, run["agent"]["mean"], run["agent"]["standard_error"], fmt="o", color=line.get_color(), label=f"seed {run['seed']}, evaluated"
        )
    axes.axhline(result["runs"][0]["random"]["mean"], color="grey", linestyle="--", label="random policy")
    axes.set(xlabel="minutes of training", ylabel="episode return", title=f"{result['game']}, preset {result['preset']}, {result['device']}")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", required=True)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the runs are kept")
    known, train_flags = parser.parse_known_args()  # the rest goes to stormfast train
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    result: dict[str, Any] = {
        "game": known.game,
        "preset": known.preset,
        "device": device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "runs": [],
    }
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"learning-{known.game}-{known.preset}"
    for seed in known.seeds:
        run_dir = known.runs / f"{known.game}-{known.preset}-{seed}"
        result["runs"].append(learn(known.game, seed, run_dir, ["--preset", known.preset, *train_flags], known.episodes))
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, stem.with_suffix(".png"))
    for run in result["runs"]:
        scores = (
            f"agent {run['agent']['mean']:.2f}, random {run['random']['mean']:.2f}, {run['standard_errors_above_random']:.1f} standard errors apart"
        )
        print(f"seed {run['seed']}: {scores}, {run['train_seconds'] / 60:.1f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
