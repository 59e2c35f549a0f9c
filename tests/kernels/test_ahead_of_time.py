"""Every kernel, compiled for GPUs that are not here at the shapes of the presets: what profiling/kernel_report.py promises, and
that instructions, registers and memory are those of bench/counts.json. The shapes of cpu and tiny: tests/bench/test_counts.py, slow.

One process does all of it, without the interpreter that the other tests need. It takes half a minute the first time, and
a third of it once Triton's cache is warm.
"""

import json
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import stormfast_kernels
from bench import counts

pytest.importorskip("triton", reason="triton is not installed, so there is no compiler: pip install triton")

ROOT = Path(__file__).parents[2]
TARGETS = {80, 86, 89, 90, 120}
COMPILE = """
import contextlib, io, json, sys
from dataclasses import asdict
from pathlib import Path
from bench.counted.kernels import flat, report

measured = {}
disassemble = report.measure
report.measure = lambda compiled, tool: measured.setdefault(compiled.hash, None) or measured.update({compiled.hash: disassemble(compiled, tool)}) \\
    or measured[compiled.hash]
folder = Path(sys.argv[1])

def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = report.main(["--presets", "storm", "--targets", "90", *arguments])
    return code, out.getvalue(), err.getvalue()

wanted = [case for preset in ("storm", "fast") for case in report.cases(preset)]
rows = report.survey([case for case in wanted if case.dtype == "bf16"], list(report.GPUS))
rows += report.survey([case for case in wanted if case.dtype == "fp32"], [90])
hungry = next(case for case in wanted if case.name == "storm/attention-step/bf16")
capped = disassemble(hungry.launch.compile_for(86, maxnreg=40), report.find_cuobjdump())
print(json.dumps({
    "rows": [row.record() for row in rows],
    "breaches": report.breaches(rows),
    "counts": flat(rows),
    "triton": report.launch.triton.__version__,
    "names": [case.name for preset in report.PRESETS for case in report.cases(preset)],
    "capped": asdict(capped),
    "faults_of_capped": report.faults(report.Row(hungry, 86, capped)),
    "plain": run("--check", "--json", str(folder / "rows.json")),
    "markdown": run("--markdown"),
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def compiled(folder: Path) -> dict[str, Any]:
    """What one process found that compiled everything."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", COMPILE, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def all_kernels() -> set[str]:
    modules = [
        import_module(f"stormfast_kernels.{module.name}") for module in pkgutil.iter_modules(stormfast_kernels.__path__)
    ]
    return {
        name
        for module in modules
        for name in vars(module)
        if name.endswith("_kernel") and hasattr(getattr(module, name), "fn")
    }


def test_every_kernel_is_compiled_for_every_target(compiled):
    pairs = {(row["kernel"], row["target"]) for row in compiled["rows"]}
    assert len(all_kernels()) >= 3
    assert pairs == {(kernel, target) for kernel in all_kernels() for target in TARGETS}
    assert {(row["dtype"], row["preset"]) for row in compiled["rows"]} == {
        (d, p) for d in ("bf16", "fp32") for p in ("storm", "fast")
    }


def test_nothing_spills_and_loads_are_wide(compiled):
    assert compiled["breaches"] == []


def test_what_the_compiler_makes_of_the_kernels_is_as_written_down(compiled):
    about, saved = counts.read(counts.SAVED)
    if about["triton"] != compiled["triton"]:
        pytest.skip(f"counted with triton {about['triton']}, and here is {compiled['triton']}")
    found = counts.differences({name: saved[name] for name in compiled["counts"] if name in saved}, compiled["counts"])
    assert not found, "\n".join(map(str, [*found, f"if all are meant: {counts.RENEW}"]))


def test_what_is_measured_is_plausible(compiled):
    for row in compiled["rows"]:
        assert (row["stack"], row["spilled"], row["tensor_core"]) == (0, 0, 0), row
        assert 16 <= row["registers"] <= 255 and 100 <= row["instructions"] <= 2000, row
        assert row["wide_loads"] > 0 and row["programs"] > 82, row  # an RTX 3090 has 82 SMs
        assert 0 < row["resident_warps"] <= row["warps_per_sm"], row


def test_bytes_moved_are_those_of_the_tensors(compiled):
    moved = {row["case"]: row["bytes_moved"] for row in compiled["rows"]}
    rows, numbers = 1024 * 32, 1024 * 32 * 32
    assert moved["storm/rollout-sample/bf16"] == 2 * numbers * 2 + rows * (4 + 8)  # logits, sample, uniform, index
    assert moved["storm/rollout-sample/fp32"] == 2 * numbers * 4 + rows * (4 + 8)
    assert moved["storm/prior-log-probs/bf16"] == 16 * 63 * 32 * 32 * (2 + 4)
    assert (
        moved["storm/attention-step/bf16"] == 1024 * 8 * 64 * 2 * (2 * 24 + 4) + 1024 * 8 + 8
    )  # caches, four tokens, first, length


def test_every_case_is_written_down_for_every_target(compiled):
    _, saved = counts.read(counts.SAVED)
    written = {tuple(name.split(".")[1:3]) for name in saved if counts.group_of(name) == "kernels"}
    assert written == {(name, f"sm_{target}") for name in compiled["names"] for target in TARGETS}


def test_a_planted_spill_is_found(compiled):
    assert compiled["capped"]["registers"] <= 40
    assert compiled["capped"]["stack"] > 0 and compiled["capped"]["spilled"] > 0
    assert [line for line in compiled["faults_of_capped"] if line.startswith("spills: ")]


def test_the_report_prints_a_row_a_case(compiled, folder):
    code, out, err = compiled["plain"]
    assert (code, err) == (0, "")
    head, *rows, last = out.splitlines()
    assert head.split() == "case shape sm regs smem stack spill SASS ld128 st128 mma occ programs MB B/inst".split()
    assert len(rows) == sum(name.startswith("storm/") for name in compiled["names"])
    assert "0 rows spill" in last
    saved = json.loads((folder / "rows.json").read_text())
    assert [row["case"] for row in saved["rows"]] == [line.split()[0] for line in rows]
    assert saved["breaches"] == []


def test_the_markdown_table_is_one(compiled):
    code, out, _ = compiled["markdown"]
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "| case | shape | programs | MB | sm_90 |"
    assert len({line.count("|") for line in lines}) == 1
