"""STORMFAST_KERNELS decides which implementation runs, and says so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stormfast_kernels import backend, cached_attention_step, categorical, dispatch, launch, report, sample_categorical

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What earlier tests found out about a device does not count."""
    monkeypatch.setattr(dispatch, "_trouble", {})


@pytest.fixture
def h200(monkeypatch):
    """A machine that says it has a GPU on which every trial passes."""
    monkeypatch.setattr(launch, "IMPORT_TROUBLE", None)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tried = []
    monkeypatch.setattr(dispatch, "_trials", [tried.append])
    return tried


@pytest.mark.parametrize("choice", [None, "auto", "reference"])
def test_the_reference_runs_on_a_cpu(monkeypatch, choice):
    if choice is None:
        monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(dispatch.VARIABLE, choice)
    assert backend("cpu") == "reference"
    assert "reference on cpu" in report("cpu")
    assert f"{dispatch.VARIABLE}={choice or 'auto'}" in report("cpu")
    assert "\n" not in report("cpu")


def test_an_unknown_choice_lists_the_choices(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    for call in (report, lambda: backend("cpu"), lambda: sample_categorical(torch.zeros(1, 2), None, 0.0)):
        with pytest.raises(ValueError, match="reference, triton, auto, got 'cuda'"):
            call()


def test_auto_takes_triton_on_a_gpu_after_one_trial(monkeypatch, h200):
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    monkeypatch.setattr(launch, "triton", type("triton", (), {"__version__": "3.7.1"}))
    assert [backend(CUDA), backend(CUDA)] == ["triton", "triton"]
    assert h200 == [CUDA]
    assert (
        report(CUDA)
        == "kernels: triton on cuda:0 (STORMFAST_KERNELS=auto; version 3.7.1, compared with the reference at start)"
    )
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert backend(CUDA) == "reference"
    assert report(CUDA) == "kernels: reference on cuda:0 (STORMFAST_KERNELS=reference; asked for)"


def failing_trial(device):
    raise RuntimeError("ptxas\nwas not found")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (
            lambda patch: patch.setattr(launch, "IMPORT_TROUBLE", "import triton fails: no such file"),
            "import triton fails: no such file",
        ),
        (
            lambda patch: patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5)),
            "capability 8.0 or newer, and this GPU has 7.5",
        ),
        (lambda patch: patch.setattr(dispatch, "_trials", [failing_trial]), "RuntimeError: ptxas was not found"),
    ],
)
def test_where_triton_does_not_work_auto_says_why_and_triton_is_refused(monkeypatch, h200, broken, reason):
    broken(monkeypatch)
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    assert backend(CUDA) == "reference"
    assert reason in report(CUDA)
    assert "\n" not in report(CUDA)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    for call in (report, backend):
        with pytest.raises(ValueError, match="STORMFAST_KERNELS=triton, but") as error:
            call(CUDA)
        assert reason in str(error.value)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "IMPORT_TROUBLE", None)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(
        ValueError,
        match=r"do not run on cpu: Triton compiles for CUDA devices .*; set STORMFAST_KERNELS=auto or reference",
    ):
        sample_categorical(torch.zeros(1, 2), None, 0.0)
    monkeypatch.setattr(launch, "INTERPRETED", True)
    monkeypatch.setattr(dispatch, "_trouble", {})
    assert backend("cpu") == "triton"
    assert "triton on cpu" in report("cpu") and "interpreted" in report("cpu")


def test_the_trials_pass_in_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    if not launch.INTERPRETED:
        pytest.skip("the kernels are compiled for CUDA here")
    before = launch.launched.copy()
    for trial in dispatch._trials:
        trial(torch.device("cpu"))
    assert len((launch.launched - before).keys()) >= len(dispatch._trials)


def test_the_package_alone_knows_the_trial_of_every_file_with_a_kernel():
    """Else a GPU would run a kernel that nothing compared with its reference there. A process without other imports."""
    files = [path for path in Path(launch.__file__).parent.glob("*.py") if "\n@jit\n" in path.read_text()]
    show = "from stormfast_kernels import dispatch; print(*{trial.__module__ for trial in dispatch._trials})"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert len(files) >= 2 and set(done.stdout.split()) == {f"stormfast_kernels.{path.stem}" for path in files}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_trials_pass_whatever_is_switched_on(monkeypatch, mode):
    pytest.importorskip("triton")
    if not launch.INTERPRETED:
        pytest.skip("the kernels are compiled for CUDA here")
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with mode():
        assert backend("cpu") == "triton"


def test_no_memory_is_no_trouble_of_the_kernels(monkeypatch, h200):
    def full(device):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(dispatch, "_trials", [full])
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    with pytest.raises(torch.OutOfMemoryError):
        backend(CUDA)
    assert dispatch._trouble == {}


def test_a_capture_is_not_the_time_to_try(monkeypatch, h200):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="before a CUDA graph is captured"):
        backend(CUDA)


def test_auto_does_not_interpret_on_a_gpu(monkeypatch, h200):
    monkeypatch.setattr(launch, "INTERPRETED", True)
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    assert backend(CUDA) == "reference"
    assert "TRITON_INTERPRET=1" in report(CUDA)


def test_an_empty_choice_is_auto(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "")
    assert backend("cpu") == "reference"
    assert "STORMFAST_KERNELS=auto" in report("cpu")


def test_a_trial_notices_a_kernel_that_computes_something_else(monkeypatch):
    pytest.importorskip("triton")
    if not launch.INTERPRETED:
        pytest.skip("the kernels are compiled for CUDA here")
    right = categorical.forward_launch
    monkeypatch.setattr(
        categorical, "forward_launch", lambda logits, draw, unimix, *outputs: right(logits, draw, 0.5, *outputs)
    )
    with pytest.raises(AssertionError):
        categorical._trial(torch.device("cpu"))


def test_public_functions_run_what_is_registered(monkeypatch):
    calls = []
    monkeypatch.setenv(dispatch.VARIABLE, "auto")
    monkeypatch.setitem(
        dispatch._implementations,
        ("sample_categorical", "reference"),
        lambda *args: calls.append(args) or ("sample", None, "index"),
    )
    monkeypatch.setitem(
        dispatch._implementations, ("cached_attention_step", "reference"), lambda *args: calls.append(args) or "out"
    )
    logits, token, cache = torch.zeros(1, 2), torch.zeros(1, 1, 16), torch.zeros(1, 1, 2, 16)
    assert sample_categorical(logits, None, 0.5) == ("sample", "index")
    assert cached_attention_step(token, token, token, cache, cache.clone(), torch.tensor(0)) == "out"
    assert calls[0] == (logits, None, 0.5, False)
    assert len(calls) == 2
