"""stormfast doctor: says what is there and why, and tells what is missing by its status."""

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from stormfast.commands import doctor
from stormfast.commands.train import read_config
from stormfast.plan import plan

ROOT = Path(__file__).parents[2]


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    status = doctor.run(doctor.Config())
    return status, capsys.readouterr().out.splitlines()


def test_healthy_installation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORMFAST_KERNELS", raising=False)
    status, lines = report(capsys)
    assert status == 0
    assert not [line for line in lines if line.startswith("problem:")]
    for distribution in doctor.REQUIRED:
        assert f"{distribution} {metadata.version(distribution)}" in lines
    for topic in ("CUDA devices: ", "Triton: ", "envpool: "):
        assert any(line.startswith(topic) for line in lines), topic
    for name, value in plan(read_config(["--game", "Pong"]).one_run()).rows().items():  # as the command would
        assert any(line.startswith(f"  {name}: {value}, because ") for line in lines), name


@pytest.mark.parametrize(
    ("cuda", "env_backend", "other"),
    [
        (False, "envpool", "with --num-envs 1, env_backend: ale"),
        (True, "ale", "with --num-envs 4, env_backend: envpool"),
    ],
)
def test_the_emulator_is_that_of_the_preset(
    cuda: bool, env_backend: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("fast" if cuda else "cpu", "so it is")
    monkeypatch.setattr("stormfast.plan.choose_preset", lambda name, device: chosen)
    lines = doctor._plans().splitlines()
    assert any(line.startswith(f"  env_backend: {env_backend}, because") for line in lines)
    assert lines[-1].startswith(f"  {other}, because")


def test_in_a_process(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"torch {torch.__version__}" in done.stdout


def test_required_package_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.REQUIRED, "absent-package", "absent_package_of_no_one")
    status, lines = report(capsys)
    assert status == 1
    assert any(
        line.startswith("problem: absent-package is required, but import absent_package_of_no_one fails")
        for line in lines
    )


def test_broken_package_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package_of_no_one.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.REQUIRED, "broken", "broken_package_of_no_one")
    status, lines = report(capsys)
    assert status == 1
    assert any("RuntimeError: two lines" in line for line in lines)


def test_without_envpool_several_environments_use_ale(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "envpool", None)
    status, lines = report(capsys)
    assert status == 0
    assert any(line.startswith("problem: import envpool fails") for line in lines)
    assert sum("env_backend: ale, because" in line for line in lines) == 2


def test_bad_kernel_choice_is_a_problem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORMFAST_KERNELS", "fastest")
    assert any(line.startswith("problem: STORMFAST_KERNELS must be one of") for line in report(capsys)[1])


def test_required_is_what_pyproject_says() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = project.split("dependencies = [")[1].split("\n]")[0]
    names = set(re.findall(r'^ *"([A-Za-z0-9_-]+)', block, re.MULTILINE))
    assert names == {*doctor.REQUIRED, "envpool"}
    assert f'requires-python = ">=3.{doctor.PYTHON[0][1]},<3.{doctor.PYTHON[1][1] + 1}"' in project
