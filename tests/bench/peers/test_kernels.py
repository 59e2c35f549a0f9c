"""What others would write in the place of our kernels: that it is the same work, and that other work is found out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.peers import kernel_cases, kernels
from bench.peers import kernel_peers as peers
from bench.peers.kernel_cases import OURS, Case, Rollout, attention_case, gradient_case, sampling_case, with_gradient
from bench.peers.side_by_side import CheckError
from stormfast_kernels import launch

ROOT = Path(kernels.__file__).resolve().parents[2]
CPU = torch.device("cpu")
ODD = Rollout(3, 5, 7, 4, 7)


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORMFAST_KERNELS", "reference")


def cases(dtype: torch.dtype = torch.float32) -> list[Case]:
    """Small and odd, without what takes the compiler."""
    shape = (5, 3, 7)
    found = [
        sampling_case(shape, dtype),
        *(gradient_case(shape, dtype, sample=sample) for sample in (True, False)),
        attention_case(ODD, dtype),
    ]
    for case in found:
        for name in [name for name in case.writers if name.endswith("compiled")]:
            del case.writers[name]
    return found


def of(kernel: str) -> Case:
    return next(case for case in cases() if case.kernel == kernel)


def check(case: Case, call: Any) -> None:
    for given in case.arguments(torch.Generator().manual_seed(0)):
        case.check(call, case.writers[OURS], given)


# --- the same work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases() + cases(torch.bfloat16), ids=lambda case: f"{case.kernel}-{case.dtype}")
def test_all_do_the_same_work(case: Case) -> None:
    torch.manual_seed(0)
    assert len(case.writers) >= 3
    for call in case.writers.values():
        check(case, call)


def without_unimix(logits: Tensor) -> Tensor:
    return torch.distributions.OneHotCategoricalStraightThrough(logits=logits).rsample()


def soft(logits: Tensor) -> Tensor:
    return peers.mixed_probs(logits)


def test_samples_of_another_distribution_are_found() -> None:
    """Without the uniform share a class of 0.01 / 7 is too rare by so little that only counts of many draws tell."""
    torch.manual_seed(0)
    case = of("sample")
    with pytest.raises(CheckError, match=r"a class is drawn \d+\.\d standard deviations too often or too rarely"):
        check(case, without_unimix)
    with pytest.raises(CheckError, match="samples are not one-hot"):
        check(case, soft)
    with pytest.raises(CheckError, match="a class is drawn"):
        check(case, lambda logits: peers.sample_ours(logits.roll(1, -1)))


def test_another_gradient_is_found() -> None:
    case = of("sample, forward + backward")
    with pytest.raises(AssertionError, match="differs from the reference"):
        check(
            case, lambda logits, cotangent: with_gradient(lambda x: peers.sample_unchecked(x) * 1.05, logits, cotangent)
        )
    case = of("log-probabilities, forward + backward")
    with pytest.raises(AssertionError, match="differs from the reference"):
        check(case, lambda logits, cotangent: with_gradient(lambda x: x.log_softmax(-1), logits, cotangent))


def forgets_the_value(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> Tensor:
    return peers.attend_ours(query, key, value, keys, values.clone(), length, past)


def leaves_out_the_newest(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, length: Tensor, past: Tensor
) -> Tensor:
    out = peers.attend_static(query, key, value, keys.clone(), values.clone(), length - 1, past)
    peers.attend_ours(query, key, value, keys, values, length, past)
    return out


def test_another_attention_is_found() -> None:
    with pytest.raises(CheckError, match="the cache does not hold what ours holds"):
        check(of("cached attention step"), forgets_the_value)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check(of("cached attention step"), leaves_out_the_newest)


# --- timing ------------------------------------------------------------------------------------------------------


def test_rows_of_a_case() -> None:
    case = of("cached attention step")
    rows = kernels.measure(case, 2, CPU)
    assert [row["writer"] for row in rows] == list(case.writers)
    assert rows[0]["writer"] == OURS
    assert "over_ours" not in rows[0]
    for row in rows:
        assert (row["kernel"], row["shape"], row["timing"]) == ("cached attention step", str(ODD), "calls")
        assert len(row["rounds"]) == 2
        assert 0 < row["seconds"] < 0.1
    assert kernels.cells(rows[1])[3] == "index_copy_ + sdpa"


def test_other_work_is_not_timed() -> None:
    case = of("sample")
    case.writers["wrong"] = soft
    with pytest.raises(CheckError, match=re.escape("sample [5, 3, 7], wrong: samples are not one-hot")):
        kernels.measure(case, 2, CPU)


def test_ours_must_be_what_the_device_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    case = of("log-probabilities, forward + backward")
    call = case.writers[OURS]

    def launches(*given: Any) -> Any:
        launch.launched["planted"] += 1
        return call(*given)

    monkeypatch.setitem(case.writers, OURS, launches)
    with pytest.raises(CheckError, match="ours must run the Triton kernel on CUDA, and the reference on a CPU"):
        kernels.measure(case, 2, CPU)


def test_the_presets_shapes_on_cuda() -> None:
    shapes = [(case.kernel, case.shape, case.dtype) for case in kernel_cases.cases_of(torch.device("cuda"))]
    assert ("sample", "[1024, 32, 32]", "bfloat16") in shapes
    assert ("cached attention step", "B1024 8x64 length 8..23", "bfloat16") in shapes
    assert ("cached attention step", "B2048 4x64 length 4..19", "bfloat16") in shapes
    assert ("log-probabilities, forward + backward", "[16, 64, 32, 32]", "bfloat16") in shapes


# --- as a user runs it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--kernel convolution", "--kernel must be part of one of: sample; "),
        ("--rounds 5", "--rounds must be even"),
        ("--rounds many", "argument --rounds: invalid int value: 'many'"),
        ("--table nowhere.json", "--table must be a file that --json of this script wrote, but nowhere.json"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench/peers/kernels.py", *arguments.split()])
    assert kernels.main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path) -> None:
    """Compiled ones too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    environment.pop("PYTHONPATH", None)
    command = [
        sys.executable,
        "bench/peers/kernels.py",
        "--rounds",
        "4",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "x.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "x.json").read_text())
    assert len(result["rows"]) == 4 + 4 + 4 + 5
    assert result["command"] == "python bench/peers/kernels.py --device cpu --threads 1 --rounds 4"
    assert str(ROOT) not in (tmp_path / "x.json").read_text()
    again = subprocess.run(
        [*command[:2], "--table", str(tmp_path / "x.json")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=True,
    )
    assert again.stdout == done.stdout
    assert "| sample | [128, 16, 16] | float32 | stormfast | " in done.stdout
