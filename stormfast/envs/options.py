"""Range checks of every option before an emulator sees it: C++ takes bad ones in silence, or dies of them."""

from typing import Any

from stormfast.config import EnvConfig
from stormfast.errors import UserError

INT32_MAX = 2**31 - 1

# Integers of EnvConfig. The upper limits keep C++ ints from overflowing and a reset from running for hours.
_BOUNDS = {
    "frame_skip": (1, 1_000),
    "noop_max": (1, 100_000),
    "max_episode_steps": (1, INT32_MAX - 1),  # envpool adds one
}
MAX_ENVS = 1_024


def check_options(config: EnvConfig, num_envs: int, seed: int) -> None:
    """Raises UserError for the first option that an emulator must not be given."""
    for name, (low, high) in _BOUNDS.items():
        _check_integer(f"env.{name}", f"--env.{name.replace('_', '-')}", getattr(config, name), low, high)
    if isinstance(config.sticky, bool) or not isinstance(config.sticky, (int, float)) or not 0 <= config.sticky < 1:
        raise UserError(f"env.sticky must be a number >= 0 and < 1, got {config.sticky!r}; set --env.sticky.")
    if not isinstance(config.same_seed_resets, bool):
        raise UserError(f"env.same_seed_resets must be True or False, got {config.same_seed_resets!r}; set --env.same-seed-resets.")
    _check_integer("num_envs", "--num-envs", num_envs, 1, MAX_ENVS)
    _check_integer("seed", "--seed", seed, 0, INT32_MAX - num_envs + 1)  # environment k gets seed + k, an int32


def _check_integer(name: str, flag: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{name} must be an integer from {low} to {high}, got {value!r}; set {flag}.")
