"""Beside what a PyTorch user writes: every implementation does the same work, and other work is found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.peers import kernel_peers as peers
from bench.peers import kernels
from bench.peers.kernels import OURS, Case, attention_case, gradient_case, measure_case, sampling_case
from bench.peers.runner import CheckError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORMFAST_KERNELS", "reference")


def small_cases(dtype: torch.dtype = torch.float32) -> list[Case]:
    """Odd sizes, without what needs the compiler."""
    shape = (5, 3, 7)
    cases = [sampling_case(shape, dtype), *(gradient_case(shape, dtype, sample=sample) for sample in (True, False))]
    cases.append(attention_case(3, 5, 7, range(4, 11), dtype))
    for case in cases:
        for name in [name for name in case.implementations if name.endswith("compiled")]:
            del case.implementations[name]
    return cases


def case_of(kernel: str) -> Case:
    return next(case for case in small_cases() if case.kernel == kernel)


def check(case: Case, call: Any) -> None:
    torch.manual_seed(0)
    for arguments in case.arguments(torch.Generator().manual_seed(0)):
        case.check(call, case.implementations[OURS], arguments)


@pytest.mark.parametrize(
    "case", small_cases() + small_cases(torch.bfloat16), ids=lambda case: f"{case.kernel}-{case.dtype}"
)
def test_all_do_the_same_work(case: Case) -> None:
    assert len(case.implementations) >= 3
    for call in case.implementations.values():
        check(case, call)


def without_unimix(logits: Tensor) -> Tensor:
    """The rarest class, of probability 0.01 / 7, is rarer by so little that only counts of many draws show it."""
    return torch.distributions.OneHotCategoricalStraightThrough(logits=logits).rsample()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (without_unimix, "the count of a class"),
        (lambda logits: peers.sample_ours(logits.roll(1, -1)), "the count of a class"),
        (peers.mixed_probs, "not one-hot"),
    ],
)
def test_samples_of_another_distribution_are_found(call: Any, message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check(case_of("sample"), call)


@pytest.mark.parametrize(
    ("kernel", "call"),
    [
        ("sample, forward + backward", lambda logits: peers.sample_torch(logits) * 1.05),
        ("log-probabilities, forward + backward", lambda logits: logits.log_softmax(-1)),
    ],
)
def test_another_gradient_is_found(kernel: str, call: Any) -> None:
    case = case_of(kernel)
    with_gradient = case.implementations[OURS].func
    with pytest.raises(AssertionError, match="differs from the reference"):
        check(case, lambda *arguments: with_gradient(call, *arguments))


def test_another_attention_is_found() -> None:
    def forgets_the_value(query, key, value, keys, values, length, past):  # type: ignore[no-untyped-def]
        return peers.attention_ours(query, key, value, keys, values.clone(), length, past)

    def leaves_out_the_newest(query, key, value, keys, values, length, past):  # type: ignore[no-untyped-def]
        out = peers.attention_static(query, key, value, keys.clone(), values.clone(), length - 1, past)
        peers.attention_ours(query, key, value, keys, values, length, past)
        return out

    with pytest.raises(CheckError, match="cache"):
        check(case_of("cached attention step"), forgets_the_value)
    with pytest.raises(AssertionError, match="differs from the reference"):
        check(case_of("cached attention step"), leaves_out_the_newest)


def test_other_work_is_not_timed() -> None:
    case = case_of("sample")
    case.implementations["wrong"] = peers.mixed_probs
    with pytest.raises(CheckError, match="wrong: samples are not one-hot"):
        measure_case(case, 2, CPU)


@pytest.mark.slow
def test_a_whole_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled ones too."""
    assert kernels.main(["--rounds", "2", "--json", str(tmp_path / "x.json")]) == 0
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert len(rows) == 4 + 4 + 4 + 5 and rows[3]["writer"].endswith("compiled")
    assert "| cached attention step | B128 4x32 length 4..13 | float32 | stormfast | " in capsys.readouterr().out
