"""Replay: what was lived through, on the learner's device, sampled as contiguous windows.

N streams   R rows a stream   B windows   T rows a window   W bytes a row

Each stream is a ring of R rows. Its rows are numbered 0, 1, 2, ... as they are written; row number v lies in slot v % R
and never changes until row v + R takes its place. The host knows these numbers; a mirror of them is on the device, so
that drawing windows reads nothing back. All rings lie in one flat store, the demonstration behind them.

A row is W = 12,304 bytes, its fields side by side: obs 12,288 | reward 4 | action 1 | flags 5 | unused 6. So a batch is
one gather, its fields views of the gathered rows, and an append is one scatter. W is a multiple of 16: rows are aligned
for 16-byte loads, and the reward for float32. Against a gather for each of eight fields, on one CPU core (torch 2.13,
AMD EPYC, medians): sample [16, 64] 0.76 ms, was 0.85; [1024, 8] 43.0 ms, was 43.3, nearly all of it new memory; append
of 4 rows 0.11 ms, was 0.13.
"""

import math
import uuid
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from stormfast.demonstration import Demonstration
from stormfast.device import to_device_packed
from stormfast.records import OBS_SHAPE, Batch, Transition

FLAGS = ("terminated", "truncated", "life_lost", "is_first", "is_last")
# field: (dtype in the store, dtype in a Transition, shape of one row)
ROW: dict[str, tuple[torch.dtype, type[np.generic], tuple[int, ...]]] = {
    "obs": (torch.uint8, np.uint8, OBS_SHAPE),
    "action": (torch.uint8, np.int64, ()),
    "reward": (torch.float32, np.float32, ()),
    **dict.fromkeys(FLAGS, (torch.bool, np.bool_, ())),
}
FRAME_BYTES = math.prod(OBS_SHAPE)
ROW_BYTES = FRAME_BYTES + 16  # W: 100k rows are 1.23 GB


