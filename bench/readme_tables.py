"""Writes the tables of results into the READMEs, from committed JSON alone: no number stands there without device, commit and command.

    make results                                # or: python bench/readme_tables.py
    python bench/readme_tables.py --check       # exit 1 where a README is not what the results say

A table lies between `<!-- results: NAME -->` and `<!-- end of results -->`; NAME is one of BLOCKS below.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # as a script, of this checkout

from bench.grid import grid  # noqa: E402
from bench.table import PHASES, phase_cells  # noqa: E402
from stormfast.errors import UserError  # noqa: E402
from stormfast.measure.profile_report import number  # noqa: E402
from stormfast.runs.directory import write_whole  # noqa: E402

READMES = ("README.md", "bench/README.md")
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
PROTOCOL_STEPS = 100_000
TIMED = ("act", "world_model", "imagination", "agent")  # phases of a profile that have a column
PRECISION = {
    name: f"{name} {precision}" for name, precision in (("storm", "bfloat16"), ("fast", "bfloat16"), ("cpu", "float32"))
}  # as counted
HELD = "- counted, alike on every machine, and held at every commit by tests/bench/test_counts.py: `python bench/counts.py`"


@dataclass(frozen=True)
class Source:
    """Where a number comes from, told below its table."""

    device: str
    commit: str
    command: str

    def __str__(self) -> str:
        ticks = "``" if "`" in self.command else "`"
        return f"- {self.device}, commit {self.commit}: {ticks}{self.command}{ticks}"


def source(path: Path, device: Any, commit: Any, command: Any) -> Source:
    """Raises: UserError where one of them is missing, or the tree was not what the commit says."""
    told = {"device": device, "commit": commit, "command": command}
    missing = [name for name, value in told.items() if not isinstance(value, str) or value in ("", "unknown")]
    if missing:
        raise UserError(
            f"{path.relative_to(ROOT)} must say its device, commit and command, but lacks its {' and '.join(missing)}; measure again"
        )
    if commit.endswith("-dirty"):
        raise UserError(
            f"{path.relative_to(ROOT)} was measured with changes that no commit has ({commit}); commit them and measure again"
        )
    return Source(device, commit, command)


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} must hold a result, but {error}") from None


def results(pattern: str) -> list[Path]:
    return sorted((ROOT / "bench" / "results").glob(f"*/{pattern}.json"))


@contextlib.contextmanager
def told_by(path: Path) -> Iterator[None]:
    """Meanwhile what a result lacks, or has of another kind, is a UserError with its name."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} must hold a result of the benches, but {type(error).__name__}: {error}; measure again"
        ) from None


def cited(header: list[str], rows: list[list[str]], sources: Iterable[Source | str]) -> str:
    """A table, and below it each of its sources once."""
    told = dict.fromkeys(map(str, sources))
    return "\n".join(
        [grid(header, rows), "", "<details><summary>devices, commits, commands</summary>", "", *told, "", "</details>"]
    )


# --- tables ------------------------------------------------------------------------------------------------------

Rows = tuple[list[list[str]], list[Source]]  # of one file


def collected(header: list[str], files: Iterable[Path], rows_of: Callable[[Path, Any], Rows]) -> str:
    """The table of what rows_of(path, content) gives for each file. Raises: UserError for a file that is no such result."""
    rows: list[list[str]] = []
    sources: list[Source] = []
    for path in files:
        content = read(path)
        with told_by(path):
            more, origin = rows_of(path, content)
        rows += more
        sources += origin
    return cited(header, rows, sources)


def learning() -> str:
    """Scores of whole runs: bench/learning.py's, and the suite's."""
    header = ["game", "preset", "seeds", "steps", "minutes a seed", "agent", "random policy", "device", "commit"]
    return collected(header, results("learning-*") + results("suite-*"), trained_or_learned)


def trained_or_learned(path: Path, found: Any) -> Rows:
    return trained(path, found) if "training" in found else learned(path, found)


