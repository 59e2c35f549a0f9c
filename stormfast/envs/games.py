"""What --game may name, and how it is found: an Atari game, a built-in game, or any gymnasium environment.

    Pong, ALE/Pong-v5                a game of the installed ale-py
    Catch                            built in, or registered with register_game
    gym:CartPole-v1                  an environment registered with gymnasium
    package.module:make              what calling `make` gives; a class will do
    path/to/file.py:make             the same, from a file

This module imports neither gymnasium nor an emulator before one is needed, so that the command line starts at once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from stormfast.envs.scores import ATARI_100K, SCORES
from stormfast.errors import UserError
from stormfast.schema import nearest
from stormfast.settings import GAME

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "ATARI_100K",
    "BUILT_IN",
    "SCORES",
    "Game",
    "atari_games",
    "canonical_name",
    "check_game",
    "find",
    "human_normalised",
    "register_game",
]

BUILT_IN = ("Catch",)  # small enough to learn in minutes on two cores
_NO_SINGLE_PLAYER = {"combat", "joust", "maze_craze", "warlords"}
_GYM = "gym:"

_registered: dict[str, _RegisteredGame] = {}


@dataclass(frozen=True)
class Game:
    """A game that can be trained on.

    Attributes:
        name: as saved in config.json; a file's path is absolute there.
        slug: a directory name made of it.
        make: None for Atari, whose backends make their own environments. Else a function of one argument, whether
            frames will be rendered, which gives a gymnasium.Env.
        scores: (random, human), or None where none are published.
    """

    name: str
    slug: str
    kind: Literal["atari", "builtin", "gymnasium"]
    make: Callable[[bool], gymnasium.Env[Any, Any]] | None = None
    scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class _RegisteredGame(Game):
    """A game of register_game, which keeps what it was given to make it."""

    maker: Any = None


def find(name: str) -> Game:
    """The game of a name. Nothing is imported for gym: and module:make before `make` is called.

    Raises: UserError for a name of none of the forms, with the nearest that there is.
    """
    name = canonical_name(name)
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        return Game(name, name, "builtin", _make_catch)
    if name in SCORES or (":" not in name and name in atari_games()):
        return Game(name, name, "atari", scores=SCORES.get(name))
    if name.startswith(_GYM) and name != _GYM:
        return Game(name, _slug(name.removeprefix(_GYM)), "gymnasium", functools.partial(_make_by_id, name))
    module, _, function = name.rpartition(":")
    if module and function.isidentifier():
        stem = Path(module).stem if module.endswith(".py") else module
        return Game(name, _slug(f"{stem}-{function}"), "gymnasium", functools.partial(_make_by_path, name))
    raise UserError(f"Unknown game '{name}'.{_suggestion(name)} --game takes {GAME}.")


def check_game(name: str) -> Game:
    """find(), and a look whether what the name refers to is there, which imports it.

    Raises: UserError, also for an environment or a `make` that does not exist.
    """
    game = find(name)
    if game.kind == "gymnasium" and game.name not in _registered:
        if game.name.startswith(_GYM):
            _gymnasium_spec(game.name)
        else:
            _load_make(game.name)
    return game


def canonical_name(name: str) -> str:
    """The name to save: 'ALE/Pong-v5' is 'Pong', and a file's path is absolute: a run can be resumed from anywhere."""
    if match := re.fullmatch(r"ALE/(\w+)-v5", name):
        return match[1]
    module, _, function = name.rpartition(":")
    is_file = module.endswith(".py") and function.isidentifier() and not name.startswith(_GYM)
    return f"{os.path.abspath(module)}:{function}" if is_file else name


def register_game(
    name: str, make: Callable[[], gymnasium.Env[Any, Any]], scores: tuple[float, float] | None = None
) -> None:
    """Lets `name` stand for a game, in this process only: runs in processes of their own need package.module:make.

    Args:
        name: letters, digits, '.', '_' and '-'; of no other game.
        make: makes a gymnasium.Env; called once for each environment, without arguments.
        scores: (random, human) returns, where a return is to be normalised by them.
    Raises: UserError for a name that is taken or unfit, for a `make` that cannot be called, and for scores that are not
        two different numbers. A name may be registered again with the same `make`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"a game's name must be made of letters, digits, '.', '_' and '-', got {name!r}")
    if name in BUILT_IN or name in SCORES or name in atari_games():
        raise UserError(f"a game's name must be new, but '{name}' is one of `stormfast games`; choose another")
    if scores is not None:
        _check_scores(name, scores)
    _check_callable(name, make)
    known = _registered.get(name)
    if known and not _is_same(known.maker, make):
        raise UserError(f"a game's name must be new, but '{name}' is registered with another function; choose another")
    made = functools.partial(_make_registered, name, make)
    _registered[name] = _RegisteredGame(name, name, "gymnasium", made, scores, make)


def _check_scores(name: str, scores: Any) -> None:
    try:
        random, human = (float(score) for score in scores)
    except (TypeError, ValueError):
        raise UserError(f"scores of '{name}' must be two numbers, random and human, got {scores!r:.80}") from None
    if not (math.isfinite(random) and math.isfinite(human)):
        raise UserError(f"scores of '{name}' must be finite numbers, got {scores}")
    if random == human:
        raise UserError(f"the random and the human score of '{name}' must differ, got {scores}")


def _is_same(maker: Any, other: Any) -> bool:
    """Whether two makers are one, or a definition and its repetition, as when a notebook's cell runs again."""
    if maker == other:
        return True
    names = [(getattr(each, "__module__", None), getattr(each, "__qualname__", "<>")) for each in (maker, other)]
    owners = [getattr(each, "__self__", None) for each in (maker, other)]  # of bound methods: an object or a class
    return names[0] == names[1] and "<" not in names[0][1] and _is_same(*owners)


