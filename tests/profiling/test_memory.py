"""The report's numbers are the count's, a preset over its goal is told; mistakes are one line."""

import contextlib
import json
import subprocess
import sys

import memory as report
import pytest
import torch

from stormfast.memory.estimate import PHASES, estimate
from stormfast.settings import preset_config


def test_json_holds_the_count(capsys):
    assert report.main(["--preset", "tiny", "--json", "--check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["command"] == "profiling/memory.py --preset tiny --json --check"
        and {"commit", "dirty", "date"} < found.keys()
    )
    (record,) = found["presets"]
    expected = estimate(preset_config("tiny", "standard"), 18, torch.float32, "cpu")
    assert record["bytes"]["total"] == expected.total
    assert record["peaks"].keys() == PHASES.keys()
    kept = expected.kept
    assert {name: peak["bytes"] for name, peak in record["peaks"].items()} == {
        name: kept + getattr(expected, name) for name in PHASES
    }
    largest = record["peaks"]["world_model"]["largest"]
    assert [b["bytes"] for b in largest] == sorted((b["bytes"] for b in largest), reverse=True)
    assert all(b["line"].partition(".py:")[2] for b in largest)


def test_a_preset_over_its_goal_is_one_line_and_status_1(capsys, monkeypatch):
    monkeypatch.setattr(report, "GOALS", {"tiny": 10**9})
    assert report.main(["--preset", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert "1.000 over" in out and "tiny, world-model update: " in out and err == ""
    assert report.main(["--preset", "tiny", "--check"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("tiny takes 1.") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--measure"], "--measure needs a CUDA device"),
        (["--snapshot", "folder"], "add --measure"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--by", "colour"], "invalid choice: 'colour'"),
        (
            ["--preset", "tiny", "--picture", "nowhere/f.png"],
            "--picture must lie in a directory that can be written, got nowhere/f.png",
        ),
        (["--preset", "tiny", "--picture", "f.gif"], "--picture must end in .png, got f.gif"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(report, "counted", lambda *arguments: pytest.fail("counted"))
    assert report.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("memory: ") and err.count("\n") == 1 and said in err


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, report.__file__, "--preset", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 141


# --- on a device -------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import memory_snapshot

    @contextlib.contextmanager
    def refusing(folder, name, device):
        yield
        folder.mkdir()

    monkeypatch.setattr(memory_snapshot, "recorded", refusing)
    (tmp_path / "file").touch()
    with (
        pytest.raises(report.UserError, match="--snapshot must be a folder that can be written"),
        report.snapshots(tmp_path / "file", "tiny", torch.device("cuda", 0))("acting"),
    ):
        pass
    with report.snapshots(None, "tiny", torch.device("cuda", 0))("acting"):
        pass


@pytest.mark.gpu
def test_the_count_is_what_the_allocator_says(capsys, tmp_path):
    assert report.main(["--preset", "fast", "--measure", "--json", "--snapshot", str(tmp_path)]) == 0
    (record,) = json.loads(capsys.readouterr().out)["presets"]
    measured = record["measured"]
    assert max(measured["peaks"].values()) <= record["bytes"]["tensors"] + record["bytes"]["allowance"]
    assert max(measured["peaks"].values()) >= 0.8 * record["bytes"]["tensors"]
    endings = ("-timeline.html", "-segments.html", ".json")
    assert {path.name for path in tmp_path.iterdir()} == {f"fast-{name}{end}" for name in PHASES for end in endings}
    found = json.loads((tmp_path / "fast-world_model.json").read_text())
    assert found["complete"] and found["largest"][0]["line"].partition(".py:")[2]
    assert found["peak"] - found["before"] == pytest.approx(record["bytes"]["world_model"], rel=0.25)
