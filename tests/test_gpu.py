"""On a CUDA device: training runs and resumes, no step waits for the device, and the numbers are the CPU's.

B batch   T time   S categoricals   K classes   L cache positions
"""

import contextlib
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stormfast.commands import evaluate
from stormfast.demonstration import Demonstration
from stormfast.learner import Learner
from stormfast.loop import train
from stormfast.presets import preset_config
from stormfast.records import Transition
from stormfast.replay import Replay
from stormfast.runs.checkpoint import load_checkpoint
from stormfast.runs.metrics import Metrics
from stormfast.runs.run import build, snapshot
from stormfast.schema import override, to_json
from stormfast.world_model.encoder import normalize_frames
from stormfast.world_model.losses import world_model_loss
from stormfast_kernels import cached_attention_step, sample_categorical
from tests.model_fixtures import NUM_ACTIONS, make_batch, tiny_learner

pytestmark = pytest.mark.gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """TensorFloat-32 rounds the inputs of convolutions to 11 bits: then the CPU's numbers could not be met."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Fails where host and device would wait for each other."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def moved(record: Any, device: torch.device) -> Any:
    return type(record)(**{f.name: getattr(record, f.name).to(device) for f in fields(record)})


def cuda_learner(values: dict[str, Any] | None = None, precision: torch.dtype = torch.float32) -> Learner:
    """tiny_learner's twin on the CUDA device."""
    given = tiny_learner(values=values)
    learner = Learner(given.config, NUM_ACTIONS, CUDA, precision)
    learner.world_model.load_state_dict(given.world_model.state_dict())
    learner.agent.load_state_dict(given.agent.state_dict())
    return learner


# --- training ----------------------------------------------------------------------------------------------------


def test_training_in_bfloat16_saves_resumes_and_is_scored(tmp_path: Path) -> None:
    values = {
        "game": "Catch",
        "steps": 96,
        "device": "cuda",
        "precision": "bfloat16",
        "logging.every": 16,
        "logging.tensorboard": False,
    }
    config = override(preset_config("tiny", "standard"), values | {"run_dir": str(tmp_path)})
    (tmp_path / "config.json").write_text(to_json(config))
    assert train(config, tmp_path).stopped_by == 0
    saved = load_checkpoint(tmp_path, CUDA)
    with build(replace(config, resume=True), tmp_path) as run:
        assert (run.step, run.learner.device.type, run.learner.precision) == (96, "cuda", torch.bfloat16)
        assert (run.replay.device.type, run.updates.generator.device.type, len(run.replay)) == (
            "cuda",
            "cuda",
            int(run.replay.written.sum()),
        )
        tensors, meta = snapshot(run)
    assert meta == saved.meta
    assert tensors.keys() == saved.tensors.keys()
    assert [name for name, value in tensors.items() if not torch.equal(value.to(CUDA), saved.tensors[name])] == []
    assert {value.dtype for name, value in tensors.items() if name.startswith(("world_model.", "agent."))} <= {
        torch.float32,
        torch.int64,
    }
    assert train(replace(config, steps=128, resume=True), tmp_path).step == 128
    assert load_checkpoint(tmp_path, "cpu", replay=False).step == 128
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == set(range(16, 129, 16))
    assert {"world_model/total", "agent/total"} <= lines[-1].keys()
    assert all(math.isfinite(value) for line in lines for value in line.values())
    for device in ("cuda", "cpu"):
        assert evaluate.run(evaluate.Config(run=str(tmp_path), episodes=2, num_envs=2, device=device)) == 0


# --- no step waits for the device --------------------------------------------------------------------------------


def test_the_detector_detects() -> None:
    one = torch.ones(1, device=CUDA)
    with no_sync(), pytest.raises(RuntimeError, match="synchroniz"):
        one.item()


