"""Small models and batches for the tests of the world model, the agent and what stands around them.

B batch   T time   S categoricals   K classes   D width
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stormfast.learner import Learner
from stormfast.plan import CompileMode, Plan
from stormfast.presets import preset_config
from stormfast.records import Batch
from stormfast.runs.opened import opened
from stormfast.schema import override
from stormfast.settings import TrainConfig

NUM_ACTIONS = 4

# Odd sizes, all different, so that no two dimensions can be mistaken for each other.
SIZES: dict[str, Any] = {
    "world_model.channels": (2, 3, 4, 5),
    "world_model.categoricals": 3,
    "world_model.classes": 5,
    "world_model.width": 12,
    "world_model.layers": 2,
    "world_model.heads": 3,
    "world_model.max_length": 11,
    "world_model.batch_size": 4,
    "world_model.batch_length": 7,
    "imagination.batch_size": 6,
    "imagination.context": 4,
    "imagination.horizon": 5,
    "agent.width": 10,
    "acting.context": 5,
}


def tiny_config(protocol: str = "standard", values: dict[str, Any] | None = None) -> TrainConfig:
    return override(preset_config("tiny", protocol), SIZES | (values or {}))


def plan_on(device: str, compile: CompileMode = "off", precision: torch.dtype = torch.float32) -> Plan:
    """A plan that asks no device."""
    return Plan("tiny", torch.device(device), precision, compile, "reference", "ale", {})


def create(config: TrainConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """The directory of a run that has begun, and that nobody trains."""
    with opened(config, say) as path:
        return path


def tiny_learner(
    protocol: str = "standard",
    values: dict[str, Any] | None = None,
    seed: int = 0,
    precision: torch.dtype | None = None,
) -> Learner:
    """Models with every weight drawn anew, zero-initialised heads and unit norms included, so that nothing is hidden by
    a special value.
    """
    torch.manual_seed(seed)
    learner = Learner(
        tiny_config(protocol, values), NUM_ACTIONS, torch.device("cpu"), precision or torch.get_default_dtype()
    )
    for module in (learner.world_model, learner.agent):
        randomize(module)
    learner.inference.refresh()
    return learner


@torch.no_grad()
def randomize(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def make_batch(batch: int = 4, length: int = 7, *, resets: bool = True, seed: int = 0) -> Batch:
    """Random windows; with resets, most hold an end of an episode, flagged as replay would flag it."""
    g = torch.Generator().manual_seed(seed)
    flags = {
        name: torch.zeros(batch, length, dtype=torch.bool)
        for name in ("terminated", "truncated", "is_first", "is_last")
    }
    action = torch.randint(NUM_ACTIONS, (batch, length), generator=g)
    reward = 3 * torch.randn(batch, length, generator=g)
    life_lost = torch.rand(batch, length, generator=g) < 0.2
    if resets:
        for b in range(batch):
            at = int(
                torch.randint(-1, length, (), generator=g)
            )  # the row of the last observation; -1: the window begins an episode
            end = "terminated" if b % 2 == 0 else "truncated"
            if at >= 1:
                flags[end][b, at - 1] = True
            if at >= 0:
                flags["is_last"][b, at], action[b, at], reward[b, at], life_lost[b, at] = True, 0, 0, False
            if at + 1 < length:
                flags["is_first"][b, at + 1] = True
    obs = torch.randint(256, (batch, length, 3, 64, 64), generator=g, dtype=torch.uint8)
    return Batch(obs, action, reward, life_lost=life_lost, **flags)


def one_hot_latent(
    *lead: int, categoricals: int = 3, classes: int = 5, generator: torch.Generator | None = None
) -> Tensor:
    """Random latents [*lead, S*K]."""
    index = torch.randint(classes, (*lead, categoricals), generator=generator)
    return torch.nn.functional.one_hot(index, classes).to(torch.get_default_dtype()).flatten(-2)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class NoSync(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        assert func.overloadpacket not in (aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select), (
            f"{func} waits for the device"
        )
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Fails where host and device would wait for each other."""
    with NoSync():
        yield
