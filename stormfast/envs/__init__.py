"""Games as vector environments: which backend steps them, and how to make one.

Importing this module is cheap: no backend, and no emulator, is imported before make_env or choose_backend needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from stormfast.envs.games import find
from stormfast.errors import UserError
from stormfast.presets import PROTOCOLS
from stormfast.schema import flatten, override
from stormfast.settings import AtariConfig, EnvConfig, TrainConfig, validate_env, why_not_envpool

if TYPE_CHECKING:
    from stormfast.envs.vector import VectorEnv

_NEEDS = {"envpool": ("envpool",), "ale": ("ale_py", "cv2")}
_INSTALL = {"envpool": "pip install 'envpool>=1.2.5'", "ale": "pip install ale-py opencv-python-headless"}


class Backend(NamedTuple):
    """What will step a game, and why."""

    name: str  # envpool, ale or gymnasium
    reason: str


def make_env(game: str, env: EnvConfig, atari: AtariConfig, *, num_envs: int, backend: str, seed: int) -> VectorEnv:
    """A vector environment of `num_envs` copies of a game; copy k is seeded with seed + k.

    Args:
        game: what --game takes: see stormfast.envs.games.
        env: rules of any game.
        atari: rules of Atari games; other games have none of them.
        num_envs: at least 1.
        backend: auto, envpool or ale. Other games than Atari's go through gymnasium whatever it says.
        seed: of the first copy; equal seeds give equal games, in every backend.
    Raises: UserError for an unknown game, an option out of range, a backend that is not installed, or a game whose
        observations or actions do not fit.
    """
    validate_env(env, atari, num_envs=num_envs, backend=backend, seed=seed)
    found = find(game)
    name = choose_backend(game, env, atari, num_envs=num_envs, backend=backend).name
    if found.make is not None:
        from stormfast.envs.gymnasium_backend import GymnasiumVectorEnv

        return GymnasiumVectorEnv(found.name, found.make, env, num_envs=num_envs, seed=seed)
    if env.render_obs:
        raise UserError(_no_render_obs(found.name))
    if name == "ale":
        from stormfast.envs.ale_backend import AleVectorEnv

        return AleVectorEnv(found.name, env, atari, num_envs=num_envs, seed=seed)
    from stormfast.envs.envpool_backend import EnvpoolVectorEnv

    return EnvpoolVectorEnv(found.name, env, atari, num_envs=num_envs, seed=seed)


def check_settings(config: TrainConfig) -> None:
    """Raises UserError for a setting of a new run that its game has no use for: what was asked for would not happen.

    Settings that the protocol sets are the same for all games, and count as not asked for.
    """
    game = find(config.game)
    if game.kind == "atari":
        if config.env.render_obs:
            raise UserError(_no_render_obs(game.name))
        return
    asked, default = flatten(config), flatten(override(TrainConfig(), PROTOCOLS[config.protocol]))
    for name in (name for name in asked if name.startswith("atari.") or name == "env_backend"):
        if asked[name] != default[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} is for Atari games, and {game.name} is none, got {asked[name]!r}; leave {flag} out"
            )


def _no_render_obs(game: str) -> str:
    return f"--env.render-obs is for gymnasium games, and {game} shows its screen anyway; leave --env.render-obs out"


def choose_backend(game: str, env: EnvConfig, atari: AtariConfig, *, num_envs: int, backend: str) -> Backend:
    """The backend that make_env will take for these arguments, with the reason.

    The arguments must be valid, as make_env checks.
    Raises: UserError for an unknown game, or a backend that is not installed.
    """
    found = find(game)
    if found.kind == "builtin":
        return Backend("gymnasium", f"{found.name} is built in, as a gymnasium environment")
    if found.kind == "gymnasium":
        return Backend("gymnasium", f"{found.name} is a gymnasium environment")
    if backend == "auto":
        return _choose_auto(env, atari, num_envs)
    problem = why_not_importable(backend)
    if problem:
        how = f"`{_INSTALL[backend]}`, or take --env-backend auto"
        raise UserError(f"--env-backend {backend} must be importable, but {problem}. {how}.")
    return Backend(backend, "asked for by --env-backend")


def _choose_auto(env: EnvConfig, atari: AtariConfig, num_envs: int) -> Backend:
    """ale for one environment, where envpool's hand-over between threads costs more than it saves; else envpool."""
    if lack := why_not_envpool(env, atari):
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
