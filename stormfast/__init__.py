"""A STORM world-model agent, trained from pixels in the least wall-clock time.

    import stormfast as sf

    run = sf.train("Catch", preset="cpu", steps=20_000)
    run.evaluate(episodes=30).mean

Everything below is loaded when it is first used, so that importing stormfast is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stormfast.agent import Agent
    from stormfast.api import Run, config, dream, evaluate, load, make_env, register_game, resume, train
    from stormfast.errors import UserError
    from stormfast.replay import Replay
    from stormfast.world_model import WorldModel

__all__ = [
    "Agent",
    "Replay",
    "Run",
    "UserError",
    "WorldModel",
    "config",
    "dream",
    "evaluate",
    "load",
    "make_env",
    "register_game",
    "resume",
    "train",
]

_MODULES = {
    "Agent": "stormfast.agent",
    "Replay": "stormfast.replay",
    "UserError": "stormfast.errors",
    "WorldModel": "stormfast.world_model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'stormfast' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES.get(name, "stormfast.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
