"""The tables of results in the documents, made from committed JSON alone.

    python -m bench.tables                # write every table anew, as `make results` does
    python -m bench.tables --check        # exit 1 where a document is not what the results say

A table stands in a Markdown file between `<!-- results: NAME -->` and `<!-- end of results -->`; NAME is one of TABLES
below. A result without its device, commit and command, or of a tree with changes, is refused.
"""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kernel_cases import preset_cases
from bench.record_tables import PHASES, markdown, phase_row
from bench.script import ROOT, Parser, status_of, written
from stormfast.errors import UserError
from stormfast.measure.profile_report import number

DOCUMENTS = ("*.md", "docs/*.md", "bench/*.md", "bench/results/*.md", "kernels/*.md", "profiling/*.md")
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
PROTOCOL_STEPS = 100_000
TIMED = ("act", "world_model", "imagination", "agent")  # phases of a profile that have a column
COUNTED = {"storm": "bfloat16", "fast": "bfloat16", "cpu": "float32"}  # preset -> the precision it is counted in


# --- where a number comes from -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Raises: ValueError where a part is missing, or the tree differed from the commit."""

    device: str
    commit: str
    command: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str) or value in ("", "unknown"):
                raise ValueError(f"it lacks its {name}")
        if self.commit.endswith("-dirty"):
            raise ValueError(f"it was measured with changes that no commit has ({self.commit})")

    def __str__(self) -> str:
        return f"- {self.device}, commit {self.commit}: `{self.command}`"


PLACE = ("device", "commit")
Rows = list[list[str]]


def source(machine: dict[str, Any], command: Any) -> Source:
    """machine: what a result says of the device and the commit."""
    commit = machine["commit"]
    return Source(machine["device"], f"{commit}-dirty" if machine.get("dirty") else commit, command)


@contextlib.contextmanager
def content_of(path: Path) -> Iterator[Any]:
    """The JSON of a result. In it, what the result lacks or has of another type is a UserError with the file's name."""
    try:
        yield json.loads(path.read_text())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"expected a result in {path}, got {type(error).__name__}: {error}; measure again") from None


def results(pattern: str) -> list[Path]:
    return sorted((ROOT / "bench" / "results").glob(f"{pattern}.json"))


def cited(header: Sequence[str], rows: Sequence[Sequence[str]], sources: Sequence[object]) -> str:
    """A table, and below it each of its sources once."""
    lines = dict.fromkeys(map(str, sources))
    details = ["<details><summary>devices, commits, commands</summary>", "", *lines, "", "</details>"]
    return "\n".join([markdown(header, rows), "", *details])


# --- the tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultTable:
    """The rows of every result whose file name matches a pattern.

    Attributes:
        rows_of: the content of a result -> its rows, and the sources of all of them.
        only_last: only the last saved result of each device.
    """

    header: Sequence[str]
    patterns: Sequence[str]
    rows_of: Callable[[Any], tuple[Rows, list[Source]]]
    only_last: bool = False

    def __call__(self) -> str:
        """Raises: UserError for a file that is no such result."""
        paths = [path for pattern in self.patterns for path in results(pattern)]
        if self.only_last:
            paths = list({path.parent: path for path in sorted(paths, key=saved_at)}.values())
        rows: Rows = []
        sources: list[Source] = []
        for path in paths:
            with content_of(path) as content:
                more, origins = self.rows_of(content)
                of = [", ".join(dict.fromkeys(getattr(origin, name) for origin in origins)) for name in PLACE]
                rows += [[*row, *of] for row in more]
                sources += origins
        return cited([*self.header, *PLACE], rows, sources)


def saved_at(path: Path) -> str:
    with content_of(path) as content:
        return content["datetime"]


