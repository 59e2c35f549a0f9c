"""Replay: what was lived through, on the learner's device, sampled as contiguous windows.

N streams   R rows a stream   B windows   T rows a window

Each stream is a ring of R rows. Its rows are numbered 0, 1, 2, ... as they are written; row number v lies in slot v % R
and never changes until row v + R takes its place. The host knows these numbers; a mirror of them is on the device, so that
drawing windows reads nothing back. All rings lie in one flat store, the demonstration behind them: one gather a field.
"""

import uuid
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from stormfast.batch import Batch, Transition
from stormfast.demonstration import Demonstration

FRAME = (3, 64, 64)
FLAGS = ("terminated", "truncated", "life_lost", "is_first", "is_last")
# field: (dtype in the store, dtype in a Transition, shape of one row)
ROW: dict[str, tuple[torch.dtype, type[np.generic], tuple[int, ...]]] = {
    "obs": (torch.uint8, np.uint8, FRAME),
    "action": (torch.uint8, np.int64, ()),
    "reward": (torch.float32, np.float32, ()),
    **dict.fromkeys(FLAGS, (torch.bool, np.bool_, ())),
}
ROW_BYTES = sum(dtype.itemsize * int(np.prod(shape)) for dtype, _, shape in ROW.values())  # 12,298: 100k rows are 1.23 GB


