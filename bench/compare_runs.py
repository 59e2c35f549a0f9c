"""Do two runs learn alike? Learning curves of runs side by side: a table of returns, and a picture.

    python bench/compare_runs.py eager=RUN compiled=RUN --out bench/results/DEVICE/catch-compile.png

Runs are directories of `stormfast train`. The JSON beside the picture holds what is drawn, each run's settings, and the commit that drew it.
"""

import argparse
import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # as a script, of this checkout

from bench.devices import describe  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.runs.directory import write_whole  # noqa: E402

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
    return {
        "config": config,
        "curves": {name: [[line["step"], line[name]] for line in lines if name in line] for name in PANELS},
    }


def draw(runs: dict[str, dict[str, Any]]) -> bytes:
    """The curves side by side, as PNG."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.2), constrained_layout=True)
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        for style, (title, run) in zip(("-", "--", ":", "-."), runs.items(), strict=False):
            curve = run["curves"][name]
            axis.plot([step for step, _ in curve], [value for _, value in curve], style, label=title)
        axis.set(xlabel="environment steps", title=label)
    axes[0].legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    plt.close(figure)
    return image.getvalue()


def returns(runs: dict[str, dict[str, Any]]) -> str:
    """Episode returns by step, tab-separated: the steps of the first run, and what each has there."""
    columns = [dict(map(tuple, run["curves"]["episode_return"])) for run in runs.values()]
    rows = [
        [str(step), *("-" if (value := column.get(step)) is None else f"{value:.2f}" for column in columns)]
        for step in columns[0]
    ]
    return "\n".join("\t".join(row) for row in [["step", *runs], *rows])


def compare(words: list[str], out: Path) -> str:
    """Reads the runs, writes picture and JSON. Returns the table. Raises: UserError."""
    named = [word.partition("=") for word in words]
    if not all(name and path for name, _, path in named):
        raise UserError(f"runs must be given as NAME=RUN, got {' '.join(words)}")
    if out.suffix != ".png":
        raise UserError(f"--out must be a picture ending in .png, got {out}")
    try:
        runs = {name: read(Path(path)) for name, _, path in named}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"a run must be a directory with config.json and metrics.jsonl, but {type(error).__name__}: {error}"
        ) from None
    command = shlex.join(["python", "bench/compare_runs.py", *words, "--out", str(out)])
    about = {"command": command, "date": time.strftime("%Y-%m-%d"), **describe(torch.device("cpu"))}
    try:
        write_whole(out, draw(runs))
        write_whole(out.with_suffix(".json"), (json.dumps({"about": about, "runs": runs}, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"--out must be in a directory that can be written, got {out}: {error.strerror}") from None
    return returns(runs)


def main(arguments: list[str] | None = None) -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--out", type=Path, required=True, help="picture; the JSON goes beside it")
    known = parser.parse_args(arguments)
    try:
        print(compare(known.runs, known.out))
    except UserError as error:
        print(f"compare_runs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