def transition(rng: np.random.Generator, num_streams: int) -> Transition:
    flags = {
        name: rng.random(num_streams) < 0.2 for name in ("terminated", "truncated", "life_lost", "is_first", "is_last")
    }
    obs = rng.integers(0, 256, (num_streams, 3, 64, 64), dtype=np.uint8)
    action, reward = rng.integers(0, NUM_ACTIONS, num_streams), rng.normal(size=num_streams).astype(np.float32)
    return Transition(obs=obs, action=action, reward=reward, **flags)


def filled_replay(rng: np.random.Generator) -> Replay:
    row = transition(rng, 20)
    play = Demonstration(row.obs, row.action, row.reward, row.terminated, row.is_first)
    replay = Replay(40, 2, CUDA, recency=1.5, keep_last_obs=False, demonstration=play, demonstration_share=0.25)
    for _ in range(30):
        replay.append(transition(rng, 2))
    return replay


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "values", [{"agent.minibatches": 2}, {"world_model.tokens": "separate", "imagination.start": "prior"}]
)
def test_a_step_never_waits_for_the_device(values: dict[str, Any], precision: torch.dtype) -> None:
    learner, metrics, rng = cuda_learner(values, precision), Metrics(CUDA), np.random.default_rng(0)
    replay, draws, row = filled_replay(rng), torch.Generator(CUDA).manual_seed(0), transition(rng, 2)
    batch, context = replay.sample(4, 7, draws), replay.sample(6, 4, draws)
    metrics.add(learner.update_world_model(batch))  # the first of each makes optimiser state, and loads libraries
    metrics.add(learner.update_agent(context))
    with no_sync():
        replay.append(row)
        batch = replay.sample(4, 7, draws)
    with no_sync():
        metrics.add(learner.update_world_model(batch))
    with no_sync():
        context = replay.sample(6, 4, draws)
        metrics.add(learner.update_agent(context))
    assert all(math.isfinite(value) for value in metrics.flush(0).values())


# --- the CPU's numbers -------------------------------------------------------------------------------------------


