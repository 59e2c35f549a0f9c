"""How much does the program ask for? Counts that no noise touches: launches, FLOPs, compiled graphs, instructions.

    python -m bench.counts                              # the tables, a minute and a half; no GPU needed
    python -m bench.counts --groups phases,compiled     # without the kernels, whose disassembly takes a minute
    python -m bench.counts --check                      # exit 1 where a count differs from bench/counts.json
    python -m bench.counts --write                      # make counts: after a change that is meant

What is counted, in three groups:
    phases      launches, host reads, FLOPs and bytes of large operators of each phase of a step, for each preset
                (stormfast/measure/op_counts.py says what counts, bench/count_runs.py at which sizes)
    compiled    graphs, graph breaks and recompilations of each part that torch.compile is given
    kernels     SASS instructions, registers, shared memory, stack and spills of each Triton kernel at the shapes of the
                presets, on sm_80, 86, 89, 90 and 120 (profiling/kernel_report.py)

bench/counts.json must equal what is counted: a rise is a regression, and a fall that is not written down could be lost
again unseen. Counts of phases and graphs hold for the version of torch that the file names, those of kernels for its
version of triton; with another version they cannot be compared: choose the --groups that can be. Exit status: 0 done,
1 a count differs (--check), 2 bad input, or counts that cannot be had or compared here.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here; triton reads it when it is imported

import torch

from bench.devices import describe
from bench.record_tables import aligned
from bench.script import Parser, provenance, status_of, written
from stormfast.errors import UserError
from stormfast.presets import PRESETS

SAVED = Path(__file__).with_name("counts.json")
GROUPS = {"phases": "torch", "compiled": "torch", "kernels": "triton"}  # group -> library whose version its counts need
UPDATE = "make counts"


def count_group(group: str) -> dict[str, int]:
    """Counts of a group by flat names, as storm.act.launches. Raises: UserError where they cannot be had here."""
    if group == "kernels":
        from bench import count_kernels  # triton and its disassembler

        return count_kernels.collect()
    from bench import count_runs

    count = count_runs.phases_of if group == "phases" else count_runs.compiled_of
    return {name: value for preset in PRESETS for name, value in count(preset).items()}


def collect(groups: Iterable[str]) -> dict[str, int]:
    """Counts of the groups. Raises: UserError where one cannot be had here."""
    return {name: value for group in groups for name, value in count_group(group).items()}


def group_of(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in GROUPS else "phases"


# --- comparing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A count that changed. None: it did not exist before, or does no more."""

    name: str
    old: int | None
    new: int | None

    @property
    def worse(self) -> bool:
        """It rose. A count that is new or gone is neither worse nor better."""
        return self.old is not None and self.new is not None and self.new > self.old

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.name} is new: {self.new}"
        if self.new is None:
            return f"{self.name} is gone: it was {self.old}"
        return f"{self.name} {'rose' if self.worse else 'fell'} from {self.old} to {self.new}"


def differences(old: dict[str, int], new: dict[str, int]) -> list[Difference]:
    """Every count that differs, by flat names; those that rose first."""
    found = [Difference(name, old.get(name), new.get(name)) for name in old | new if old.get(name) != new.get(name)]
    return sorted(found, key=lambda difference: not difference.worse)


def version(text: str | None) -> str:
    """Without the build: 2.13.0 of 2.13.0+cpu."""
    return "none" if text is None else text.partition("+")[0]


def check(groups: Sequence[str]) -> int:
    """Compares with the file and prints what differs. Returns: exit status 0 or 1. Raises: UserError."""
    about, saved = read(SAVED)
    here = describe(torch.device("cpu"))
    for group in groups:
        library = GROUPS[group]
        was, is_now = version(about.get(library)), version(here.get(library))
        if was != is_now:
            raise UserError(
                f"{group} cannot be compared: {SAVED.name} is of {library} {was}, here is {is_now}; install that "
                f"version, check other --groups, or run `{UPDATE}`"
            )
    counted = collect(groups)
    found = differences({name: value for name, value in saved.items() if group_of(name) in groups}, counted)
    for difference in found:
        print(difference, file=sys.stderr)
    if found:
        print(f"{len(found)} counts differ; if all changes are meant, run `{UPDATE}`", file=sys.stderr)
    else:
        print(f"{len(counted)} counts equal those of {SAVED.name}")
    return 1 if found else 0


# --- the file ----------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The machine and versions that the file's counts are of, and the counts by flat names. Raises: UserError."""
    try:
        content = json.loads(path.read_text())
        about, counts = dict(content["about"]), flatten(content["counts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} must hold counts as --write writes them, but {type(error).__name__}: {reason}; run `{UPDATE}`"
        ) from None
    for name, value in counts.items():
        if type(value) is not int:
            raise UserError(f"{path} must hold whole numbers, but {name} is {json.dumps(value)}; run `{UPDATE}`")
    return about, counts


def save(path: Path, counts: dict[str, int]) -> None:
    """Writes the file whole, with the machine, versions, commit and command. Raises: UserError."""
    about = describe(torch.device("cpu")) | provenance("python -m bench.counts", None)
    text = f'{{\n  "about": {json.dumps(about)},\n  "counts": {lines(nest(counts), "  ")}\n}}\n'
    written(path, text.encode())


def nest(counts: dict[str, int]) -> dict[str, Any]:
    """{"a": {"b": 1}} of {"a.b": 1}."""
    tree: dict[str, Any] = {}
    for name, value in counts.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of nest."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def lines(tree: dict[str, Any], indent: str) -> str:
    """JSON with the innermost dictionaries on a line each, so that a change reads well."""
    if not any(isinstance(value, dict) for value in tree.values()):
        return json.dumps(tree)
    inner = ",\n".join(f"{indent}  {json.dumps(name)}: {lines(value, indent + '  ')}" for name, value in tree.items())
    return f"{{\n{inner}\n{indent}}}"


def table(counts: dict[str, int], group: str) -> str:
    """A row for each thing counted, a column for each quantity."""
    rows: dict[str, dict[str, int]] = {}
    for name, value in counts.items():
        if group_of(name) == group:
            thing, _, quantity = name.removeprefix(f"{group}.").rpartition(".")
            rows.setdefault(thing.replace(".", " "), {})[quantity] = value
    quantities = list(dict.fromkeys(quantity for row in rows.values() for quantity in row))
    cells = ([thing, *(f"{row[q]:,}" if q in row else "-" for q in quantities)] for thing, row in rows.items())
    return aligned([group, *quantities], cells)


# --- command line ------------------------------------------------------------------------------------------------


def some_groups(text: str) -> list[str]:
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(chosen) <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(GROUPS)}, got '{text}'")
    return chosen


def run(arguments: Sequence[str] | None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--groups", type=some_groups, help=f"some of {','.join(GROUPS)}; default all")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help=f"exit 1 where a count differs from bench/{SAVED.name}")
    mode.add_argument("--write", action="store_true", help=f"write all that was counted to bench/{SAVED.name}")
    options = parser.parse_args(arguments)
    if options.write and options.groups:
        parser.error("--write counts all groups: leave out --groups")
    groups = options.groups or list(GROUPS)
    if options.check:
        return check(groups)
    counts = collect(groups)
    if options.write:
        save(SAVED, counts)
    print("\n\n".join(table(counts, group) for group in groups))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("counts", lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