def study(found: Any) -> tuple[Rows, list[Source]]:
    """Of `stormfast study`: an entry for each seed, which names its own device and commit."""
    entries = found["seeds"]

    def each(cell: Callable[[Any], str]) -> str:
        return ", ".join(dict.fromkeys(map(cell, entries)))

    agent = ", ".join(f"{number(entry['mean_return'])} ± {number(entry['sem'])}" for entry in entries)
    random = f"{number(found['random']['mean'])} ± {number(found['random']['sem'])}"
    seeds, steps = each(lambda entry: str(entry["seed"])), each(lambda entry: f"{entry['steps']:,}")
    minutes = ", ".join(f"{entry['minutes']:.0f}" for entry in entries)
    sources = [
        source(found | {"commit": entry["commit"], "device": entry["device"]}, found["command"]) for entry in entries
    ]
    return [[found["game"], found["preset"], seeds, steps, minutes, agent, random]], sources


def learning(found: Any) -> tuple[Rows, list[Source]]:
    if "seeds" in found:
        return study(found)
    runs = found["runs"]

    def each(cell: Callable[[Any], str]) -> str:
        return ", ".join(map(cell, runs))

    def score(policy: str) -> str:
        return each(lambda run: f"{number(run[policy]['mean'])} ± {number(run[policy]['standard_error'])}")

    seeds, minutes = each(lambda run: str(run["seed"])), each(lambda run: f"{run['seconds'] / 60:.0f}")
    row = [found["game"], found["preset"], seeds, f"{runs[0]['steps']:,}", minutes, score("agent"), score("random")]
    return [row], [source(found, command) for run in runs for command in run["commands"] or [None]]


def profiles(found: Any) -> tuple[Rows, list[Source]]:
    """Of `stormfast profile`, or all that the GPU suite took."""
    if "jobs" not in found:
        device = found["device_name"]
        if "cores" not in device:
            device += f", {found['threads']} threads"
        return [profile(found)], [source(found | {"device": device}, found.get("command"))]
    jobs = [job for job in found["jobs"] if job["job"].startswith("profile-") and job["status"] == "passed"]
    return [profile(job["result"]) for job in jobs], [source(found["machine"], job["command"]) for job in jobs]


def profile(found: Any) -> list[str]:
    spread = f"{number(found['step_ms_p20'])} to {number(found['step_ms_p80'])}"
    total = f"{found['step_ms'] * PROTOCOL_STEPS / 3.6e6:.2g} h"
    step = [found["preset"], number(found["step_ms"]), spread, f"{found['fraction_of_floor']:.0%}", total]
    return step + [number(found["phases"][name]["ms"]) for name in TIMED]


def benches(found: Any) -> tuple[Rows, list[Source]]:
    records = [benchmark["extra_info"] for benchmark in found["benchmarks"]]
    machine = found["machine_info"]
    return [phase_row(record) for record in records if "preset" in record], [source(machine, machine.get("command"))]


def peers(found: Any) -> tuple[Rows, list[Source]]:
    rows = []
    for row in found["rows"]:
        over = row.get("over_ours")
        ratio = f"{over['value']:.2f} ({over['low']:.2f} to {over['high']:.2f})" if over else "1"
        names = ("kernel", "shape", "dtype") if "kernel" in row else ("part", "preset", "precision")
        counted = [number(row["flops"] / 1e9), f"{row['launches']:,}"] if "flops" in row else ["-", "-"]
        work, by = " ".join(row[name] for name in names), row.get("writer") or row["library"]
        rows.append([work, by, number(row["seconds"] * 1e3), ratio, *counted])
    return rows, [source(found["machine"], found["command"])]


def collection(found: Any) -> tuple[Rows, list[Source]]:
    auto = {(verdict["game"], verdict["num_envs"]): verdict["auto"] for verdict in found["verdicts"]}
    rows = []
    for row in found["rows"]:
        measured = [row["failure"] or row["why"], "-", "-"]
        if not row["failure"] and row["honest"]:
            env, over = row["vector_env"], row["over_auto"]
            is_auto = auto[row["game"], row["num_envs"]] == row["backend"]
            ratio = "auto" if is_auto else f"{over['median']:.2f} ({over['least']:.2f} to {over['most']:.2f})"
            measured = [ratio, f"{env['median']:,.0f}", f"{1e6 * env['cpu_seconds'] / env['steps']:.0f}"]
        rows.append([row["game"], str(row["num_envs"]), row["backend"], *measured])
    return rows, [source(found["machine"], found["command"])]