def assert_same_losses(found: dict[str, dict[str, Tensor]], modules: dict[str, nn.Module]) -> None:
    for name, expected in found["cpu"].items():
        got = found["cuda"][name]
        assert got.device.type == CUDA.type
        torch.testing.assert_close(
            got.detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    # The order of float32 sums differs, and batch norm over few values amplifies it: each gradient by its norm.
    gradients = dict(modules["cuda"].named_parameters())
    for name, parameter in modules["cpu"].named_parameters():
        if parameter.grad is None:
            assert gradients[name].grad is None, name
            continue
        error = (gradients[name].grad.cpu() - parameter.grad).norm()
        assert error <= 1e-3 * parameter.grad.norm() + 1e-6, f"{name}: {error} of {parameter.grad.norm()}"


@pytest.mark.parametrize("tokens", ["fused", "separate"])
@pytest.mark.parametrize("protocol", ["standard", "reference"])
def test_world_model_losses_and_gradients_are_the_cpus(protocol: str, tokens: str) -> None:
    learner = tiny_learner(protocol, {"world_model.tokens": tokens, "world_model.dropout": 0.0})
    batch, uniform = make_batch(), torch.rand(4, 7, 3, generator=torch.Generator().manual_seed(1))  # [B, T, S]
    losses, models = {}, {}
    for name, device in (("cpu", CPU), ("cuda", CUDA)):
        model = models[name] = copy.deepcopy(learner.world_model).to(device).train()
        there = moved(batch, device)
        frames = normalize_frames(there.obs)
        prediction = model.predict(frames, there, uniform.to(device))
        losses[name] = world_model_loss(prediction, frames, there, model.two_hot, model.config)
        losses[name]["total"].backward()
    assert_same_losses(losses, models)


@pytest.mark.parametrize("protocol", ["standard", "reference"])
def test_agent_losses_and_gradients_are_the_cpus(protocol: str) -> None:
    learner = tiny_learner(protocol, {"agent.minibatches": 2})
    rollout = learner.imagination(make_batch(6, 4))
    losses, agents = {}, {}
    for name, device in (("cpu", CPU), ("cuda", CUDA)):
        agent = agents[name] = copy.deepcopy(learner.agent).to(device)
        losses[name] = agent.loss(moved(rollout, device))
        losses[name]["total"].backward()
    assert_same_losses(losses, agents)


@contextlib.contextmanager
def uniforms_of_the_cpu(seed: int) -> Iterator[None]:
    """torch.rand gives the same numbers on every device."""
    rand, generator = torch.rand, torch.Generator().manual_seed(seed)

    def same(*shape: int, device: torch.device) -> Tensor:
        return rand(*shape, generator=generator).to(device)

    with mock.patch.object(torch, "rand", same):
        yield


@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.parametrize("tokens", ["fused", "separate"])
def test_imagined_rollouts_are_the_cpus(tokens: str, start: str) -> None:
    values = {"world_model.tokens": tokens, "imagination.start": start}
    context, rollouts = make_batch(6, 4), []
    for learner, device in ((tiny_learner(values=values), CPU), (cuda_learner(values), CUDA)):
        with uniforms_of_the_cpu(seed=2):
            rollouts.append(learner.imagination(moved(context, device)))
    expected, got = rollouts
    assert torch.equal(got.action.cpu(), expected.action)
    for f in fields(expected):
        there = getattr(got, f.name)
        assert there.device.type == CUDA.type
        torch.testing.assert_close(
            there.cpu(), getattr(expected, f.name), rtol=1e-4, atol=1e-4, msg=lambda m, name=f.name: f"{name}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (50, 32, 32), (2, 3, 4, 33)])
def test_categorical_samples_and_their_gradient_are_the_cpus(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    logits, weight = (3 * torch.randn(shape, generator=g)).to(dtype), torch.randn(shape, generator=g).to(dtype)
    uniform, found = torch.rand(shape[:-1], generator=g), []
    for device in (CPU, CUDA):
        there = logits.to(device).requires_grad_()
        sample, index = sample_categorical(there, uniform.to(device), 0.01)
        (gradient,) = torch.autograd.grad((sample * weight.to(device)).sum(), there)
        assert torch.equal(sample.detach(), torch.zeros_like(there).scatter(-1, index.unsqueeze(-1), 1))
        found.append((index.cpu(), gradient.cpu(), sample_categorical(there, None, 0.01)[1].cpu()))
    expected, got = found
    assert (
        got[0] != expected[0]
    ).sum() <= 1e-3 * uniform.numel()  # a uniform may lie on an edge of the cdf: one of 1600 may differ
    assert torch.equal(got[2], expected[2])  # the mode
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(got[1], expected[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "heads", "head_dim", "room"), [(3, 2, 16, 11), (5, 8, 64, 24), (1, 3, 20, 9)])
def test_cached_attention_is_the_cpus(
    batch: int, heads: int, head_dim: int, room: int, masked: bool, dtype: torch.dtype
) -> None:
    query, key, value = torch.randn(3, batch, heads, 9, head_dim, generator=torch.Generator().manual_seed(batch)).to(
        dtype
    )
    first, found = torch.tensor([4, 0, 8, 1, 6])[:batch] if masked else None, []
    for device in (CPU, CUDA):
        caches = torch.zeros(
            2, batch, heads, room, head_dim, dtype=dtype, device=device
        )  # K and V, [B, heads, L, head_dim]
        length, out = torch.zeros((), dtype=torch.int64, device=device), []
        for t in range(9):
            q, k, v = (x[:, :, t].to(device) for x in (query, key, value))
            out.append(cached_attention_step(q, k, v, *caches, length, None if first is None else first.to(device)))
            length += 1
        found.append((torch.stack(out).cpu(), caches.cpu()))
    (expected, expected_caches), (got, got_caches) = found
    assert torch.equal(got_caches, expected_caches)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
