"""Did anything get slower: do the benches of this checkout take longer than they did?

    python bench/compare.py                                     # than when last saved on this device by `make bench`
    python bench/compare.py --against main                      # than those of any git ref, timed in turn, now
    python bench/compare.py --against HEAD -k world_model       # what the changes not yet committed do to one bench
    python bench/compare.py --against v1 --device cuda bench/bench_step.py --json FILE
    python bench/compare.py --against main --counts-only        # what no noise touches: launches, FLOPs, registers ...

With --against, the ref is checked out into a throw-away worktree, with the benches of this checkout; a process of either side
stands ready, and they run their rounds in turn. Whatever else the machine does, it does to both: only this is honest on a
machine that has other work. On a CPU, what a round's main thread waited for a core is not counted either; beside much other work
take --threads 1. A saved run is from another time: what changed on the machine since then is in the ratio, waiting included.

How to read the answer: `ratio` is new over old, above 1 is slower, with an interval that covers that of these processes 99 times
in 100 (bench/comparing/ratios.py). `slower`: the whole interval lies beyond --limit, and the exit status is 1. `faster`: it lies
below 1 / limit. `same`: it lies between. `unclear`: it is too wide for any of these, after what may be slower was timed again, twice
at most, with --against. The status is 1 too where a bench fails in this checkout, and where a count rose or can no longer be taken;
2 is bad input.
"""

import argparse
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the comparison is this checkout's

import torch  # noqa: E402

from bench.comparing import ratios  # noqa: E402
from bench.comparing.scratch import scratch_directory  # noqa: E402
from bench.comparing.sides import Choice, Side, run_counts  # noqa: E402
from bench.comparing.trees import SHORT, resolve, snapshot, worktree  # noqa: E402
from bench.comparing.turns import TurnsError  # noqa: E402
from bench.comparing.verdicts import Comparison, as_json, in_turn, show, with_saved  # noqa: E402
from bench.devices import commit, device_name, slug  # noqa: E402
from bench.script import Parser, check_writable, status_of, written  # noqa: E402
from stormfast.device import resolve_device  # noqa: E402
from stormfast.errors import UserError  # noqa: E402

LEAST_RATIOS = 8  # rounds x launches, below which no interval covers 99 %


# --- the two ways ------------------------------------------------------------------------------------------------


def compare_with_ref(
    root: Path, ref: str, choice: Choice, limit: float, *, times: bool = True, counts: bool = False
) -> Comparison:
    """A working tree against a commit of its history. Raises: UserError, TurnsError."""
    wanted = resolve(root, ref)
    with scratch_directory() as scratch:
        new = Side("new", snapshot(root, scratch / "new"), commit()[0])
        with worktree(root, wanted, scratch / "old", new.tree) as tree:
            old = Side("old", tree, wanted[:SHORT])
            comparison = (
                in_turn(old, new, choice, limit, scratch) if times else Comparison("counts only", limit, choice)
            )
            comparison.old = f"{ref}, commit {old.commit}"
            if counts:
                take_counts(comparison, run_counts(old, scratch), run_counts(new, scratch))
            return comparison


def compare_with_saved(
    root: Path, choice: Choice, limit: float, *, times: bool = True, counts: bool = False
) -> Comparison:
    """A working tree against the last saved run of the same device, and the counts committed. Raises: UserError, TurnsError."""
    with scratch_directory() as scratch:
        new = Side("new", snapshot(root, scratch / "new"), commit()[0])
        saved = (
            last_saved(root / "bench" / "results" / slug(device_name(resolve_device(choice.device)))) if times else None
        )
        comparison = (
            with_saved(new, saved, choice, limit, scratch) if saved else Comparison("counts only", limit, choice)
        )
        if counts:
            take_counts(comparison, (root / "bench" / "counts.json", []), run_counts(new, scratch))
        return comparison


def last_saved(folder: Path) -> Path:
    """The newest result of `make bench` in a device's folder, by the time inside. Raises: UserError where there is none."""
    found = {path: read_json(path).get("datetime", "") for path in folder.glob("[0-9][0-9][0-9][0-9]-*.json")}
    if not found:
        hint = "`make bench` saves one; or compare with a commit: --against REF"
        raise UserError(f"no saved run of this device in {folder}: {hint}")
    return max(found, key=lambda path: found[path])


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("datetime", ""), str):
        raise UserError(f"{path} is no run saved by `make bench`; move it away")
    return content


def take_counts(comparison: Comparison, old: tuple[Path, list[str]], new: tuple[Path, list[str]]) -> None:
    """Puts the counts that differ, of files and what was said when they were written, into the comparison.

    Compared are the groups that the old side has, counted with the same torch or triton. One that could be counted then and cannot now
    is a failure of the new side.
    """
    from bench import counts  # here, because it brings all that it counts

    (old_about, old_counts), (new_about, new_counts) = counts.read(old[0]), counts.read(new[0])
    had, have = ({counts.group_of(name) for name in side} for side in (old_counts, new_counts))
    groups = counts.comparable(sorted(had & have), old_about, new_about)
    for lost in sorted(had - have):
        comparison.timing.failures.setdefault("new", {})[f"counts of {lost}"] = (
            "could be counted in the old side, and cannot in the new"
        )
    kept = [
        {name: value for name, value in side.items() if counts.group_of(name) in groups}
        for side in (old_counts, new_counts)
    ]
    comparison.counts = counts.differences(*kept)
    comparison.notes += [*old[1], *new[1], *([] if groups else ["no group of counts could be compared"])]


