"""Every kernel, compiled for GPUs that are not here: nothing spills, loads are wide, instructions are as counted.

At the shapes of storm and fast; those of cpu and tiny: tests/bench/test_counts.py. One process compiles everything,
without the interpreter that the other tests need: half a minute, a third of it once Triton's cache is warm.
"""

import json
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

import stormfast_kernels
from bench import counts
from bench.kernel_cases import DTYPES, PRESETS, preset_cases
from tests.conftest import ROOT

pytestmark = pytest.mark.instruments  # half a minute of disassembly: make test-all runs it

pytest.importorskip("triton", reason="triton is not installed, so there is no compiler: pip install triton")

TARGETS = {80, 86, 89, 90, 120}
COMPILE = """
import json
from dataclasses import asdict
from bench.count_kernels import flat
from profiling import kernel_report as report

wanted = [case for preset in ("storm", "fast") for case in report.preset_cases(preset)]
rows = report.survey([case for case in wanted if case.dtype == "bf16"], list(report.GPUS))
rows += report.survey([case for case in wanted if case.dtype == "fp32"], [90])
hungry = next(case for case in wanted if case.name == "storm/attention-step/bf16")
capped = report.measure(hungry.launch.compile_for(86, maxnreg=40), report.find_cuobjdump())
print(json.dumps({
    "rows": [asdict(row.found) | {"kernel": row.case.kernel, "target": row.target} for row in rows],
    "cells": [dict(zip(report.COLUMNS, row.cells(), strict=True)) for row in rows],
    "faults": [fault for row in rows for fault in row.faults()],
    "counts": flat(rows),
    "triton": report.launch.triton.__version__,
    "faults of capped": report.Row(hungry, 86, capped).faults(),
}))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """What one process found that compiled everything."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def all_kernels() -> set[str]:
    names = (f"stormfast_kernels.{module.name}" for module in pkgutil.iter_modules(stormfast_kernels.__path__))
    modules = [import_module(name) for name in names]
    return {
        name
        for module in modules
        for name in vars(module)
        if name.endswith("_kernel") and hasattr(vars(module)[name], "fn")
    }


def test_every_kernel_is_compiled_for_every_target(compiled):
    pairs = {(row["kernel"], row["target"]) for row in compiled["rows"]}
    assert len(all_kernels()) >= 3
    assert pairs == {(kernel, target) for kernel in all_kernels() for target in TARGETS}


def test_no_kernel_has_a_fault(compiled):
    assert compiled["faults"] == []


def test_what_the_compiler_makes_of_the_kernels_is_as_counted(compiled):
    about, saved = counts.read(counts.SAVED)
    if about["triton"] != compiled["triton"]:
        pytest.skip(f"counted with triton {about['triton']}, and here is {compiled['triton']}")
    found = counts.differences({name: saved.get(name) for name in compiled["counts"]}, compiled["counts"])
    assert not found, "\n".join(map(str, found))


def test_what_is_measured_is_plausible(compiled):
    for row, cells in zip(compiled["rows"], compiled["cells"], strict=True):
        assert 16 <= row["registers"] <= 255 and 100 <= row["instructions"] <= 2000, row
        assert int(cells["programs"]) > 82, row  # an RTX 3090 has 82 SMs
        resident, most = map(int, cells["occ"].split("/"))
        assert 0 < resident <= most, row


def test_every_case_is_counted_for_every_target():
    _, saved = counts.read(counts.SAVED)
    names = {tuple(name.split(".")[1:3]) for name in saved if counts.group_of(name) == "kernels"}
    cases = [case.name for preset in PRESETS for case in preset_cases(preset)]
    assert names == {(name, f"sm_{target}") for name in cases for target in TARGETS}
    assert {name.rpartition("/")[2] for name, _ in names} == set(DTYPES)


def test_a_planted_spill_is_found(compiled):
    assert any("spills: " in line for line in compiled["faults of capped"])
