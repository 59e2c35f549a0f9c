"""What a training step of each preset asks for: counts of its phases, and of how often its parts are compiled.

Launches and host reads are counted on a warm run of Catch on the CPU. The presets cpu and tiny run as they are. storm
and fast run their layers, steps and minibatches at small widths, with the operators that a GPU has: launches depend
on none of the sizes that were made small. FLOPs and bytes are those of the presets' own sizes for 18 actions
(stormfast/measure/work.py). Arithmetic is bfloat16 in storm and fast, float32 in cpu and tiny.

Compiled are the parts named in stormfast/compile.py, in the same warm runs. A backend that only counts runs what was
traced, so no compiler of C++ or Triton is needed, and a graph break does not raise.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from stormfast.compile import compile_parts
from stormfast.measure.op_counts import OpCounts, count
from stormfast.measure.phases import count_phases, cycle_steps, take_steps, training_config, warm_run
from stormfast.measure.work import MOST_ACTIONS, operators_as_on_a_gpu, phase_work
from stormfast.runs.run import Run
from stormfast.schema import override
from stormfast.settings import ProfileConfig, TrainConfig

HOST_PHASES = {"env"}  # not of the device: what it counts on a CPU is the host's work
ON_GPU = {"storm", "fast"}  # presets counted as a GPU runs them
HEAD_SIZE = 16  # the smallest that the attention kernel takes
WARMUP = 4  # steps with updates before anything is counted
CYCLES = 3  # of every kind of update, to count compilations: the first compiles, the others should not
QUICK = {"acting.random_steps": 160}
SMALL: dict[str, Any] = QUICK | {
    "world_model.channels": (4, 4, 4, 4),
    "world_model.categoricals": 4,
    "world_model.classes": 8,
    "world_model.batch_size": 2,
    "imagination.batch_size": 4,
    "agent.width": 8,
}


def full_config(preset: str) -> TrainConfig:
    """A preset's run on a CPU, eager and without logs, in the precision of where it belongs."""
    config = training_config(ProfileConfig(preset=preset, device="cpu", compile="off"))  # type: ignore[arg-type]
    return override(config, {"precision": "bfloat16" if preset in ON_GPU else "float32"})


def small_config(preset: str) -> TrainConfig:
    """The same at sizes that are counted in a second."""
    config = full_config(preset)
    if preset not in ON_GPU:
        return override(config, QUICK)
    return override(config, SMALL | {"world_model.width": HEAD_SIZE * config.world_model.heads})


def operators_of(preset: str) -> AbstractContextManager[None]:
    return operators_as_on_a_gpu() if preset in ON_GPU else nullcontext()


# --- phases ------------------------------------------------------------------------------------------------------


def phases_of(preset: str) -> dict[str, int]:
    """PRESET.PHASE.launches, .host_reads, .flops and .bytes; of `append` and `loop` launches and host reads alone."""
    counts: dict[str, int] = {}
    config, device_type = full_config(preset), "cuda" if preset in ON_GPU else "cpu"
    work = phase_work(config, MOST_ACTIONS, getattr(torch, config.precision), device_type)
    with operators_of(preset), warm_run(small_config(preset), WARMUP) as run:
        found = device_phases(run) | around(run)
    for name, counted in found.items():
        counts |= {
            f"{preset}.{name}.launches": counted.launches,
            f"{preset}.{name}.host_reads": len(counted.host_reads),
        }
        if name in work:
            counts |= {f"{preset}.{name}.flops": work[name].flops, f"{preset}.{name}.bytes": work[name].bytes}
    return counts


def device_phases(run: Run) -> dict[str, OpCounts]:
    return {name: counted for name, counted in count_phases(run).items() if name not in HOST_PHASES}


def around(run: Run) -> dict[str, OpCounts]:
    """What lies around the phases: `append`, rows into replay, and `loop`, a whole cycle of the training loop.

    Frames on a CPU are the device's, so that what the loop does with them on the host counts too.
    """
    device = run.learner.device
    rows = run.collector.step(run.collector.act(at_random=True))
    append = count(lambda: run.replay.append(rows), device)
    return {"append": append, "loop": count(lambda: take_steps(run, cycle_steps(run.config)), device)}


# --- compilations ------------------------------------------------------------------------------------------------


def compiled_of(preset: str) -> dict[str, int]:
    """compiled.PRESET.PART.graphs, .graph_breaks and .recompilations."""
    counts: dict[str, int] = {}
    with warm_run(small_config(preset), WARMUP) as run:
        for part in traced(run):
            for quantity in ("graphs", "graph_breaks", "recompilations"):
                counts[f"compiled.{preset}.{part.name}.{quantity}"] = getattr(part, quantity)
    return counts


class CompiledPart:
    """A function compiled by a backend that counts."""

    def __init__(self, function: Callable[..., Any], compiler: Callable[..., Any], options: dict[str, Any]) -> None:
        self.name = function.__qualname__
        self.calls = self.graphs = self.graph_breaks = self.recompilations = 0
        self.function = compiler(function, **(options | {"backend": self.compile, "fullgraph": False}))

    def compile(self, graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        self.recompilations += self.calls > 1
        return graph.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        before = breaks()
        result = self.function(*args, **kwargs)
        self.graph_breaks += breaks() - before
        return result


def breaks() -> int:
    """Graph breaks so far, and functions left eager: a break in a loop leaves no graph, and counts as no break."""
    return counters["graph_break"].total() + counters["frames"]["total"] - counters["frames"]["ok"]


def traced(run: Run) -> list[CompiledPart]:
    """The compiled parts of a run, after some cycles of its training loop."""
    parts: list[CompiledPart] = []

    def compiler(function: Callable[..., Any], **options: Any) -> CompiledPart:
        parts.append(CompiledPart(function, original, options))
        return parts[-1]

    original = torch.compile
    torch._dynamo.reset()  # what other runs compiled counts as recompiled
    with mock.patch.object(torch, "compile", compiler):
        compile_parts(run.learner, run.collector.player)
    take_steps(run, CYCLES * cycle_steps(run.config))
    torch._dynamo.reset()
    return parts
