"""Did anything get slower: do the benches of this checkout take longer than those of a commit?

    python -m bench.compare -k world_model     # what the changes not yet committed do to one bench
    python -m bench.compare --against main     # than those of any git ref

The ref and the working tree are checked out, and each runs its own benches on its own product: launches of pytest in
turn, A B, B A, A B ..., one at any time. Benches that measure the same are compared by their fastest rounds, so what
slows only some rounds is not seen. On a CPU, time that a bench of one thread waited for a core is left out: set
OMP_NUM_THREADS=1 beside other work.

`ratio` is new over old, above 1 is slower, with a 95 % interval (bench/ratios.py). `slower`: the ratio is above --limit
and the interval above 1; the exit status is 1. `faster`: the same the other way. `same`: the interval lies within the
limit. `unclear`: none of these. What differs or may be slower is launched again first, twice at most.
The status is 1 too where a bench fails in this checkout or none could be compared; 2 is bad input.
"""

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.checkouts import add_checkout, commit_of_ref, commit_of_working_tree, temporary_directory
from bench.devices import device_name
from bench.launches import Bench, Launch, Selection, launch
from bench.ratios import CONFIDENCE, LIMIT, MAX_REPEATS, MIN_PAIRS, Ratio, Verdict, paired_ratio
from bench.record_tables import markdown
from bench.script import ROOT, Parser, check_writable, provenance, status_of, written
from stormfast.device import resolve_device
from stormfast.errors import UserError
from stormfast.runs.progress import log_line

SIDES = ("old", "new")
ROUNDS = 60  # of a bench and launch: enough for one that nothing else disturbs


@dataclass
class Comparison:
    """An old and a new side, launched in pairs.

    Attributes:
        old_name: of the old side, for people.
        limit: ratio that counts as slower.
        pairs: an old and a new launch each; the later ones may be of some benches only.
    """

    old_name: str
    limit: float
    pairs: list[tuple[Launch, Launch]] = field(default_factory=list)

    def seconds(self) -> dict[Bench, list[tuple[float, float]]]:
        """Old and new seconds a call, of each pair, of the benches that both sides have."""
        found: dict[Bench, list[tuple[float, float]]] = {}
        for old, new in self.pairs:
            for bench in new.seconds.keys() & old.seconds.keys():
                found.setdefault(bench, []).append((old.seconds[bench], new.seconds[bench]))
        order = self.pairs[0][1].names
        return {bench: found[bench] for bench in order if len(found.get(bench, [])) >= MIN_PAIRS}

    def ratios(self) -> dict[Bench, Ratio]:
        return {bench: paired_ratio(pairs) for bench, pairs in self.seconds().items()}

    def having(self, verdict: Verdict) -> list[str]:
        """Names of benches."""
        names = self.pairs[0][1].names
        return [names[bench] for bench, ratio in self.ratios().items() if ratio.verdict(self.limit) == verdict]

    def only(self, side: int) -> list[str]:
        """Names of the benches that one side has and the other has not."""
        here, there = self.pairs[0][side].names, self.pairs[0][1 - side].names
        return [name for bench, name in here.items() if bench not in there]

    def failures(self, side: int) -> dict[str, str]:
        """FILE or FILE::BENCH -> the error."""
        return {name: error for pair in self.pairs for name, error in pair[side].failures.items()}

    def exit_status(self) -> int:
        return 1 if self.having("slower") or self.failures(1) or not self.seconds() else 0


# --- launches ----------------------------------------------------------------------------------------------------


def launch_in_turn(old: Callable[[], Launch], new: Callable[[], Launch]) -> list[tuple[Launch, Launch]]:
    """MIN_PAIRS pairs: old new, new old, old new ..., so that a drift of the machine cancels."""
    pairs = []
    for i in range(MIN_PAIRS):
        log_line(f"launches {i + 1} of {MIN_PAIRS} ...")
        first, second = (old, new) if i % 2 == 0 else (new, old)
        launches = first(), second()
        pairs.append(launches if i % 2 == 0 else launches[::-1])
    return pairs


def compare_checkouts(comparison: Comparison, trees: Sequence[Path], selection: Selection, temporary: Path) -> None:
    """Launches the old and the new tree in turn, and again what may be slower. Raises: UserError."""
    selections = [selection, selection]
    for repeat in range(1 + MAX_REPEATS):
        old, new = (
            lambda tree=tree, selected=selected: launch(tree, selected, temporary)
            for tree, selected in zip(trees, selections, strict=True)
        )
        comparison.pairs += launch_in_turn(old, new)
        ratios = comparison.ratios().items()
        if not (again := [bench for bench, ratio in ratios if ratio.needs_more(comparison.limit, repeat)]):
            break
        log_line(f"{len(again)} benches differ or may be slower and are launched again")
        names = [tuple(side.names[bench] for bench in again) for side in comparison.pairs[0]]
        selections = [replace(selection, paths=paths) for paths in names]