COUNTS_SOURCE = "- counted, the same on every machine: `python -m bench.counts`"


def launches() -> str:
    """What a step asks of the device, counted."""
    header, rows = ["phase"], {}
    with content_of(ROOT / "bench" / "counts.json") as content:
        for preset, precision in COUNTED.items():
            header += [f"{name}, {preset} {precision}" for name in ("launches", "host reads", "GFLOP")]
            for phase, found in content["counts"][preset].items():
                gflop = number(found["flops"] / 1e9) if found.get("flops") else "-"
                rows.setdefault(phase, [phase]).extend([f"{found['launches']:,}", str(found["host_reads"]), gflop])
    return cited(header, list(rows.values()), [COUNTS_SOURCE])


def kernels() -> str:
    """The kernel cases of storm in bfloat16: their work, and registers and instructions as compiled."""
    cases = [case for case in preset_cases("storm") if case.dtype == "bf16"]
    with content_of(ROOT / "bench" / "counts.json") as content:
        compiled = [content["counts"]["kernels"][case.name] for case in cases]
        rows = []
        for case, targets in zip(cases, compiled, strict=True):
            work = f"{case.bytes_moved / 1e6:.3g}", f"{case.case.flops(case.shape) / 1e6:.3g}"
            made = (f"{found['registers']}, {found['instructions']}" for found in targets.values())
            rows.append([case.case.name, case.case.caller, case.kernel, str(list(case.shape)), *work, *made])
        header = ["case", "launched for", "kernel", "shape", "MB", "MFLOP", *compiled[0]]
    return cited(header, rows, [COUNTS_SOURCE])


TABLES: dict[str, Callable[[], str]] = {
    "learning": ResultTable(
        ["game", "preset", "seeds", "steps", "minutes a seed", "agent", "random policy"],
        ["*/learning-*", "*/learning/*", "learning/*"],
        learning,
    ),
    "steps": ResultTable(
        ["preset", "ms a step", "p20 to p80", "of the floor", "100k steps", *TIMED],
        ["*/profile-*", "*/suite-*"],
        profiles,
    ),
    "benches": ResultTable(PHASES, ["*/[0-9][0-9][0-9][0-9]-*"], benches, only_last=True),
    "peers": ResultTable(["work", "by", "ms", "over ours (99 % interval)", "GFLOP", "launches"], ["*/peers-*"], peers),
    "collection": ResultTable(
        ["game", "environments", "backend", "over auto (least to most)", "steps/s", "CPU us a step"],
        ["*/collection-*"],
        collection,
    ),
    "launches": launches,
    "kernels": kernels,
}


# --- the documents -----------------------------------------------------------------------------------------------


def render(text: str) -> str:
    """The text with every table made anew. Raises: UserError for a name that no table has."""

    def made(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise UserError(f"a document must ask for the results of {', '.join(TABLES)}, got '{match[2]}'")
        return f"{match[1]}{TABLES[match[2]]()}\n{match[4]}"

    return BLOCK.sub(made, text)


def stale_documents() -> dict[Path, str]:
    """The documents that do not say what the results say, and what they should say. Raises: UserError."""
    texts = {path: path.read_text() for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))}
    return {path: new for path, text in texts.items() if (new := render(text)) != text}


def work() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table is not up to date")
    options = parser.parse_args()
    stale = stale_documents()
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if options.check and stale:
        print(f"{names} must say what the results say; run `make results`", file=sys.stderr)
        return 1
    for path, text in stale.items():
        written(path, text.encode())
    print(f"written: {names}" if stale else "every table is up to date")
    return 0


def main() -> int:
    return status_of("tables", work)


if __name__ == "__main__":
    sys.exit(main())
