"""State as named tensors, for a checkpoint: names under a prefix, optimisers, random generators.

Exact, and never pickled.
"""

import torch
from torch import Tensor


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """NAME -> tensor as `prefix.NAME` -> the same tensor."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What with_prefix gave, from among other names: those that do not start with `prefix.` are left out."""
    return {
        name.removeprefix(prefix + "."): tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")
    }


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """State of an Adam-like optimiser as `prefix.INDEX.NAME` -> tensor; INDEX counts parameters over all groups.

    The tensors are the live ones, not copies. Settings (learning rate, betas) are not state: they come from the config.
    Raises: ValueError for state that is no tensor.
    """
    flat: dict[str, Tensor] = {}
    for index, param in enumerate(_params(optimizer)):
        for name, value in optimizer.state.get(param, {}).items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"optimiser state {name} of parameter {index} must be a tensor, got {type(value).__name__}"
                )
            flat[f"{prefix}.{index}.{name}"] = value
    return flat


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Puts back what flatten_optimizer gave, to the bit and in its own dtypes; other names in `tensors` are left alone.

    State tensors that exist are filled in place, so that a captured graph goes on to see them. `step` goes where the
    optimiser wants it: beside the parameter if capturable or fused, else on the CPU.
    Raises: ValueError for a parameter that does not exist, or state of another shape.
    """
    saved = _by_index(tensors, prefix)
    params = _params(optimizer)
    if saved and max(saved) >= len(params):
        raise ValueError(
            f"optimiser {prefix} has {len(params)} parameters, but the saved state has one of index {max(saved)}"
        )
    step_on_device = {
        id(p): bool(g.get("capturable") or g.get("fused")) for g in optimizer.param_groups for p in g["params"]
    }
    for index, param in enumerate(params):
        old = optimizer.state.pop(param, {})
        state: dict[str, Tensor] = {}
        for name, value in saved.get(index, {}).items():
            if name != "step" and value.shape != param.shape:
                raise ValueError(
                    f"{prefix}.{index}.{name} must be {tuple(param.shape)} like its parameter, got {tuple(value.shape)}"
                )
            device = param.device if name != "step" or step_on_device[id(param)] else torch.device("cpu")
            state[name] = _fill(old.get(name), value, device, like=param)
        if state:
            optimizer.state[param] = state


def _params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _by_index(tensors: dict[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    saved: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "."):
            index, _, name = key[len(prefix) + 1 :].partition(".")
            if index.isdecimal() and name:
                saved.setdefault(int(index), {})[name] = value
    return saved


def _fill(old: object, value: Tensor, device: torch.device, like: Tensor) -> Tensor:
    if isinstance(old, Tensor) and (old.shape, old.dtype, old.device) == (value.shape, value.dtype, device):
        return old.copy_(value)
    if value.shape != like.shape:
        return value.to(device, copy=True)
    # in the parameter's own memory format: fused Adam walks both in storage order, and channels-last weights would meet
    # strangers
    return torch.empty_like(like, dtype=value.dtype, device=device).copy_(value)


def rng_state(generator: torch.Generator) -> Tensor:
    """State of a generator on any device, as a uint8 tensor on the CPU. For torch's own, pass torch.default_generator
    or torch.cuda.default_generators[i]."""
    return generator.get_state()


def restore_rng(generator: torch.Generator, state: Tensor) -> None:
    """Puts back what rng_state gave, wherever the tensor has been in between.

    Raises: ValueError for a state of another kind of generator (a run moved between CPU and CUDA).
    """
    expected = generator.get_state()
    if state.dtype != expected.dtype or state.shape != expected.shape:
        raise ValueError(
            f"a {generator.device.type} generator's state must be {expected.dtype} {tuple(expected.shape)}, got "
            f"{state.dtype} {tuple(state.shape)}"
        )
    generator.set_state(state.cpu())
