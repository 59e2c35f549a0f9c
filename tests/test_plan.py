"""The plan: what auto settings become, why, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

import stormfast.plan as plan_module
from stormfast.errors import UserError
from stormfast.plan import choose_compile, choose_precision, choose_preset, plan
from stormfast.presets import preset_config
from stormfast.schema import override
from stormfast.settings import TrainConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a card")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(plan_module.dispatch, "why_not_triton", lambda device: None)
    monkeypatch.setattr(plan_module.dispatch, "backend", lambda device: "triton")
    monkeypatch.setattr(plan_module.dispatch, "why", lambda device: "it works")


def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = plan(TrainConfig(game="Catch"))
    assert (made.preset, made.device, made.compile, made.env_backend) == ("cpu", CPU, "off", "gymnasium")
    assert made.why.keys() == made.rows().keys()
    assert all(made.why.values())
    assert str(made).startswith("preset cpu, device cpu, precision ")


@pytest.mark.usefixtures("card")
def test_on_a_card() -> None:
    made = plan(TrainConfig())
    assert made.rows() == {
        "preset": "fast",
        "device": "cuda:0",
        "precision": "bfloat16",
        "compile": "graphs",
        "kernels": "triton",
        "env_backend": "ale",
    }
    assert made.why["device"] == "a card"
    assert choose_preset("auto", "cpu")[0] == "cpu"


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"device": "cpu", "precision": "bfloat16", "compile": "default", "env_backend": "envpool"}
    made = plan(override(preset_config("tiny", "standard"), asked))
    assert made.rows() | asked | {"preset": "tiny"} == made.rows()
    for name in ("device", "precision", "compile", "env_backend"):
        assert made.why[name] == f"asked for by --{name.replace('_', '-')}"
    assert made.why["preset"] == "named by the run's settings"


def test_compile_and_precision_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for trouble, expected in ((None, "graphs"), ("no compiler", "off")):
        monkeypatch.setattr(plan_module.dispatch, "why_not_triton", lambda device, trouble=trouble: trouble)
        assert [choose_compile("auto", device)[0] for device in (CPU, CUDA)] == ["off", expected]
    for name in ("off", "default", "graphs"):
        assert {choose_compile(name, device)[0] for device in (CPU, CUDA)} == {name}
    assert choose_precision("float32", CPU)[0] == torch.float32
    for native in (True, False):
        monkeypatch.setattr(plan_module, "native_bfloat16", lambda device, native=native: (native, "so it is"))
        assert choose_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32, "so it is")


def test_kernels_that_are_not_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORMFAST_KERNELS", "fastest")
    with pytest.raises(UserError, match="STORMFAST_KERNELS must be one of"):
        plan(TrainConfig(game="Catch", device="cpu"))


def test_it_is_saved_with_its_reasons(tmp_path: Path) -> None:
    made = plan(TrainConfig(game="Catch", device="cpu"))
    made.save(tmp_path)
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert {name: entry["value"] for name, entry in saved.items()} == made.rows()
    assert {name: entry["why"] for name, entry in saved.items()} == made.why
    with pytest.raises(UserError, match="cannot be written"):
        made.save(tmp_path / "nowhere")
