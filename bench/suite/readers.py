"""What is kept of a stage's log and output: JSON types, or a ValueError saying what is wrong with them."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

OUTCOME = re.compile(r"^(?:\S+::.*? )?(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \(.*\))? +\[ *\d+%\]$")
REASON = re.compile(r"^(?:FAILED|ERROR) (\S+?::[^\[ ]+(?:\[.*\])?|\S+)(?: - (.*))?$")
FAILURES = 20  # kept, with their reasons


def doctor(log: Path, output: Path) -> dict[str, Any]:
    """What `stormfast doctor` said."""
    lines = _lines(log)
    if not lines or any(line.startswith("Traceback") for line in lines):
        raise ValueError(f"it did not report: {lines[-1] if lines else 'it said nothing'}")
    return {
        "lines": lines,
        "problems": [line.removeprefix("problem: ") for line in lines if line.startswith("problem: ")],
    }


def tests(log: Path, output: Path) -> dict[str, Any]:
    """How many tests passed, failed and so on, from pytest's verbose lines: they are there even where it was killed."""
    lines = _lines(log)
    counts = Counter(match[1].lower() for line in lines if (match := OUTCOME.match(line)))
    failures = [
        {"test": match[1], "reason": (match[2] or "")[:300]}
        for line in lines
        if not OUTCOME.match(line) and (match := REASON.match(line))
    ]
    return {
        **{name: counts[name] for name in ("passed", "failed", "error", "skipped")},
        "failures": failures[:FAILURES],
    }


def gpu_tests(log: Path, output: Path) -> dict[str, Any]:
    """The same on a GPU, where skipping all of them says nothing."""
    found = tests(log, output)
    if not (found["passed"] or found["failed"] or found["error"]):
        raise ValueError(f"no test ran on the GPU: {found['skipped']} were skipped")
    return found


def benches(log: Path, output: Path) -> dict[str, Any]:
    """The records of pytest-benchmark, and how the benches ended."""
    document = _json(output)
    try:
        records = [benchmark["extra_info"] for benchmark in document["benchmarks"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it wrote no benchmarks ({type(error).__name__}: {error})") from None
    return {**tests(log, output), "records": [record for record in records if record]}


def profile(log: Path, output: Path) -> dict[str, Any]:
    """All of `stormfast profile --json` but the names of the operators."""
    document = _json(output)
    try:
        document["phases"] = {
            name: {k: v for k, v in row.items() if k != "operators"} for name, row in document["phases"].items()
        }
        document["step_ms"] + 0
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it printed no profile ({type(error).__name__}: {error})") from None
    return document


def memory(log: Path, output: Path) -> dict[str, Any]:
    """Bytes of each preset, counted and measured; not where each peak is."""
    document = _json(output)
    try:
        return {"presets": [{k: v for k, v in record.items() if k != "peaks"} for record in document["presets"]]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it printed no memory ({type(error).__name__}: {error})") from None


def _lines(log: Path) -> list[str]:
    return [line.rstrip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []


def _json(path: Path) -> Any:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = "it wrote no result" if isinstance(error, FileNotFoundError) else f"its result does not parse: {error}"
        raise ValueError(reason) from None
    if not isinstance(document, dict):
        raise ValueError(f"its result is no JSON object but {type(document).__name__}")
    return document
