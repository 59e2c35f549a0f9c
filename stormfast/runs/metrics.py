"""Metrics: gathered on the device without a host sync, read once an interval, written to JSON and TensorBoard."""

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from stormfast.errors import UserError
from stormfast.runs.directory import METRICS, TENSORBOARD, write_whole


class Metrics:
    """Running means of scalars that stay on the device, and the returns of the episodes finished meanwhile."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.sums: dict[tuple[str, ...], Tensor] = {}  # the names added together -> [len(names)] float32
        self.counts: dict[tuple[str, ...], int] = {}
        self.at_times: dict[tuple[str, ...], Tensor] = {}  # the names added together -> [2, len(names)]: sums, counts
        self.episodes: list[tuple[float, int]] = []  # (return, length)

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds one reading of each metric; two launches for all of them, no host sync.

        Args: values: 0-d tensors on the device. They may be overwritten afterwards.
        Raises: ValueError for a tensor that is not 0-d.
        """
        if not values:
            return
        names, stacked = tuple(values), _stack(values)
        if names in self.sums:
            self.sums[names] += stacked
        else:
            self.sums[names] = stacked
        self.counts[names] = self.counts.get(names, 0) + 1

    def add_at_times(self, values: dict[str, Tensor]) -> None:
        """add() of readings that are not always there: NaN stands for none, and is left out without a host sync."""
        if not values:
            return
        names, stacked = tuple(values), _stack(values)
        there = ~stacked.isnan()
        counted = torch.stack([torch.where(there, stacked, 0), there.float()])
        self.at_times[names] = self.at_times[names] + counted if names in self.at_times else counted

    def add_episode(self, game_return: float, length: int) -> None:
        """Adds a finished episode: its return (game score) and its length (environment steps)."""
        self.episodes.append((game_return, length))

    def flush(self, step: int) -> dict[str, float]:
        """Means since the last flush. The only host sync of metrics: one transfer.

        Returns: the mean of each metric, without those that never were there; episodes, how many finished; and where
            there are any, their mean episode_return and episode_length.
        Raises: FloatingPointError naming the metrics that are not finite, and the step.
        """
        means = self._means()
        broken = [f"{name} is {value}" for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"training diverged by step {step}: {', '.join(broken)}")
        if self.episodes:
            returns, lengths = zip(*self.episodes, strict=True)
            means |= {"episode_return": sum(returns) / len(returns), "episode_length": sum(lengths) / len(lengths)}
        means["episodes"] = float(len(self.episodes))
        self.sums, self.counts, self.at_times, self.episodes = {}, {}, {}, []
        return means

    def _means(self) -> dict[str, float]:
        if not self.sums and not self.at_times:
            return {}
        parts = [*self.sums.values(), *(both.flatten() for both in self.at_times.values())]
        read = iter(torch.cat(parts).tolist())  # host sync
        totals: dict[str, tuple[float, float]] = {}
        for names, count in self.counts.items():
            for name in names:  # a name may have been added in different company
                before, seen = totals.get(name, (0.0, 0.0))
                totals[name] = before + next(read), seen + count
        for names in self.at_times:
            sums, counts = ([next(read) for _ in names] for _ in range(2))
            for name, total, count in zip(names, sums, counts, strict=True):
                before, seen = totals.get(name, (0.0, 0.0))
                totals[name] = before + total, seen + count
        return {name: total / count for name, (total, count) in totals.items() if count}


def _stack(values: dict[str, Tensor]) -> Tensor:
    """0-d tensors as one, [len(values)] float32. Raises: ValueError for one that is not 0-d."""
    for name, value in values.items():
        if value.dim() != 0:
            raise ValueError(f"metric {name} must be a 0-d tensor, got {tuple(value.shape)}")
    return torch.stack([value.detach().float() for value in values.values()])


class MetricsLog:
    """Where metrics go: metrics.jsonl, a line a flush, and TensorBoard event files, both in the run directory.

    A line is {"step": environment steps, "seconds": wall-clock spent on the run, and the metrics by name}.
    """

    def __init__(self, run_dir: Path, tensorboard: bool, resume_step: int | None) -> None:
        """Opens the log of a new run (resume_step None), or goes on after resume_step, dropping what was logged later.

        Raises: UserError when a log to go on with is damaged or cannot be opened; FileExistsError when a new run finds
            one.
        """
        path = Path(run_dir) / METRICS
        self._file, seconds = _create(path) if resume_step is None else _reopen(path, resume_step)
        self._started = time.monotonic() - seconds
        try:
            self._board = _open_board(Path(run_dir) / TENSORBOARD, resume_step) if tensorboard else None
        except BaseException:
            self._file.close()
            raise

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends the metrics of a step, on disk at once as far as this process can see to it."""
        if values.keys() & {"step", "seconds"}:
            raise ValueError(f"a metric cannot be called step or seconds, got {sorted(values)}")
        seconds = round(time.monotonic() - self._started, 3)
        self._file.write(json.dumps({"step": step, "seconds": seconds} | values, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Shows [height, width, 3] uint8 RGB in TensorBoard, where that is on."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        """Closes the files; to be called once, after the last write."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _create(path: Path) -> tuple[TextIO, float]:
    return open(path, "x", encoding="utf-8"), 0.0


def _reopen(path: Path, step: int) -> tuple[TextIO, float]:
    """metrics.jsonl without what came after a step, open at its end; and the seconds of its last line."""
    try:
        kept = _lines_until(path, step)
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return open(path, "a", encoding="utf-8"), kept[-1]["seconds"] if kept else 0.0
    except OSError as error:
        raise UserError(
            f"{path} must be a file that can be read and written: {error.strerror or error}; repair or remove it, "
            "then resume"
        ) from None


def _open_board(path: Path, resume_step: int | None) -> Any:
    from torch.utils.tensorboard import (
        SummaryWriter,  # half a second to import, and only wanted by those who ask for it
    )

    try:
        return SummaryWriter(str(path), purge_step=None if resume_step is None else resume_step + 1)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path} must be a directory that can be written: {reason}; remove it, or add --logging.no-tensorboard"
        ) from None


def _lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to and including a step. A last line cut short by a crash is dropped."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.split("\n")[:-1]  # what follows the last newline is nothing, or torn
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            entry = _entry(line)
            if entry["step"] <= step:
                kept.append(entry)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):  # also JSON errors
            raise UserError(
                f"{path} must hold a JSON object of finite numbers a line, but line {number} is damaged; repair "
                "or remove it"
            ) from None
    return kept


def _entry(line: str) -> dict[str, Any]:
    """A line of metrics.jsonl. Raises one of many errors for anything else, such as a number that is not finite."""
    entry = json.loads(line)
    seconds = float(entry["seconds"])
    if type(entry["step"]) is not int or not all(math.isfinite(value) for value in (seconds, *entry.values())):
        raise ValueError("step must be an integer, and each metric a finite number")
    return entry | {"seconds": seconds}
