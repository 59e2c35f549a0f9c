import contextlib
import dataclasses
import errno
import itertools
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stormfast.commands.train import read_config
from stormfast.errors import UserError
from stormfast.presets import preset_config
from stormfast.records import Transition
from stormfast.replay import ROW_BYTES, Replay
from stormfast.runs import checkpoint
from stormfast.runs.checkpoint import load_checkpoint, save_checkpoint
from stormfast.runs.manifest import describe
from stormfast.schema import override
from tests.model_fixtures import create

CPU = torch.device("cpu")


def append(replay, num_rows, rng):
    """Appends rows of random content and, with keep_last_obs False, of random streams."""
    n = replay.num_streams
    for _ in range(num_rows):
        flags = {name: rng.random(n) < 0.3 for name in ("terminated", "truncated", "life_lost", "is_first", "is_last")}
        obs = rng.integers(0, 256, (n, 3, 64, 64), dtype=np.uint8)
        replay.append(
            Transition(obs=obs, action=rng.integers(0, 18, n), reward=rng.normal(size=n).astype(np.float32), **flags)
        )


def contents(replay):
    """All that is in a replay, and what it would sample next."""
    rows = replay.read_rows(replay.written - replay.lengths, replay.written)
    drawn = (
        replay.sample(20, 2, torch.Generator().manual_seed(0)).obs.sum()
        if replay.lengths.max() >= 2
        else torch.zeros(())
    )
    return {**rows, "written": torch.from_numpy(replay.written), "drawn": drawn}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def like(replay):
    return Replay(replay.capacity, replay.num_streams, CPU, keep_last_obs=replay.keep_last_obs)


def restored(run_dir, replay):
    fresh = like(replay)
    load_checkpoint(run_dir, CPU).restore_replay(fresh)
    return fresh


def files(run_dir):
    """name: (size, inode) of what lies in the checkpoint directory."""
    return {path.name: (path.stat().st_size, path.stat().st_ino) for path in (run_dir / "checkpoint").iterdir()}


