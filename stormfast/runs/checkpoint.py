"""Checkpoints: all of a run's state, written whole or not at all.

    RUN/checkpoint/checkpoint.json                    the manifest, written last: renaming it into place is the commit
                   state-STEP.safetensors             weights, optimisers, averages, generators, environments
                   replay-FIRST-LAST.safetensors      replay rows, counted over all streams; kept while any row lives

Files that the committed manifest names are never written to, so a kill at any moment leaves the previous checkpoint or
the new one. Replay rows do not change once written: a save writes those that came since the last one. Rows that the
ring has lost stay on disk until their whole file is dead; if that would ever hold more than twice the capacity, replay
is written afresh.
"""

import contextlib
import itertools
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stormfast.errors import UserError
from stormfast.replay import Replay
from stormfast.runs.command import begin
from stormfast.runs.directory import has_checkpoint, load_config, sync_directory, write_whole
from stormfast.runs.manifest import (
    ADVICE,
    DIRECTORY,
    MANIFEST,
    Chunk,
    File,
    Manifest,
    ReplayFiles,
    check_files,
    describe,
    read_manifest,
)

CHUNK_ROWS = 16_384  # 200 MB: what a save holds in host memory at once, and the most dead rows a stream drags along


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was saved; its files are checked. Replay rows are read by restore_replay."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    directory: Path
    replay_files: ReplayFiles

    def restore_replay(self, replay: Replay) -> None:
        """Fills a replay that nothing was appended to. It then samples as the saved one would have.

        Raises: UserError when the saved replay has other sizes, or a file of it cannot be read or holds other rows than
            the manifest says; ValueError when rows are in it.
        """
        saved = self.replay_files
        if len(replay):
            raise ValueError(f"restore_replay needs an empty replay, got one with {len(replay)} rows")
        ours, theirs = (replay.num_streams, replay.rows_per_stream), (len(saved.written), saved.rows_per_stream)
        if ours != theirs:
            raise UserError(
                f"{self.directory / MANIFEST} holds a replay of {theirs[0]} streams x {theirs[1]} rows, but this "
                f"run's has {ours[0]} x {ours[1]}; "
                f"resume with num_envs {theirs[0]} and replay.capacity {theirs[0] * theirs[1]}"
            )
        for chunk in saved.chunks:
            path = self.directory / chunk.file.name
            rows = _load(path, torch.device("cpu"))
            try:
                _check_num_rows(rows, chunk)
                replay.write_rows(np.array(chunk.first), np.array(chunk.last), rows)
            except ValueError as error:
                raise UserError(f"{path} does not hold the rows that {MANIFEST} names ({error}); {ADVICE}") from None
        replay.restore_written(np.array(saved.written), saved.id)


def load_checkpoint(run_dir: Path, device: torch.device | str, *, replay: bool = True) -> Checkpoint:
    """The checkpoint of a run, its tensors on the device.

    Args:
        replay: False leaves the replay files unread and unchecked, as an evaluation needs only the weights.
    Raises: UserError, naming the file, where anything is missing, damaged, or of another format.
    """
    directory = Path(run_dir) / DIRECTORY
    if not has_checkpoint(Path(run_dir)):
        raise UserError(
            f"No checkpoint in {run_dir}: expected {directory / MANIFEST}, saved every logging.save_every steps and at "
            f"the end; a run that ended before its first cannot go on: {_how_to_start_anew(Path(run_dir))}"
        )
    while True:
        manifest = read_manifest(directory)
        try:
            check_files(directory, manifest.files if replay else [manifest.state])
            tensors = _load(directory / manifest.state.name, torch.device(device))
        except UserError:
            if (
                read_manifest(directory).state != manifest.state
            ):  # the run saved a newer one meanwhile, and deleted this one's files
                continue
            raise
        return Checkpoint(manifest.step, tensors, manifest.meta, directory, manifest.replay)


def _how_to_start_anew(run_dir: Path) -> str:
    try:
        return f"start it anew with `stormfast train {shlex.join(begin(load_config(run_dir)))}`"
    except UserError:  # no settings that this version knows
        return "start it anew with the command that started it, with its --run-dir"


def save_checkpoint(run_dir: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], replay: Replay) -> None:
    """Saves all of a run; the checkpoint before it stays until this one is whole. Syncs with the device.

    Args:
        tensors: on any device, of any layout, also sharing memory. Saved to the bit, as contiguous tensors.
        meta: what JSON can hold; tuples come back as lists.
        replay: rows that its last save into this directory wrote are not written again.
    Raises: UserError when the disk is full or cannot be written: the previous checkpoint is then intact; ValueError for
        other meta.
    """
    directory = Path(run_dir) / DIRECTORY
    previous = _previous(directory)
    used = (
        {file.name for file in previous.files} if previous else {path.name for path in directory.glob("*.safetensors")}
    )
    new: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _delete(directory, used)  # what a killed save left behind: its room may be needed
        chunks = _save_replay(directory, replay, previous.replay if previous else None, used, new)
        state = _save_tensors(
            directory, f"state-{step}", {name: _own(tensor) for name, tensor in tensors.items()}, used, new
        )
        files = ReplayFiles(replay.id, replay.rows_per_stream, tuple(replay.written.tolist()), tuple(chunks))
        manifest = Manifest(int(step), state, files, meta)
        text = manifest.to_json()
        sync_directory(directory)  # the names are on disk before the manifest speaks of them
        write_whole(directory / MANIFEST, text.encode())
        _delete(directory, {file.name for file in manifest.files})
    except (OSError, SafetensorError) as error:
        raise UserError(_failure(directory, step, previous, error, new)) from None


