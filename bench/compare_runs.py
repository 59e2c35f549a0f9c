"""Do two runs learn alike? Learning curves of runs side by side: a table of returns, and a picture.

python bench/compare_runs.py eager=RUN compiled=RUN --out bench/results/DEVICE/catch-compile.png

Runs are directories of `stormfast train`, or their metrics.jsonl. The JSON beside the picture holds what is drawn, and each run's settings.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = {
    "episode_return": "return",
    "world_model/reconstruction": "reconstruction loss",
    "world_model/dynamics_kl": "KL",
    "agent/entropy": "entropy",
}


def read(run: Path) -> dict[str, Any]:
    """Settings and curves of a run: (steps, values) of each of PANELS."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    return {"config": config, "curves": {name: [[line["step"], line[name]] for line in lines if name in line] for name in PANELS}}


def draw(runs: dict[str, dict[str, Any]], out: Path) -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2), constrained_layout=True)
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        for style, (title, run) in zip(("-", "--", ":", "-."), runs.items(), strict=False):
            curve = run["curves"][name]
            axis.plot([step for step, _ in curve], [value for _, value in curve], style, label=title)
        axis.set(xlabel="environment steps", title=label)
    axes[0].legend()
    figure.savefig(out, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--out", type=Path, required=True, help="picture; the JSON goes beside it")
    args = parser.parse_args()
    named = [run.partition("=") for run in args.runs]
    if not all(path for _, _, path in named):
        parser.error(f"runs are given as NAME=RUN, got {' '.join(args.runs)}")
    try:
        runs = {name: read(Path(path)) for name, _, path in named}
        args.out.with_suffix(".json").write_text(json.dumps(runs, indent=1) + "\n")
        draw(runs, args.out)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"runs must be directories with config.json and metrics.jsonl, and --out must be writable: {error}")
    steps = [step for step, _ in next(iter(runs.values()))["curves"]["episode_return"]]
    print("step", *runs, sep="\t")
    for step in steps:
        values = (dict(map(tuple, run["curves"]["episode_return"])).get(step) for run in runs.values())
        print(step, *("-" if value is None else f"{value:.2f}" for value in values), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
