"""Would a slowdown land unseen, and are there alarms where nothing changed?

    python bench/planted.py                                     # a quarter of an hour on two cores, unattended; any other work may run
    python bench/planted.py --json bench/results/DEVICE/planted.json
    python bench/planted.py bench/bench_world_model.py --launches 2 --unchanged 1

Copies this checkout and plants a slowdown of 20 % in the world-model update: the copy's update spins, after it is done, for a fifth
of the processor time it took. `bench/compare.py`'s comparison of the two must flag the bench of that update, and none that does
not contain it; the whole step contains it, and may be flagged or not. Then the checkout is compared with itself three times, and
nothing may be flagged. The exit status is 0 only if all of that held. It runs on a CPU, on one thread unless --threads says otherwise.
"""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the proof is of this checkout


from bench.compare import about, as_text, check, exit_status, use_threads  # noqa: E402
from bench.comparing import ratios  # noqa: E402
from bench.comparing.scratch import scratch_directory  # noqa: E402
from bench.comparing.sides import Choice, Side  # noqa: E402
from bench.comparing.trees import snapshot  # noqa: E402
from bench.comparing.verdicts import Comparison, as_json, in_turn, show  # noqa: E402
from bench.devices import commit  # noqa: E402
from bench.script import Parser, written  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.runs.progress import log_line  # noqa: E402

SLOWDOWN = 0.20
PATHS = [f"bench/bench_{name}.py" for name in ("world_model", "imagination", "agent", "act", "replay", "step")]
SLOWED = """


# --- planted -----


def slowed(method):
    import functools
    import time

    @functools.wraps(method)
    def call(*args, **kwargs):
        started = time.thread_time()
        result = method(*args, **kwargs)
        end = started + {factor} * (time.thread_time() - started)
        while time.thread_time() < end:
            pass
        return result

    return call


{target} = slowed({target})
"""


@dataclass(frozen=True)
class Plant:
    """A slowdown: the file it is appended to, what it wraps there, and parts of the names of benches.

    Attributes:
        measured: benches that are the slowed code and little else, so that they must be flagged; contains: benches that it is a part of.
    """

    file: str = "stormfast/learner.py"
    target: str = "Learner.update_world_model"
    slowdown: float = SLOWDOWN
    measured: tuple[str, ...] = ("::test_world_model",)
    contains: tuple[str, ...] = ("bench_step.py::",)

    def into(self, tree: Path) -> None:
        with open(tree / self.file, "a") as file:
            file.write(SLOWED.format(factor=1 + self.slowdown, target=self.target))


@dataclass(frozen=True)
class Trial:
    """A comparison, and whether it found what it should: `expected` benches must be flagged, `allowed` ones may."""

    name: str
    comparison: Comparison
    expected: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    @property
    def missed(self) -> list[str]:
        flagged = self.comparison.having("slower")
        found = [part for part in self.expected if any(part in bench for bench in flagged)]
        return [part for part in self.expected if part not in found]

    @property
    def false_alarms(self) -> list[str]:
        """Benches flagged without a reason, and those that could not be compared."""
        known = (*self.expected, *self.allowed)
        return [bench for bench in self.comparison.worse if not any(part in bench for part in known)]

    @property
    def held(self) -> bool:
        return not self.missed and not self.false_alarms and bool(self.comparison.benches)


def prove(root: Path, plant: Plant, choice: Choice, limit: float, unchanged: int, scratch: Path) -> list[Trial]:
    """The planted slowdown, then `unchanged` comparisons of a checkout with itself. Raises: UserError, TurnsError."""
    head, _ = commit()
    old = Side("old", snapshot(root, scratch / "old"), head)
    trials = []
    for i in range(1 + unchanged):
        name = f"unchanged {i}" if i else f"planted {plant.slowdown:.0%}"
        log_line(f"{name}, {i + 1} of {1 + unchanged} comparisons")
        new = Side("new", snapshot(old.tree, scratch / "new"), head)
        if not i:
            plant.into(new.tree)
        comparison = in_turn(old, new, choice, limit, scratch)
        trials.append(Trial(name, comparison) if i else Trial(name, comparison, plant.measured, plant.contains))
        log_line(show(comparison))
        shutil.rmtree(new.tree)
    return trials