def learned(path: Path, found: Any) -> Rows:
    runs = found["runs"]
    origin = [
        source(path, found["device"], found["commit"], command) for run in runs for command in run["commands"] or [None]
    ]
    scores = [
        ", ".join(f"{number(run[who]['mean'])} ± {number(run[who]['standard_error'])}" for run in runs)
        for who in ("agent", "random")
    ]
    minutes = ", ".join(f"{run['seconds'] / 60:.0f}" for run in runs)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return [
        [
            found["game"],
            found["preset"],
            seeds,
            f"{runs[0]['steps']:,}",
            minutes,
            *scores,
            origin[0].device,
            origin[0].commit,
        ]
    ], origin


def trained(path: Path, suite: Any) -> Rows:
    rows, sources = [], []
    for run in suite["training"]:
        if score := run.get("evaluation"):
            origin = [
                source(path, suite["machine"]["device"], call["commit"], call["command"]) for call in run["calls"]
            ]
            low, high = score["mean_interval_95"]
            about = [
                run["game"],
                run["preset"],
                str(run["seed"]),
                f"{run['step']:,}",
                f"{run['training_seconds'] / 60:.0f}",
            ]
            rows.append(
                [
                    *about,
                    f"{number(score['mean'])} ({number(low)} to {number(high)})",
                    "-",
                    origin[-1].device,
                    origin[-1].commit,
                ]
            )
            sources += origin
    return rows, sources


def steps() -> str:
    """Milliseconds of a step: `stormfast profile`, alone or in the suite."""
    header = ["preset", "ms a step", "p20 to p80", "of the floor", "100k steps", *TIMED, "device", "commit"]
    return collected(header, results("profile-*") + results("suite-*"), of_suite_or_profile)


def of_suite_or_profile(path: Path, found: Any) -> Rows:
    return of_suite(path, found) if "stages" in found else of_profile(path, found)


def of_profile(path: Path, found: Any) -> Rows:
    origin = source(path, f"{found['device_name']}, {found['threads']} threads", commit_of(found), found.get("command"))
    return [profiled(found, origin)], [origin]


def of_suite(path: Path, suite: Any) -> Rows:
    stages = [row for row in suite["stages"] if row["stage"].startswith("profile-") and row["status"] == "passed"]
    sources = [source(path, suite["machine"]["device"], commit_of(suite["machine"]), row["command"]) for row in stages]
    return [profiled(row["result"], origin) for row, origin in zip(stages, sources, strict=True)], sources


def profiled(found: Any, origin: Source) -> list[str]:
    spread = f"{number(found['step_ms_p20'])} to {number(found['step_ms_p80'])}"
    total = f"{found['step_ms'] * PROTOCOL_STEPS / 3.6e6:.2g} h"
    measured = [found["preset"], number(found["step_ms"]), spread, f"{found['fraction_of_floor']:.0%}", total]
    return [*measured, *(number(found["phases"][name]["ms"]) for name in TIMED), origin.device, origin.commit]


def launches() -> str:
    """What a step asks of the device, counted."""
    path = ROOT / "bench" / "counts.json"
    content = read(path)
    with told_by(path):
        counts = content["counts"]
        presets = [name for name in PRECISION if name in counts]
        header = [
            "phase",
            *(f"{quantity}, {PRECISION[name]}" for name in presets for quantity in ("launches", "host reads", "GFLOP")),
        ]
        rows = [
            [phase, *(text for name in presets for text in asked(counts[name][phase]))] for phase in counts[presets[0]]
        ]
    return cited(header, rows, [HELD])


def asked(counts: Any) -> list[str]:
    return [
        f"{counts['launches']:,}",
        str(counts["host_reads"]),
        number(counts["flops"] / 1e9) if counts.get("flops") else "-",
    ]


def benches() -> str:
    """The phases in the last saved run of each device."""
    latest: dict[Path, tuple[str, Path]] = {}
    for path in results("[0-9][0-9][0-9][0-9]-*"):
        content = read(path)
        with told_by(path):
            latest[path.parent] = max(latest.get(path.parent, ("", path)), (content["datetime"], path))
    return collected(["device", *PHASES], [path for _, path in latest.values()], of_benches)


def of_benches(path: Path, found: Any) -> Rows:
    machine = found["machine_info"]
    origin = source(path, machine["device"], commit_of(machine), machine.get("command"))
    records = [benchmark["extra_info"] for benchmark in found["benchmarks"]]
    return [[origin.device, *phase_cells(record)] for record in records if "preset" in record], [origin]