class Replay:
    """A ring of rows for each stream, and perhaps a demonstration.

    Args:
        capacity: rows over all streams; each gets capacity // num_streams.
        num_streams: N, environments that are stepped together.
        device: where rows live and batches appear.
        recency: p >= 1. A window's age, counted in windows from its stream's newest, is floor(u**p * num_windows) with
            u uniform in [0, 1): age a has probability ((a + 1) / n)**(1 / p) - (a / n)**(1 / p). 1 is uniform; at 2 the
            density falls as age**(-1/2).
        keep_last_obs: False drops the rows with is_last, as the original does; streams then differ in length.
        demonstration: rows that are always there; drawn uniformly.
        demonstration_share: the last round(share * B) windows of each batch come from the demonstration.
    Raises: ValueError for a size or share that cannot be.
    """

    def __init__(
        self,
        capacity: int,
        num_streams: int,
        device: torch.device,
        *,
        recency: float = 1.0,
        keep_last_obs: bool = True,
        demonstration: Demonstration | None = None,
        demonstration_share: float = 0.0,
    ) -> None:
        if num_streams < 1 or capacity < num_streams:
            raise ValueError(
                f"replay needs at least one row a stream, got capacity {capacity} for {num_streams} streams"
            )
        if not recency >= 1:
            raise ValueError(f"recency must be >= 1, got {recency}")
        if not 0 <= demonstration_share <= 1 or (demonstration_share > 0 and demonstration is None):
            raise ValueError(
                f"demonstration_share must be in [0, 1] and needs a demonstration, got {demonstration_share}"
            )
        self.num_streams = num_streams
        self.rows_per_stream = capacity // num_streams
        self.device = torch.device(device)
        self.recency = recency
        self.keep_last_obs = keep_last_obs
        self.demonstration_share = demonstration_share
        self.id = uuid.uuid4().hex  # a checkpoint recognises by it the rows on disk that are this replay's
        self._num_demonstration = 0 if demonstration is None else len(demonstration)
        total = num_streams * self.rows_per_stream + self._num_demonstration
        # empty, not zeros: on CPU the pages are committed as rows arrive, and no window ever reaches an unwritten row
        self._store = torch.empty(total, ROW_BYTES, dtype=torch.uint8, device=self.device)
        self._written = np.zeros(num_streams, np.int64)  # [N] rows ever written
        self._rings = torch.zeros(2, num_streams, dtype=torch.int64, device=self.device)
        self._oldest, self._length = self._rings.unbind()  # [N] slot of the oldest row, [N] rows stored
        if demonstration is not None:
            self._store_demonstration(demonstration)

    @property
    def capacity(self) -> int:
        """Rows over all streams, without the demonstration."""
        return self.num_streams * self.rows_per_stream

    @property
    def nbytes(self) -> int:
        """Bytes of the store, with the demonstration."""
        return self._store.nbytes

    @property
    def written(self) -> np.ndarray:
        """[N] int64, rows ever written to each stream: the number of its next row."""
        return self._written.copy()

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, rows stored in each stream."""
        return np.minimum(self._written, self.rows_per_stream)

    def __len__(self) -> int:
        """Rows stored, without the demonstration."""
        return int(self.lengths.sum())

    # --- writing -------------------------------------------------------------------------------------------------

    def append(self, transition: Transition) -> None:
        """Writes one row to each stream (fewer where last observations are dropped).

        One copy to the device, one scatter, no sync.

        Raises: ValueError for a field of another dtype or shape, or an action above 255.
        """
        _check_transition(transition, self.num_streams)
        kept = np.arange(self.num_streams) if self.keep_last_obs else np.flatnonzero(~transition.is_last)
        if len(kept) == 0:
            return
        slots = kept * self.rows_per_stream + self._written[kept] % self.rows_per_stream
        self._written[kept] += 1
        rows = torch.zeros(len(kept), ROW_BYTES, dtype=torch.uint8)
        for name, field in fields_of(rows).items():
            field.copy_(torch.from_numpy(getattr(transition, name)[kept]))
        slot_index, rings, packed = to_device_packed([slots, self._mirror(), rows.numpy()], self.device)
        self._rings.copy_(rings)
        self._store.index_copy_(0, slot_index, packed)

    def _mirror(self) -> np.ndarray:
        """[2, N] int64, what the device knows of the rings: slot of the oldest row, rows stored."""
        lengths = self.lengths
        return np.stack([(self._written - lengths) % self.rows_per_stream, lengths])

    def _store_demonstration(self, demonstration: Demonstration) -> None:
        rows = self._store[self.capacity :].zero_()  # a demonstration has no truncations, lives or last observations
        for name, field in fields_of(rows).items():
            if hasattr(demonstration, name):
                field.copy_(torch.from_numpy(getattr(demonstration, name)))

    # --- sampling ------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Windows of `length` rows, each from one stream and never across its write head. No host sync.

        Each window of the store is equally likely (but see recency). Raises: ValueError where none is long enough.
        """
        return self.gather(self.draw(batch_size, length, generator))

    def draw(self, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
        """[B, T] int64 rows of the store, for gather.

        Good until the next append, which may overwrite a stream's oldest row.
        """
        num_demonstration = round(self.demonstration_share * batch_size)
        num_own = batch_size - num_demonstration
        if batch_size < 1 or length < 1:
            raise ValueError(f"a batch needs at least one window of one row, got {batch_size} windows of {length}")
        if num_own and int(self.lengths.max()) < length:
            raise ValueError(
                f"no stream of replay holds a window of {length} rows yet, the longest has "
                f"{int(self.lengths.max())}; append more first"
            )
        if num_demonstration and self._num_demonstration < length:
            raise ValueError(
                f"the demonstration must hold a window of {length} rows, got {self._num_demonstration} rows"
            )
        uniform = torch.rand(2, batch_size, dtype=torch.float64, device=self.device, generator=generator)
        own = draw_windows(uniform[:, :num_own], self._oldest, self._length, self.rows_per_stream, length, self.recency)
        if num_demonstration == 0:
            return own
        num_starts = self._num_demonstration - length + 1
        start = self.capacity + (uniform[1, num_own:] * num_starts).long()  # [B']
        return torch.cat([own, start[:, None] + torch.arange(length, device=self.device)])

    def gather(self, index: Tensor) -> Batch:
        """The rows that draw() chose: [B, T] int64 -> Batch of [B, T], one gather.

        All but the action are views of the same rows.
        """
        rows = self._store.index_select(0, index.reshape(-1)).view(*index.shape, ROW_BYTES)
        batch = fields_of(rows)
        batch["action"] = batch["action"].long()
        return Batch(**batch)

    def mean_frame(self) -> Tensor:
        """[3, 64, 64] float32 in [0, 1], the mean of all stored frames but the demonstration's."""
        first, last = self._written - self.lengths, self._written
        slots = torch.from_numpy(self._slots(first, last)).to(self.device)
        frames = fields_of(self._store)["obs"]
        total = torch.zeros(OBS_SHAPE, dtype=torch.int64, device=self.device)
        for part in slots.split(1024):  # in parts: as int64 a frame is eight times as large
            total += frames.index_select(0, part).sum(0, dtype=torch.int64)
        return (total.double() / (255 * len(slots))).float()

    # --- saving and restoring ------------------------------------------------------------------------------------

    def read_rows(self, first: np.ndarray, last: np.ndarray) -> dict[str, Tensor]:
        """Rows number first[n] .. last[n] - 1 of each stream n, one stream after the other, by field, on the CPU.

        Syncs.

        Raises: ValueError for rows that are not stored.
        """
        self._check_stored(first, last)
        slots = torch.from_numpy(self._slots(first, last)).to(self.device)
        return {name: field.index_select(0, slots).cpu() for name, field in fields_of(self._store).items()}

    def write_rows(self, first: np.ndarray, last: np.ndarray, rows: dict[str, Tensor]) -> None:
        """Puts what read_rows gave back in its place. The stream's length does not change: see restore_written.

        Raises: ValueError where the rows do not fit.
        """
        slots = torch.from_numpy(self._slots(first, last)).to(self.device)
        for name, field in fields_of(self._store).items():
            dtype, _, shape = ROW[name]
            if name not in rows or rows[name].dtype != dtype or tuple(rows[name].shape) != (len(slots), *shape):
                got = f"{rows[name].dtype} {tuple(rows[name].shape)}" if name in rows else "nothing"
                raise ValueError(f"replay rows must have {name} as {dtype} {(len(slots), *shape)}, got {got}")
            field.index_copy_(0, slots, rows[name].to(self.device))

    def restore_written(self, written: np.ndarray, id: str) -> None:
        """Makes this the replay of that id, with written[n] rows ever written to stream n; write_rows brought them."""
        if written.shape != (self.num_streams,) or written.min() < 0:
            raise ValueError(f"written must be [{self.num_streams}] and not negative, got {written}")
        self._written = written.astype(np.int64)
        self.id = id
        self._rings.copy_(torch.from_numpy(self._mirror()))

    def _check_stored(self, first: np.ndarray, last: np.ndarray) -> None:
        if (first < self._written - self.lengths).any() or (last > self._written).any() or (first > last).any():
            raise ValueError(
                f"rows {first} to {last} are not all stored; replay has {self._written - self.lengths} to "
                f"{self._written}"
            )

    def _slots(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        ranges = [
            n * self.rows_per_stream + np.arange(a, b) % self.rows_per_stream
            for n, (a, b) in enumerate(zip(first, last, strict=True))
        ]
        return np.concatenate(ranges)


def fields_of(rows: Tensor) -> dict[str, Tensor]:
    """Views of the fields in packed rows: [..., W] uint8 -> each [..., *shape] in its dtype of ROW.

    Writing to one writes the row.
    """
    flags = {name: rows[..., FRAME_BYTES + 5 + i].view(torch.bool) for i, name in enumerate(FLAGS)}
    return {
        "obs": rows[..., :FRAME_BYTES].unflatten(-1, OBS_SHAPE),
        "action": rows[..., FRAME_BYTES + 4],
        "reward": rows.view(torch.float32)[..., FRAME_BYTES // 4],
        **flags,
    }


def draw_windows(uniform: Tensor, oldest: Tensor, stored: Tensor, ring: int, length: int, recency: float) -> Tensor:
    """Rows of random windows over several rings.

    Args:
        uniform: [2, B] float64 in [0, 1): chooses the ring (by its number of windows), then the window's age.
        oldest:  [N] int64, slot of each ring's oldest row.
        stored:  [N] int64, rows in each ring; at least one ring holds a window.
        ring:    R, slots of a ring; ring n is rows n * R .. n * R + R - 1.
        length:  T, rows a window.
        recency: p of Replay.
    Returns: [B, T] int64.
    """
    num_windows = (stored - (length - 1)).clamp(min=0)  # [N]
    ends = num_windows.cumsum(0)
    stream = torch.searchsorted(
        ends, (uniform[0] * ends[-1]).long(), right=True
    )  # [B]; a ring without windows is never chosen
    newest = num_windows[stream] - 1
    age = torch.minimum((uniform[1] ** recency * (newest + 1)).long(), newest)  # min: a pow may round up to 1
    position = oldest[stream] + newest - age  # [B] the first row, counted from slot 0 and perhaps past the ring's end
    steps = torch.arange(length, device=uniform.device)
    return stream[:, None] * ring + (position[:, None] + steps) % ring


def _check_transition(transition: Transition, num_streams: int) -> None:
    for field in fields(transition):
        value = getattr(transition, field.name)
        _, dtype, shape = ROW[field.name]
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != (num_streams, *shape):
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(f"transition.{field.name} must be {np.dtype(dtype)} {(num_streams, *shape)}, got {got}")
    if transition.action.min() < 0 or transition.action.max() > 255:
        raise ValueError(f"transition.action must be in [0, 255], got {transition.action}")
