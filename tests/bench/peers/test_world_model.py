"""The comparison with another world model: what is timed is an update, sizes and work are what they should be, and no torchrl is one line.

N frames of a batch
"""

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.peers import side_by_side, world_model
from bench.peers.side_by_side import CheckError
from bench.peers.sizes import NUM_ACTIONS, Sizes, sizes_of
from bench.peers.world_model import OURS, PARTS, Update, check, measure, our_updates, random_batch, rival_updates
from stormfast.errors import UserError
from stormfast.measure.op_counts import count
from stormfast.schema import override
from stormfast.settings import preset_config

CPU = torch.device("cpu")
TINY = preset_config("tiny", "standard")
SIZES = sizes_of(TINY)

# --- sizes and ours ----------------------------------------------------------------------------------------------


def test_sizes_of_storm() -> None:
    assert sizes_of(preset_config("storm", "standard")) == Sizes(
        batch=16,
        length=64,
        channels=(32, 64, 128, 256),
        categoricals=32,
        classes=32,
        width=512,
        starts=1024,
        horizon=16,
        agent_width=512,
        num_actions=18,
        gamma=0.985,
        lam=0.95,
    )


def test_our_updates_are_updates() -> None:
    torch.manual_seed(0)
    updates = our_updates(TINY, CPU, torch.float32, random_batch(SIZES.batch, SIZES.length, CPU))
    assert set(updates) == set(PARTS)
    for update in updates.values():
        check(update)
    counted = {part: count(update.counted, CPU).flops for part, update in updates.items()}
    assert counted["both"] == counted["world_model"] + counted["agent"]
    weights = {part: sum(weight.numel() for weight in update.weights) for part, update in updates.items()}
    assert weights["both"] == weights["world_model"] + weights["agent"]
    assert updates["agent"].starts == SIZES.starts


class Planted:
    """One weight, and an update of it with a fault."""

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
    check(Planted().update)
    with pytest.raises(CheckError, match="stormfast: 1 of 2 weights are what they were before 4 updates"):
        check(Planted(move=0.0).update)
    for loss in (float("nan"), float("inf")):
        with pytest.raises(CheckError, match="stormfast: not finite: loss"):
            check(Planted(loss=loss).update)
    with pytest.raises(CheckError):
        measure([Planted().update, Planted("other", move=0.0).update], 2, CPU)


def test_rows_say_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are the loss's, so as not to depend on the machine."""
    monkeypatch.setattr(side_by_side, "timed", lambda call, device: float(call()["loss"]))
    rows = measure([Planted().update, Planted("other", loss=3.0, launches=200).update], 8, CPU)
    assert [row["library"] for row in rows] == [OURS, "other"]
    assert [row["flops"] for row in rows] == [2 * 2**3, 200 * 2 * 2**3]
    assert [row["launches"] for row in rows] == [3, 202]
    assert [(row["parameters"], row["starts"], row["host_reads"]) for row in rows] == [(7, 7, 0)] * 2
    assert "over_ours" not in rows[0]
    assert rows[1]["over_ours"]["value"] == pytest.approx(3)


def test_cells() -> None:
    row = {
        "preset": "cpu",
        "precision": "float32",
        "part": "agent",
        "library": "torchrl",
        "seconds": 0.1234,
        "seconds_iqr": 0.0044,
    }
    row |= {"over_ours": {"value": 0.8123, "low": 0.79, "high": 0.834, "coverage": 0.99}}
    row |= {"flops": 5_623_414_784, "launches": 1930, "host_reads": 20, "parameters": 399_889, "starts": 0}
    assert world_model.cells(row) == [
        *("cpu", "float32", "imagination and agent", "torchrl", "123.4 (4.4)", "0.81 (0.79-0.83)"),
        *("5.62", "46", "1,930", "20", "399,889", "-"),
    ]
    assert len(world_model.cells(row)) == len(world_model.HEADER)


# --- without torchrl ---------------------------------------------------------------------------------------------


