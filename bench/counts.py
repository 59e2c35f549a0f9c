"""How much does the program ask for? OpCounts that no noise touches: launches, FLOPs, compiled graphs, instructions.

    python bench/counts.py                              # the tables, a minute and a half; no GPU needed
    python bench/counts.py --groups phases,compiled     # without the kernels, whose disassembly takes a minute
    python bench/counts.py --check                      # exit 1 and a line for each count that is not that of bench/counts.json
    python bench/counts.py --write                      # after a change that is meant: in the commit that says why
    python bench/counts.py --json FILE                  # what was counted, to compare two commits

What is counted, in three groups:
    phases      launches, host reads, FLOPs and bytes of large operators of each phase of a step, for each preset
                (stormfast/measure/op_counts.py says what counts, counted/phases.py at which sizes)
    compiled    graphs, graph breaks and recompilations of each part that torch.compile is given
    kernels     SASS instructions, registers, shared memory, stack and spills of each Triton kernel at the shapes of the
                presets, on sm_80, 86, 89, 90 and 120 (profiling/kernel_report.py)

bench/counts.json holds them exactly, and the file must equal what is counted: a rise is a regression, and a fall that nobody
wrote down could be lost unseen. OpCounts of phases and graphs hold for the version of torch that the file names, those of kernels for
its version of triton; with another they are left out, with a line, and --check fails: name the groups that can be checked. Exit
codes: 0 done, 1 a count differs or was not checked (--check), 2 bad input.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the counts are of this checkout, whatever is installed
if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here; triton reads it when it is imported

import torch  # noqa: E402

from bench.devices import describe  # noqa: E402
from bench.script import Parser, check_writable, status_of, written  # noqa: E402
from stormfast.errors import UserError  # noqa: E402

SAVED = Path(__file__).with_name("counts.json")
GROUPS = {"phases": "torch", "compiled": "torch", "kernels": "triton"}  # group -> whose version its counts depend on
MODULES = {"phases": "bench.counted.phases", "compiled": "bench.counted.graphs", "kernels": "bench.counted.kernels"}
RENEW = "python bench/counts.py --write"


# --- counting ----------------------------------------------------------------------------------------------------


def count_group(group: str) -> dict[str, int]:
    """OpCounts of one group, by flat names. Raises: UserError where they cannot be had here; ImportError in a checkout that lacks the group."""
    return import_module(MODULES[group]).collect()


def collect(groups: Iterable[str] = tuple(GROUPS)) -> dict[str, int]:
    """OpCounts of the groups, by flat names: storm.world_model.launches. A group that this checkout or machine lacks is a line on stderr."""
    counts: dict[str, int] = {}
    for group in groups:
        try:
            counts |= count_group(group)
        except (ImportError, AttributeError, TypeError, UserError) as error:  # an older commit, under a newer bench/
            say(f"{group} are left out: {type(error).__name__}: {one_line(error)}")
    return counts


def group_of(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in GROUPS else "phases"


# --- comparing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A count that is not what it was. None: it was not there, or is no more."""

    name: str
    old: int | None
    new: int | None
    worse: bool  # more than it was; one that came or went is neither worse nor better

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.name} is new: {self.new}"
        if self.new is None:
            return f"{self.name} is gone: it was {self.old}"
        return f"{self.name} {'rose' if self.worse else 'fell'} from {self.old} to {self.new}"


def differences(old: dict[str, int], new: dict[str, int]) -> list[Difference]:
    """Every count that differs, by flat names; those that are worse first."""
    names = [name for name in old | new if old.get(name) != new.get(name)]
    found = [
        Difference(name, old.get(name), new.get(name), name in old and name in new and new[name] > old[name])
        for name in names
    ]
    return sorted(found, key=lambda difference: not difference.worse)


