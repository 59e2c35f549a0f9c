"""Writes the tables of results into the READMEs, from committed JSON alone: no number stands there without device, commit and command.

    make results                                # or: python bench/readme_tables.py
    python bench/readme_tables.py --check       # exit 1 where a README is not what the results say

A table lies between `<!-- results: NAME -->` and `<!-- end of results -->`; NAME is one of BLOCKS below.
"""

import argparse
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
from stormfast.profile_report import number  # noqa: E402
from stormfast.run_dir import write_whole  # noqa: E402

READMES = ("README.md", "bench/README.md")
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
PROTOCOL_STEPS = 100_000
HELD = "- counted, alike on every machine, and held at every commit by tests/bench/test_counts.py: `python bench/counts.py`"


@dataclass(frozen=True)
class Source:
    """Where a number comes from, told below its table."""

    device: str
    commit: str
    command: str

    def __str__(self) -> str:
        return f"- {self.device}, commit {self.commit}: `{self.command}`"


def source(path: Path, device: Any, commit: Any, command: Any) -> Source:
    """Raises: UserError where one of them is missing, or the tree was not what the commit says."""
    told = {"device": device, "commit": commit, "command": command}
    missing = [name for name, value in told.items() if not isinstance(value, str) or value in ("", "unknown")]
    if missing:
        raise UserError(f"{path.relative_to(ROOT)} must say its device, commit and command, but lacks its {' and '.join(missing)}; measure again")
    if commit.endswith("-dirty"):
        raise UserError(f"{path.relative_to(ROOT)} was measured with changes that no commit has ({commit}); commit them and measure again")
    return Source(device, commit, command)


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must hold a result, but {error}") from None


def results(pattern: str) -> list[Path]:
    return sorted((ROOT / "bench" / "results").glob(f"*/{pattern}.json"))


def cited(header: list[str], rows: list[list[str]], sources: Iterable[Source | str]) -> str:
    """A table, and below it each of its sources once."""
    told = dict.fromkeys(map(str, sources))
    return "\n".join([grid(header, rows), "", "<details><summary>devices, commits, commands</summary>", "", *told, "", "</details>"])


# --- tables ------------------------------------------------------------------------------------------------------


def learning() -> str:
    """Scores of whole runs: bench/learning.py's, and the suite's."""
    header = ["game", "preset", "seeds", "steps", "minutes a seed", "agent", "random policy", "device", "commit"]
    rows, sources = [], []
    for path in results("learning-*"):
        found = read(path)
        runs = found["runs"]
        origin = [source(path, found["device"], found["commit"], command) for run in runs for command in run["commands"]]
        scores = [", ".join(f"{number(run[who]['mean'])} ± {number(run[who]['standard_error'])}" for run in runs) for who in ("agent", "random")]
        minutes = ", ".join(f"{run['seconds'] / 60:.0f}" for run in runs)
        seeds = ", ".join(str(run["seed"]) for run in runs)
        rows.append([found["game"], found["preset"], seeds, f"{runs[0]['steps']:,}", minutes, *scores, origin[0].device, origin[0].commit])
        sources += origin
    for path, suite in suites():
        for run in suite["training"]:
            if score := run.get("evaluation"):
                origin = [source(path, suite["machine"]["device"], call["commit"], call["command"]) for call in run["calls"]]
                low, high = score["mean_interval_95"]
                about = [run["game"], run["preset"], str(run["seed"]), f"{run['step']:,}", f"{run['training_seconds'] / 60:.0f}"]
                rows.append([*about, f"{number(score['mean'])} ({number(low)} to {number(high)})", "-", origin[-1].device, origin[-1].commit])
                sources += origin
    return cited(header, rows, sources)


