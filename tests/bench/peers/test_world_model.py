"""Beside another world model: what is timed is an update, sizes and counted work are right, no torchrl is one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.peers import runner, world_model
from bench.peers.runner import OURS, CheckError
from bench.peers.world_model import NUM_ACTIONS, PARTS, Update, check_update, measure_part, our_updates, random_batch
from stormfast.presets import preset_config
from stormfast.schema import override
from stormfast.settings import TrainConfig

CPU = torch.device("cpu")
TINY = preset_config("tiny", "standard")


def batch_for(config: TrainConfig) -> Any:
    return random_batch(config.world_model.batch_size, config.world_model.batch_length, CPU)


def test_our_updates_are_updates() -> None:
    torch.manual_seed(0)
    updates = our_updates(TINY, CPU, torch.float32, batch_for(TINY))
    assert tuple(updates) == PARTS
    for update in updates.values():
        check_update(update)
    work = {part: world_model.count_work(update, CPU) for part, update in updates.items()}
    for quantity in ("flops", "parameters"):
        assert work["both"][quantity] == work["world_model"][quantity] + work["agent"][quantity]
    assert [work[part]["starts"] for part in PARTS] == [0, *[TINY.imagination.batch_size] * 2]


class FakeUpdate:
    """An update of two weights, perhaps a wrong one."""

    def __init__(self, name: str = OURS, move: float = 1.0, loss: float = 1.0, launches: int = 1) -> None:
        self.weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))]
        self.move, self.loss, self.launches = move, loss, launches
        self.update = Update(name, self.call, self.call, self.weights, 7)

    @torch.no_grad()
    def call(self) -> dict[str, Tensor]:
        self.weights[0].add_(1.0)
        self.weights[1].add_(self.move)
        for _ in range(self.launches):
            self.weights[0] @ self.weights[0]
        return {"loss": torch.tensor(self.loss)}


def test_what_is_no_update_is_found() -> None:
    check_update(FakeUpdate().update)
    with pytest.raises(CheckError, match="1 of 2 weights unchanged"):
        check_update(FakeUpdate(move=0.0).update)
    for loss in (float("nan"), float("inf")):
        with pytest.raises(CheckError, match="not finite: loss"):
            check_update(FakeUpdate(loss=loss).update)
    with pytest.raises(CheckError, match="other"):
        measure_part([FakeUpdate().update, FakeUpdate("other", move=0.0).update], 2, CPU)


def test_rows_hold_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds are the loss, so that they do not depend on the machine."""
    monkeypatch.setattr(runner, "timed", lambda call, device: float(call()["loss"]))
    ours, other = measure_part([FakeUpdate().update, FakeUpdate("other", loss=3.0, launches=200).update], 8, CPU)
    assert (ours["library"], ours["flops"], ours["launches"]) == (OURS, 16, 3)
    assert (other["library"], other["flops"], other["launches"]) == ("other", 200 * 16, 202)
    assert (other["parameters"], other["starts"], other["host_reads"]) == (7, 7, 0)
    assert "over_ours" not in ours
    assert other["over_ours"]["value"] == pytest.approx(3)


def test_without_torchrl_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torchrl", None)
    monkeypatch.delitem(sys.modules, "bench.peers.torchrl_dreamer", raising=False)
    assert world_model.main(["--preset", "tiny"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install" in error


@pytest.mark.parametrize("words", ["--kernel-size 4", "--preset huge", "--precision float16", "--rounds 1"])
def test_bad_options_are_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert world_model.main(words.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- with torchrl ------------------------------------------------------------------------------------------------


@pytest.fixture
def dreamer() -> Callable[..., Any]:
    """Builds TorchRL's model, of the tiny preset by default."""
    pytest.importorskip("torchrl", reason="torchrl is optional")
    from bench.peers.torchrl_dreamer import Dreamer

    def build(kernel: int = 3, config: TrainConfig = TINY, precision: torch.dtype = torch.float32, whole: bool = False):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        return Dreamer(config, kernel, CPU, precision, whole=whole)

    return build


def test_torchrl_updates_are_updates(dreamer: Callable[..., Any]) -> None:
    batch = batch_for(TINY)
    updates = world_model.torchrl_updates(TINY, 5, CPU, torch.float32, batch)
    for update in updates.values():
        check_update(update)
    assert [updates[part].starts for part in PARTS] == [0, TINY.imagination.batch_size, batch.action.numel()]


def test_torchrl_has_the_sizes_asked_for(dreamer: Callable[..., Any]) -> None:
    settings = {"batch_size": 3, "batch_length": 5, "categoricals": 5, "classes": 8, "width": 16, "heads": 2}
    imagined = {"imagination.batch_size": 9, "imagination.horizon": 4}
    config = override(TINY, {f"world_model.{name}": value for name, value in settings.items()} | imagined)
    model, batch = dreamer(config=config), random_batch(3, 5, CPU)
    sample = model.sample(batch)
    assert torch.equal(sample["next", "pixels"], batch.obs)
    assert torch.equal(sample["action"].argmax(-1), batch.action)
    assert torch.equal(sample["next", "reward"].squeeze(-1), batch.reward)
    following = model.model_loss(sample)[1]["next"]
    assert following["posterior_logits"].shape == following["prior_logits"].shape == (3, 5, 5, 8)
    assert following["belief"].shape == (3, 5, 16)
    assert following["reco_pixels"].shape == (3, 5, 3, 64, 64)
    assert following["reward_logits"].shape == (3, 5, 255)
    starts = model.starts()
    assert torch.equal(starts["state"].unflatten(-1, (5, 8)).sum(-1), torch.ones(9, 5))
    assert model.actor_loss(starts)[1]["action"].shape == (9, 4, NUM_ACTIONS)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", PARTS)
def test_autocast_of_torchrl_ends_before_backward(
    dreamer: Callable[..., Any], part: str, precision: torch.dtype
) -> None:
    """As ours does: the backward pass is much slower under autocast."""
    model = dreamer(precision=precision, whole=part == "both")
    sample, starts = model.sample(batch_for(TINY)), model.starts()
    network = model.networks["critic" if part == "agent" else "world_model"]
    layer = next(module for module in network.modules() if isinstance(module, nn.Linear))
    seen: dict[str, Any] = {}
    layer.register_forward_hook(lambda module, inputs, out: seen.update(forward=out.dtype))
    layer.weight.register_hook(lambda gradient: seen.update(backward=torch.is_autocast_enabled("cpu")))
    if part == "both":
        model.whole_update(sample, eager=False)()
    else:
        model.update_agent(starts) if part == "agent" else model.update_world_model(sample)
    assert seen == {"forward": precision, "backward": False}


def test_a_whole_result(dreamer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--preset tiny --precision float32 --kernel-size 3 --rounds 2"
    assert world_model.main([*words.split(), "--json", str(tmp_path / "x.json")]) == 0
    assert "| tiny | float32 | world_model | torchrl, kernel 3 | " in capsys.readouterr().out