def compare_with_ref(root: Path, ref: str, selection: Selection, limit: float) -> Comparison:
    """The working tree against a commit. Raises: UserError."""
    wanted = commit_of_ref(root, ref)
    comparison = Comparison(f"{ref}, commit {wanted[:12]}", limit)
    with temporary_directory(root) as temporary:
        commits = (wanted, commit_of_working_tree(root, temporary))
        trees = [add_checkout(root, commit, temporary / side) for side, commit in zip(SIDES, commits, strict=True)]
        compare_checkouts(comparison, trees, selection, temporary)
    return comparison


# --- the command -------------------------------------------------------------------------------------------------


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it, as JSON types."""
    limit, seconds, names = comparison.limit, comparison.seconds(), comparison.pairs[0][1].names
    benches = [
        {"bench": names[bench], "seconds": seconds[bench], **asdict(ratio), "verdict": ratio.verdict(limit)}
        for bench, ratio in comparison.ratios().items()
    ]
    rest = {side: {"only": comparison.only(i), "failures": comparison.failures(i)} for i, side in enumerate(SIDES)}
    return {"against": comparison.old_name, "limit": limit, "confidence": CONFIDENCE, "benches": benches, **rest}


def show(comparison: Comparison) -> str:
    """The table, and what is not in it."""
    header = ["bench", "launches", "old ms", "new ms", "ratio", f"{CONFIDENCE:.0%} interval", "verdict"]
    rows, result = [], as_json(comparison)
    for each in result["benches"]:
        old, new = (f"{1e3 * statistics.median(side):.4g}" for side in zip(*each["seconds"], strict=True))
        ratio, interval = f"{each['value']:.3f}", f"{each['low']:.3f} - {each['high']:.3f}"
        rows.append([each["bench"], str(len(each["seconds"])), old, new, ratio, interval, each["verdict"]])
    counts = [f"{count} {verdict}" for verdict, count in Counter(row[-1] for row in rows).items()]
    lines = [f"this checkout against {comparison.old_name}, limit {comparison.limit:g}", "", markdown(header, rows), ""]
    lines.append(", ".join(counts) or "nothing could be compared")
    for side in SIDES:
        lines += [f"only in {side}: {name}" for name in result[side]["only"]]
        lines += [f"failed in {side}: {name}: {error}" for name, error in result[side]["failures"].items()]
    return "\n".join(lines)


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """What bench/check_detection.py takes too."""
    parser = Parser(docstring)
    parser.add_argument("paths", nargs="*", default=["bench"], help="bench files or folders; default all of bench/")
    parser.add_argument("-k", dest="keyword", metavar="EXPR", help="which benches, as pytest has it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default %(default)s")
    parser.add_argument("--preset", help="sizes of the phases; default as of the benches")
    parser.add_argument("--limit", type=float, default=LIMIT, help="ratio that counts as slower; default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    return parser


def selection_of(given: argparse.Namespace) -> Selection:
    """Many rounds, on a CPU without the time that a bench waits for a core. Raises: UserError for wrong arguments."""
    if not 1 <= given.limit < math.inf:
        raise UserError(f"--limit must be a ratio of at least 1, as 1.10, got {given.limit}")
    if given.json:
        check_writable("--json", given.json)
    for path in map(Path, given.paths):
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"expected bench files or folders from the root, as bench/bench_env.py, got {path}")
    device = resolve_device(given.device)
    words = {"-k": given.keyword, "--device": str(device), "--preset": given.preset, "--rounds": str(ROUNDS)}
    options = [word for option, value in words.items() if value for word in (option, value)]
    options += ["--benchmark-timer=queue_clock.seconds"] if device.type == "cpu" else []
    return Selection(tuple(given.paths), tuple(options))


def save(path: Path | None, script: str, words: Sequence[str], device: str, result: dict[str, Any]) -> None:
    """Writes a result with its device, commit and command. Raises: UserError."""
    if path:
        about = {**provenance(f"python -m {script}", words), "device": device}
        written(path, json.dumps(about | result, indent=1, allow_nan=False).encode() + b"\n")


def run(words: Sequence[str]) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--against", default="HEAD", metavar="REF", help="a git ref; default HEAD, the last commit")
    given = parser.parse_args(words)
    selection, device = selection_of(given), device_name(resolve_device(given.device))
    comparison = compare_with_ref(ROOT, given.against, selection, given.limit)
    save(given.json, "bench.compare", words, device, as_json(comparison))
    print(show(comparison))
    return comparison.exit_status()


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    return status_of("compare", lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
