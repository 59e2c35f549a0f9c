"""Floors are what they are by hand; every mistake is one line; table, JSON and picture say the same."""

import io
import json
import subprocess
import sys
from pathlib import Path

import gpus
import pytest
import roofline
from gpus import Device
from roofline_picture import picture, spread
from roofline_table import number
from work_kernels import Kernel

DEVICE = Device("a device", 1e12, 1e11, 1e10, "made up")  # ridges at 100 and 10 FLOP a byte
SCRIPT = Path(roofline.__file__)
PROFILE = SCRIPT.parents[1] / "bench" / "results" / "amd-epyc-2-cores" / "profile-storm.json"


def test_a_floor_adds_the_slower_side_of_each_kernel():
    kernels = [Kernel("arithmetic", 4 * 10**9, 10**7), Kernel("memory", 10**9, 3 * 10**7), Kernel("pass", 0, 10**7)]
    found = roofline.floor(kernels, DEVICE, "bfloat16")
    assert found == {
        "ms": pytest.approx(4 + 3 + 1),
        "arithmetic_ms": pytest.approx(4),
        "binds": "FLOPs",
    }  # half and half
    assert roofline.floor(kernels[1:], DEVICE, "bfloat16")["binds"] == "bytes"
    in_float32 = roofline.floor(kernels, DEVICE, "float32")
    assert in_float32 == {"ms": pytest.approx(40 + 10 + 1), "arithmetic_ms": pytest.approx(50), "binds": "FLOPs"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("roofline") / "found.json"
    assert roofline.main(["--preset", "fast", "--device", "rtx3090", "--peaks", "1,10", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_step_is_its_phases_as_often_as_they_are_called(result):
    rates = {phase["name"]: phase["calls_per_step"] for phase in result["phases"]}
    assert rates["imagination"] == rates["agent"] == 0.25 and rates["world_model"] == 1
    for key in ("rtx3090", "given"):
        floor = result["step"]["floor"][key]
        assert floor["ms"] == pytest.approx(
            sum(phase["floor"][key]["ms"] * phase["calls_per_step"] for phase in result["phases"])
        )
        assert floor["minutes"] == pytest.approx(floor["ms"] * 100_000 / 60_000)
    for phase in result["phases"]:
        for quantity in ("flops", "bytes"):
            assert phase[quantity] == sum(part[quantity] for part in phase["parts"])
        assert phase["floor"]["given"]["ms"] == pytest.approx(
            sum(part["floor"]["given"]["ms"] for part in phase["parts"])
        )


def test_no_part_is_faster_than_its_arithmetic_or_its_traffic(result):
    for part in (part for phase in result["phases"] for part in phase["parts"]):
        least = max(part["flops"] / 1e12, part["bytes"] / 1e10)
        assert part["floor"]["given"]["ms"] >= 1000 * least * (1 - 1e-9)
        again = sum(max(kernel["flops"] / 1e12, kernel["bytes"] / 1e10) for kernel in part["kernels"])
        assert part["floor"]["given"]["ms"] == pytest.approx(1000 * again)


def test_json_says_where_it_comes_from(result):
    assert {"commit", "dirty", "date", "command"} <= result.keys()
    assert result["command"].startswith("profiling/roofline.py --preset fast --device rtx3090 --peaks 1,10 --json ")
    assert result["devices"]["rtx3090"]["source"] == gpus.DEVICES["rtx3090"].source
    assert all(device.source and device.bfloat16_flops > device.float32_flops for device in gpus.DEVICES.values())


def test_the_floor_of_storm_is_near_the_one_that_was_worked_out_by_hand(capsys, tmp_path):
    """An independent estimate by other rules of fusion: 24.0 ms on an RTX 3090, 12.5 on an RTX 4090, 2.75 on an H200."""
    assert roofline.main(["--json", str(tmp_path / "f.json")]) == 0
    floors = json.loads((tmp_path / "f.json").read_text())["step"]["floor"]
    assert {key: floors[key]["ms"] for key in floors} == {
        "h200": pytest.approx(2.75, rel=0.05),
        "rtx4090": pytest.approx(12.5, rel=0.05),
        "rtx3090": pytest.approx(24.0, rel=0.05),
    }


def test_table_and_markdown_hold_the_same_cells(capsys, result):
    arguments = ["--preset", "fast", "--device", "rtx3090", "--peaks", "1,10"]
    assert roofline.main(arguments) == 0
    table = capsys.readouterr().out
    assert roofline.main([*arguments, "--markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1 and set(cells[1]) == {"---", "---:"}
    for line in (cells[0], *cells[2:]):
        assert " ".join(" ".join(line).split()) in " ".join(table.split())
    minutes = number(result["step"]["floor"]["rtx3090"]["minutes"])
    assert f"{minutes} min" in " ".join(table.splitlines()[-3].split())
    assert "imagination x 0.25 a step" in table


def test_settings_and_measured_devices_are_taken(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(roofline, "measured", lambda: (DEVICE, {"device": "a machine", "threads": 2}))
    given = [
        "--set",
        "world_model.channels=[2, 3, 4, 5]",
        "--set",
        "agent.state=hidden",
        "--preset",
        "tiny",
        "--device",
        "measured,h100",
    ]
    assert roofline.main([*given, "--precision", "float32", "--actions", "3", "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["machine"] == {"device": "a machine", "threads": 2} and list(found["devices"]) == ["measured", "h100"]
    assert found["set"] == {"world_model.channels": [2, 3, 4, 5], "agent.state": "hidden"}
    assert "world_model.channels (2, 3, 4, 5)" in capsys.readouterr().out
    encoder = found["phases"][2]["parts"][0]
    assert encoder["flops"] == 2 * 32 * 16 * (1024 * 3 * 2 + 256 * 2 * 3 + 64 * 3 * 4 + 16 * 4 * 5)


def test_a_run_stands_beside_its_floor(capsys, tmp_path):
    assert roofline.main(["--profile", str(PROFILE), "--json", str(tmp_path / "f.json")]) == 0
    ran, found = json.loads(PROFILE.read_text()), json.loads((tmp_path / "f.json").read_text())
    assert list(found["devices"]) == ["profiled"] and found["preset"] == ran["preset"] == "storm"
    rows = {row["name"]: row for row in found["achieved"]}
    agent = next(phase for phase in found["phases"] if phase["name"] == "agent")
    assert rows["agent"]["flops_per_second"] == pytest.approx(agent["flops"] / (ran["phases"]["agent"]["ms"] / 1000))
    assert rows["agent"]["fraction_of_floor"] == pytest.approx(
        agent["floor"]["profiled"]["ms"] / ran["phases"]["agent"]["ms"]
    )
    assert all(
        row["counted_over_formula"] is None or 0.99 < row["counted_over_formula"] <= 1.001 for row in rows.values()
    )
    assert "of the floor's speed" in capsys.readouterr().out


def test_the_picture_shows_every_part(tmp_path, monkeypatch):
    image_module = pytest.importorskip("matplotlib.image")
    import roofline_picture

    seen = []
    monkeypatch.setattr(roofline_picture, "part_label", lambda phase, part: seen.append(part["name"]) or part["name"])
    path = tmp_path / "f.png"
    assert roofline.main(["--profile", str(PROFILE), "--device", "h200", "--picture", str(path)]) == 0
    image = image_module.imread(io.BytesIO(path.read_bytes()))
    assert image.shape[0] > 600 and image.shape[1] > 1500 and image.std() > 0.05
    assert len(seen) == 22 and "encode contexts" in seen


def test_labels_do_not_overlap():
    placed = spread({"a": 100.0, "b": 101.0, "c": 5.0, "d": 102.0}, 1.0, 1000.0)
    assert list(placed) == ["c", "a", "b", "d"] and placed["c"] == 5.0 and placed["a"] == 100.0
    assert placed["b"] / placed["a"] == pytest.approx(1000**0.027) and placed["d"] / placed["b"] == pytest.approx(
        1000**0.027
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "rtx9090"], "--device must be some of rtx3090,"),
        (["--peaks", "165"], "--peaks must be two positive numbers"),
        (["--peaks", "165,-1"], "got '165,-1'"),
        (["--peaks", "nan,1"], "--peaks must be two positive numbers"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--set", "world_model.width"], "--set must be NAME=VALUE"),
        (["--set", "world_model.widht=3"], "world_model.width"),
        (["--set", "world_model.width=many"], "world_model.width"),
        (["--set", "world_model.width=100"], "multiple of world_model.heads"),
        (["--actions", "0"], "--actions must be 1 to 256, got 0"),
        (["--profile", "nowhere.json"], "--profile must be a file that `stormfast profile --json` wrote"),
        (["--profile", str(PROFILE), "--preset", "tiny"], "--preset tiny does not fit --profile, which ran storm"),
        (
            ["--json", "nowhere/f.json"],
            "--json must lie in a directory that can be written, got nowhere/f.json: No such",
        ),
        (
            ["--picture", "nowhere/f.png"],
            "--picture must lie in a directory that can be written, got nowhere/f.png: No such",
        ),
        (["--picture", "f.gif"], "--picture must end in .png, got f.gif"),
        (["--device", ","], "--device must be some of rtx3090,"),
        (["--device", ""], "--device must be some of rtx3090,"),
        (["--peaks", ""], "--peaks must be two positive numbers"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, said):
    """Before the table: nothing is told after the work."""
    assert roofline.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("roofline: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"preset": "storm"}', "\xff"])
def test_a_file_that_is_no_profile_is_one_line(capsys, tmp_path, text):
    path = tmp_path / "p.json"
    path.write_bytes(text.encode("latin1"))
    assert roofline.main(["--profile", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "xx"}, 'preset must be one of storm, fast, cpu, tiny, got "xx"'),
        ({"preset": None}, "preset must be one of storm, fast, cpu, tiny, got null"),
        ({"preset": []}, "unhashable"),
        ({"precision": "int8"}, 'precision must be one of bfloat16, float32, got "int8"'),
        ({"device_name": 3}, "device_name must be a str, got a int"),
        ({"phases": []}, "phases must be a dict, got a list"),
        ({"peaks": None}, "peaks must be a dict, got a NoneType"),
        ({"peaks": {}}, "lacks 'bfloat16_flops'"),
        (
            {"peaks": {"bfloat16_flops": 1e12, "float32_flops": 1e12, "copy_bytes": 0}},
            "peaks.copy_bytes must be a positive number, got 0",
        ),
        ({"step_ms": None}, "step_ms must be a positive number, got null"),
        ({"step_ms": True}, "step_ms must be a positive number, got true"),
        ({"phases": {"act": {"ms": None, "flops": 1}}}, "phases.act.ms must be a number, got null"),
        ({"phases": {"act": {"ms": float("nan"), "flops": 1}}}, "phases.act.ms must be a number, got NaN"),
        ({"phases": {"act": {"ms": 1.0, "flops": 10**400}}}, "phases.act.flops must be a number, got 1000"),
        ({"phases": {"act": {"ms": 1.0}}}, "lacks 'flops'"),
        ({"phases": {"act": []}}, "list indices"),
    ],
)
def test_a_profile_with_another_value_is_one_line(capsys, tmp_path, changes, said):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(json.loads(PROFILE.read_text()) | changes))
    assert roofline.main(["--profile", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert err.startswith(f"roofline: --profile must be a file that `stormfast profile --json` wrote, but {path}")


def test_without_json_no_torch_is_loaded():
    code = f"import sys; sys.path[:0] = [{str(SCRIPT.parent)!r}]; import roofline; roofline.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_help_holds_the_question():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "What is the least time that a training step can take" in done.stdout


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen([sys.executable, SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 141


def test_a_device_is_measured(monkeypatch):
    from stormfast.measure import peaks

    monkeypatch.setitem(peaks.SIZES, "cpu", (64, 2**16))
    device, about = gpus.measured()
    assert device.bfloat16_flops > 0 and device.float32_flops > 0 and device.bytes_per_second > 0
    assert {"device", "torch", "commit"} <= about.keys()


def test_numbers_have_three_digits():
    assert [number(x) for x in (1234.5, 99.94, 9.994, 0.9994, 0.00123)] == ["1,234", "99.9", "9.99", "0.999", "0.0012"]


def test_a_picture_of_many_devices_is_drawn():
    found = {
        **roofline.survey(roofline.preset_config("tiny", "standard"), 3, "bfloat16", gpus.DEVICES),
        "set": {},
        "preset": "tiny",
    }
    devices = {key: roofline.asdict(device) for key, device in gpus.DEVICES.items()}
    drawn = picture({**found, "devices": devices, "protocol": "standard", "precision": "bfloat16", "actions": 3})
    assert drawn.startswith(b"\x89PNG")