def table(trials: Sequence[Trial]) -> str:
    """Markdown, a row a comparison."""
    lines = [
        "| comparison | benches | flagged, with ratio and interval | least - most other ratio | unclear | held |",
        "|---|---|---|---|---|---|",
    ]
    for trial in trials:
        benches, flagged = trial.comparison.benches, trial.comparison.having("slower")
        shown = [
            f"{bench.rpartition('::')[2]} {(r := benches[bench].ratio).value:.3f} ({r.low:.3f} - {r.high:.3f})"
            for bench in flagged
        ]
        others = [each.ratio.value for bench, each in benches.items() if bench not in flagged]
        span = f"{min(others):.3f} - {max(others):.3f}" if others else "none"
        unclear = len(trial.comparison.having("unclear"))
        lines.append(
            f"| {trial.name} | {len(benches)} | {', '.join(shown) or 'none'} | {span} | {unclear} | {'yes' if trial.held else 'NO'} |"
        )
    return "\n".join(lines)


def reasons(trials: Sequence[Trial]) -> list[str]:
    """Why the proof failed, a line each."""
    lines = []
    for trial in trials:
        lines += [f"{trial.name}: {part} was not flagged" for part in trial.missed]
        lines += [f"{trial.name}: {bench} was flagged or failed" for bench in trial.false_alarms]
        lines += [] if trial.comparison.benches else [f"{trial.name}: no bench could be compared"]
    return lines


def record(trials: Sequence[Trial], plant: Plant) -> dict[str, Any]:
    """All of it, as JSON types."""
    each = [
        {"name": trial.name, "held": trial.held, "missed": trial.missed, "false_alarms": trial.false_alarms}
        for trial in trials
    ]
    return {
        "planted": dataclasses.asdict(plant),
        "held": all(trial.held for trial in trials),
        "table": table(trials).splitlines(),
        "comparisons": [told | as_json(trial.comparison) for told, trial in zip(each, trials, strict=True)],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="*", default=PATHS, help="bench files; default all but kernels and environments")
    parser.add_argument("-k", dest="keyword", default="", metavar="EXPR", help="which benches, as pytest has it")
    parser.add_argument(
        "--unchanged", type=int, default=3, help="comparisons of the checkout with itself; default %(default)s"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; default %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=ratios.ROUNDS, help="timed rounds of a bench and launch; default %(default)s"
    )
    parser.add_argument(
        "--launches",
        type=int,
        default=ratios.LAUNCHES,
        help="processes of each side and comparison; default %(default)s",
    )
    parser.add_argument(
        "--limit", type=float, default=ratios.LIMIT, help="ratio beyond which a bench is slower; default %(default)s"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        help="seconds without a round until a process counts as hung; default %(default)g",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument("--verbose", action="store_true", help="show what the benches print")
    parser.set_defaults(device="cpu", no_counts=True, counts_only=False)
    return parser.parse_args(arguments)


def run(given: argparse.Namespace, command: Sequence[str]) -> int:
    choice = check(given)
    if given.unchanged < 0:
        raise UserError(f"--unchanged must be at least 0, got {given.unchanged}")
    use_threads(given.threads)
    with scratch_directory() as scratch:
        trials = prove(ROOT, Plant(), choice, given.limit, given.unchanged, scratch)
    held = all(trial.held for trial in trials)
    if given.json:
        written(given.json, as_text(about("bench/planted.py", command, choice.device) | record(trials, Plant())))
    print("\n".join(["", table(trials), *reasons(trials), "held" if held else "FAILED"]))
    return 0 if held else 1


def main(arguments: Sequence[str] | None = None) -> int:
    command = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status("planted", lambda: run(parse(command), command))


if __name__ == "__main__":
    sys.exit(main())
