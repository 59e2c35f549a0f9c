"""stormfast from Python, on Catch with tiny models."""

import doctest
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import stormfast
import stormfast.api as api
from stormfast.envs.catch import Catch
from stormfast.errors import UserError
from stormfast.player import Player
from stormfast.runs.directory import METRICS, load_config
from stormfast.runs.trained import Trained
from stormfast.schema import override
from tests.model_fixtures import create


class Trouble(RuntimeError):
    """Of a game, or a callback."""


SETTINGS = {
    "world_model.channels": (2, 3, 4, 5),
    "world_model.width": 16,
    "imagination.batch_size": 4,
    "imagination.horizon": 3,
    "agent.width": 8,
    "acting.context": 5,
    "acting.random_steps": 40,
    "logging.every": 10,
    "logging.tensorboard": False,
}


def train(run_dir, **options):
    return api.train("Catch", run_dir=run_dir, **{"preset": "tiny", "device": "cpu", "settings": SETTINGS} | options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("api") / "run", steps=46, seed=3)


# --- the package --------------------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing():
    code = "import sys, stormfast; print(dir(stormfast), [m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert printed.strip() == f"{sorted([*stormfast.__all__, '__version__'])} []"


@pytest.mark.parametrize("name", stormfast.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(stormfast, name)
    assert value.__name__ == name
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # the signature that dataclasses put where nobody wrote one


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'stormfast' has no attribute 'trian'"):
        _ = stormfast.trian


@pytest.mark.parametrize("module", [stormfast, api])
def test_the_examples_in_the_documentation(module, tmp_path):
    result = doctest.testmod(module, extraglobs={"tmp": tmp_path})
    assert result.failed == 0
    assert result.attempted > 0 or module is stormfast


# --- training -----------------------------------------------------------------------------------------------------


def test_train_gives_the_saved_run(run):
    assert run.step == 46
    assert run.config.game == "Catch"
    assert run.config.seed == 3
    assert run.config.acting.random_steps == 40
    assert run.config == load_config(run.path)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 46]
    assert lines[-1]["world_model/total"] > 0
    assert lines == [json.loads(line) for line in (run.path / METRICS).read_text().splitlines()]


def test_nothing_is_printed_unless_asked_for(tmp_path, capfd):
    train(tmp_path / "quiet", steps=10)
    assert capfd.readouterr() == ("", "")
    train(tmp_path / "loud", steps=10, quiet=False)
    out, err = capfd.readouterr()
    assert "Catch: 10 steps" in out + err


def test_the_callback_gets_every_line_of_metrics(tmp_path):
    lines = []
    run = train(tmp_path / "run", steps=25, callback=lambda step, metrics: lines.append({"step": step} | metrics))
    assert [line["step"] for line in lines] == [10, 20, 25]
    saved = [{name: value for name, value in line.items() if name != "seconds"} for line in run.metrics()]
    assert lines == saved


