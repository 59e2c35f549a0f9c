import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stormfast.demonstration import Demonstration
from stormfast.device import to_device_packed
from stormfast.records import Transition
from stormfast.replay import ROW, ROW_BYTES, Replay, draw_windows, fields_of

CPU = torch.device("cpu")


class NaiveReplay:
    """Lists of rows: what replay must be, slowly."""

    def __init__(self, capacity, num_streams, keep_last_obs=True):
        self.rows = capacity // num_streams
        self.streams = [[] for _ in range(num_streams)]
        self.keep_last_obs = keep_last_obs

    def append(self, transition):
        for n, stream in enumerate(self.streams):
            if self.keep_last_obs or not transition.is_last[n]:
                stream.append({name: np.array(getattr(transition, name)[n]) for name in ROW})
                del stream[: -self.rows]

    def windows(self, length):
        return [stream[i : i + length] for stream in self.streams for i in range(len(stream) - length + 1)]


def transition(rng, num_streams, step=0):
    def flag(p):
        return rng.random(num_streams) < p

    return Transition(
        obs=rng.integers(0, 256, (num_streams, 3, 64, 64), dtype=np.uint8),
        action=rng.integers(0, 256, num_streams),
        reward=rng.normal(size=num_streams).astype(np.float32) + 1000 * step,
        terminated=flag(0.3),
        truncated=flag(0.3),
        life_lost=flag(0.3),
        is_first=flag(0.3),
        is_last=flag(0.3),
    )


def filled(capacity, num_streams, num_appends, seed=0, **options):
    """A replay and its oracle after the same appends."""
    rng = np.random.default_rng(seed)
    replay, naive = (
        Replay(capacity, num_streams, CPU, **options),
        NaiveReplay(capacity, num_streams, options.get("keep_last_obs", True)),
    )
    for step in range(num_appends):
        row = transition(rng, num_streams, step)
        replay.append(row)
        naive.append(row)
    return replay, naive


