"""What --game may name, what is said of what it may not, and the table of scores."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from stormfast.envs import games, make_env
from stormfast.envs.games import (
    ATARI_100K,
    BUILT_IN,
    SCORES,
    Game,
    atari_games,
    canonical_name,
    check_game,
    find,
    human_normalised,
    register_game,
    rom_name,
)
from stormfast.errors import UserError
from tests.envs.rules import rules

CODE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

class Env(gymnasium.Env):
    observation_space = Box(0, 255, (5, 6, 3), np.uint8)
    action_space = Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.full((5, 6, 3), 9, np.uint8), {}
    def step(self, action):
        return np.full((5, 6, 3), 8, np.uint8), 1.0, False, False, {}

def make():
    return Env()

def needs_size(size):
    return Env()

def vector():
    return gymnasium.vector.SyncVectorEnv([make])

NUMBER = 3
"""


@pytest.fixture
def own_game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a game's file, in the current directory; it can be imported as pkg_of_test.maze too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pkg_of_test").mkdir()
    (tmp_path / "pkg_of_test" / "maze.py").write_text(CODE)
    path = tmp_path / "maze.py"
    path.write_text(CODE)
    yield path
    for name in [name for name in sys.modules if name.startswith(("pkg_of_test", "stormfast_game_"))]:
        del sys.modules[name]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(games, "_registered", {})


FOUND = [
    ("Pong", "Pong", "Pong", "atari"),
    ("ALE/Pong-v5", "Pong", "Pong", "atari"),
    ("Adventure", "Adventure", "Adventure", "atari"),
    ("Catch", "Catch", "Catch", "builtin"),
    ("gym:CartPole-v1", "gym:CartPole-v1", "CartPole-v1", "gymnasium"),
    ("gym:minigrid:MiniGrid-Empty-8x8-v0", None, "minigrid-MiniGrid-Empty-8x8-v0", "gymnasium"),
    ("gym:space/X-v0", None, "space-X-v0", "gymnasium"),
    ("pkg.maze:make", "pkg.maze:make", "pkg.maze-make", "gymnasium"),
    ("/tmp/a b/maze.py:Maze", "/tmp/a b/maze.py:Maze", "maze-Maze", "gymnasium"),
]


@pytest.mark.parametrize(("name", "saved", "slug", "kind"), FOUND)
def test_each_form(name: str, saved: str | None, slug: str, kind: str) -> None:
    game = find(name)
    assert (game.name, game.slug, game.kind) == (saved or name, slug, kind)
    assert (game.make is None) == (kind == "atari")


def test_a_file_is_saved_by_its_absolute_path(own_game: Path) -> None:
    assert canonical_name("maze.py:make") == canonical_name(f"./x/../{own_game.name}:make") == f"{own_game}:make"
    assert canonical_name(canonical_name("maze.py:make")) == f"{own_game}:make"


@pytest.mark.parametrize("name", ["maze.py:make", "maze.py:Env", "pkg_of_test.maze:make"])
def test_own_games_are_made(own_game: Path, name: str) -> None:
    sys.path[:] = [path for path in sys.path if path not in ("", str(own_game.parent))]  # as in the console script
    check_game(name)
    env = make_env(name, *rules(), num_envs=2, backend="auto", seed=0)
    assert (env.backend, env.num_actions) == ("gymnasium", 2)
    assert (env.reset().obs == 9).all()
    step = env.step(np.array([0, 1]))
    assert (step.obs == 8).all() and step.reward.tolist() == [1.0, 1.0]
    env.close()


UNKNOWN = [
    ("pong", r"Unknown game 'pong'\. Did you mean 'Pong'\?"),
    ("Pongg", "Did you mean 'Pong'"),
    ("catch", "Did you mean 'Catch'"),
    ("CartPole-v1", "Did you mean 'gym:CartPole-v1'"),
    ("PongNoFrameskip-v4", "Did you mean 'Pong'"),
    ("ALE/Nothing-v5", "Unknown game 'Nothing'"),
    ("maze.py", "Did you mean 'maze.py:make'"),
    ("maze.py:", "Unknown game 'maze.py:'"),
    ("gym:", "gym:ENV_ID, package.module:make or path/to/file.py:make"),
    ("xyz", r"Unknown game 'xyz'\. --game takes a name"),
    ("gym:CartPole-v99", "gym:CartPole-v99 must be registered with gymnasium, but: .*doesn't exist"),
    ("gym:nowhere:X-v0", "gym:nowhere:X-v0 needs the package nowhere, which cannot be imported: No module named"),
    ("gym:.x:X-v0", r"gym:.x:X-v0 needs the package .x, which cannot be imported: .* install it, or correct its name"),
    ("gym:a..b:X-v0", "gym:a..b:X-v0 needs the package a..b, which cannot be imported"),
    ("gym:ALE/Pongg-v5", "name the package: gym:PACKAGE:ALE/Pongg-v5"),
    ("nowhere.py:make", "There is no file .*/nowhere.py"),
    ("nowhere.maze:make", "There is no module 'nowhere.maze'"),
    ("a..b:make", "There is no module 'a..b'"),
    ("maze.py:mkae", "has no 'mkae'. Did you mean 'make'"),
    ("maze.py:NUMBER", "must be a function or class that makes a gymnasium.Env, got int"),
    ("maze.py:needs_size", "must take no arguments, .*missing a required argument: 'size'"),
]