def comparable(groups: Iterable[str], saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The groups whose compiler or library is of the version that the file names; a line on stderr for each other.

    Args: saved, here: what describe() says of the file's machine and of this one.
    """
    same = []
    for group in groups:
        library = GROUPS[group]
        if version(saved.get(library)) == version(here.get(library)):
            same.append(group)
        else:
            say(
                f"{group} are left out: counted with {library} {version(saved.get(library))}, and here is {version(here.get(library))}"
            )
    return same


def version(text: str | None) -> str:
    """Without the build: 2.13.0 of 2.13.0+cpu."""
    return "none" if text is None else text.partition("+")[0]


def check(path: Path, groups: Sequence[str]) -> int:
    """Compares with the file and says what differs. Returns: exit code 0 or 1. Raises: UserError."""
    about, saved = read(path)
    checked = comparable(groups, about, describe(torch.device("cpu")))
    counted: dict[str, int] = {}
    for group in checked:
        counted |= count_group(group)
    found = differences({name: value for name, value in saved.items() if group_of(name) in checked}, counted)
    for difference in found:
        say(str(difference))
    worse = sum(difference.worse for difference in found)
    if found:
        say(
            f"{worse} of {len(counted)} counts rose, {len(found) - worse} differ otherwise; if all are meant, write them down with `{RENEW}`"
        )
    elif checked:
        print(f"{len(counted)} counts are those of {path.name}")
    if len(checked) < len(groups):
        unchecked = ",".join(group for group in groups if group not in checked)
        say(f"{unchecked} could not be checked; install the versions of {path.name}, or write it with these: `{RENEW}`")
    return 1 if found or len(checked) < len(groups) else 0


# --- the file ----------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What the file says about where it was counted, and the counts by flat names. Raises: UserError."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} must hold counts, but {one_line(error)}; write it with --write") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("about"), dict)
        or not isinstance(content.get("counts"), dict)
    ):
        raise UserError(f"{path} must hold 'about' and 'counts', but it lacks one; write it with --write")
    for library in GROUPS.values():
        if not isinstance(content["about"].get(library), str | None):
            raise UserError(
                f"{path} must name the version of {library}, but it is {content['about'][library]!r}; write it with --write"
            )
    counts = flatten(content["counts"])
    for name, value in counts.items():
        if type(value) is not int:
            raise UserError(f"{path} must hold whole numbers, but {name} is {json.dumps(value)}; write it with --write")
    return content["about"], counts


def save(path: Path, counts: dict[str, int]) -> None:
    """Writes the file whole, with where the counts come from. Raises: UserError."""
    about = describe(torch.device("cpu")) | {"date": date.today().isoformat(), "command": command()}
    text = f'{{\n  "about": {json.dumps(about)},\n  "counts": {lines(nest(counts), "  ")}\n}}\n'
    written(path, text.encode())


def command() -> str:
    return shlex.join(["python", "bench/counts.py", *sys.argv[1:]])


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


# --- printing ----------------------------------------------------------------------------------------------------


def tables(counts: dict[str, int]) -> str:
    """A table a group: one row for each thing counted, one column a quantity."""
    text = []
    for group in GROUPS:
        tree = nest({name: value for name, value in counts.items() if group_of(name) == group})
        rows = list(leaves(tree.get(group, tree)))
        if rows:
            columns = list(rows[0][1])
            cells = (
                [name, *(f"{row[column]:,}" if column in row else "-" for column in columns)] for name, row in rows
            )
            text.append(aligned([[group, *columns], *cells]))
    return "\n\n".join(text)


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[str, dict[str, int]]]:
    """The innermost dictionaries, with their path."""
    if any(isinstance(value, dict) for value in tree.values()):
        for name, value in tree.items():
            yield from leaves(value, (*path, name))
    elif tree:
        yield " ".join(path), tree


def aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    justified = (
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join(map("  ".join, justified))


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- command line ------------------------------------------------------------------------------------------------


def some_groups(text: str) -> list[str]:
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(chosen) <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"must be some of {','.join(GROUPS)}, got '{text}'")
    return chosen


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--groups", type=some_groups, help=f"some of {','.join(GROUPS)}; default all")
    parser.add_argument(
        "--file", type=Path, default=SAVED, help="what --check reads and --write writes; default bench/counts.json"
    )
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--json", type=Path, metavar="FILE", help="write what was counted to a file as well")
    does.add_argument("--check", action="store_true", help="exit 1 where a count is not the file's")
    does.add_argument("--write", action="store_true", help="write all that was counted to the file")
    options = parser.parse_args(arguments)
    if options.write and options.groups:
        parser.error("--write counts all groups: leave out --groups")
    return options


def run(options: argparse.Namespace) -> int:
    groups = options.groups or list(GROUPS)
    if options.check:
        return check(options.file, groups)
    target = options.file if options.write else options.json
    if target:
        check_writable("--file" if options.write else "--json", target)
    counts = (
        {name: value for group in groups for name, value in count_group(group).items()}
        if options.write
        else collect(groups)
    )
    if target:
        save(target, counts)
    print(tables(counts))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    return status_of("counts", lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