def chunks(run_dir):
    return sorted(
        (name for name in files(run_dir) if name.startswith("replay-")), key=lambda name: int(name.split("-")[1])
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensors(step=0):
    return {"world_model.encoder.0.weight": torch.full((3, 2), float(step)), "step": torch.tensor(step)}


# --- what goes in comes out --------------------------------------------------------------------------------------


def test_tensors_survive_to_the_bit(tmp_path):
    base = torch.randn(6, 4)
    given = {
        "a.b.c.weight": base,
        "transposed": base.t(),
        "a slice of the same memory": base[::2, 1],
        "the same tensor": base,
        "expanded": torch.ones(3, 1).expand(3, 5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bool": torch.tensor([True, False, True]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "int64": torch.tensor([2**62 + 1, -(2**63)]),
        "scalar": torch.tensor(3.0000002),
        "scalar_int": torch.tensor(7),
        "scalar_bool": torch.tensor(True),
        "empty": torch.zeros(0, 4),
        "double": torch.tensor([math.pi, -0.0, math.inf], dtype=torch.float64),
        "bfloat16": torch.randn(5).bfloat16(),
        "half": torch.randn(5).half(),
        "nan": torch.tensor([0x7FC12345, 0x7F812345], dtype=torch.int32).view(torch.float32),
        "rng": torch.Generator().manual_seed(3).get_state(),
    }
    expected = {name: value.detach().clone() for name, value in given.items()}
    save_checkpoint(tmp_path, 3, given, {}, Replay(4, 1, CPU))
    loaded = load_checkpoint(tmp_path, "cpu").tensors
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape), name
        assert (
            loaded[name].numpy(force=True).tobytes() == value.numpy(force=True).tobytes()
            if value.dtype != torch.bfloat16
            else True
        ), name
        assert torch.equal(loaded[name].isnan(), value.isnan()), name
        assert torch.equal(loaded[name].nan_to_num(), value.nan_to_num()), name


def test_step_and_meta_survive(tmp_path):
    meta = {
        "episodes": 3,
        "returns": [1.5, -21.0],
        "numpy_rng": {"state": 2**127 + 1},
        "best": -math.inf,
        "game": "Pöng",
        "none": None,
    }
    save_checkpoint(tmp_path, np.int64(12), tensors(), meta, Replay(4, 1, CPU))
    loaded = load_checkpoint(tmp_path, CPU)
    assert (loaded.step, loaded.meta) == (12, meta)
    with pytest.raises(ValueError, match="meta must be what JSON can hold"):
        save_checkpoint(tmp_path, 13, tensors(), {"path": tmp_path}, Replay(4, 1, CPU))
    assert load_checkpoint(tmp_path, CPU).step == 12


@pytest.mark.parametrize(
    ("capacity", "num_streams", "keep_last_obs", "chunk_rows"),
    [
        (7, 1, True, 2),
        (7, 1, False, 5),
        (7, 1, True, 1000),
        (10, 2, False, 2),
        (10, 2, True, 5),
        (10, 2, False, 1000),
        (17, 3, True, 2),
        (17, 3, False, 5),
        (17, 3, True, 1000),
    ],
)
def test_replay_survives_any_sequence_of_saves(
    tmp_path, monkeypatch, rng, capacity, num_streams, keep_last_obs, chunk_rows
):
    monkeypatch.setattr(checkpoint, "CHUNK_ROWS", chunk_rows)
    replay = Replay(capacity, num_streams, CPU, keep_last_obs=keep_last_obs)
    for step, num_rows in enumerate([0, 1, 2, 0, 3, 7, 1, 1, 20, 4, 5]):
        append(replay, num_rows, rng)
        save_checkpoint(tmp_path, step, tensors(step), {}, replay)
        fresh = restored(tmp_path, replay)
        assert same(contents(fresh), contents(replay))
        names = files(tmp_path)
        assert sum(name.startswith("state-") for name in names) == 1
        held = sum(int(name.split(".")[0].split("-")[2]) - int(name.split("-")[1]) for name in chunks(tmp_path))
        assert held <= 2 * replay.capacity
        if step % 3 == 2:
            replay = fresh  # as a resume does


def test_a_resumed_replay_goes_on_like_the_saved_one(tmp_path, rng):
    replay = Replay(9, 2, CPU)
    append(replay, 6, rng)
    save_checkpoint(tmp_path, 1, tensors(), {}, replay)
    fresh = restored(tmp_path, replay)
    for one in (replay, fresh):
        append(one, 5, np.random.default_rng(7))
    assert same(contents(fresh), contents(replay))


# --- what a save costs -------------------------------------------------------------------------------------------


def test_a_save_writes_only_new_rows(tmp_path, rng, monkeypatch):
    replay = Replay(100, 2, CPU)
    append(replay, 20, rng)
    save_checkpoint(tmp_path, 1, tensors(1), {}, replay)
    before = files(tmp_path)
    written = []
    save_file = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", lambda data, path: (written.append(path), save_file(data, path)))
    append(replay, 3, rng)
    save_checkpoint(tmp_path, 2, tensors(2), {}, replay)
    after = files(tmp_path)
    assert [path.name for path in written] == [".replay-40-46.safetensors.tmp", ".state-2.safetensors.tmp"]
    assert after["replay-0-40.safetensors"] == before["replay-0-40.safetensors"]
    assert after["replay-40-46.safetensors"][0] == pytest.approx(6 * ROW_BYTES, abs=1000)
    save_checkpoint(tmp_path, 3, tensors(3), {}, replay)  # no new rows
    assert chunks(tmp_path) == ["replay-0-40.safetensors", "replay-40-46.safetensors"]
    assert set(after) - set(files(tmp_path)) == {"state-2.safetensors"}


def test_a_resumed_run_does_not_write_old_rows_again(tmp_path, rng):
    replay = Replay(50, 1, CPU)
    append(replay, 20, rng)
    save_checkpoint(tmp_path, 1, tensors(1), {}, replay)
    before = files(tmp_path)
    fresh = restored(tmp_path, replay)
    append(fresh, 2, rng)
    save_checkpoint(tmp_path, 2, tensors(2), {}, fresh)
    assert chunks(tmp_path) == ["replay-0-20.safetensors", "replay-20-22.safetensors"]
    assert files(tmp_path)["replay-0-20.safetensors"] == before["replay-0-20.safetensors"]


def test_files_of_lost_rows_are_deleted(tmp_path, rng):
    replay = Replay(10, 1, CPU)
    for step in range(1, 12):
        append(replay, 3, rng)
        save_checkpoint(tmp_path, step, tensors(), {}, replay)
    assert chunks(tmp_path) == [
        f"replay-{first}-{first + 3}.safetensors" for first in (21, 24, 27, 30)
    ]  # rows 23 .. 32 live


def test_streams_of_unlike_pace_do_not_fill_the_disk(tmp_path, rng):
    """One stream hardly moves and keeps old files alive: replay is written afresh before dead rows fill it."""
    replay = Replay(20, 2, CPU, keep_last_obs=False)
    held = []
    for step in range(25):
        for i in range(10):
            slow = np.array([i > 0, False])
            flags = dict.fromkeys(("terminated", "truncated", "life_lost", "is_first"), np.zeros(2, np.bool_))
            obs = rng.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
            replay.append(
                Transition(
                    obs=obs,
                    action=np.zeros(2, np.int64),
                    reward=rng.normal(size=2).astype(np.float32),
                    is_last=slow,
                    **flags,
                )
            )
        save_checkpoint(tmp_path, step, tensors(), {}, replay)
        held.append(sum(size for name, (size, _) in files(tmp_path).items() if name.startswith("replay-")))
        assert same(contents(restored(tmp_path, replay)), contents(replay))
    assert max(held) <= 2 * replay.capacity * ROW_BYTES + 10_000
    assert max(held) > 1.5 * replay.capacity * ROW_BYTES, "the test must reach the limit"


def test_replay_files_hold_the_fields_by_name(tmp_path, rng):
    """The layout of a row in memory stays out of the files: they outlive it."""
    replay = Replay(10, 2, CPU)
    append(replay, 3, rng)
    save_checkpoint(tmp_path, 1, tensors(), {}, replay)
    saved = load_file(tmp_path / "checkpoint" / "replay-0-6.safetensors")
    flags = dict.fromkeys(("terminated", "truncated", "life_lost", "is_first", "is_last"), (torch.bool, (6,)))
    expected = {
        "obs": (torch.uint8, (6, 3, 64, 64)),
        "action": (torch.uint8, (6,)),
        "reward": (torch.float32, (6,)),
        **flags,
    }
    assert {name: (value.dtype, tuple(value.shape)) for name, value in saved.items()} == expected


def test_a_large_save_is_cut_into_pieces(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_ROWS", 8)
    replay = Replay(60, 3, CPU)
    append(replay, 10, rng)
    save_checkpoint(tmp_path, 1, tensors(), {}, replay)
    assert len(chunks(tmp_path)) == 4
    assert max(size for name, (size, _) in files(tmp_path).items() if name.startswith("replay-")) < 9 * ROW_BYTES + 1000


def test_another_replay_does_not_take_over_rows(tmp_path, rng):
    """The rows on disk are told apart by the replay's id, not by their number."""
    for step in range(3):
        replay = Replay(10, 1, CPU)
        append(replay, 5 + step, rng)
        save_checkpoint(tmp_path, 1, tensors(), {}, replay)
        assert same(contents(restored(tmp_path, replay)), contents(replay))


def test_a_chunk_that_vanished_is_written_again(tmp_path, rng):
    replay = Replay(10, 1, CPU)
    append(replay, 5, rng)
    save_checkpoint(tmp_path, 1, tensors(), {}, replay)
    (tmp_path / "checkpoint" / chunks(tmp_path)[0]).unlink()
    append(replay, 1, rng)
    save_checkpoint(tmp_path, 2, tensors(), {}, replay)
    assert same(contents(restored(tmp_path, replay)), contents(replay))


def test_saving_the_same_step_twice(tmp_path, rng):
    replay = Replay(10, 1, CPU)
    for value in range(4):
        append(replay, 2, rng)
        save_checkpoint(tmp_path, 5, tensors(value), {"value": value}, replay)
        loaded = load_checkpoint(tmp_path, CPU)
        assert (loaded.step, loaded.meta["value"], int(loaded.tensors["step"])) == (5, value, value)
    assert sum(name.startswith("state-5") for name in files(tmp_path)) == 1


def test_files_of_others_are_left_alone(tmp_path, rng):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    for step in range(3):
        save_checkpoint(tmp_path, step, tensors(), {}, Replay(4, 1, CPU))
    assert (tmp_path / "checkpoint" / "notes.txt").read_text() == "mine"


# --- kills and full disks ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ended here: nothing after this ran."""


def interrupt(monkeypatch, at, error, half=False):
    """Raises `error` in place of the at-th call that touches the disk (with half: after half of a file was written)."""
    calls = itertools.count()

    def wrap(original):
        def wrapped(*args, **kwargs):
            if next(calls) == at:
                if half and original is real_save:
                    original(*args, **kwargs)
                    os.truncate(args[1], Path(args[1]).stat().st_size // 2)
                raise error
            return original(*args, **kwargs)

        return wrapped

    real_save = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", wrap(real_save))
    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", wrap(Path.unlink))
    monkeypatch.setattr(Path, "mkdir", wrap(Path.mkdir))


def two_saves(run_dir, monkeypatch, at, error, half=False, step=2):
    """A save that succeeds and one that is interrupted at call `at`.

    Returns (outcome, replay, contents at each save).
    """
    rng = np.random.default_rng(0)  # the same calls for each `at`
    replay = Replay(14, 2, CPU, keep_last_obs=False)
    append(replay, 12, rng)
    save_checkpoint(run_dir, 1, tensors(1), {"n": 1}, replay)
    first = contents(replay)
    append(replay, 4, rng)
    with monkeypatch.context() as patch:
        interrupt(patch, at, error, half)
        try:
            save_checkpoint(run_dir, step, tensors(2), {"n": 2}, replay)
            outcome = None
        except (Killed, UserError) as raised:
            outcome = raised
    return outcome, replay, {1: first, 2: contents(replay)}


@pytest.mark.parametrize(("half", "step"), [(False, 2), (True, 2), (False, 1)], ids=["before", "halfway", "same step"])
def test_a_kill_at_any_call_leaves_one_of_the_two(tmp_path, monkeypatch, rng, half, step):
    monkeypatch.setattr(checkpoint, "CHUNK_ROWS", 3)
    survivors = []  # 1 or 2, the save that a load finds
    for at in itertools.count():
        run_dir = tmp_path / str(at)
        killed, replay, expected = two_saves(run_dir, monkeypatch, at, Killed(), half, step)
        loaded = load_checkpoint(run_dir, CPU)
        survivors.append(loaded.meta["n"])
        assert loaded.step == (1 if survivors[-1] == 1 else step)
        assert same(loaded.tensors, tensors(survivors[-1]))
        resumed = restored(run_dir, replay)
        assert same(contents(resumed), expected[survivors[-1]])
        append(resumed, 3, rng)  # the resumed run saves over whatever the kill left, under the same names
        save_checkpoint(run_dir, 2, tensors(7), {"n": 3}, resumed)
        assert same(contents(restored(run_dir, replay)), contents(resumed))
        document = json.loads((run_dir / "checkpoint" / "checkpoint.json").read_text())
        named = {document["state"]["name"], *(chunk["file"]["name"] for chunk in document["replay"]["chunks"])}
        assert set(files(run_dir)) == named | {"checkpoint.json"}, "litter of the killed save"
        if not killed:
            break
    assert len(survivors) > 15
    assert survivors == sorted(survivors), "a kill after the commit must leave the new checkpoint"
    assert {survivors[0], survivors[-1]} == {1, 2}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error:\nNo space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_at_any_call_is_told(tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint, "CHUNK_ROWS", 3)
    told = []
    for at in itertools.count():
        run_dir = tmp_path / str(at)
        raised, replay, expected = two_saves(run_dir, monkeypatch, at, error)
        if raised is None:
            break
        assert isinstance(raised, UserError)
        message = str(raised)
        assert "No space left on device" in message
        assert "\n" not in message
        step = load_checkpoint(run_dir, CPU).step
        told.append(step)
        assert ("the previous one, of step 1, is intact" if step == 1 else "it is in place all the same") in message
        assert same(contents(restored(run_dir, replay)), expected[step])
        if step == 1:
            assert not [name for name in files(run_dir) if name.endswith(".tmp")], "a failed save must make room again"
    assert len(told) > 15
    assert {1, 2} == set(told)


def test_an_unwritable_directory_is_told(tmp_path):
    (tmp_path / "checkpoint").write_text("a file in the way")
    with pytest.raises(
        UserError, match=r"checkpoint of step 4 cannot be saved in .*there was none before.*then start again\."
    ):
        save_checkpoint(tmp_path, 4, tensors(), {}, Replay(4, 1, CPU))


WRITER = """
import sys
from pathlib import Path
import numpy as np, torch
from stormfast.runs import checkpoint
from stormfast.records import Transition
from stormfast.replay import FLAGS, Replay

checkpoint.CHUNK_ROWS = 16
run_dir = Path(sys.argv[1])
replay, step = Replay(60, 2, torch.device("cpu")), 0
if (run_dir / "checkpoint" / "checkpoint.json").exists():
    saved = checkpoint.load_checkpoint(run_dir, "cpu")
    saved.restore_replay(replay)
    step = saved.step
while True:
    for _ in range(1 + step % 5):
        value = int(replay.written[0])
        flags = {name: np.zeros(2, np.bool_) for name in FLAGS}
        obs = np.full((2, 3, 64, 64), value % 251, np.uint8)
        replay.append(Transition(obs=obs, action=np.full(2, value % 7), reward=np.float32([value, -value]), **flags))
    step += 1
    state = {"weights": torch.full((1000,), float(step)), "written": torch.from_numpy(replay.written)}
    checkpoint.save_checkpoint(run_dir, step, state, {"step": step}, replay)
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_sigkill_leaves_a_loadable_checkpoint(tmp_path):
    chance, reached = random.Random(0), 0
    for _ in range(12):
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
        ) as writer:
            told = int(writer.stdout.readline())  # one save is done
            time.sleep(chance.uniform(0, 0.3))
            writer.kill()
            told = max([told, *map(int, writer.stdout.read().split())])
        loaded = load_checkpoint(tmp_path, CPU)
        assert loaded.step >= told > reached, "a save that returned is lost"
        reached = told
        assert loaded.meta == {"step": loaded.step}
        assert torch.equal(loaded.tensors["weights"], torch.full((1000,), float(loaded.step)))
        replay = Replay(60, 2, CPU)
        loaded.restore_replay(replay)
        assert torch.equal(torch.from_numpy(replay.written), loaded.tensors["written"])
        rows = replay.read_rows(replay.written - replay.lengths, replay.written)
        number = torch.arange(int(replay.written[0]))[-30:]
        assert torch.equal(rows["reward"], torch.cat([number, -number]).float())
        assert torch.equal(rows["obs"][:, 0, 0, 0].long(), torch.cat([number, number]) % 251)


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, rng):
    """A run with a checkpoint of two chunks."""
    replay = Replay(12, 2, CPU)
    for step in (1, 2):
        append(replay, 2, rng)
        save_checkpoint(tmp_path, step, tensors(step), {}, replay)
    return tmp_path


def told(run_dir, *parts, **options):
    with pytest.raises(UserError) as error:
        load_checkpoint(run_dir, CPU, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def test_a_missing_checkpoint_is_told(tmp_path):
    advice = "cannot go on: start it anew with the command that started it, with its --run-dir"
    told(tmp_path, "No checkpoint in", str(tmp_path / "checkpoint" / "checkpoint.json"), advice)
    told(tmp_path / "nowhere", "No checkpoint in")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state-2.safetensors").touch()
    told(tmp_path, "checkpoint.json is missing beside the files that it names; put back an intact copy")


def test_the_command_that_starts_a_run_anew_is_told(tmp_path):
    values = {"game": "Catch", "run_dir": str(tmp_path / "my run"), "agent.gamma": 0.5, "logging.tensorboard": False}
    config = override(preset_config("tiny", "standard"), values)
    create(config)
    command = told(tmp_path / "my run", "start it anew with").partition("`stormfast train ")[2].removesuffix("`")
    assert read_config(shlex.split(command)).one_run() == config


@pytest.mark.parametrize("name", ["state-2.safetensors", "replay-0-4.safetensors", "replay-4-8.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "delete", "directory"])
def test_a_damaged_file_is_told(run, name, damage):
    path = run / "checkpoint" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "grow":
        path.write_bytes(content + b"\0")
    else:
        path.unlink()
        if damage == "directory":
            path.mkdir()
    words = {
        "flip": "sha256",
        "truncate": "cut short",
        "grow": "must have",
        "delete": "is missing",
        "directory": "must have",
    }
    told(run, name, words[damage], "put back an intact copy, or start a new run")
    if name.startswith("replay"):
        assert load_checkpoint(run, CPU, replay=False).step == 2
    else:
        told(run, name, replay=False)


def edit(run_dir, change):
    path = run_dir / "checkpoint" / "checkpoint.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_another_format_is_told(run):
    edit(run, lambda document: document.update(format=99))
    told(run, "checkpoint.json", "format 99", "reads format 1", "use the stormfast version that wrote it")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("format"),
        lambda d: d.pop("state"),
        lambda d: d.update(step="many"),
        lambda d: d.update(step=-3),
        lambda d: d.update(step=2**53),
        lambda d: d.update(step=10**400),
        lambda d: d.update(step=float("inf")),
        lambda d: d.update(step=1.5),
        lambda d: d.update(step=True),
        lambda d: d["state"].update(bytes=10**400),
        lambda d: d["replay"].update(rows_per_stream=10**400),
        lambda d: d["replay"].update(written=[10**400, 4]),
        lambda d: d["replay"].update(chunks=[]),
        lambda d: d.update(meta=[]),
        lambda d: d.update(replay=None),
        lambda d: d["state"].update(name="../../config.json"),
        lambda d: d["replay"]["chunks"].pop(0),
        lambda d: d["replay"]["chunks"].pop(1),
        lambda d: d["replay"]["chunks"].reverse(),
        lambda d: d["replay"].update(written=[4]),
        lambda d: d["replay"].update(written=[]),
        lambda d: d["replay"].update(written=[-4, 4]),
        lambda d: d["replay"]["chunks"][0].update(first=[3, 0]),
    ],
)
def test_a_manifest_that_makes_no_sense_is_told(run, change):
    edit(run, change)
    told(run, "checkpoint.json is damaged", "put back an intact copy")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', 100_000 * b"[", 5_000 * b"1", b'{"format": 1, "step": 1e400}'],
    ids=range(9),
)
def test_a_manifest_that_does_not_parse_is_told(run, content):
    (run / "checkpoint" / "checkpoint.json").write_bytes(content)
    told(run, "checkpoint.json is damaged")


def test_saving_over_a_damaged_manifest_keeps_its_files_until_the_commit(run, monkeypatch, rng):
    before = chunks(run)
    (run / "checkpoint" / "checkpoint.json").write_bytes(b"{")
    replay = Replay(12, 2, CPU)
    append(replay, 2, rng)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", lambda path, data: (_ for _ in ()).throw(Killed()))
        with contextlib.suppress(Killed):
            save_checkpoint(run, 2, tensors(5), {}, replay)
    assert set(before) | {"state-2.safetensors"} <= set(files(run))
    save_checkpoint(run, 2, tensors(5), {}, replay)
    assert same(contents(restored(run, replay)), contents(replay))
    assert len(files(run)) == 3


@pytest.mark.parametrize(("capacity", "num_streams"), [(12, 1), (12, 3), (14, 2)])
def test_a_replay_of_other_sizes_is_told(run, capacity, num_streams):
    replay = Replay(capacity, num_streams, CPU)
    with pytest.raises(
        UserError,
        match=r"checkpoint\.json holds a replay of 2 streams x 6 rows, .* resume with num_envs 2 and replay\.cap",
    ):
        load_checkpoint(run, CPU).restore_replay(replay)
    assert len(replay) == 0


def shorten(document, last):
    """Makes the manifest say that the last chunk ends, and writing stopped, at other rows than it does."""
    document["replay"].update(written=last)
    document["replay"]["chunks"][-1].update(last=last)


@pytest.mark.parametrize("last", [[3, 4], [2**52, 2**52], [4, 5]])
def test_rows_that_are_not_what_the_manifest_says_are_told(run, last):
    edit(run, lambda document: shorten(document, last))
    with pytest.raises(
        UserError,
        match=r"replay-4-8\.safetensors does not hold the rows that checkpoint\.json names .*put back an intact copy",
    ):
        load_checkpoint(run, CPU).restore_replay(Replay(12, 2, CPU))


def test_replay_files_of_other_fields_are_told(run):
    path = run / "checkpoint" / "replay-4-8.safetensors"
    for rows in ({}, {"obs": load_file(path)["obs"]}):
        save_file(rows, path)
        edit(run, lambda document: document["replay"]["chunks"][-1].update(file=dataclasses.asdict(describe(path))))
        with pytest.raises(UserError, match=r"replay-4-8\.safetensors does not hold the rows"):
            load_checkpoint(run, CPU).restore_replay(Replay(12, 2, CPU))


def test_a_replay_with_rows_is_not_overwritten(run, rng):
    replay = Replay(12, 2, CPU)
    append(replay, 1, rng)
    with pytest.raises(ValueError, match="needs an empty replay, got one with 2 rows"):
        load_checkpoint(run, CPU).restore_replay(replay)


def test_a_reader_that_races_a_save_takes_the_newer_one(run, monkeypatch, rng):
    """An evaluation may load while training saves: the files of the manifest it read are then gone."""
    check_files, raced = checkpoint.check_files, []

    def save_between(directory, listed):
        if not raced:
            raced.append(True)
            save_checkpoint(run, 3, tensors(3), {}, Replay(12, 2, CPU))
        check_files(directory, listed)

    monkeypatch.setattr(checkpoint, "check_files", save_between)
    assert load_checkpoint(run, CPU, replay=False).step == 3


@pytest.mark.gpu
def test_on_cuda(tmp_path, rng):
    device = torch.device("cuda")
    replay, fresh = (Replay(12, 2, device) for _ in range(2))
    append(replay, 9, rng)
    given = {"weight": torch.randn(3, 4, device=device).t(), "step": torch.tensor(3.0)}
    save_checkpoint(tmp_path, 1, given, {}, replay)
    loaded = load_checkpoint(tmp_path, device)
    assert all(value.device.type == "cuda" for value in loaded.tensors.values())
    assert torch.equal(loaded.tensors["weight"], given["weight"])
    loaded.restore_replay(fresh)
    rows, expected = (one.read_rows(one.written - one.lengths, one.written) for one in (fresh, replay))
    assert same(rows, expected)