def test_without_torchrl_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torchrl", None)
    monkeypatch.delitem(sys.modules, "bench.peers.torchrl_dreamer", raising=False)
    monkeypatch.setattr(sys, "argv", ["bench/peers/world_model.py", "--preset", "tiny"])
    assert world_model.main() == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("world_model: this needs torchrl with its DreamerV3 (")
    assert 'pip install "torchrl>=0.14.1,<0.15"' in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--kernel-size 4", "--kernel-size must be 3, 5 or 7, got 4"),
        ("--rounds 1", "--rounds must be even"),
        ("--rounds many", "argument --rounds: invalid int value: 'many'"),
        ("--table nowhere.json", "--table must be a file that --json of this script wrote, but nowhere.json"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench/peers/world_model.py", *arguments.split()])
    assert world_model.main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


# --- with torchrl ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rival() -> Any:
    pytest.importorskip("torchrl", reason="torchrl is no dependency")
    return importlib.import_module("bench.peers.torchrl_dreamer")


@pytest.fixture
def dreamer(rival: Any) -> Callable[..., Any]:
    """Builds TorchRL's, of the tiny preset by default."""

    def build(kernel: int = 3, sizes: Sizes = SIZES, *, whole: bool = False) -> Any:
        torch.manual_seed(0)
        return rival.Dreamer(sizes, kernel, CPU, torch.float32, whole=whole)

    return build


def test_its_updates_are_updates(rival: Any) -> None:
    torch.manual_seed(0)
    updates = rival_updates(SIZES, 5, CPU, torch.float32, random_batch(SIZES.batch, SIZES.length, CPU))
    for update in updates.values():
        check(update)
    assert [updates[part].starts for part in PARTS] == [0, SIZES.starts, SIZES.batch * SIZES.length]
    assert updates["agent"].library == "torchrl"
    assert updates["both"].library == "torchrl, kernel 5"


def test_it_learns_a_batch(dreamer: Callable[..., Any]) -> None:
    """What it is timed at is training: the reconstruction of one batch gets better."""
    model = dreamer()
    for group in model.optimizers[0].param_groups:
        group["lr"] = 1e-2
    batch = random_batch(SIZES.batch, SIZES.length, CPU)
    update = model.world_model_update(model.sample(replace(batch, obs=torch.full_like(batch.obs, 200))))
    losses = [float(update()["loss_model_reco"]) for _ in range(15)]
    assert losses[-1] < losses[0] / 2


def test_its_model_has_the_sizes_asked_for(dreamer: Callable[..., Any]) -> None:
    model = dreamer(sizes=replace(SIZES, batch=3, length=5, categoricals=5, classes=8, width=16, starts=9, horizon=4))
    sample = model.sample(random_batch(3, 5, CPU))
    _, out = model.model_loss(sample)
    following = out["next"]
    assert following["posterior_logits"].shape == following["prior_logits"].shape == (3, 5, 5, 8)
    assert following["belief"].shape == (3, 5, 16)
    assert following["state"].shape == (3, 5, 40)
    assert following["reco_pixels"].shape == (3, 5, 3, 64, 64)
    assert following["reward_logits"].shape == (3, 5, 255)
    _, imagined = model.actor_loss(model.starts())
    assert imagined["action"].shape == (9, 4, NUM_ACTIONS)
    assert imagined["lambda_target"].shape == (9, 4, 1)
    assert torch.equal(imagined["action"].sum(-1), torch.ones(9, 4))
    first = model.starts()["state"]
    assert torch.equal(first.unflatten(-1, (5, 8)).sum(-1), torch.ones(9, 5))


def test_it_is_given_the_same_batch(dreamer: Callable[..., Any]) -> None:
    model, batch = dreamer(), random_batch(SIZES.batch, SIZES.length, CPU)
    sample = model.sample(batch)
    assert torch.equal(sample["next", "pixels"], batch.obs)
    assert torch.equal(sample["action"].argmax(-1), batch.action)
    assert torch.equal(sample["next", "reward"].squeeze(-1), batch.reward)
    assert torch.equal(sample["next", "terminated"].squeeze(-1), batch.terminated)
    assert torch.equal(sample["is_init"].squeeze(-1), batch.is_first)


def test_its_convolutions_are_counted_as_by_hand(dreamer: Callable[..., Any]) -> None:
    """Kernels 5 and 3 differ by 16 taps in every convolution, forward and twice backward; no gradient of the frames is asked for."""
    flops = {}
    for kernel in (3, 5):
        model = dreamer(kernel)
        update = model.world_model_update(model.sample(random_batch(SIZES.batch, SIZES.length, CPU)))
        flops[kernel] = count(update, CPU).flops
    encoder = [
        3 * 4 * 32**2 * 2,
        4 * 8 * 16**2 * 3,
        8 * 16 * 8**2 * 3,
        16 * 32 * 4**2 * 3,
    ]  # channels in, out, places of the output, passes
    decoder = [32 * 16 * 4**2 * 3, 16 * 8 * 8**2 * 3, 8 * 4 * 16**2 * 3, 4 * 3 * 32**2 * 3]  # places of the input
    assert flops[5] - flops[3] == 2 * 16 * SIZES.batch * SIZES.length * sum(encoder + decoder)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", PARTS)
def test_its_autocast_ends_before_backward(rival: Any, part: str, precision: torch.dtype) -> None:
    """As ours does: under autocast its backward pass is slower by far."""
    model = rival.Dreamer(SIZES, 3, CPU, precision, whole=part == "both")
    sample = model.sample(random_batch(SIZES.batch, SIZES.length, CPU))
    updates = {"world_model": model.world_model_update, "agent": lambda _: model.agent_update(model.starts())}
    update = updates.get(part, lambda given: model.whole_update(given, eager=False))(sample)
    layer = next(
        module
        for module in (model.parts.critic if part == "agent" else model.parts.world_model).modules()
        if isinstance(module, nn.Linear)
    )
    seen: dict[str, Any] = {}
    layer.register_forward_hook(lambda module, given, out: seen.update(forward=out.dtype))
    layer.weight.register_hook(lambda gradient: seen.update(backward=torch.is_autocast_enabled("cpu")))
    update()
    assert seen == {"forward": precision, "backward": False}


def test_its_rollout_is_stepped(dreamer: Callable[..., Any]) -> None:
    """An RSSM's launches grow with the length of a window, and ours do not."""
    launches, ours = {}, {}
    for length in (4, 8):
        sizes = replace(SIZES, length=length)
        model, batch = dreamer(sizes=sizes), random_batch(SIZES.batch, length, CPU)
        launches[length] = count(model.world_model_update(model.sample(batch)), CPU).launches
        config = override(TINY, {"world_model.batch_length": length})
        ours[length] = count(our_updates(config, CPU, torch.float32, batch)["world_model"].call, CPU).launches
    assert launches[8] > 1.5 * launches[4]
    assert ours[8] == ours[4]


def test_a_whole_result(
    rival: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--preset tiny --precision float32 --kernel-size 3 --rounds 2 --part world_model --part agent"
    monkeypatch.setattr(
        sys, "argv", ["bench/peers/world_model.py", *arguments.split(), "--json", str(tmp_path / "x.json")]
    )
    assert world_model.main() == 0
    printed = capsys.readouterr().out
    assert "| tiny | float32 | world model | torchrl, kernel 3 | " in printed
    assert f"`python bench/peers/world_model.py --device cpu --rounds 2 {'--preset tiny'}" in printed
    monkeypatch.setattr(sys, "argv", ["bench/peers/world_model.py", "--table", str(tmp_path / "x.json")])
    assert world_model.main() == 0
    assert capsys.readouterr().out == printed


def test_torchrl_without_dreamer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> Any:
        raise ImportError("cannot import name 'DreamerV3Loss' from 'torchrl.objectives'")

    monkeypatch.setattr(world_model.importlib, "import_module", no_module)
    with pytest.raises(UserError, match="cannot import name 'DreamerV3Loss'"):
        world_model.run(
            Namespace(
                rounds=2,
                threads=None,
                json=None,
                device="cpu",
                kernel_size=None,
                preset=None,
                part=None,
                precision=None,
            )
        )
