"""What is kept of logs and outputs, against texts as pytest and stormfast write them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.suite import readers

LOG = """\
============================= test session starts ==============================
collecting ... collected 6 items
tests/test_gpu.py::test_a[storm-float32] PASSED                          [ 10%]
tests/test_gpu.py::test_b SKIPPED (no CUDA device)                       [ 20%]
tests/test_gpu.py::test_c[a b - c] FAILED                                [ 30%]
tests/test_gpu.py::test_d ERROR                                          [ 40%]
tests/test_gpu.py::test_e PASSED                                         [100%]
tests/test_gpu.py::test_f
=========================== short test summary info ============================
FAILED tests/test_gpu.py::test_c[a b - c] - AssertionError: 1 - 2
ERROR tests/test_gpu.py::test_d - RuntimeError: no
ERROR tests/other.py
"""
NOTHING = Path("/nonexistent")


def write(folder: Path, text: str) -> Path:
    path = folder / "file"
    path.write_text(text)
    return path


def test_outcomes_of_tests_are_counted_and_failures_named(tmp_path: Path) -> None:
    found = readers.tests(write(tmp_path, LOG), NOTHING)
    failures = found.pop("failures")
    assert found == {"passed": 2, "failed": 1, "error": 1, "skipped": 1}
    assert [failure["test"] for failure in failures] == [
        "tests/test_gpu.py::test_c[a b - c]",
        "tests/test_gpu.py::test_d",
        "tests/other.py",
    ]
    assert failures[1]["reason"] == "RuntimeError: no" and failures[2]["reason"] == ""


def test_a_gpu_whose_tests_were_all_skipped_is_not_passed(tmp_path: Path) -> None:
    assert readers.gpu_tests(write(tmp_path, LOG), NOTHING) == readers.tests(write(tmp_path, LOG), NOTHING)
    with pytest.raises(ValueError, match="no test ran on the GPU: 1 were skipped"):
        readers.gpu_tests(
            write(tmp_path, "tests/test_gpu.py::test_b SKIPPED (no CUDA device)                       [100%]\n"),
            NOTHING,
        )


def test_a_killed_pytest_leaves_its_lines(tmp_path: Path) -> None:
    found = readers.tests(write(tmp_path, LOG[: LOG.index("tests/test_gpu.py::test_d")]), NOTHING)
    assert (found["passed"], found["failed"], found["failures"]) == (1, 1, [])
    assert readers.tests(NOTHING, NOTHING)["passed"] == 0


def test_records_of_benches(tmp_path: Path) -> None:
    document = {"benchmarks": [{"extra_info": {"bench": "act", "seconds": 1}}, {"extra_info": {}}]}
    found = readers.benches(NOTHING, write(tmp_path, json.dumps(document)))
    assert found["records"] == [{"bench": "act", "seconds": 1}]


def test_a_profile_without_its_operators(tmp_path: Path) -> None:
    document = {"step_ms": 2.5, "phases": {"act": {"ms": 1, "operators": {"mm": 3}}}}
    assert readers.profile(NOTHING, write(tmp_path, json.dumps(document))) == {
        "step_ms": 2.5,
        "phases": {"act": {"ms": 1}},
    }


def test_memory_without_its_peaks(tmp_path: Path) -> None:
    document = {"presets": [{"preset": "storm", "bytes": {"total": 1}, "peaks": {"act": {}}}]}
    assert readers.memory(NOTHING, write(tmp_path, json.dumps(document))) == {
        "presets": [{"preset": "storm", "bytes": {"total": 1}}]
    }


def test_problems_of_doctor(tmp_path: Path) -> None:
    found = readers.doctor(write(tmp_path, "stormfast 1\nproblem: no cv2\ntorch 2\n"), NOTHING)
    assert found["problems"] == ["no cv2"] and len(found["lines"]) == 3
    for text in ("", "Traceback (most recent call last):\nImportError: x"):
        with pytest.raises(ValueError, match="did not report"):
            readers.doctor(write(tmp_path, text), NOTHING)


@pytest.mark.parametrize("read", [readers.benches, readers.profile, readers.memory])
@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"benchmarks": %s, "phases": %s, "presets": %s}'])
@pytest.mark.parametrize("value", ["1", "[1]", '{"a": 1}'])
def test_what_is_no_result_is_said_to_be_none(read: Callable, text: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"result|wrote|printed"):
        read(NOTHING, write(tmp_path, text.replace("%s", value)))


def test_no_file_is_no_result() -> None:
    with pytest.raises(ValueError, match="it wrote no result"):
        readers.profile(NOTHING, NOTHING)