class Replay:
    """A ring of rows for each stream, and perhaps a demonstration.

    Args:
        capacity: rows over all streams; each gets capacity // num_streams.
        num_streams: N, environments that are stepped together.
        device: where rows live and batches appear.
        recency: p >= 1. A window's age, counted in windows from its stream's newest, is floor(u**p * num_windows) with u uniform
            in [0, 1): age a has probability ((a + 1) / n)**(1 / p) - (a / n)**(1 / p). 1 is uniform; at 2 the density falls as age**(-1/2).
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
            raise ValueError(f"replay needs at least one row a stream, got capacity {capacity} for {num_streams} streams")
        if not recency >= 1:
            raise ValueError(f"recency must be >= 1, got {recency}")
        if not 0 <= demonstration_share <= 1 or (demonstration_share > 0 and demonstration is None):
            raise ValueError(f"demonstration_share must be in [0, 1] and needs a demonstration, got {demonstration_share}")
        self.num_streams = num_streams
        self.rows_per_stream = capacity // num_streams
        self.device = torch.device(device)
        self.recency = recency
        self.keep_last_obs = keep_last_obs
        self.demonstration_share = demonstration_share
        self.id = uuid.uuid4().hex  # a checkpoint tells by it whether the rows on disk are this replay's
        self._num_demonstration = 0 if demonstration is None else len(demonstration)
        total = num_streams * self.rows_per_stream + self._num_demonstration
        # empty, not zeros: on CPU the pages are committed as rows arrive, and no window ever reaches an unwritten row
        self._store = {name: torch.empty((total, *shape), dtype=dtype, device=self.device) for name, (dtype, _, shape) in ROW.items()}
        self._written = np.zeros(num_streams, np.int64)  # [N] rows ever written
        self._oldest = torch.zeros(num_streams, dtype=torch.int64, device=self.device)  # [N] slot of the oldest row
        self._length = torch.zeros(num_streams, dtype=torch.int64, device=self.device)  # [N] rows stored
        if demonstration is not None:
            self._store_demonstration(demonstration)

    @property
    def capacity(self) -> int:
        """Rows over all streams, without the demonstration."""
        return self.num_streams * self.rows_per_stream

    @property
    def nbytes(self) -> int:
        """Bytes of the store, with the demonstration."""
        return sum(field.nbytes for field in self._store.values())

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
        """Writes one row to each stream (fewer where last observations are dropped). One copy to the device, no sync.

        Raises: ValueError for a field of another dtype or shape, or an action above 255.
        """
        _check_transition(transition, self.num_streams)
        kept = np.arange(self.num_streams) if self.keep_last_obs else np.flatnonzero(~transition.is_last)
        if len(kept) == 0:
            return
        slots = kept * self.rows_per_stream + self._written[kept] % self.rows_per_stream
        self._written[kept] += 1
        rows = {name: getattr(transition, name)[kept] for name in ROW}
        rows["action"] = rows["action"].astype(np.uint8)
        # the widest dtypes first, so that each part is aligned
        parts = [slots, *self._mirror(), rows.pop("reward"), *rows.values()]
        on_device = to_device_packed(parts, self.device)
        slot_index, oldest, length, reward, *rest = on_device
        self._oldest.copy_(oldest)
        self._length.copy_(length)
        for name, value in {"reward": reward, **dict(zip(rows, rest, strict=True))}.items():
            self._store[name].index_copy_(0, slot_index, value)

    def _mirror(self) -> tuple[np.ndarray, np.ndarray]:
        lengths = self.lengths
        return (self._written - lengths) % self.rows_per_stream, lengths

    def _store_demonstration(self, demonstration: Demonstration) -> None:
        for name, field in self._store.items():
            rows = field[self.capacity :]
            value = getattr(demonstration, name, None)
            if value is None:  # a demonstration has no truncations, lives or last observations
                rows.zero_()
            else:
                rows.copy_(torch.from_numpy(value))

    # --- sampling ------------------------------------------------------------------------------------------------

    def can_sample(self, length: int) -> bool:
        """Whether some stream holds a window of this length, and so does the demonstration where one is used. Asks the host only."""
        return int(self.lengths.max()) >= length and (self.demonstration_share == 0 or self._num_demonstration >= length)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Windows of `length` rows, each from one stream and never across its write head. No host sync.

        Each window of the store is equally likely (but see recency). Raises: ValueError where none is long enough.
        """
        return self.gather(self.draw(batch_size, length, generator))

    def draw(self, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
        """[B, T] int64 rows of the store, for gather. Good until the next append, which may overwrite a stream's oldest row."""
        num_demonstration = round(self.demonstration_share * batch_size)
        num_own = batch_size - num_demonstration
        if batch_size < 1 or length < 1:
            raise ValueError(f"a batch needs at least one window of one row, got {batch_size} windows of {length}")
        if num_own and int(self.lengths.max()) < length:
            raise ValueError(f"no stream of replay holds a window of {length} rows yet, the longest has {int(self.lengths.max())}; append more first")
        if num_demonstration and self._num_demonstration < length:
            raise ValueError(f"the demonstration must hold a window of {length} rows, got {self._num_demonstration} rows")
        uniform = torch.rand(2, batch_size, dtype=torch.float64, device=self.device, generator=generator)
        own = draw_windows(uniform[:, :num_own], self._oldest, self._length, self.rows_per_stream, length, self.recency)
        if num_demonstration == 0:
            return own
        num_starts = self._num_demonstration - length + 1
        start = self.capacity + (uniform[1, num_own:] * num_starts).long()  # [B']
        return torch.cat([own, start[:, None] + torch.arange(length, device=self.device)])

    def gather(self, index: Tensor) -> Batch:
        """The rows that draw() chose: [B, T] int64 -> Batch of [B, T]. One gather a field."""
        flat = index.reshape(-1)
        rows = {name: field.index_select(0, flat).view(*index.shape, *field.shape[1:]) for name, field in self._store.items()}
        rows["action"] = rows["action"].long()
        return Batch(**rows)

    # --- saving and restoring ------------------------------------------------------------------------------------

    def read_rows(self, first: np.ndarray, last: np.ndarray) -> dict[str, Tensor]:
        """Rows number first[n] .. last[n] - 1 of each stream n, one stream after the other, on the CPU. Syncs.

        Raises: ValueError for rows that are not stored.
        """
        self._check_stored(first, last)
        slots = torch.from_numpy(self._slots(first, last)).to(self.device)
        return {name: field.index_select(0, slots).cpu() for name, field in self._store.items()}

    def write_rows(self, first: np.ndarray, last: np.ndarray, rows: dict[str, Tensor]) -> None:
        """Puts what read_rows gave back in its place. The stream's length does not change: see restore_written.

        Raises: ValueError where the rows do not fit.
        """
        slots = torch.from_numpy(self._slots(first, last)).to(self.device)
        for name, (dtype, _, shape) in ROW.items():
            if name not in rows or rows[name].dtype != dtype or tuple(rows[name].shape) != (len(slots), *shape):
                got = f"{rows[name].dtype} {tuple(rows[name].shape)}" if name in rows else "nothing"
                raise ValueError(f"replay rows must have {name} as {dtype} {(len(slots), *shape)}, got {got}")
            self._store[name].index_copy_(0, slots, rows[name].to(self.device))

    def restore_written(self, written: np.ndarray, id: str) -> None:
        """Makes this the replay of that id, with written[n] rows ever written to stream n; write_rows brought them."""
        if written.shape != (self.num_streams,) or written.min() < 0:
            raise ValueError(f"written must be [{self.num_streams}] and not negative, got {written}")
        self._written = written.astype(np.int64)
        self.id = id
        oldest, length = self._mirror()
        self._oldest.copy_(torch.from_numpy(oldest))
        self._length.copy_(torch.from_numpy(length))

    def _check_stored(self, first: np.ndarray, last: np.ndarray) -> None:
        if (first < self._written - self.lengths).any() or (last > self._written).any() or (first > last).any():
            raise ValueError(f"rows {first} to {last} are not all stored; replay has {self._written - self.lengths} to {self._written}")

    def _slots(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        ranges = [n * self.rows_per_stream + np.arange(a, b) % self.rows_per_stream for n, (a, b) in enumerate(zip(first, last, strict=True))]
        return np.concatenate(ranges)


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
    stream = torch.searchsorted(ends, (uniform[0] * ends[-1]).long(), right=True)  # [B]; a ring without windows is never chosen
    newest = num_windows[stream] - 1
    age = torch.minimum((uniform[1] ** recency * (newest + 1)).long(), newest)  # min: a pow may round up to 1
    position = oldest[stream] + newest - age  # [B] the first row, counted from slot 0 and perhaps past the ring's end
    steps = torch.arange(length, device=uniform.device)
    return stream[:, None] * ring + (position[:, None] + steps) % ring


def to_device_packed(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies arrays to the device in one transfer; on CUDA from pinned memory, so without waiting for the device.

    Args:
        arrays: any dtypes and shapes, each itemsize dividing all earlier ones' bytes (widest first does).
    """
    buffer = torch.empty(sum(array.nbytes for array in arrays), dtype=torch.uint8, pin_memory=device.type == "cuda")
    host, offset = buffer.numpy(), 0
    for array in arrays:
        host[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offset += array.nbytes
    packed, offset, tensors = buffer.to(device, non_blocking=True), 0, []
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        tensors.append(packed[offset : offset + array.nbytes].view(dtype).view(array.shape))
        offset += array.nbytes
    return tensors


def _check_transition(transition: Transition, num_streams: int) -> None:
    for field in fields(transition):
        value = getattr(transition, field.name)
        _, dtype, shape = ROW[field.name]
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != (num_streams, *shape):
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(f"transition.{field.name} must be {np.dtype(dtype)} {(num_streams, *shape)}, got {got}")
    if transition.action.min() < 0 or transition.action.max() > 255:
        raise ValueError(f"transition.action must be in [0, 255], got {transition.action}")
