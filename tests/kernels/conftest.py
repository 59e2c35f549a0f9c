"""For the kernels' tests: which path runs; and fresh memory holds NaN, so that an element that nobody wrote is seen."""

import pytest
import torch

from stormfast_kernels import dispatch, launch


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """torch.empty, empty_like and new_empty fill what they return: NaN, or the lowest integer."""
    with torch.device("meta"):
        torch.empty(0)  # torch notes its constructors when it first needs them: let it note the real ones

    def poison(allocate):
        def poisoned_allocate(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.dtype == torch.bool:
                return tensor
            return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

        return poisoned_allocate

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


def need_interpreter():
    pytest.importorskip("triton")
    if not launch.INTERPRETED:
        pytest.skip("tensors lie on the CPU: the kernel needs TRITON_INTERPRET=1")


@pytest.fixture(params=["reference", "triton"])
def path(request, monkeypatch):
    """The test runs once on each path, and the path that ran is asserted."""
    if request.param == "triton":
        need_interpreter()
    monkeypatch.setenv(dispatch.VARIABLE, request.param)
    before = launch.launched.total()
    yield request.param
    assert (launch.launched.total() > before) == (request.param == "triton"), (
        f"{request.param} was asked for, but did not run"
    )


@pytest.fixture
def triton_path(monkeypatch):
    need_interpreter()
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