def key(window):
    """A window's identity: each reward is a different number."""
    return tuple(float(row["reward"]) for row in window)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every_window(replay, length):
    """Indices of all windows, each once, by a grid of u.

    Also checks that u[0] chooses streams by their number of windows.
    """
    starts = np.maximum(replay.lengths - length + 1, 0)
    cells = np.repeat(np.arange(len(starts)), starts)  # the stream that each cell of u[0] must choose
    ages = np.concatenate([np.arange(n) for n in starts])
    drawn = []
    for corner in (0.001, 0.999):  # of each cell of the grid
        uniform = torch.tensor(
            np.stack([(np.arange(len(cells)) + corner) / len(cells), (ages + corner) / starts[cells]])
        )
        drawn.append(draw_windows(uniform, replay._oldest, replay._length, replay.rows_per_stream, length, 1.0))
        np.testing.assert_array_equal(drawn[-1][:, 0].numpy() // replay.rows_per_stream, cells)
    assert torch.equal(*drawn)
    return drawn[0]


@pytest.mark.parametrize("keep_last_obs", [True, False])
@pytest.mark.parametrize("length", [1, 3, 5])
@pytest.mark.parametrize(("capacity", "num_streams"), [(7, 1), (11, 2), (15, 3)])
def test_the_windows_are_the_oracles(capacity, num_streams, length, keep_last_obs):
    for num_appends in range(0, 24, 1 if num_streams == 1 else 4):
        replay, naive = filled(capacity, num_streams, num_appends, keep_last_obs=keep_last_obs)
        expected = naive.windows(length)
        assert len(replay) == sum(map(len, naive.streams))
        if not expected:
            with pytest.raises(ValueError, match=f"no stream of replay holds a window of {length} rows yet"):
                replay.sample(2, length, generator())
            continue
        batch = replay.gather(every_window(replay, length))
        found = {tuple(reward.tolist()): b for b, reward in enumerate(batch.reward)}
        assert sorted(found) == sorted(map(key, expected))
        for window in expected:
            for name in ROW:
                got = getattr(batch, name)[found[key(window)]].numpy()
                np.testing.assert_array_equal(got, np.stack([row[name] for row in window]), err_msg=name)


@pytest.mark.parametrize("num_appends", [6, 9, 30])
def test_samples_are_the_oracles_windows(num_appends):
    replay, naive = filled(14, 2, num_appends, keep_last_obs=False)
    expected = {key(window) for window in naive.windows(3)}
    batch = replay.sample(200, 3, generator())
    assert {tuple(reward.tolist()) for reward in batch.reward} == expected


def test_a_batch_has_the_dtypes_of_the_record():
    replay, _ = filled(10, 1, 8)
    batch = replay.sample(5, 4, generator())
    assert batch.obs.shape == (5, 4, 3, 64, 64)
    assert batch.obs.flatten(0, -4).data_ptr() == batch.obs.data_ptr(), (
        "the world model flattens frames: that must not copy them"
    )
    dtypes = {field.name: getattr(batch, field.name).dtype for field in dataclasses.fields(batch)}
    flags = dict.fromkeys(("terminated", "truncated", "life_lost", "is_first", "is_last"), torch.bool)
    assert dtypes == {"obs": torch.uint8, "action": torch.int64, "reward": torch.float32, **flags}


def test_the_same_seed_draws_the_same_windows():
    replay, _ = filled(40, 2, 20)
    first = replay.draw(16, 4, generator(3))
    assert torch.equal(first, replay.draw(16, 4, generator(3)))
    assert not torch.equal(first, replay.draw(16, 4, generator(4)))
    batch = replay.sample(16, 4, generator(3))
    assert torch.equal(batch.obs, replay.gather(first).obs)


def test_windows_are_uniform_over_streams_of_different_lengths():
    replay, naive = filled(60, 3, 20, keep_last_obs=False, seed=5)
    lengths = replay.lengths
    assert len(set(lengths.tolist())) > 1, "the test needs streams of different lengths"
    num_windows, draws = len(naive.windows(4)), 60_000
    first = replay.draw(draws, 4, generator(1))[:, 0]
    counts = np.bincount(first.numpy(), minlength=60)
    counts = counts[counts > 0]
    assert len(counts) == num_windows
    expected = draws / num_windows
    chi_square, dof = ((counts - expected) ** 2 / expected).sum(), num_windows - 1
    assert abs(chi_square - dof) < 5 * np.sqrt(2 * dof)  # five standard deviations of the chi-square distribution


@pytest.mark.parametrize("recency", [1.0, 1.5, 2.0, 4.0])
def test_recency_has_the_documented_distribution(recency):
    replay, _ = filled(23, 1, 40, recency=recency)
    length, grid = 4, 200_000
    n = 23 - length + 1
    u = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    index = draw_windows(torch.stack([u, u]), replay._oldest, replay._length, 23, length, recency)
    newest_start = (40 - length) % 23
    age = (newest_start - index[:, 0]) % 23
    found = torch.bincount(age, minlength=n).double() / grid
    edges = (torch.arange(n + 1, dtype=torch.float64) / n) ** (1 / recency)
    torch.testing.assert_close(
        found, edges.diff(), rtol=0, atol=1.01 / grid
    )  # a cell may miss half a grid point at each end


def test_recency_favours_recent_windows_in_samples():
    draws, n = 20_000, 97
    counts = []
    for recency in (1.0, 2.0):
        replay, _ = filled(100, 1, 100, recency=recency)
        start = replay.draw(draws, 4, generator())[:, 0]
        counts.append(int((start >= n - n // 4).sum()))
    assert counts[0] == pytest.approx(draws * 24 / n, rel=0.05)
    assert counts[1] == pytest.approx(draws * np.sqrt(24 / n), rel=0.05)


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_ends_of_u_stay_inside(u):
    stored, oldest = torch.tensor([0, 6, 2, 5, 0]), torch.tensor([0, 4, 0, 0, 0])
    for recency in (1.0, 1.5, 3.0):
        index = draw_windows(torch.full((2, 1), u, dtype=torch.float64), oldest, stored, 6, 4, recency)
        # u[0] takes the first or last stream that has windows, u[1] its newest or oldest window
        assert index.tolist() == ([[6 + 0, 6 + 1, 6 + 2, 6 + 3]] if u == 0 else [[18, 19, 20, 21]])


# --- the device path ---------------------------------------------------------------------------------------------


class NoSync(TorchDispatchMode):
    """Fails where a value is read back from the device, or a shape depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        indices = args[1] if name in ("index", "index_put") else ()
        by_mask = any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices
        )  # nonzero, hidden
        if by_mask or name in ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal"):
            raise AssertionError(f"{func} synchronises")
        return func(*args, **(kwargs or {}))


def test_the_detector_detects():
    with NoSync():
        for sync in (
            lambda: torch.ones(1).item(),
            lambda: bool(torch.ones(1) > 0),
            lambda: torch.ones(3)[torch.ones(3) > 0],
        ):
            with pytest.raises(AssertionError, match="synchronises"):
                sync()


@pytest.mark.parametrize("demonstrated", [False, True])
def test_append_and_sample_do_not_sync(demonstrated):
    options = {"demonstration": demonstration(9), "demonstration_share": 0.5} if demonstrated else {}
    replay, _ = filled(14, 2, 10, recency=1.5, keep_last_obs=False, **options)
    with NoSync():
        replay.append(transition(np.random.default_rng(0), 2))
        replay.sample(6, 3, generator())


class Count(TorchDispatchMode):
    """Counts calls of the operations that gather and scatter."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name.startswith(("index", "gather", "scatter", "take")):
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def test_a_batch_is_one_gather_and_an_append_one_scatter():
    replay, _ = filled(14, 2, 10)
    index = replay.draw(6, 3, generator())
    with Count() as gathers:
        replay.gather(index)
    with Count() as scatters:
        replay.append(transition(np.random.default_rng(0), 2))
    assert gathers.calls == ["index_select"]
    assert scatters.calls == ["index_copy"]


def test_the_fields_of_a_row_do_not_overlap_and_are_aligned():
    assert ROW_BYTES % 16 == 0
    rows = torch.zeros(3, ROW_BYTES, dtype=torch.uint8)
    fields = fields_of(rows)
    assert set(fields) == set(ROW)
    seen = torch.zeros(ROW_BYTES, dtype=torch.int64)
    for name, field in fields.items():
        assert (field.dtype, tuple(field.shape)) == (ROW[name][0], (3, *ROW[name][2]))
        rows.zero_()
        field.view(torch.uint8 if field.dtype == torch.bool else field.dtype)[1].fill_(
            float("nan") if field.dtype == torch.float32 else 1
        )
        assert not rows[[0, 2]].any()
        seen += rows[1] != 0
    assert seen.max() == 1
    assert seen.sum() == ROW_BYTES - 6 - 2  # the bytes unused, and two of the NaN's that are 0


def test_rewards_keep_every_bit():
    rewards = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-45, 16_777_217.0, np.float32(0.1)], np.float32)
    replay = Replay(7, 7, CPU)
    replay.append(dataclasses.replace(transition(np.random.default_rng(0), 7), reward=rewards))
    got = replay.gather(torch.arange(7)[:, None]).reward[:, 0]
    np.testing.assert_array_equal(got.numpy().view(np.uint32), rewards.view(np.uint32))


@pytest.mark.gpu
def test_on_cuda_the_same_and_without_sync():
    device = torch.device("cuda")
    on_cpu, on_cuda = Replay(21, 3, CPU, keep_last_obs=False), Replay(21, 3, device, keep_last_obs=False)
    draws = torch.Generator(device).manual_seed(0)
    rng = np.random.default_rng(0)
    rows = [transition(rng, 3, step) for step in range(40)]
    for row in rows[:20]:
        on_cuda.append(row)
    on_cuda.sample(8, 4, draws)  # warm up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in rows[20:]:
            on_cuda.append(row)
        index = on_cuda.draw(8, 4, draws)
        batch = on_cuda.gather(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for row in rows:
        on_cpu.append(row)
    expected = on_cpu.gather(index.cpu())
    for field in dataclasses.fields(batch):
        assert torch.equal(getattr(batch, field.name).cpu(), getattr(expected, field.name)), field.name


def test_packed_transfer_keeps_every_bit():
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(-(2**62), 2**62, 3),
        rng.integers(0, 9, (0,)),
        rng.normal(size=(5, 2)).astype(np.float32),
        rng.integers(0, 256, (3, 1, 7), dtype=np.uint8)[::2],
        rng.random(5) < 0.5,
    ]
    for array, tensor in zip(arrays, to_device_packed(arrays, CPU), strict=True):
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


# --- memory ------------------------------------------------------------------------------------------------------


def test_100k_rows_fit_in_1_3_gb():
    assert 100_000 * ROW_BYTES <= 1.3e9
    for capacity, num_streams in ((10, 1), (11, 4)):
        replay = Replay(capacity, num_streams, CPU)
        assert replay.nbytes == capacity // num_streams * num_streams * ROW_BYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_is_committed_as_rows_arrive():
    script = """
import resource, torch
from stormfast.replay import Replay
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
replay = Replay(100_000, 4, torch.device("cpu"))
assert replay.nbytes > 1.2e9, replay.nbytes
print(resident() - before)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32e6


# --- bad calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"obs": np.zeros((2, 64, 64, 3), np.uint8)},
            r"obs must be uint8 \(2, 3, 64, 64\), got uint8 \(2, 64, 64, 3\)",
        ),
        ({"obs": np.zeros((2, 3, 64, 64), np.float32)}, "obs must be uint8"),
        ({"action": np.zeros(2, np.int32)}, r"action must be int64 \(2,\), got int32"),
        ({"action": np.zeros(3, np.int64)}, "action must be int64"),
        ({"action": np.array([0, 256])}, r"action must be in \[0, 255\]"),
        ({"action": np.array([-1, 0])}, r"action must be in \[0, 255\]"),
        ({"reward": np.zeros(2)}, "reward must be float32"),
        ({"reward": [0.0, 0.0]}, "reward must be float32.*got list"),
        ({"is_last": np.zeros(2, np.uint8)}, "is_last must be bool"),
        ({"terminated": np.zeros((2, 1), np.bool_)}, "terminated must be bool"),
    ],
)
def test_append_refuses_other_dtypes_and_shapes(changes, told):
    replay = Replay(8, 2, CPU)
    row = dataclasses.replace(transition(np.random.default_rng(0), 2), **changes)
    with pytest.raises(ValueError, match=told):
        replay.append(row)
    assert len(replay) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 3, "num_streams": 4},
        {"num_streams": 0},
        {"recency": 0.5},
        {"recency": float("nan")},
        {"demonstration_share": 0.5},
        {"demonstration_share": 1.5},
    ],
)
def test_replay_refuses_impossible_settings(options):
    with pytest.raises(ValueError, match="got"):
        Replay(**({"capacity": 8, "num_streams": 2, "device": CPU} | options))


@pytest.mark.parametrize(("batch_size", "length"), [(0, 3), (2, 0)])
def test_empty_batches_are_refused(batch_size, length):
    replay, _ = filled(10, 1, 8)
    with pytest.raises(ValueError, match="at least one window"):
        replay.sample(batch_size, length, generator())


# --- demonstration -----------------------------------------------------------------------------------------------


def demonstration(num_steps):
    rng = np.random.default_rng(9)
    terminated = rng.random(num_steps) < 0.3
    return Demonstration(
        obs=rng.integers(0, 256, (num_steps, 3, 64, 64), dtype=np.uint8),
        action=rng.integers(0, 6, num_steps),
        reward=-np.arange(1, num_steps + 1, dtype=np.float32),
        terminated=terminated,
        is_first=np.concatenate([[True], terminated[:-1]]),
    )


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_last_windows_come_from_the_demonstration(share, expected):
    play = demonstration(9)
    replay, naive = filled(12, 2, 20, demonstration=play, demonstration_share=share)
    own = {key(window) for window in naive.windows(4)}
    seen = set()
    for seed in range(20):
        batch = replay.sample(8, 4, generator(seed))
        assert {tuple(reward.tolist()) for reward in batch.reward[: 8 - expected]} <= own
        for b in range(8 - expected, 8):
            t = int(-batch.reward[b, 0]) - 1
            seen.add(t)
            for name in ("obs", "action", "reward", "terminated", "is_first"):
                np.testing.assert_array_equal(
                    getattr(batch, name)[b].numpy(), getattr(play, name)[t : t + 4], err_msg=name
                )
            for name in ("truncated", "life_lost", "is_last"):
                assert not getattr(batch, name)[b].any()
    assert seen == (set(range(6)) if expected > 1 else seen)


def test_a_demonstration_does_not_count_as_rows():
    replay = Replay(12, 2, CPU, demonstration=demonstration(9), demonstration_share=0.5)
    assert len(replay) == 0
    assert replay.capacity == 12
    assert replay.nbytes == (12 + 9) * ROW_BYTES


def test_a_demonstration_shorter_than_the_window_is_told():
    replay, _ = filled(12, 1, 12, demonstration=demonstration(3), demonstration_share=0.5)
    replay.sample(8, 3, generator())
    with pytest.raises(ValueError, match="demonstration must hold a window of 4 rows, got 3"):
        replay.sample(8, 4, generator())


# --- saving and restoring ----------------------------------------------------------------------------------------


def test_rows_read_and_written_back_sample_the_same():
    replay, _ = filled(15, 3, 30, keep_last_obs=False, recency=1.5)
    last = replay.written
    first = last - replay.lengths
    other = Replay(15, 3, CPU, keep_last_obs=False, recency=1.5)
    other.write_rows(first, last, replay.read_rows(first, last))
    other.restore_written(last, replay.id)
    assert other.id == replay.id
    row = transition(np.random.default_rng(1), 3, 99)
    for same in (replay, other):
        same.append(row)
    batches = [same.sample(50, 4, generator()) for same in (replay, other)]
    for name in ROW:
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name)), name


def test_rows_that_are_gone_or_to_come_are_refused():
    replay, _ = filled(5, 1, 8)
    for first, last in (([2], [5]), ([4], [9]), ([6], [5])):
        with pytest.raises(ValueError, match="not all stored"):
            replay.read_rows(np.array(first), np.array(last))
    rows = replay.read_rows(np.array([3]), np.array([6]))
    with pytest.raises(ValueError, match="replay rows must have"):
        replay.write_rows(np.array([3]), np.array([7]), rows)
    with pytest.raises(ValueError, match="got nothing"):
        replay.write_rows(np.array([3]), np.array([6]), {"obs": rows["obs"]})


@pytest.mark.parametrize(("capacity", "num_appends"), [(60, 7), (12, 9)])
def test_the_mean_frame_is_that_of_every_stored_row(capacity, num_appends):
    replay, naive = filled(capacity, 3, num_appends, keep_last_obs=False, demonstration=demonstration(9))
    frames = np.stack([row["obs"] for stream in naive.streams for row in stream])
    assert len(frames) == len(replay)
    np.testing.assert_allclose(replay.mean_frame().numpy(), frames.astype(np.float64).mean(0) / 255, rtol=1e-6)