def _previous(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)
    except UserError:  # none, or one that nothing could be loaded from: then there is nothing to build on
        return None


def _failure(directory: Path, step: int, previous: Manifest | None, error: Exception, new: list[Path]) -> str:
    """The message of a save that failed, after making room again. Deletes nothing that the manifest on disk names."""
    now = _previous(directory)
    named = {file.name for file in now.files} if now else set()
    with contextlib.suppress(OSError):  # the first error is the one to report; the next save tries again
        for path in new:
            if path.name not in named:
                path.unlink(missing_ok=True)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    if now and (previous is None or now.state != previous.state):
        kept, then = "it is in place all the same", "go on with --resume"  # what failed came after the commit
    elif previous:
        kept, then = f"the previous one, of step {previous.step}, is intact", "go on with --resume"
    else:
        kept, then = "there was none before", "start again"
    failed = f"The checkpoint of step {step} cannot be saved in {directory} ({reason})"
    return f"{failed}; {kept}. Make room or make it writable, then {then}."


# --- files -------------------------------------------------------------------------------------------------------


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares no memory: safetensors takes no other."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _save_tensors(directory: Path, stem: str, tensors: dict[str, Tensor], used: set[str], new: list[Path]) -> File:
    """Writes a file under a name that the committed checkpoint does not use; adds its paths to `new` before."""
    names = (
        f"{stem}{suffix}.safetensors" for suffix in itertools.chain([""], (f"-{count}" for count in itertools.count(2)))
    )
    path = directory / next(name for name in names if name not in used)
    temporary = path.with_name(f".{path.name}.tmp")
    new += [temporary, path]
    save_file(tensors, temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    described = describe(temporary)
    os.replace(temporary, path)
    return File(path.name, described.bytes, described.sha256)


def _load(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); {ADVICE}") from None


def _check_num_rows(rows: dict[str, Tensor], chunk: Chunk) -> None:
    """Raises ValueError unless each field has the chunk's rows: before memory is taken for as many as the manifest
    claims.
    """
    for name, field in rows.items():
        if field.shape[:1] != (chunk.num_rows,):
            raise ValueError(f"{name} must have {chunk.num_rows} rows, got shape {tuple(field.shape)}")
    if not rows and chunk.num_rows:
        raise ValueError(f"expected {chunk.num_rows} rows, got nothing")


def _delete(directory: Path, kept: set[str]) -> None:
    """Deletes files of checkpoints that are not in `kept`, and no other files."""
    for pattern in ("state-*.safetensors", "replay-*.safetensors", ".*.safetensors.tmp", f".{MANIFEST}.tmp"):
        for path in directory.glob(pattern):
            if path.name not in kept:
                path.unlink(missing_ok=True)


# --- replay ------------------------------------------------------------------------------------------------------


def _save_replay(
    directory: Path, replay: Replay, saved: ReplayFiles | None, used: set[str], new: list[Path]
) -> list[Chunk]:
    """Writes the rows that are not on disk yet. Returns the chunks that hold all of replay."""
    chunks = _reusable(directory, replay, saved)
    oldest, written = replay.written - replay.lengths, replay.written
    start = np.maximum(oldest, chunks[-1].last if chunks else 0)
    if sum(chunk.num_rows for chunk in chunks) + int((written - start).sum()) > 2 * replay.capacity:
        chunks, start = [], oldest
    for first, last in _pieces(start, written):
        file = _save_tensors(directory, f"replay-{first.sum()}-{last.sum()}", replay.read_rows(first, last), used, new)
        chunks.append(Chunk(file, tuple(first.tolist()), tuple(last.tolist())))
    return chunks


def _reusable(directory: Path, replay: Replay, saved: ReplayFiles | None) -> list[Chunk]:
    """The chunks on disk with rows that this replay still has; none where they are another replay's or gone."""
    if (
        saved is None
        or saved.id != replay.id
        or saved.rows_per_stream != replay.rows_per_stream
        or (replay.written < saved.written).any()
    ):
        return []
    oldest = replay.written - replay.lengths
    chunks = [chunk for chunk in saved.chunks if (np.array(chunk.last) > oldest).any()]
    intact = all(
        (path := directory / chunk.file.name).exists() and path.stat().st_size == chunk.file.bytes for chunk in chunks
    )
    return chunks if intact else []


def _pieces(first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts rows first .. last of each stream into pieces of about CHUNK_ROWS rows over all streams."""
    num_pieces = -(-int((last - first).sum()) // CHUNK_ROWS)
    for piece in range(num_pieces):
        cut = [first + (last - first) * i // num_pieces for i in (piece, piece + 1)]
        if (cut[1] > cut[0]).any():
            yield cut[0], cut[1]