def steps() -> str:
    """Milliseconds of a step: `stormfast profile`, alone or in the suite."""
    phases = ("act", "world_model", "imagination", "agent")
    header = ["preset", "ms a step", "p20 to p80", "of the floor", "100k steps", *phases, "device", "commit"]
    rows, sources = [], []
    for profile, origin in profiles():
        spread = f"{number(profile['step_ms_p20'])} to {number(profile['step_ms_p80'])}"
        total = f"{profile['step_ms'] * PROTOCOL_STEPS / 3.6e6:.2g} h"
        measured = [profile["preset"], number(profile['step_ms']), spread, f"{profile['fraction_of_floor']:.0%}", total]
        rows.append([*measured, *(number(profile['phases'][name]['ms']) for name in phases), origin.device, origin.commit])
        sources.append(origin)
    return cited(header, rows, sources)


def profiles() -> Iterator[tuple[dict[str, Any], Source]]:
    """Every profile, and where it comes from."""
    for path in results("profile-*"):
        found = read(path)
        yield found, source(path, f"{found['device_name']}, {found['threads']} threads", found.get("commit"), found.get("command"))
    for path, suite in suites():
        for row in suite["stages"]:
            if row["stage"].startswith("profile-") and row["status"] == "passed":
                yield row["result"], source(path, suite["machine"]["device"], commit_of(suite["machine"]), row["command"])


def launches() -> str:
    """What a step asks of the device, counted."""
    counts = read(ROOT / "bench" / "counts.json")["counts"]
    presets = [name for name in ("storm", "fast", "cpu") if name in counts]
    header = ["phase", *(f"{quantity}, {name}" for name in presets for quantity in ("launches", "host reads", "GFLOP"))]
    rows = []
    for phase in counts[presets[0]]:
        row = [phase]
        for asked in (counts[name][phase] for name in presets):
            row += [f"{asked['launches']:,}", str(asked["host_reads"]), number(asked["flops"] / 1e9) if asked["flops"] else "-"]
        rows.append(row)
    return cited(header, rows, [HELD])


def benches() -> str:
    """The phases in the last saved run of each device."""
    latest = {path.parent: path for path in sorted(results("[0-9][0-9][0-9][0-9]-*"), key=lambda path: read(path)["datetime"])}
    header = ["device", *PHASES]
    rows, sources = [], []
    for path in latest.values():
        found = read(path)
        machine = found["machine_info"]
        sources.append(source(path, machine["device"], commit_of(machine), machine.get("command")))
        records = [benchmark["extra_info"] for benchmark in found["benchmarks"]]
        rows += [[machine["device"], *phase_cells(record)] for record in records if "preset" in record]
    return cited(header, rows, sources)


def peers() -> str:
    """What others take for the same work: bench/peers/kernels.py and world_model.py."""
    header = ["work", "by", "ms", "over ours (99 % interval)", "GFLOP", "launches", "device", "commit"]
    rows, sources = [], []
    for path in results("peers-*"):
        found = read(path)
        origin = source(path, found["machine"]["device"], commit_of(found["machine"]), found["command"])
        sources.append(origin)
        for row in found["rows"]:
            over = row.get("over_ours")
            ratio = f"{over['value']:.2f} ({over['low']:.2f} to {over['high']:.2f})" if over else "1"
            work = f"{row['kernel']} {row['shape']} {row['dtype']}" if "kernel" in row else f"{row['part']}, {row['preset']} {row['precision']}"
            counted = [number(row["flops"] / 1e9), f"{row['launches']:,}"] if "flops" in row else ["-", "-"]
            by = row.get("writer") or row["library"]
            rows.append([work, by, number(row["seconds"] * 1e3), ratio, *counted, origin.device, origin.commit])
    return cited(header, rows, sources)


def suites() -> Iterator[tuple[Path, dict[str, Any]]]:
    return ((path, read(path)) for path in results("suite-*"))


def commit_of(machine: dict[str, Any]) -> str:
    """With -dirty where the tree differed."""
    return f"{machine['commit']}{'-dirty' if machine['dirty'] else ''}"


BLOCKS: dict[str, Callable[[], str]] = {"learning": learning, "steps": steps, "launches": launches, "benches": benches, "peers": peers}


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
    parser = argparse.ArgumentParser(description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a README is not what the results say")
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
