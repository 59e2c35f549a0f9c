import io
import pickle
import zipfile

import numpy as np
import pytest

from stormfast.demonstration import load_demonstration
from stormfast.errors import UserError
from stormfast.presets import preset_config
from stormfast.schema import override
from stormfast.settings import validate

STEPS = 7


def arrays(**changes):
    rng = np.random.default_rng(0)
    good = {
        "obs": rng.integers(0, 256, (STEPS, 64, 64, 3), dtype=np.uint8),
        "action": rng.integers(0, 6, STEPS),
        "reward": rng.normal(size=STEPS),
        "termination": np.array([0, 0, 1, 0, 0, 1, 0]),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def saved(tmp_path, **changes):
    path = tmp_path / "play.npz"
    np.savez(path, **arrays(**changes))
    return path


def test_reads_channels_last_and_first_alike(tmp_path):
    given = arrays()
    demonstration = load_demonstration(saved(tmp_path), num_actions=6)
    assert len(demonstration) == STEPS
    for t in range(STEPS):
        for channel in range(3):
            np.testing.assert_array_equal(demonstration.obs[t, channel], given["obs"][t, :, :, channel])
    first = load_demonstration(saved(tmp_path, obs=given["obs"].transpose(0, 3, 1, 2)), num_actions=6)
    np.testing.assert_array_equal(first.obs, demonstration.obs)


def test_fields_have_the_dtypes_of_a_transition(tmp_path):
    demonstration = load_demonstration(saved(tmp_path), num_actions=6)
    given = arrays()
    assert [getattr(demonstration, n).dtype for n in ("obs", "action", "reward", "terminated", "is_first")] == [
        np.uint8,
        np.int64,
        np.float32,
        np.bool_,
        np.bool_,
    ]
    np.testing.assert_array_equal(demonstration.action, given["action"])
    np.testing.assert_array_equal(demonstration.reward, given["reward"].astype(np.float32))


def test_the_row_after_a_termination_is_first(tmp_path):
    demonstration = load_demonstration(saved(tmp_path), num_actions=6)
    assert demonstration.terminated.tolist() == [False, False, True, False, False, True, False]
    assert demonstration.is_first.tolist() == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32])
def test_termination_may_be_bool_or_numbers(tmp_path, dtype):
    path = saved(tmp_path, termination=np.array([0, 0, 1, 0, 0, 1, 0], dtype))
    assert load_demonstration(path, num_actions=6).terminated.sum() == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"obs": None}, "obs is missing"),
        ({"action": None, "termination": None}, "action and termination are missing"),
        ({"obs": np.zeros((STEPS, 64, 64, 3), np.float32)}, "got float32 [7, 64, 64, 3]"),
        ({"obs": np.zeros((STEPS, 84, 84, 3), np.uint8)}, "got uint8 [7, 84, 84, 3]"),
        ({"obs": np.zeros((STEPS, 64, 64), np.uint8)}, "got uint8 [7, 64, 64]"),
        ({"obs": np.zeros((STEPS, 64, 3, 64), np.uint8)}, "got uint8 [7, 64, 3, 64]"),
        ({"obs": np.zeros((0, 64, 64, 3), np.uint8)}, "T >= 1"),
        ({"action": np.zeros(STEPS - 1, np.int64)}, "action must be [7]"),
        ({"action": np.zeros((STEPS, 1), np.int64)}, "got shape [7, 1]"),
        ({"action": np.zeros(STEPS)}, "action must be integers, got float64"),
        ({"action": np.array([0, 1, 6, 0, 0, 0, 0])}, "got 6 at step 2"),
        ({"action": np.array([0, 1, -1, 0, 0, 0, 0])}, "got -1 at step 2"),
        ({"reward": np.zeros(STEPS + 1)}, "reward must be [7]"),
        ({"reward": np.zeros(STEPS, np.int64)}, "reward must be floats, got int64"),
        ({"reward": np.array([0, np.nan, 0, 0, 0, 0, 0])}, "got nan at step 1"),
        ({"reward": np.array([0, 0, 0, 1e39, 0, 0, 0])}, "got 1e+39 at step 3"),
        ({"termination": np.array([0, 0, 2, 0, 0, 0, 0])}, "got 2 at step 2"),
        ({"termination": np.array(["0"] * STEPS)}, "must be bool or 0/1, got <U1"),
        ({"termination": np.array(True)}, "termination must be [7]"),
        ({"reward": np.array([None] * STEPS)}, "expected a readable .npz"),  # would need pickle
    ],
)
def test_wrong_arrays_are_told_in_one_line(tmp_path, changes, told):
    path = saved(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load_demonstration(path, num_actions=6)
    message = str(error.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def zip_of_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("obs", "action", "reward", "termination"):
            archive.writestr(f"{name}.npy", "no array")
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", npy(), zip_of_text(), pickle.dumps(Bomb())],
    ids=["empty", "text", "npy", "zip", "pickle"],
)
def test_not_an_npz_is_told_in_one_line(tmp_path, content):
    path = tmp_path / "play.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Demonstration .*play\.npz.*expected") as error:
        load_demonstration(path, num_actions=6)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_told_in_one_line(tmp_path, part):
    path = tmp_path / "play.npz"
    np.savez_compressed(path, **arrays())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UserError, match="readable"):
        load_demonstration(path, num_actions=6)


def test_a_damaged_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "play.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="readable"):
        load_demonstration(path, num_actions=6)


def test_a_missing_file_and_a_directory_are_told(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_demonstration(tmp_path / "none.npz", num_actions=6)
    with pytest.raises(UserError, match="directory"):
        load_demonstration(tmp_path, num_actions=6)


def test_too_short_for_a_window(tmp_path):
    path = saved(tmp_path)
    assert len(load_demonstration(path, num_actions=6, min_length=STEPS)) == STEPS
    with pytest.raises(UserError, match="at least 8 steps, one window, got 7"):
        load_demonstration(path, num_actions=6, min_length=STEPS + 1)


# --- its share of a batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "windows", "contexts", "holds"), [
    (0.05, 8, 128, False),  # 0.4 of a window: none
    (0.05, 128, 8, False),
    (0.0625, 8, 128, False),  # half a window rounds to none
    (0.07, 8, 128, True),
    (0.125, 8, 8, True),
    (0.05, 16, 1024, True),
    (1.0, 1, 1, True),
])  # fmt: skip
def test_a_share_that_gives_no_window_of_a_batch_is_told(share, windows, contexts, holds):
    values = {"demonstration": "play.npz", "demonstration_share": share}
    sizes = {"world_model.batch_size": windows, "imagination.batch_size": contexts}
    sizes["imagination.contexts_per_window"] = 1
    config = override(
        preset_config("cpu", "standard"), sizes | {f"replay.{name}": value for name, value in values.items()}
    )
    assert holds == (min(round(share * windows), round(share * contexts)) >= 1)  # as replay counts
    if holds:
        validate(config)
        return
    with pytest.raises(
        UserError,
        match=r"demonstration_share must give one window or more of each batch, .* got 0\.0.*; give 0\.1\d or more$",
    ):
        validate(config)
