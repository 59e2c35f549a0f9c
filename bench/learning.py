"""Does it learn? Trains games x seeds, scores the agent and a random policy on the same games, and writes the evidence.

    python -m bench.learning --game Catch --seeds 3 --steps 4500 --agent.entropy 3e-2
    python -m bench.learning --game Pong,Breakout --preset storm --seeds 5 --device cuda

Writes OUT/DEVICE/learning-GAME-PRESET.json for each game: commands, learning curves, scores, machine and commit. --plot
draws the curves beside it. Ctrl-C or SIGTERM has the runs saved; the same command then goes on. Arguments not listed
below go to `stormfast train`. A checkout with changes is refused, because a score names the commit that it comes from.
"""

import argparse
import io
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.devices import commit, device_name, slug
from bench.jobs import only_one, run
from bench.script import ROOT, Parser, check_writable, status_of, written
from stormfast.device import resolve_device
from stormfast.errors import UserError
from stormfast.runs.manifest import DIRECTORY, MANIFEST, read_manifest
from stormfast.runs.signals import SignalWatch

PANELS = {  # metrics that are drawn
    "episode_return": "return",
    "world_model/reconstruction": "reconstruction loss",
    "world_model/dynamics_kl": "KL",
    "agent/entropy": "entropy",
}
CURVE = ("step", "seconds", "episodes", "world_model/total", *PANELS)  # metrics that a result keeps


def stormfast(arguments: Sequence[str], signals: SignalWatch) -> None:
    """Runs the command as a user would. Raises: SystemExit with its status where it failed or was stopped."""
    ended = run([sys.executable, "-m", "stormfast", *arguments], signals)
    if signals.first:
        print("learning: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signals.first)
    if ended.code:  # the command has printed why
        raise SystemExit(ended.code if ended.code > 0 else 128 - ended.code)


def train(options: argparse.Namespace, runs: Sequence[Path], signals: SignalWatch) -> list[str]:
    """Trains all runs to their last step. Returns: the command that begins them."""
    for run_dir in runs:
        if run_dir.exists() and not (run_dir / DIRECTORY / MANIFEST).exists():  # killed before its first checkpoint
            run_dir.rename(run_dir.with_name(f"{run_dir.name}-unsaved-{time.strftime('%Y%m%d-%H%M%S')}"))
    where = runs[0].parent if len(runs) > 1 else runs[0]
    command = ["train", "--game", options.game, "--preset", options.preset, "--seeds", str(options.seeds)]
    command += ["--run-dir", str(where), "--device", options.device, *options.train_flags]
    stormfast([*command, *(["--resume"] if any(run_dir.exists() for run_dir in runs) else [])], signals)
    return command


def evaluate(options: argparse.Namespace, run_dir: Path, policy: str, signals: SignalWatch) -> tuple[Any, list[str]]:
    """Scores a run's agent or the random policy, unless that was done before. Returns: the score, and the command."""
    command = ["evaluate", str(run_dir), "--policy", policy, "--episodes", str(options.episodes)]
    command += ["--device", options.device]
    path = run_dir / f"evaluation-{read_manifest(run_dir / DIRECTORY).step if policy == 'agent' else policy}.json"
    if not path.exists() or len(json.loads(path.read_text())["episode_returns"]) != options.episodes:
        stormfast(command, signals)
    return json.loads(path.read_text()), command


def describe(run_dir: Path, agent: Any, random: Any) -> dict[str, Any]:
    """What the result keeps of a run."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    apart = agent["return"]["mean"] - random["return"]["mean"]
    error = (agent["return"]["standard_error"] ** 2 + random["return"]["standard_error"] ** 2) ** 0.5
    config = json.loads((run_dir / "config.json").read_text()) | {"run_dir": None}
    return {
        "seed": config["seed"],
        "seconds": lines[-1]["seconds"],  # of the training loop
        "steps": agent["step"],
        "agent": agent["return"] | {"episode_returns": agent["episode_returns"]},
        "random": random["return"] | {"episode_returns": random["episode_returns"]},
        "standard_errors_above_random": apart / error if error else None,
        "config": config,
        "curve": [{name: line[name] for name in CURVE if name in line} for line in lines],
    }


def draw(result: dict[str, Any]) -> bytes:
    """Curves over environment steps as PNG: a colour for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4.5 * len(PANELS), 3.6), layout="constrained")
    for k, one in enumerate(result["runs"]):
        label = f"{result['preset']}, seed {one['seed']}, {one['seconds'] / 60:.0f} min, {result['commit'][:7]}"
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            points = [(line["step"], line[name]) for line in one["curve"] if name in line]
            axis.plot([step for step, _ in points], [y for _, y in points], color=f"C{k}", label=label)
            axis.set(xlabel="environment steps", title=title)
        mean, error = one["agent"]["mean"], one["agent"]["standard_error"]  # of the evaluation
        axes[0].errorbar(one["steps"], mean, error, fmt="o", capsize=3, color=f"C{k}")
    axes[0].axhline(result["runs"][0]["random"]["mean"], color="grey", label="random policy")
    axes[0].legend(fontsize=7)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    pyplot.close(figure)
    return image.getvalue()


