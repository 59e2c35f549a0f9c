"""The learner: one optimiser step of the world model on replay, or of a part of it, one of the agent on imagination.

It knows the losses and no environment; the loop in loop.py knows the environment and no loss.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from stormfast import annotate
from stormfast.agent import Agent
from stormfast.imagination import Imagination
from stormfast.records import Batch, LearnedBatch, Replayed, Rollout, WindowRollout
from stormfast.replay import FLAGS
from stormfast.replay_value import replayed_steps
from stormfast.settings import TrainConfig
from stormfast.world_model import WorldModel
from stormfast.world_model.inference import InferenceModel, autocast


def build_models(config: TrainConfig, num_actions: int, device: torch.device) -> tuple[WorldModel, Agent]:
    """Freshly initialised world model and agent on the device, in evaluation mode."""
    world_model = WorldModel(config.world_model, num_actions)
    agent = Agent(config.agent, config.world_model, num_actions)
    return world_model.to(device).eval(), agent.to(device).eval()


class Learner:
    """World model and agent with their optimisers.

    The weights stay float32; bfloat16 is for the arithmetic (autocast).
    """

    def __init__(self, config: TrainConfig, num_actions: int, device: torch.device, precision: torch.dtype) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.world_model, self.agent = build_models(config, num_actions, device)
        self.inference = InferenceModel(self.world_model, precision)
        self.imagination = Imagination(self.inference, self.agent, config.imagination, precision, device)
        self.learned = new_learned_batch(config, precision, device) if config.imagination.contexts == "batch" else None
        self.trained: dict[str, list[nn.Parameter]] = {
            "world_model": [*self.world_model.parameters()],
            "agent": self.agent.trained_parameters(),
        }
        settings: dict[str, Any] = {
            "fused": True,
            "capturable": device.type == "cuda",
        }  # capturable: no step waits for the device
        self.optimizers = {
            "world_model": torch.optim.Adam(
                self.trained["world_model"], lr=config.world_model.learning_rate, **settings
            ),
            "agent": torch.optim.Adam(self.trained["agent"], lr=config.agent.learning_rate, eps=1e-5, **settings),
        }

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def centre(self, mean_frame: Tensor) -> None:
        """Tells the world model the mean frame [3, 64, 64] of the game; once, before it learns."""
        self.world_model.centre(mean_frame)
        self.inference.refresh()

    def update_world_model(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step on replayed windows [B, T].

        Returns every loss term and the gradient norm, 0-d, on the device.
        """
        self.world_model.train()
        with self.autocast():
            losses = self.world_model.loss(batch, self.latent_buffer)
        norm = self.descend("world_model", losses["total"], self.config.world_model.clip_norm)
        self.world_model.eval()  # acting and imagination use the running batch-norm statistics
        self.inference.refresh()
        self.keep(batch)
        return detached("world_model", losses | {"grad_norm": norm})

    def update_sequence_model(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step on replayed windows [B, T] of the sequence model and the heads alone.

        The encoder is as it is for acting, so this costs no gradient of an image, and its batch norms stand still.
        """
        self.world_model.train()
        with self.autocast():
            with torch.no_grad():
                logits = self.inference.model.encode(batch.obs)
            losses = self.world_model.sequence_loss(batch, logits, self.latent_buffer)
        norm = self.descend("world_model", losses["total"], self.config.world_model.clip_norm)
        self.world_model.eval()
        self.inference.refresh()
        self.keep(batch)
        return detached("sequence_model", losses | {"grad_norm": norm})

    @property
    def latent_buffer(self) -> Tensor | None:
        """[B, T, S*K], for the latents of the batch that the world model learns from, where imagination wants them."""
        return None if self.learned is None else self.learned.latent

    def keep(self, batch: Batch) -> None:
        """Keeps the windows whose latents are in the buffer, where imagination wants them."""
        if self.learned is not None:
            self.learned.windows.copy_(batch)

    def update_agent(self, context: Batch | None = None) -> dict[str, Tensor]:
        """Imagines from windows, as imagine() does, and takes agent.minibatches optimiser steps.

        Returns the mean of their terms.
        """
        with annotate.phase("imagination"):
            rollout = self.imagine(context)
        with annotate.phase("agent"):
            steps = [self.update_agent_on(part) for part in minibatches(rollout, self.config.agent.minibatches)]
        return {name: torch.stack([step[name] for step in steps]).mean() for name in steps[0]}

    def imagine(self, context: Batch | None = None) -> Rollout:
        """A rollout from replayed windows, as Imagination takes them; without, from the windows and the latents of the
        last world-model update, where imagination.contexts is "batch".
        """
        with self.autocast():
            if context is not None:
                return self.imagination(context)
            assert self.learned is not None
            rollout = self.imagination(self.learned.windows, self.learned.latent)
        if not self.config.agent.replay_value:
            return rollout
        ends = self.config.world_model.life_loss_terminates
        replayed = replayed_steps(self.learned.windows, self.config.imagination.context, ends)
        return WindowRollout(**vars(rollout), replayed=replayed)

    def update_agent_on(self, rollout: Rollout) -> dict[str, Tensor]:
        """One optimiser step of actor and critic, and the slow critic's step after it."""
        with self.autocast():
            losses = self.agent.loss(rollout)
        norm = self.descend("agent", losses["total"], self.config.agent.clip_norm)
        self.agent.update_slow_critic()
        return detached("agent", losses | {"grad_norm": norm})

    def descend(self, name: str, loss: Tensor, clip_norm: float) -> Tensor:
        """Backward pass, clipping, Adam. Returns the gradient norm before clipping, 0-d.

        The fused optimiser clips as it goes: it divides gradients by grad_scale, and does nothing at all where
        found_inf is 1, so that a step that is not finite leaves the weights as they were (the batch-norm averages have
        moved by then). Torch's gradient scaler hands it both in the same way.
        """
        optimizer: Any = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm(
            [weight.grad for weight in self.trained[name] if weight.grad is not None], foreach=True
        )
        optimizer.grad_scale = ((norm + 1e-6) / clip_norm).clamp(min=1).float()  # 1e-6, as clip_grad_norm_ has it
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        return norm


def new_learned_batch(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> LearnedBatch:
    """Empty buffers: captured updates of world model and agent meet in them, so they stay where they are."""
    sizes = config.world_model

    def buffer(dtype: torch.dtype, *features: int) -> Tensor:
        return torch.zeros(sizes.batch_size, sizes.batch_length, *features, dtype=dtype, device=device)

    flags = {name: buffer(torch.bool) for name in FLAGS}
    windows = Batch(buffer(torch.uint8, 0), buffer(torch.int64), buffer(torch.float32), **flags)
    return LearnedBatch(windows, buffer(dtype, sizes.categoricals * sizes.classes))


def minibatches(rollout: Rollout, count: int) -> Iterator[Rollout]:
    """The rollout dealt into `count` equal parts: contexts lie in replay's order, demonstrations last, and each part
    gets its share. Where it holds what was replayed too, whole windows are dealt.
    """
    if isinstance(rollout, WindowRollout):
        yield from window_minibatches(rollout, count)
        return
    for i in range(count):
        yield Rollout(**{f.name: getattr(rollout, f.name)[i::count] for f in fields(rollout)})


def window_minibatches(rollout: WindowRollout, count: int) -> Iterator[WindowRollout]:
    """Every count-th window from the i-th on, with all rollouts from it."""
    shape = rollout.replayed.reward.shape
    imagined = {f.name: getattr(rollout, f.name).unflatten(0, shape) for f in fields(Rollout)}
    for i in range(count):
        replayed = Replayed(**{f.name: getattr(rollout.replayed, f.name)[i::count] for f in fields(Replayed)})
        yield WindowRollout(**{name: x[i::count].flatten(0, 1) for name, x in imagined.items()}, replayed=replayed)


def detached(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value.detach() for name, value in values.items()}