# --- the command -------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="*", default=["bench"], help="bench files or folders; default all of bench/")
    parser.add_argument(
        "--against", metavar="REF", help="a git ref, timed in turn; default the last saved run of this device"
    )
    parser.add_argument("-k", dest="keyword", default="", metavar="EXPR", help="which benches, as pytest has it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default %(default)s")
    parser.add_argument(
        "--threads",
        type=int,
        help="of torch, on a CPU: 1 is best where other work runs; default as the environment has it",
    )
    parser.add_argument(
        "--rounds", type=int, default=ratios.ROUNDS, help="timed rounds of a bench and launch; default %(default)s"
    )
    parser.add_argument(
        "--launches", type=int, default=ratios.LAUNCHES, help="processes of each side, pooled; default %(default)s"
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
    parser.add_argument("--no-counts", action="store_true", help="leave out what bench/counts.py counts")
    parser.add_argument("--counts-only", action="store_true", help="leave out the times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument("--verbose", action="store_true", help="show what the benches print")
    return parser.parse_args(arguments)


def check(given: argparse.Namespace) -> Choice:
    """Raises: UserError for settings that cannot be."""
    given.device = str(resolve_device(given.device))
    for name in ("rounds", "launches", "threads"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if given.rounds * given.launches < LEAST_RATIOS:
        raise UserError(
            f"--rounds x --launches must be at least {LEAST_RATIOS} for an interval, got {given.rounds} x {given.launches}"
        )
    if not 1 <= given.limit < math.inf:
        raise UserError(f"--limit must be a ratio of at least 1, as 1.10, got {given.limit}")
    if not 0 < given.patience < math.inf:
        raise UserError(f"--patience must be above 0 seconds, got {given.patience}")
    if given.no_counts and given.counts_only:
        raise UserError("--no-counts and --counts-only leave nothing to compare; give one of them")
    if given.json:
        check_writable("--json", given.json)
    shared = {name: getattr(given, name) for name in ("keyword", "device", "rounds", "launches", "patience", "verbose")}
    return Choice(paths=tuple(in_checkout(ROOT, path) for path in given.paths), **shared)


def in_checkout(root: Path, path: str) -> str:
    """A bench file or folder, or FILE::BENCH, as every copy of the checkout has it: relative. Raises: UserError where there is none."""
    file, mark, bench = path.partition("::")
    place = Path(os.path.normpath(root / file))
    if not file or not place.exists():
        raise UserError(f"no bench file or folder {file!r} in {root}; they lie in bench/")
    if not place.is_relative_to(root) and not (place := place.resolve()).is_relative_to(root):
        raise UserError(f"benches must lie in this checkout, {root}, got {file!r}")
    return f"{place.relative_to(root)}{mark}{bench}"


def run(given: argparse.Namespace, command: Sequence[str]) -> int:
    choice = check(given)
    if given.threads:
        use_threads(given.threads)
    parts = {"times": not given.counts_only, "counts": not given.no_counts}
    if given.against is not None:
        comparison = compare_with_ref(ROOT, given.against, choice, given.limit, **parts)
    else:
        comparison = compare_with_saved(ROOT, choice, given.limit, **parts)
    if (
        choice.device == "cpu"
        and torch.get_num_threads() > 1
        and (load := os.getloadavg()[0]) > 1.5 * (os.cpu_count() or 1)
    ):
        comparison.notes.append(
            f"load average {load:.1f} on {os.cpu_count()} cores: threads wait for each other; --threads 1 tells more"
        )
    if given.json:
        written(given.json, as_text(about("bench/compare.py", command, given.device) | as_json(comparison)))
    print(show(comparison))
    return 1 if comparison.worse or comparison.empty else 0


def use_threads(count: int) -> None:
    """For torch, in this process, whose device's name has the number, and in those that run the benches."""
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)


def about(script: str, command: Sequence[str], device: str) -> dict[str, Any]:
    """Where a result comes from."""
    head, dirty = commit()
    return {
        "command": shlex.join(["python", script, *command]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": head,
        "dirty": dirty,
        "device": device_name(resolve_device(device)),
    }


def as_text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def exit_status(name: str, run: Callable[[], int]) -> int:
    """What `run` returns, or one line and the status of what it raises."""
    try:
        return status_of(name, run)
    except TurnsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


def main(arguments: Sequence[str] | None = None) -> int:
    command = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status("compare", lambda: run(parse(command), command))


if __name__ == "__main__":
    sys.exit(main())
