"""The suite's one result: a JSON file and its table beside it, written whole whenever something is known.

bench/results/DEVICE/suite-DATE-COMMIT.json, .md
                     logs/suite-DATE-COMMIT/STAGE.log, STAGE.json     not for git
"""

import contextlib
import fcntl
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.suite.table import markdown
from stormfast.errors import UserError
from stormfast.runs.directory import write_whole

ROOT = Path(__file__).resolve().parents[2]
LOGS = "logs"
SAME = ("device", "commit", "dirty", "driver", "torch", "cuda", "triton", "python")  # what makes two calls one result
KEPT = {
    "passed",
    "failed",
    "timed out",
}  # a row that says so is not replaced by one that says that its stage did not run


class Record:
    """A result under way.

    Attributes:
        document: what the JSON holds: machine, begun, stages (rows, in the order of the suite), training (one a run).
        path: of the JSON.
    """

    def __init__(self, path: Path, document: dict[str, Any], site: Path | None = None) -> None:
        self.path, self.document, self.places = path, document, places(site)

    @property
    def logs(self) -> Path:
        return self.path.parent / LOGS / self.path.stem

    def log_name(self, file: Path) -> str:
        """A log as the result names it, from the result's folder."""
        return str(file.relative_to(self.path.parent))

    def put_stage(self, row: dict[str, Any]) -> None:
        """Takes a stage's row in place of what it had; what did not run does not displace what did."""
        rows = self.document["stages"]
        at = next((i for i, old in enumerate(rows) if old["stage"] == row["stage"]), None)
        if at is None:
            rows.append(row)
        elif row["status"] in KEPT or rows[at]["status"] not in KEPT:
            rows[at] = row
        self.write()

    def put_training(self, row: dict[str, Any]) -> None:
        rows = [old for old in self.document["training"] if old["run"] != row["run"]]
        self.document["training"] = [*rows, row]
        self.write()

    def write(self) -> None:
        """Raises: UserError where it cannot."""
        self.document = self._without_paths(self.document)
        text = json.dumps(self.document, indent=1, allow_nan=False) + "\n"
        try:
            write_whole(self.path, text.encode())
            write_whole(self.path.with_suffix(".md"), markdown(self.document).encode())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror or error}; give --results another folder"
            ) from None

    def _without_paths(self, value: Any) -> Any:
        """The same without where things lie on this machine, which is nobody's business."""
        if isinstance(value, dict):
            return {key: self._without_paths(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._without_paths(each) for each in value]
        if isinstance(value, str):
            for place, name in self.places:
                value = re.sub(rf"{re.escape(place)}/", f"{name}/" if name else "", value)
                value = re.sub(rf"{re.escape(place)}(?![\w.-])", name or ".", value)
        return value


def places(site: Path | None) -> list[tuple[str, str]]:
    """Folders of this machine and what to call them, the deepest first."""
    named = {sys.base_prefix: "PYTHON", sys.prefix: "PYTHON", str(Path.home()): "~", str(ROOT): ""} | (
        {str(site): "SITE"} if site else {}
    )
    return sorted(
        ((place, name) for place, name in named.items() if len(Path(place).parts) > 1), key=lambda pair: -len(pair[0])
    )


def open_record(folder: Path, machine: dict[str, Any], fresh: bool, site: Path | None = None) -> Record:
    """The result to write into.

    It is the newest of this machine, commit and versions; where there is none, or where a `fresh` one is asked for and that one was
    begun on another day, a new one. Raises: UserError for a folder that cannot be written, and for a result that cannot be read.
    """
    today = time.strftime("%Y-%m-%d")
    label = machine["commit"] + ("-dirty" if machine["dirty"] else "")
    for path in reversed(_results_of(folder, label)):
        document = _read(path)
        if all(document["machine"].get(key) == machine.get(key) for key in SAME) and (
            not fresh or document["begun"] == today
        ):
            document["machine"] = machine  # clocks and free memory of now
            return Record(path, document, site)
    names = (
        f"suite-{today}-{label}{suffix}.json" for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
    )
    path = next(path for name in names if not (path := folder / name).exists())
    return Record(path, {"machine": machine, "begun": today, "stages": [], "training": []}, site)


def _results_of(folder: Path, label: str) -> list[Path]:
    """Results of a commit, oldest first."""
    pattern = re.compile(rf"suite-(\d{{4}}-\d\d-\d\d)-{re.escape(label)}(?:-(\d+))?\.json")
    found = [
        (match[1], int(match[2] or 1), path)
        for path in folder.glob("suite-*.json")
        if (match := pattern.fullmatch(path.name))
    ]
    return [path for _, _, path in sorted(found)]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
        if not all(
            isinstance(document[key], kind)
            for key, kind in {"machine": dict, "begun": str, "stages": list, "training": list}.items()
        ):
            raise ValueError("it is no result of the suite")
        markdown(document), [row["run"] for row in document["training"]]  # all that is read from it later
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} must be what the suite wrote, but {type(error).__name__}: {error}; move it away"
        ) from None
    return document


def writable_folder(folder: Path) -> Path:
    """The folder of a device's results, made, its logs' too. Raises: UserError now rather than after all has run."""
    try:
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        for each in (folder, folder / LOGS):
            with tempfile.TemporaryFile(dir=each):  # access rights do not tell: root has them everywhere
                pass
    except OSError as error:
        raise UserError(
            f"results must go to a folder that can be written, but {folder}: {error.strerror or error}; give --results another"
        ) from None
    return folder


@contextlib.contextmanager
def only_one(path: Path, otherwise: str) -> Iterator[int]:
    """A lock, which ends with the last process that has its descriptor: with what outlives a killed suite, too.

    Yields: the descriptor, to be held open by what is started meanwhile. Raises: UserError(otherwise) where another holds it.
    """
    with open(path, "a") as lock:  # what may be in it stays
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(otherwise) from None
        yield lock.fileno()
