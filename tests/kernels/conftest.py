"""For the kernels' tests: fresh memory holds NaN, so that an element that nobody wrote is seen."""

import pytest
import torch


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
