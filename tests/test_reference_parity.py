"""The parity script: passes on the original's figures, fails when a figure is changed, and copes with other sizes and
with garbage.
"""

import copy
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stormfast.agent import Agent
from stormfast.schema import override
from stormfast.world_model import WorldModel

HERE = Path(__file__).parent
SCRIPT, FILE = HERE / "reference_parity.py", HERE / "data" / "storm_reference.json"

SIZES = [
    {
        "hidden": 24,
        "layers": 3,
        "heads": 3,
        "batch": 3,
        "length": 5,
        "actions": 4,
        "agent_hidden": 20,
        "max_length": 9,
        "seed": 11,
        "classes": 7,
    },
    {
        "hidden": 16,
        "layers": 1,
        "heads": 1,
        "batch": 2,
        "length": 10,
        "actions": 18,
        "agent_hidden": 8,
        "max_length": 10,
        "gamma": 0.9,
        "lam": 0.5,
    },
]


def load_script():
    spec = importlib.util.spec_from_file_location("reference_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = load_script()
FIGURES = json.loads(FILE.read_text())


# --- the original's own figures ----------------------------------------------------------------------------------


def test_every_figure_of_the_original_is_ours(capsys):
    assert parity.main([str(FILE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    errors = dict(re.fullmatch(r" (\d\.\d\de[-+]\d\d)  (\S+)", line).groups()[::-1] for line in lines[:-1])
    assert len(errors) == 284
    assert {name: error for name, error in errors.items() if not float(error) <= 1e-9} == {}
    assert lines[-1].startswith("284 quantities")
    assert lines[-1].endswith("0 above 1e-09")
    assert torch.get_default_dtype() == torch.float32  # float64 was for the comparison only


# --- synthetic figures of other sizes, recorded from our own models ----------------------------------------------


def layers_of(names, layers):
    """Parameter names of the file's two layers -> those of `layers` layers."""
    first = [name for name in names if ".layer_stack.0." in name]
    added = [name.replace(".layer_stack.0.", f".layer_stack.{i}.") for i in range(layers) for name in first]
    return sorted([name for name in names if ".layer_stack." not in name] + added)


def shapes_of(module, names):
    state = module.state_dict()
    return [
        [name, [] if name.endswith("num_batches_tracked") else list(state[parity.our_name(name)].shape)]
        for name in names
    ]


def resized(sizes):
    """The file's figures with other sizes: settings, names and shapes fit, the numbers are still to be recorded."""
    figures = copy.deepcopy(FIGURES)
    figures["settings"] |= sizes
    settings, layers = figures["settings"], sizes["layers"]
    config = override(
        parity.build_config(FIGURES),
        {
            "world_model.channels": (3, 4, 6, 5),
            "world_model.categoricals": 3,
            "world_model.classes": sizes.get("classes", 32),
            "world_model.width": settings["hidden"],
            "world_model.heads": settings["heads"],
            "world_model.layers": layers,
            "world_model.max_length": settings["max_length"],
            "agent.width": settings["agent_hidden"],
        },
    )
    world_model, agent = (
        WorldModel(config.world_model, settings["actions"]),
        Agent(config.agent, config.world_model, settings["actions"]),
    )
    figures["world_model_parameters"] = shapes_of(
        world_model, layers_of([name for name, _ in FIGURES["world_model_parameters"]], layers)
    )
    figures["agent_parameters"] = shapes_of(agent, [name for name, _ in FIGURES["agent_parameters"]])
    for figure in ("gradient_l2", "parameter_change_l2_after_adam"):
        figures["train_mode"][figure] = dict.fromkeys(layers_of(FIGURES["train_mode"][figure], layers), 0.0)
    return figures


class Recorder(parity.Comparison):
    """Writes our figures into the file instead of comparing with what it holds."""

    def __init__(self, figures):
        super().__init__()
        self.figures = figures

    def check(self, name, ours, theirs):
        section, key = name.split(".", 1)
        if key in self.figures[section]:
            theirs = self.figures[section][key] = recorded(ours, theirs)
        super().check(name, ours, theirs)


def recorded(ours, theirs):
    if isinstance(theirs, dict) and "l2" in theirs:
        flat = ours.detach().double().flatten().numpy()
        at = sorted({0, len(flat) - 1, *np.random.RandomState(0).randint(len(flat), size=5).tolist()})
        return {
            "size": len(flat),
            "sum": float(flat.sum()),
            "l2": float(np.linalg.norm(flat)),
            "at": at,
            "values": flat[at].tolist(),
        }
    if isinstance(theirs, dict):
        return {name: float(value) for name, value in ours.items()}
    return ours.tolist() if isinstance(theirs, list) else float(ours)


@pytest.fixture(scope="module")
def synthetic():
    """A function from an index into SIZES to recorded figures, a copy of its own for each caller."""
    made = {}

    def figures_of(index):
        if index not in made:
            figures = resized(SIZES[index])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parity, "Comparison", lambda: Recorder(figures))
                parity.compare(figures)
            made[index] = figures
        return copy.deepcopy(made[index])

    return figures_of


def status(figures, tmp_path):
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures))
    return parity.main([str(path)])


@pytest.mark.parametrize("index", [0, 1])
def test_files_of_other_sizes_are_compared(synthetic, index, tmp_path, capsys):
    assert status(synthetic(index), tmp_path) == 0
    printed = capsys.readouterr().out.splitlines()
    a_layer = sum(".layer_stack.0." in name for name in FIGURES["train_mode"]["gradient_l2"])
    assert (
        len(printed) - 1 == 284 + (SIZES[index]["layers"] - 2) * 2 * a_layer
    )  # a gradient and a step of each parameter
    assert math.prod(
        dict(synthetic(index)["world_model_parameters"])["storm_transformer.position_encoding.pos_emb.weight"]
    ) == (SIZES[index]["max_length"] * SIZES[index]["hidden"])


def numbers(node, path=()):
    """Paths of all recorded numbers."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ("size", "at", "x", "cached_minus_full_max"):
                yield from numbers(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from numbers(value, (*path, i))
    else:
        yield path


def change(figures, path, part):
    """Moves one number by `part` of it; a tensor's sum and values by `part` of its norm, the scale they are compared
    on.
    """
    *parents, last = path
    node = figures
    for key in parents:
        node = node[key]
    quantity = figures[path[0]][path[1]]
    norm = quantity["l2"] if isinstance(quantity, dict) and "l2" in quantity else 0.0
    node[last] += part * (max(abs(node[last]), norm) or 1.0)


def test_any_number_that_is_changed_is_noticed(synthetic):
    """One number of each quantity in turn, by one part in 10^8.

    Compares with the recorded figures, in place of running the models again.
    """
    figures = synthetic(0)
    ours = {}

    class Keep(parity.Comparison):
        def check(self, name, mine, theirs):
            section, key = name.split(".", 1)
            if key in figures[section]:
                ours[name] = mine
            super().check(name, mine, theirs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "Comparison", Keep)
        parity.compare(figures)
    sections = {name: figures[name] for name in ("train_mode", "eval_mode", "agent", "functions")}
    missed = []
    for path in numbers(sections):
        altered = copy.deepcopy(figures[path[0]][path[1]])
        holder = {path[0]: {path[1]: altered}}
        change(holder, path, 1e-8)
        check = parity.Comparison()
        check.check(f"{path[0]}.{path[1]}", ours[f"{path[0]}.{path[1]}"], holder[path[0]][path[1]])
        if not max(check.errors.values()) > 1e-9:
            missed.append(path)
    assert missed == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("length", 6), ("batch", 4), ("gamma", 0.98), ("seed", 12), ("entropy_coef", 0.1), ("heads", 2)],
)
def test_another_setting_gives_other_figures(synthetic, setting, value, tmp_path, capsys):
    figures = synthetic(0)
    figures["settings"][setting] = value
    assert status(figures, tmp_path) == 1
    assert "ABOVE" in capsys.readouterr().out


def test_a_figure_nobody_compares_is_told(synthetic):
    figures = synthetic(0)
    figures["agent"]["regret"] = 1.0
    with pytest.raises(KeyError, match=r"agent\.regret"):
        parity.compare(figures)


def test_a_parameter_nobody_loads_is_told(synthetic):
    figures = synthetic(0)
    del figures["world_model_parameters"][-1]
    with pytest.raises(KeyError, match=r"only ours \['termination\.6"):
        parity.compare(figures)


def test_nan_is_no_match(synthetic, tmp_path):
    figures = synthetic(0)
    figures["agent"]["percentile_05"] = math.nan
    assert status(figures, tmp_path) == 1


def test_a_changed_number_alone_is_above(synthetic, tmp_path, capsys):
    figures = synthetic(1)
    figures["train_mode"]["gradient_l2"]["storm_transformer.layer_stack.0.slf_attn.w_ks.weight"] *= 1 + 1e-8
    assert status(figures, tmp_path) == 1
    printed = capsys.readouterr().out.splitlines()
    above = [line for line in printed if "ABOVE" in line]
    assert len(above) == 1
    assert above[0].endswith("train_mode.gradient_l2.storm_transformer.layer_stack.0.slf_attn.w_ks.weight")
    assert printed[-1].endswith("1 above 1e-09")


# --- garbage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"no json", b"", b"\xff\xfe\x00\x80", b"[1, 2]", b"3", b"null", b"{}", b'{"settings": {}}']
)
def test_garbage_is_told_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "garbage.json"
    path.write_bytes(content)
    assert parity.main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert "expected a JSON file of recorded figures" in printed.err
    assert str(path) in printed.err


def test_the_command_refuses_garbage_and_wrong_arguments(tmp_path, capsys):
    path = tmp_path / "garbage.json"
    path.write_text("no json")
    result = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert parity.main([str(tmp_path / "absent.json")]) == 2
    assert parity.main([]) == 2
    assert "usage" in capsys.readouterr().err
