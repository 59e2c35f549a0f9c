"""STORMFAST_KERNELS decides which implementation runs, and says so."""

import pytest
import torch

from stormfast_kernels import dispatch, sample_categorical


@pytest.mark.parametrize("choice", [None, "auto", "reference"])
def test_the_reference_runs(monkeypatch, choice):
    if choice is None:
        monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(dispatch.VARIABLE, choice)
    assert dispatch.backend("cpu") == "reference"
    assert "reference" in dispatch.report()
    assert f"{dispatch.VARIABLE}={choice or 'auto'}" in dispatch.report()
    assert "\n" not in dispatch.report()


def test_an_unknown_choice_lists_the_choices(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    for call in (dispatch.report, lambda: dispatch.backend("cpu"), lambda: sample_categorical(torch.zeros(1, 2), None, 0.0)):
        with pytest.raises(ValueError, match="reference, triton, auto, got 'cuda'"):
            call()


def test_triton_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    for call in (dispatch.report, lambda: sample_categorical(torch.zeros(1, 2), None, 0.0)):
        with pytest.raises(ValueError, match="reference kernels only"):
            call()


def test_public_functions_run_what_is_registered(monkeypatch):
    calls = []
    monkeypatch.setitem(dispatch._implementations, ("sample_categorical", "reference"), lambda *args: calls.append(args) or ("sample", "index"))
    logits = torch.zeros(1, 2)
    assert sample_categorical(logits, None, 0.5) == ("sample", "index")
    assert calls == [(logits, None, 0.5)]
