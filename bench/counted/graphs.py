"""How often each compiled part of a run is compiled: graphs, graph breaks, and recompilations.

The parts are those of stormfast/compile.py, traced by torch.compile in a warm run of each preset at the sizes of phases.py. A
backend that only counts runs what was traced, so no compiler of C++ or Triton is needed. A graph break does not raise here.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from bench.counted.phases import small_config, warm_run
from stormfast.compile import compile_parts
from stormfast.loop import advance
from stormfast.measure.phases import cycle_steps
from stormfast.runs.run import Run
from stormfast.settings import PRESETS

CYCLES = 3  # of every kind of update: the first compiles, the others should not


def collect() -> dict[str, int]:
    """Of all presets."""
    return {name: value for preset in PRESETS for name, value in of_preset(preset).items()}


def of_preset(preset: str) -> dict[str, int]:
    """compiled.PRESET.PART.graphs, .graph_breaks and .recompilations."""
    counts: dict[str, int] = {}
    with warm_run(small_config(preset)) as run:
        for part in traced(run):
            quantities = {
                "graphs": part.graphs,
                "graph_breaks": part.graph_breaks,
                "recompilations": part.recompilations,
            }
            counts |= {f"compiled.{preset}.{part.name}.{quantity}": value for quantity, value in quantities.items()}
    return counts


class Part:
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
    """Graph breaks until now, and functions left eager: one that breaks in a loop has no graph, and torch counts no break."""
    return counters["graph_break"].total() + counters["frames"]["total"] - counters["frames"]["ok"]


def traced(run: Run) -> list[Part]:
    """The compiled parts of a run, after some cycles of its training loop."""
    parts: list[Part] = []

    def compiler(function: Callable[..., Any], **options: Any) -> Part:
        parts.append(Part(function, genuine, options))
        return parts[-1]

    genuine = torch.compile
    torch._dynamo.reset()  # what other runs compiled counts as recompiled
    with mock.patch.object(torch, "compile", compiler):
        compile_parts(run.learner, run.collector.player)
    end = run.step + CYCLES * cycle_steps(run.config)
    while run.step < end:
        advance(run)
    torch._dynamo.reset()
    return parts