def test_a_callback_that_returns_true_stops_and_saves(tmp_path):
    assert train(tmp_path / "run", callback=lambda step, metrics: step >= 20).step == 20
    assert train(tmp_path / "other", steps=30, callback=lambda step, metrics: "go on").step == 30


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (Trouble("mine"), Trouble, "mine"),
        (SystemExit(1), UserError, r"callback must not end the process.* return True, which .* saved at step 20"),
    ],
)
def test_a_callback_that_raises_loses_nothing(tmp_path, raised, expected, message):
    def callback(step, metrics):
        if step == 20:
            raise raised

    with pytest.raises(expected, match=message):
        train(tmp_path / "run", steps=30, callback=callback)
    assert api.load(tmp_path / "run", device="cpu").step == 20
    assert [line["step"] for line in api.resume(tmp_path / "run").metrics()] == [10, 20, 30]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (3, r"callback must be a function of \(step, metrics\), got 3"),
        (lambda step: True, r"a function of \(step, metrics\), but calling it so gives: too many positional arguments"),
    ],
)
def test_a_callback_that_cannot_be_called_is_refused_before_anything_is_made(tmp_path, callback, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", callback=callback)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_where_it_was(tmp_path):
    whole = train(tmp_path / "whole", steps=52)
    train(tmp_path / "part", steps=50)
    resumed = api.resume(tmp_path / "part", steps=52, device="cpu")
    assert resumed.step == 52
    assert resumed.config.steps == 52
    first, second = ({n: v for n, v in run.metrics()[-1].items() if n != "seconds"} for run in (whole, resumed))
    assert first == second
    again = api.resume(tmp_path / "part")
    assert (again.step, again.config.device) == (52, "cpu")  # nothing left to do, on the device that it had
    with pytest.raises(UserError, match="steps must be >= 1"):
        api.resume(tmp_path / "part", steps=0, device="cpu")


def test_a_resume_that_is_refused_leaves_the_running_run_as_it_is(tmp_path):
    path, refused = tmp_path / "run", []

    def files():  # a file that is written anew has another inode
        return [(path / name).stat().st_ino for name in ("config.json", "plan.json")]

    def resume(step, metrics):
        before = files()
        with pytest.raises(UserError, match="another process trains there"):
            api.resume(path, steps=99)
        refused.append(files() == before)

    assert train(path, steps=15, callback=resume).config.steps == 15
    assert refused == [True, True]


def test_training_works_in_another_thread(tmp_path):
    """There, signals cannot be handled; nor are the handlers of the program touched."""
    before, results = signal.getsignal(signal.SIGINT), []
    callback = lambda step, metrics: results.append(signal.getsignal(signal.SIGINT))  # noqa: E731
    thread = threading.Thread(target=lambda: results.append(train(tmp_path / "run", steps=10, callback=callback)))
    thread.start()
    thread.join(120)
    handler, run = results
    assert handler is before
    assert run.step == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"agent.entropyy": 1}}, "Did you mean 'agent.entropy'"),
        ({"settings": {"agent.gamma": 2.0}}, "agent.gamma must be"),
        ({"steps": 0}, "steps must be"),
        ({"seed": -1}, "seed must be"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"settings": {"seed": 3}}, "seed must be given as an argument"),  # or the argument's default would win
        ({"settings": {"device": "cpu"}}, "device must be given as an argument"),
        ({"settings": {"steps": 9}, "steps": 8}, "steps must be given as an argument"),
        ({"settings": SETTINGS | {"replay.demonstration": "no.npz", "replay.demonstration_share": 0.5}}, "no.npz"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing_behind(tmp_path, options, message):
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path / "run", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()  # so that the call can be made again, put right


def test_an_unknown_game_is_refused(tmp_path):
    with pytest.raises(UserError, match="Catch"):
        api.train("Catchh", preset="tiny", run_dir=tmp_path / "run")


class Breaking(Catch):
    """Fails in its twentieth step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 20:
            raise Trouble
        return super().step(action)


def test_a_run_that_failed_before_its_first_checkpoint_can_be_begun_again(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("stormfast.envs.games._registered", {})
    api.register_game("Breaking", Breaking)
    options = {"run_dir": tmp_path / "run", "preset": "tiny", "device": "cpu", "settings": SETTINGS}
    with pytest.raises(Trouble):
        api.train("Breaking", steps=46, **options)
    assert api.load(tmp_path / "run").metrics()[-1]["step"] == 10
    with pytest.raises(UserError, match=r"No checkpoint in .* start it anew with `stormfast train .*--game=Breaking"):
        api.resume(tmp_path / "run")
    assert capfd.readouterr().err == ""
    again = api.train("Breaking", steps=15, quiet=False, **options)
    assert "ended before its first checkpoint: starting anew there" in capfd.readouterr().err
    assert [line["step"] for line in again.metrics()] == [10, 15]


class Exiting(Breaking):
    """Ends the process where Breaking fails."""

    def step(self, action):
        try:
            return super().step(action)
        except Trouble:
            sys.exit(3)


@pytest.mark.parametrize(
    ("save_every", "then"),
    [(10, ", and go on from the last checkpoint with --resume"), (1_000, "; nothing was saved yet")],
)
def test_a_game_that_ends_the_process_is_told_with_what_is_left(tmp_path, monkeypatch, save_every, then):
    monkeypatch.setattr("stormfast.envs.games._registered", {})
    api.register_game("Exiting", Exiting)
    settings = SETTINGS | {"logging.save_every": save_every}
    with pytest.raises(UserError) as error:
        api.train("Exiting", run_dir=tmp_path / "run", preset="tiny", device="cpu", steps=46, settings=settings)
    cause = "Exiting must not end the process, but called sys.exit(3); let it raise an error instead"
    assert str(error.value) == cause + then


def test_files_of_an_earlier_run_are_removed_with_a_warning(tmp_path):
    create(override(api.config("tiny"), {"game": "Catch", "run_dir": str(tmp_path / "run")}))
    with pytest.warns(UserWarning, match="ended before its first checkpoint: starting anew there") as caught:
        api.train("Catch", run_dir=tmp_path / "run", preset="tiny", device="cpu", settings=SETTINGS, steps=5)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_run_is_never_overwritten(run):
    with pytest.raises(UserError, match="already holds a run"):
        train(run.path)
    assert api.load(run.path, device="cpu").step == 46


# --- a run --------------------------------------------------------------------------------------------------------


def test_load_needs_a_run_and_reads_weights_when_they_are_needed(run, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        api.load(tmp_path / "nothing")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((run.path / "config.json").read_bytes())
    bare = api.load(str(tmp_path / "bare"))
    assert bare.config.game == "Catch"
    assert bare.metrics() == []
    with pytest.raises(UserError, match="checkpoint"):
        _ = bare.step


def test_evaluate(run):
    first, again, other = (run.evaluate(episodes=4, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert len(first.returns) == len(other.returns) == 4
    assert all(value in range(-5, 6) for value in first.returns)
    assert api.evaluate(run, 4) == first
    assert api.evaluate(run, 4, num_envs=1).returns != ()
    random = [api.evaluate(run, 30, policy="random", seed=seed).returns for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]


def test_what_cannot_be_evaluated_is_refused(run):
    with pytest.raises(UserError, match="policy must be 'agent' or 'random', got 'human'"):
        run.evaluate(episodes=1, policy="human")
    for wrong in (0, -1):
        with pytest.raises(UserError, match=f"episodes must be a whole number of 1 or more, got {wrong}"):
            run.evaluate(episodes=wrong)


def test_a_player_plays(run):
    player, env = run.player(num_envs=2), api.make_env("Catch", num_envs=2)
    assert isinstance(player, Player)
    now, seen = env.reset(), set()
    for _ in range(30):
        action = player.act(now.obs, now.is_first)
        assert action.shape == (2,)
        seen |= set(action.tolist())
        now = env.step(action)
    assert seen <= {0, 1, 2}
    assert len(seen) > 1


def test_dreams(run, monkeypatch):
    rows = run.trained.play(64)  # instead of the hundreds of steps that a dream plays for itself
    monkeypatch.setattr(Trained, "play", lambda self, steps, seed: rows)
    clip = api.dream(run, horizon=6, num=2, seed=1)
    assert clip.real.shape == clip.imagined.shape == (2, 7, 3, 64, 64)
    assert np.array_equal(run.dream(6, 2, seed=1).imagined, clip.imagined)
    assert not np.array_equal(run.dream(6, 2, seed=2).real, clip.real)
    env = run.dream_env(2, horizon=3)
    assert env.reset().obs.shape == (2, 3, 64, 64)
    assert env.step(np.array([0, 2])).obs.shape == (2, 3, 64, 64)
    assert env.horizon == 3


# --- values -------------------------------------------------------------------------------------------------------


def test_config():
    made = api.config("fast", "reference", {"seed": 3, "agent.entropy": 1e-3}, device="cpu")
    assert (made.preset, made.protocol, made.seed, made.agent.entropy, made.device) == (
        "fast",
        "reference",
        3,
        1e-3,
        "cpu",
    )
    assert made.world_model.width == 256
    assert not made.world_model.separate_episodes
    assert api.config(device="cpu").preset == "cpu"
    with pytest.raises(UserError, match="Unknown field"):
        api.config(settings={"agent.entropi": 1})


def test_make_env_is_a_game_by_the_rules_of_a_protocol():
    env = api.make_env("Catch", 3, seed=5)
    frames = [env.reset().obs, *(env.step(np.array([0, 1, 2])).obs for _ in range(3))]
    again = api.make_env("Catch", 3, seed=5)
    assert np.array_equal(frames[0], again.reset().obs)
    assert frames[0].shape == (3, 3, 64, 64)
    with pytest.raises(UserError, match="num_envs must be >= 1"):
        api.make_env("Catch", 0)
    with pytest.raises(UserError, match="seed must be given as an argument"):
        api.make_env("Catch", settings={"seed": 3})
    with pytest.raises(UserError, match="Unknown field"):
        api.make_env("Catch", settings={"env.nothing": 1})


def test_a_registered_game_is_trained_and_scored_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("stormfast.envs.games._registered", {})  # as it was, after this test
    api.register_game("Drift", lambda: Catch(drift=True), scores=(-3.0, 5.0))
    assert api.make_env("Drift", num_envs=2).reset().obs.shape == (2, 3, 64, 64)
    run = api.train("Drift", preset="tiny", steps=10, run_dir=tmp_path / "run", device="cpu", settings=SETTINGS)
    assert run.config.game == "Drift"
    score = run.evaluate(episodes=2)
    assert score.human_normalised == pytest.approx((score.mean + 3) / 8)
    with pytest.raises(UserError, match="Catch"):
        api.register_game("Catch", Catch)


@pytest.mark.parametrize(("trouble", "expected"), [(Trouble(), Trouble), (SystemExit(0), UserError)])
def test_a_game_that_cannot_be_made_leaves_no_run(tmp_path, monkeypatch, trouble, expected):
    def make():
        raise trouble

    monkeypatch.setattr("stormfast.envs.games._registered", {})
    api.register_game("Trouble", make)
    with pytest.raises(expected):
        api.train("Trouble", run_dir=tmp_path / "run", preset="tiny", device="cpu", steps=56, settings=SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda run: api.config("nope"), "preset must be one of storm, .*got 'nope'"),
        (lambda run: api.config("tiny", ["reference"]), r"protocol must be one of .*got \['reference'\]"),
        (lambda run: run.evaluate("2"), "episodes must be a whole number of 1 or more, got '2'"),
        (lambda run: run.evaluate(2.5), "episodes must be a whole number of 1 or more, got 2.5"),
        (lambda run: run.evaluate(2, seed=-1), "seed must be a whole number from 0 to 9223372036854775807, got -1"),
        (lambda run: run.dream(4, seed=2**63), "seed must be a whole number from 0 to 9223372036854775807, got 92233"),
        (lambda run: run.dream_env(seed=2**64), "seed must be a whole number from 0 to 9223372036854775807, got 1844"),
        (lambda run: run.dream(4, seed=-1), "seed must be a whole number"),
        (lambda run: run.dream(4.5), "horizon must be a whole number from 1 to 100000, got 4.5"),
        (lambda run: run.dream(4, "2"), "num must be a whole number from 1 to 25000, got '2'"),
        (lambda run: run.dream(10**13), "horizon must be a whole number from 1 to 100000, got 10000000000000"),
        (lambda run: run.dream(64, 10**6), "num must be a whole number from 1 to 1562, got 1000000"),
        (lambda run: run.dream_env(0), "num_envs must be a whole number of 1 or more, got 0"),
        (lambda run: run.dream_env("2"), "num_envs must be a whole number of 1 or more, got '2'"),
        (lambda run: run.dream_env(horizon=0), "horizon must be a whole number of 1 or more, got 0"),
        (lambda run: run.player(0), "num_envs must be a whole number of 1 or more, got 0"),
        (lambda run: run.trained.player(-1), "num_envs must be a whole number of 1 or more, got -1"),
        (lambda run: run.player(True), "num_envs must be a whole number of 1 or more, got True"),
        (lambda run: run.evaluate(2, num_envs="2"), "num_envs must be a whole number of 1 or more, got '2'"),
        (lambda run: api.config(settings=[1]), r"settings must be a dict of dotted names and values, got \[1\]"),
        (lambda run: api.config(settings={1: 2}), "settings must be a dict of dotted names and values, got {1: 2}"),
        (lambda run: api.config(device=3), "device must be auto, cpu, cuda or cuda:N, got 3"),
        (lambda run: api.evaluate("runs/1"), "run must be what train, resume or load give, got 'runs/1'; load"),
        (lambda run: api.dream(str(run.path)), "run must be what train, resume or load give, got '.*'; load"),
        (lambda run: api.load(3), "run_dir must be a path, got 3"),
        (lambda run: api.resume(None), "run_dir must be a path, got None"),
        (lambda run: api.train("Catch", run_dir=3), "run_dir must be a path, got 3"),
        (lambda run: api.train(3, preset="tiny"), "game must be str, got 3"),
        (
            lambda run: api.train("Catch,Pong"),
            "train takes one game, got 'Catch,Pong'; call it for each, or `stormfast",
        ),
        (lambda run: api.register_game(None, Catch), "must be made of letters, digits, '.', '_' and '-', got None"),
    ],
)
def test_values_of_the_wrong_kind(run, call, expected):
    with pytest.raises(UserError, match=expected):
        call(run)
