"""What is compiled and what is captured: the only file that decides it.

A step is a few phases: act, update the world model, imagine and update the agent, remember anew. `off` runs them
eagerly, `default` compiles what they compute, `graphs` also captures each as one CUDA graph, so that the host launches
it at once. The phases are written for the last from the start: buffers made once and written in place, randomness and
indices drawn on the device, nothing read by the host. So all of it but the capture itself also runs on a CPU, where the
tests replay the recorded operators.

Compiled and eager phases draw the same latents, windows and actions; the masks of dropout come from the compiler's own
generator.
"""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stormfast import annotate
from stormfast.learner import Learner
from stormfast.plan import CompileMode
from stormfast.player import Player
from stormfast.records import Batch
from stormfast.replay import Replay
from stormfast.settings import TrainConfig

WARMUP_CALLS = 3  # real calls before the capture: libraries initialise and tune themselves in them

Losses = dict[str, Tensor]


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch.compile raised it: no C++ compiler, a broken Triton, code it cannot take."""
    exceptions = sys.modules.get("torch._dynamo.exc")  # imported by the first compilation
    return exceptions is not None and isinstance(error, exceptions.TorchDynamoException)


class Updates:
    """The updates of a run as functions without arguments: what they learn from is drawn from replay inside them."""

    def __init__(self, config: TrainConfig, learner: Learner, replay: Replay, generator: torch.Generator) -> None:
        self.config, self.learner, self.replay, self.generator = config, learner, replay, generator

    def sample_windows(self) -> Batch:
        settings = self.config.world_model
        with annotate.phase("sample_windows"):
            return self.replay.sample(settings.batch_size, settings.batch_length, self.generator)

    def update_world_model(self) -> Losses:
        batch = self.sample_windows()
        with annotate.phase("world_model"):
            return self.learner.update_world_model(batch)

    def update_sequence_model(self) -> Losses:
        batch = self.sample_windows()
        with annotate.phase("sequence_model"):
            return self.learner.update_sequence_model(batch)

    def update_agent(self) -> Losses:
        settings = self.config.imagination
        if settings.contexts == "batch":
            return self.learner.update_agent()
        with annotate.phase("sample_contexts"):
            context = self.replay.sample(settings.num_windows, settings.window_length, self.generator)
        return self.learner.update_agent(context)


def compile_run(mode: CompileMode, updates: Updates, player: Player) -> None:
    """Compiles and captures the updates and acting of a run, in place; each on its first calls."""
    if mode == "off":
        return
    compile_parts(updates.learner, player)
    if mode == "graphs":
        capture_updates(updates, player)


def compile_parts(learner: Learner, player: Player) -> None:
    """One compiled function for each thing that is computed; the imagined step is one, called again for each step."""
    for owner, names in (
        (learner.world_model, ("loss_with_uniform", "sequence_loss_with_uniform")),
        (learner.imagination, ("observe", "prefill", "step", "predict_reward_and_continuation")),
        (learner.agent, ("loss",)),
        (player, ("act_with_uniform",)),
    ):
        for name in names:
            setattr(owner, name, torch.compile(getattr(owner, name), fullgraph=True, dynamic=False))


def capture_updates(updates: Updates, player: Player) -> None:
    shared = GraphPool(updates.learner.device)
    for owner, name, label in (
        (updates, "update_world_model", "world_model"),
        (updates, "update_sequence_model", "sequence_model"),
        (updates, "update_agent", "imagination+agent"),
        (player, "act_on_device", ""),
        (player, "refresh", ""),
    ):
        setattr(owner, name, GraphedCall(getattr(owner, name), shared, label))


class GraphPool:
    """What the graphs of a run share: their memory, as they never run at once, and a stream for the calls before a
    capture.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.on_cuda else None
        self.stream = torch.cuda.Stream(device) if self.on_cuda else None

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """On CUDA on the stream of its own, as calls before a capture must be made; it and the current one wait for
        each other.
        """
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


class GraphedCall:
    """A function of tensors as one CUDA graph: called WARMUP_CALLS times, then captured, and replayed from then on.

    Arguments are copied into buffers made once; what it returns lies in such buffers too, and is overwritten by the
    next call. Whatever else the function reads or writes must stay where it is. On a CPU the same buffers are used
    around plain calls.
    """

    def __init__(self, function: Callable[..., Any], shared: GraphPool, label: str = "") -> None:
        """label: of the range around a replay, for profilers, where none is around the call."""
        self.function, self.shared, self.label = function, shared, label
        self.calls = 0
        self.inputs: list[Tensor] = []
        self.output: Any = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *args: Tensor) -> Any:
        self.calls += 1
        if self.calls <= WARMUP_CALLS:
            with self.shared.beside():
                return self.function(*args)
        if self.calls == WARMUP_CALLS + 1:
            self.inputs = [tensor.clone() for tensor in args]
            self.capture()
        else:
            for buffer, tensor in zip(self.inputs, args, strict=True):
                buffer.copy_(tensor)
        self.replay()
        return self.output

    def capture(self) -> None:
        if not self.shared.on_cuda:
            return
        self.graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.collect()  # a graph destroyed during a capture would break it
        gc.disable()
        try:
            with torch.cuda.graph(self.graph, pool=self.shared.pool, stream=self.shared.stream):
                self.output = self.function(*self.inputs)
        finally:
            if collecting:
                gc.enable()

    def replay(self) -> None:
        if self.graph is not None:
            with annotate.phase(self.label) if self.label else contextlib.nullcontext():
                self.graph.replay()
            return
        output = self.function(*self.inputs)
        if self.calls == WARMUP_CALLS + 1:
            self.output = pytree.tree_map_only(Tensor, Tensor.clone, output)
        else:
            for buffer, tensor in zip(pytree.tree_leaves(self.output), pytree.tree_leaves(output), strict=True):
                if isinstance(tensor, Tensor):
                    buffer.copy_(tensor)
