"""Games as vector environments: which backend steps them, and how to make one.

Importing this module is cheap: no backend, and no emulator, is imported before make_env or choose_backend needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from stormfast.envs.games import BUILT_IN, check_game
from stormfast.errors import UserError
from stormfast.settings import EnvConfig, validate_env, why_not_envpool

if TYPE_CHECKING:
    from stormfast.envs.vector import VectorEnv

_NEEDS = {"envpool": ("envpool",), "ale": ("ale_py", "cv2")}
_INSTALL = {"envpool": "pip install 'envpool>=1.2.5'", "ale": "pip install ale-py opencv-python-headless"}


class Backend(NamedTuple):
    """What will step a game, and why."""

    name: str  # envpool, ale or gymnasium
    reason: str


def make_env(game: str, config: EnvConfig, *, num_envs: int, backend: str, seed: int) -> VectorEnv:
    """A vector environment of `num_envs` copies of a game; copy k is seeded with seed + k.

    Args:
        game: one of the 26 games of Atari 100k, or a built-in game.
        config: rules of the game. Only Atari has frame skip, sticky actions and no-op starts.
        num_envs: at least 1.
        backend: auto, envpool or ale. Built-in games go through gymnasium whatever it says.
        seed: of the first copy; equal seeds give equal games, in every backend.
    Raises: UserError for an unknown game, an option out of range, or a backend that is not installed.
    """
    validate_env(config, num_envs=num_envs, backend=backend, seed=seed)
    name = choose_backend(game, config, num_envs=num_envs, backend=backend).name
    if name == "gymnasium":
        from stormfast.envs.catch import Catch
        from stormfast.envs.gymnasium_backend import GymnasiumVectorEnv

        return GymnasiumVectorEnv(Catch, config, num_envs=num_envs, seed=seed)
    if name == "ale":
        from stormfast.envs.ale_backend import AleVectorEnv

        return AleVectorEnv(game, config, num_envs=num_envs, seed=seed)
    from stormfast.envs.envpool_backend import EnvpoolVectorEnv

    return EnvpoolVectorEnv(game, config, num_envs=num_envs, seed=seed)


def choose_backend(game: str, config: EnvConfig, *, num_envs: int, backend: str) -> Backend:
    """The backend that make_env will take for these arguments, with the reason.

    The arguments must be valid, as make_env checks.
    Raises: UserError for an unknown game, or a backend that is not installed.
    """
    check_game(game)
    if game in BUILT_IN:
        return Backend("gymnasium", f"{game} is built in; it has no frame skip, sticky actions or no-op starts")
    if backend == "auto":
        return _choose_auto(config, num_envs)
    problem = why_not_importable(backend)
    if problem:
        raise UserError(
            f"--env-backend {backend} must be importable, but {problem}. `{_INSTALL[backend]}`, or take --env-backend auto."
        )
    return Backend(backend, "asked for by --env-backend")


def _choose_auto(config: EnvConfig, num_envs: int) -> Backend:
    """ale for one environment, where envpool's hand-over between threads costs more than it saves; else envpool."""
    if lack := why_not_envpool(config):
        wanted, other, reason = "ale", None, lack
    elif num_envs == 1:
        wanted, other, reason = "ale", "envpool", "the faster one for one environment, with an exact state for --resume"
    else:
        wanted, other, reason = "envpool", "ale", f"the faster one for {num_envs} environments"
    problem = why_not_importable(wanted)
    if not problem:
        return Backend(wanted, reason)
    if other and not why_not_importable(other):
        return Backend(other, f"{wanted} would be faster, but {problem} (`{_INSTALL[wanted]}`)")
    raise UserError(f"Atari games need an emulator, but {problem}. `{_INSTALL[wanted]}`, then try again.")


def why_not_importable(backend: str) -> str:
    """Why a backend cannot be imported, or nothing. It is really imported: a package can be there and broken."""
    for package in _NEEDS[backend]:
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:  # OSError: a shared library or data file of the package is missing
            return f"{package} does not import here ({str(error).partition(chr(10))[0]})"
    return ""