def human_normalised(game: str, score: float) -> float:
    """0 is the random policy, 1 the human of the table. Raises: UserError for a game without scores."""
    scores = find(game).scores
    if scores is None:
        raise UserError(f"{game} must have published random and human scores to normalise by, but it has none")
    random, human = scores
    return (score - random) / (human - random)


@functools.cache
def atari_games() -> tuple[str, ...]:
    """All single-player games of the installed ale-py, sorted; without it, the 57 that have published scores."""
    try:
        from ale_py import roms
    except (ImportError, OSError):
        return tuple(SCORES)
    return tuple(sorted(_atari_name(rom) for rom in roms.get_all_rom_ids() if rom not in _NO_SINGLE_PLAYER))


def rom_name(game: str) -> str:
    """'UpNDown' -> 'up_n_down', the name of the game's ROM. Needs ale_py."""
    from ale_py import roms

    return {_atari_name(rom): rom for rom in roms.get_all_rom_ids()}[game]


def _atari_name(rom: str) -> str:
    return rom.title().replace("_", "")


def _slug(text: str) -> str:
    """Text as a directory name: never empty, '.' or '..', and without separators."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "game"


def _suggestion(name: str) -> str:
    """' Did you mean ...?', or nothing: the nearest name, or the form that the name lacks."""
    names = [*atari_games(), *BUILT_IN, *_registered]
    if match := re.fullmatch(
        r"(.+?)(?:NoFrameskip|Deterministic)?-v\d+", name
    ):  # an id of gymnasium, in the old style or the new
        game = next((known for known in names if known.lower() == match[1].lower()), None)
        return f" Did you mean '{game or _GYM + name}'?"
    if name.endswith(".py"):
        return f" Did you mean '{name}:make'?"
    return nearest(name, names)


# --- making -------------------------------------------------------------------------------------------------------


def _make_catch(render: bool) -> gymnasium.Env[Any, Any]:
    from stormfast.envs.catch import Catch

    return Catch(render_mode="rgb_array" if render else None)


def _make_registered(name: str, make: Callable[[], Any], render: bool) -> gymnasium.Env[Any, Any]:
    return _checked_env(name, make())


def _make_by_id(name: str, render: bool) -> gymnasium.Env[Any, Any]:
    import gymnasium

    options: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}
    try:  # no environment checker: it warns of what PixelEnv checks, and of much that does not matter here
        return gymnasium.make(_gymnasium_spec(name), disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"{name} cannot be made: {_one_line(error)}") from None


def _make_by_path(name: str, render: bool) -> gymnasium.Env[Any, Any]:
    return _checked_env(name, _load_make(name)())


def _gymnasium_spec(name: str) -> Any:
    """gymnasium's description of what gym:ENV_ID names, without making it."""
    import gymnasium

    env_id = name.removeprefix(_GYM)
    package, _, plain_id = env_id.rpartition(":")
    try:
        if package:
            _make_importable(Path.cwd())
            importlib.import_module(package)
    except (ImportError, TypeError, ValueError) as error:  # the latter two of a name that no package can have: '.x'
        raise UserError(
            f"{name} needs the package {package}, which cannot be imported: {_one_line(error)}; install it, or correct "
            "its name"
        ) from None
    try:
        return gymnasium.spec(plain_id)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(
            f"{name} must be registered with gymnasium, but: {_one_line(error)} "
            f"Where a package registers it, name the package: gym:PACKAGE:{plain_id}"
        ) from None


def _load_make(name: str) -> Callable[[], Any]:
    """What package.module:make or path/to/file.py:make names."""
    module_name, _, function = name.rpartition(":")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    except SyntaxError as error:
        where = f"{error.filename or module_name}, line {error.lineno or 0}"
        raise UserError(f"{name} must be Python, but {where}: {error.msg}; correct it") from None
    except SystemExit as stop:
        guard = "put that under `if __name__ == '__main__'`"
        raise UserError(f"{name} must be importable, but importing it calls sys.exit({stop.code!r}); {guard}") from None
    if not hasattr(module, function):
        raise UserError(f"{name} must exist, but {module_name} has no '{function}'.{nearest(function, vars(module))}")
    make = getattr(module, function)
    _check_callable(name, make)
    return make


def _load_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())  # the console script, unlike python -m, leaves it out
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
    except (TypeError, ValueError):  # a name that no module can have, such as '.x' or 'a..b'
        pass
    raise UserError(
        f"There is no module '{name}' for --game: install it, start from the directory that holds it ({Path.cwd()} "
        "does not), or give path/to/file.py:make"
    )


def _load_file(path: Path) -> ModuleType:
    """The module of a file, imported once a process; files beside it can be imported by it, as by a script."""
    if not path.is_file():
        raise UserError(f"There is no file {path} for --game; give path/to/file.py:make, or package.module:make")
    name = f"stormfast_game_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # hides no other module
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_importable(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.append(str(directory))  # last: it hides nothing that is installed


def _check_callable(name: str, make: Any) -> None:
    """Raises UserError unless make() is a call that can work."""
    if not callable(make):
        raise UserError(f"{name} must be a function or class that makes a gymnasium.Env, got {type(make).__name__}")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise UserError(
            f"{name} must take no arguments, or have defaults for them, but it is {_one_line(error)}"
        ) from None
    except ValueError:  # a callable without a readable signature
        pass


def _checked_env(name: str, env: Any) -> gymnasium.Env[Any, Any]:
    import gymnasium

    if not isinstance(env, gymnasium.Env):
        kind = f"{type(env).__module__}.{type(env).__qualname__}"
        raise UserError(f"{name} must make a gymnasium.Env, got {kind}; one environment, not a vector of them")
    return env


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