def peers() -> str:
    """What others take for the same work: bench/peers/kernels.py and world_model.py."""
    header = ["work", "by", "ms", "over ours (99 % interval)", "GFLOP", "launches", "device", "commit"]
    return collected(header, results("peers-*"), of_peers)


def of_peers(path: Path, found: Any) -> Rows:
    origin = source(path, found["machine"]["device"], commit_of(found["machine"]), found["command"])
    rows = []
    for row in found["rows"]:
        over = row.get("over_ours")
        ratio = f"{over['value']:.2f} ({over['low']:.2f} to {over['high']:.2f})" if over else "1"
        work = (
            f"{row['kernel']} {row['shape']} {row['dtype']}"
            if "kernel" in row
            else f"{row['part']}, {row['preset']} {row['precision']}"
        )
        counted = [number(row["flops"] / 1e9), f"{row['launches']:,}"] if "flops" in row else ["-", "-"]
        rows.append(
            [
                work,
                row.get("writer") or row["library"],
                number(row["seconds"] * 1e3),
                ratio,
                *counted,
                origin.device,
                origin.commit,
            ]
        )
    return rows, [origin]


def collection() -> str:
    """Environments by library: bench/peers/collection.py."""
    header = [
        "game",
        "environments",
        "backend",
        "over auto (least to most)",
        "steps/s",
        "CPU us a step",
        "device",
        "commit",
    ]
    return collected(header, results("collection-*"), of_collection)


def of_collection(path: Path, found: Any) -> Rows:
    origin = source(path, found["machine"]["device"], commit_of(found["machine"]), found["command"])
    auto = {(verdict["game"], verdict["num_envs"]): verdict["auto"] for verdict in found["verdicts"]}
    rows = []
    for row in found["rows"]:
        work = [row["game"], str(row["num_envs"]), row["backend"]]
        if row["failure"] or not row["honest"]:
            rows.append([*work, row["failure"] or row["why"], "-", "-", origin.device, origin.commit])
            continue
        env, over = row["vector_env"], row["over_auto"]
        is_auto = auto[row["game"], row["num_envs"]] == row["backend"]
        ratio = "auto" if is_auto else f"{over['median']:.2f} ({over['least']:.2f} to {over['most']:.2f})"
        cpu = 1e6 * env["cpu_seconds"] / env["steps"]
        rows.append([*work, ratio, f"{env['median']:,.0f}", f"{cpu:.0f}", origin.device, origin.commit])
    return rows, [origin]


def commit_of(machine: dict[str, Any]) -> str:
    """With -dirty where the tree differed. A tree without its history is what STORMFAST_COMMIT told."""
    return f"{machine.get('commit') or 'unknown'}{'-dirty' if machine.get('dirty') else ''}"


BLOCKS: dict[str, Callable[[], str]] = {
    "learning": learning,
    "steps": steps,
    "launches": launches,
    "benches": benches,
    "peers": peers,
    "collection": collection,
}


# --- the READMEs -------------------------------------------------------------------------------------------------


def render(text: str) -> str:
    """The text with every table made anew. Raises: UserError for a name that no table has."""

    def made(match: re.Match[str]) -> str:
        name = match[2]
        if name not in BLOCKS:
            raise UserError(f"a README asks for results named {name!r}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[name]()}\n{match[4]}"

    return BLOCK.sub(made, text)


def main(arguments: list[str] | None = None) -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a README is not what the results say"
    )
    known = parser.parse_args(arguments)
    stale = []
    try:
        for name in READMES:
            path = ROOT / name
            before = path.read_text()
            after = render(before)
            if after != before:
                stale.append(name)
                if not known.check:
                    write_whole(path, after.encode())
    except UserError as error:
        print(f"readme_tables: {error}", file=sys.stderr)
        return 2
    if known.check and stale:
        print(f"{' and '.join(stale)} must say what the results say; run `make results`", file=sys.stderr)
        return 1
    print("written: " + ", ".join(stale) if stale else "every table is what the results say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