@pytest.mark.parametrize(("name", "expected"), UNKNOWN)
def test_one_line_for_what_is_not_there(own_game: Path, name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        check_game(name)
    assert "\n" not in str(caught.value)


def test_a_package_in_the_current_directory_registers_its_environment(
    own_game: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(own_game.parent))])
    code = "import gymnasium; gymnasium.register('OfTest-v0', 'pkg_of_test.maze:make')"
    (own_game.parent / "pkg_of_test" / "__init__.py").write_text(code)
    try:
        assert check_game("gym:pkg_of_test:OfTest-v0").slug == "pkg_of_test-OfTest-v0"
    finally:
        gymnasium.registry.pop("OfTest-v0", None)


def test_what_make_returns_is_checked(own_game: Path) -> None:
    with pytest.raises(UserError, match=r"must make a gymnasium\.Env, got gymnasium\.vector.*SyncVectorEnv; one env"):
        make_env("maze.py:vector", *rules(), num_envs=1, backend="auto", seed=0)


def test_errors_in_the_users_own_code_pass_through(own_game: Path) -> None:
    own_game.write_text("import nothing_of_that_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        check_game("maze.py:make")
    (own_game.parent / "pkg_of_test" / "maze.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        check_game("pkg_of_test.maze:make")


def test_registered_games(registry: None) -> None:
    from stormfast.envs.catch import Catch

    register_game("Catch-2", lambda: Catch(drift=True), scores=(-1.0, 3.0))
    env = make_env("Catch-2", *rules(), num_envs=1, backend="auto", seed=0)
    assert env.reset().obs.shape == (1, 3, 64, 64)
    assert check_game("Catch-2").slug == "Catch-2"
    assert human_normalised("Catch-2", 1.0) == 0.5
    with pytest.raises(UserError, match="Did you mean 'Catch-2'"):
        find("catch-2")


def test_a_name_is_registered_again_by_the_same_function_only(registry: None) -> None:
    from stormfast.envs.catch import Catch

    def define() -> type:
        class Maze(Catch):
            @classmethod
            def make(cls) -> "Maze":
                return cls()

        Maze.__qualname__ = "Maze"  # as at the top level of a module, or in a notebook's cell
        Maze.make.__func__.__qualname__ = "Maze.make"
        return Maze

    first = define()
    for make in (first, first, define()):  # the last as where a cell runs again
        register_game("Maze", make, scores=(0.0, 1.0))
    for make in (Catch, lambda: first()):
        with pytest.raises(UserError, match="'Maze' is registered with another function; choose another"):
            register_game("Maze", make)
    register_game("Maze-3", first().reset)
    with pytest.raises(UserError, match="'Maze-3' is registered with another function"):
        register_game("Maze-3", first().reset)  # bound to another object
    for make in (first.make, define().make):
        register_game("Maze-4", make)
    register_game("Maze-2", lambda: first())
    with pytest.raises(UserError, match="'Maze-2' is registered with another function"):
        register_game("Maze-2", lambda: first())


@pytest.mark.parametrize(
    ("name", "make", "scores", "expected"),
    [
        ("Pong", gymnasium.Env, None, "'Pong' is one of `stormfast games`"),
        ("a/b", gymnasium.Env, None, "must be made of letters, digits"),
        ("New", 3, None, "must be a function or class"),
        ("New", gymnasium.Env, (1.0, 1.0), "must differ"),
        (
            "New",
            gymnasium.Env,
            (1.0, 2.0, 3.0),
            r"scores of 'New' must be two numbers, random and human, got \(1.0, 2.0",
        ),
        ("New", gymnasium.Env, 3.0, "scores of 'New' must be two numbers, random and human, got 3.0"),
        ("New", gymnasium.Env, (1.0, "x"), "scores of 'New' must be two numbers"),
        ("New", gymnasium.Env, (float("nan"), 1.0), "scores of 'New' must be finite numbers"),
        (None, gymnasium.Env, None, "must be made of letters, digits"),
    ],
)
def test_names_that_cannot_be_registered(
    registry: None, name: str, make: object, scores: object, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        register_game(name, make, scores)  # type: ignore[arg-type]


# --- scores and ROMs ------------------------------------------------------------------------------------------------


def test_tables() -> None:
    assert (len(SCORES), len(ATARI_100K)) == (57, 26)
    assert set(ATARI_100K) < set(SCORES) <= set(atari_games())
    assert len(atari_games()) > 100 and not {"Combat", "Joust"} & set(atari_games())
    assert not set(BUILT_IN) & set(atari_games())
    assert all(random != human for random, human in SCORES.values())


def test_human_normalised() -> None:
    assert human_normalised("Pong", -20.7) == 0
    assert human_normalised("Pong", 14.6) == 1
    assert human_normalised("Skiing", -4336.9) == 1
    for game in ("Adventure", "Catch", "gym:CartPole-v1"):
        assert find(game).scores is None
        with pytest.raises(UserError, match=f"{game} must have published random and human scores"):
            human_normalised(game, 3.0)


def test_rom_names() -> None:
    names = {"UpNDown": "up_n_down", "TicTacToe3D": "tic_tac_toe_3d", "Pitfall2": "pitfall2", "Qbert": "qbert"}
    assert {game: rom_name(game) for game in names} == names


def test_without_ale_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    atari_games.cache_clear()
    try:
        assert atari_games() == tuple(SCORES)
        assert find("Enduro") == Game("Enduro", "Enduro", "atari", scores=SCORES["Enduro"])
    finally:
        monkeypatch.undo()
        atari_games.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\ndef (", r"must be Python, but .*game\.py, line 2: invalid syntax; correct it"),
        ("a\0b", "must be Python"),
        ("raise SystemExit(0)", r"importing it calls sys\.exit\(0\)"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "game.py").write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        check_game(f"{tmp_path}/game.py:make")
    assert "\n" not in str(caught.value)