def learn(options: argparse.Namespace, head: str) -> int:
    """Trains, evaluates and writes. Raises: UserError; SystemExit with the status of a command that failed."""
    group: Path = options.run_dir
    runs = {game: [group / f"{game}-seed{k}" for k in range(options.seeds)] for game in options.game.split(",")}
    group.mkdir(parents=True, exist_ok=True)
    with (
        SignalWatch() as signals,
        only_one(group / ".lock", f"another process trains in {group}; wait until it has ended"),
    ):
        trained = train(options, [run_dir for of_game in runs.values() for run_dir in of_game], signals)
        device = device_name(resolve_device(options.device))
        about = {"preset": options.preset, "device": device, "torch": torch.__version__, "commit": head}
        about |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
        for game, run_dirs in runs.items():
            result: dict[str, Any] = {"game": game, **about, "runs": []}
            for run_dir in run_dirs:
                (agent, by_agent), (random, by_random) = (
                    evaluate(options, run_dir, policy, signals) for policy in ("agent", "random")
                )
                commands = [shlex.join(["stormfast", *command]) for command in (trained, by_agent, by_random)]
                commands = [command.replace(str(group), f"runs/learning/{group.name}") for command in commands]
                result["runs"].append({"commands": commands, **describe(run_dir, agent, random)})
                scores = f"agent {agent['return']['mean']:.2f}, random policy {random['return']['mean']:.2f}"
                print(f"{run_dir.name}: {scores}, {agent['step']:,} steps", flush=True)
            path = options.out / slug(device) / f"learning-{game}-{options.preset}.json"
            check_writable("--out", path, make=True)
            written(path, (json.dumps(result, indent=1) + "\n").encode())
            if options.plot:
                written(path.with_suffix(".png"), draw(result))
            print(path)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Raises: UserError."""
    parser = Parser(__doc__)
    parser.add_argument("--game", required=True, metavar="NAME,...", help="one or more of `stormfast games`")
    parser.add_argument("--preset", default="cpu", help="default cpu")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each game, seeds 0, 1, ...; default 1")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation; default 30")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--run-dir", type=Path, help="of all runs; default runs/learning/PRESET-COMMIT")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="folder of results")
    parser.add_argument("--plot", action="store_true", help="draw the curves, too; needs matplotlib")
    parser.add_argument("--allow-dirty", action="store_true", help="train although the checkout has changes")
    options, train_flags = parser.parse_known_args(arguments)
    options.train_flags = train_flags
    for name in train_flags:
        if name.partition("=")[0] in ("--seed", "--resume"):
            raise UserError(f"{name} cannot be given: seeds begin at 0, and a run that is there is resumed")
    if options.seeds < 1 or options.episodes < 2:
        raise UserError(f"--seeds must be >= 1 and --episodes >= 2, got {options.seeds} and {options.episodes}")
    head, dirty = commit()
    if head == "unknown":
        raise UserError("results name their commit, but this is no git checkout; clone it, or set STORMFAST_COMMIT")
    if dirty and not options.allow_dirty:
        raise UserError("results name their commit, but the checkout has changes; commit them, or add --allow-dirty")
    head += "-dirty" if dirty else ""
    options.run_dir = (options.run_dir or ROOT / "runs" / "learning" / f"{options.preset}-{head}").resolve()
    return learn(options, head)


if __name__ == "__main__":
    sys.exit(status_of("learning", main))
