"""The manifest of a checkpoint, checkpoint.json: which files it is made of, and which replay rows lie in which file."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stormfast.errors import UserError

FORMAT = 1  # raised when an older stormfast could not read what this one writes
DIRECTORY = "checkpoint"  # in a run directory
MANIFEST = "checkpoint.json"
MAX_INT = 2**53  # what every JSON reader holds exactly, and int64 with room to add
ADVICE = "put back an intact copy, or start a new run with another --run-dir"


@dataclass(frozen=True)
class File:
    """A file beside the manifest."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Chunk:
    """A file of replay rows: number first[n] .. last[n] - 1 of each stream n, one stream after the other."""

    file: File
    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(self.last) - sum(self.first)


@dataclass(frozen=True)
class ReplayFiles:
    """All of a replay: chunks in the order they were written, so that a later row takes the slot of the one it
    replaced.
    """

    id: str
    rows_per_stream: int
    written: tuple[int, ...]  # rows ever written to each stream
    chunks: tuple[Chunk, ...]

    @property
    def oldest(self) -> tuple[int, ...]:
        """The number of each stream's oldest row that is still in replay."""
        return tuple(max(0, written - self.rows_per_stream) for written in self.written)

    def check(self) -> None:
        """Raises ValueError unless the chunks hold every row that is in replay."""
        reached = np.zeros(len(self.written), np.int64)
        for chunk in self.chunks:
            first, last = np.array(chunk.first), np.array(chunk.last)
            if first.shape != reached.shape or last.shape != reached.shape:
                raise ValueError(f"{chunk.file.name} must have {len(reached)} streams")
            gap = (first != reached) & (first > self.oldest)  # fine where the ring has since lost the rows
            if gap.any() or (first > last).any():
                raise ValueError(f"{chunk.file.name} does not go on where the file before it ends")
            reached = last
        if not np.array_equal(reached, self.written):
            raise ValueError("replay rows are missing")


@dataclass(frozen=True)
class Manifest:
    """The content of checkpoint.json.

    It is written last: a checkpoint is what the manifest names, whatever else lies there.
    """

    step: int
    state: File
    replay: ReplayFiles
    meta: dict[str, Any]

    @property
    def files(self) -> list[File]:
        return [self.state, *(chunk.file for chunk in self.replay.chunks)]

    def to_json(self) -> str:
        """Raises ValueError for meta that JSON cannot hold."""
        try:
            return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"
        except TypeError as error:
            raise ValueError(f"checkpoint meta must be what JSON can hold: {error}") from None


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory.

    Raises: UserError where there is none, it is damaged, or another format.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        version = document["format"]
        if version != FORMAT:
            raise UserError(
                f"{path} has format {version!r}, but this stormfast reads format {FORMAT}; use the stormfast "
                "version that wrote it"
            )
        return _from_document(document)
    except FileNotFoundError:
        if any(directory.glob("state-*")):
            raise UserError(
                f"{path} is missing beside the files that it names; {ADVICE}; or, if the run was killed in its first "
                f"save, delete {directory} and start it anew"
            ) from None
        raise UserError(f"No checkpoint in {directory.parent}: expected {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; make it readable") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # also JSON and Unicode errors
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())}); {ADVICE}"
        ) from None


def _from_document(document: dict[str, Any]) -> Manifest:
    replay = document["replay"]
    chunks = tuple(Chunk(_file(c["file"]), _counts(c["first"]), _counts(c["last"])) for c in replay["chunks"])
    files = ReplayFiles(str(replay["id"]), _integer(replay["rows_per_stream"]), _counts(replay["written"]), chunks)
    files.check()
    if not isinstance(document["meta"], dict):
        raise ValueError("meta is no object")
    return Manifest(_integer(document["step"]), _file(document["state"]), files, document["meta"])


def _file(entry: dict[str, Any]) -> File:
    file = File(str(entry["name"]), _integer(entry["bytes"]), str(entry["sha256"]))
    if Path(file.name).name != file.name:
        raise ValueError(f"{file.name} is no name of a file beside it")
    return file


def _counts(values: list[Any]) -> tuple[int, ...]:
    if not values:
        raise ValueError("no counts where one for each stream is expected")
    return tuple(_integer(value) for value in values)


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_INT:
        raise ValueError(f"expected an integer >= 0 and < 2**53, got {str(value)[:40]}")
    return value


def describe(path: Path) -> File:
    """Size and sha256 of a file. Raises OSError."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(path.name, file.tell(), digest)


def check_files(directory: Path, files: list[File]) -> None:
    """Raises UserError for a file that is missing, cut short, or not what was written."""
    for file in files:
        path = directory / file.name
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise UserError(
                    f"{path} must have {file.bytes} bytes, got {size}: it was cut short or replaced; {ADVICE}"
                )
            found = describe(path)
        except FileNotFoundError:
            raise UserError(f"{path} is missing, but {MANIFEST} names it; {ADVICE}") from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror or error}; make it readable, or {ADVICE}"
            ) from None
        if found.sha256 != file.sha256:
            raise UserError(
                f"{path} is damaged: sha256 must be {file.sha256[:12]}..., got {found.sha256[:12]}...; {ADVICE}"
            )
