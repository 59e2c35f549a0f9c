"""The stormfast command. Bad input is one line on stderr and status 2; torch is imported only by what computes."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stormfast import __version__
from stormfast.config import (
    EvaluateConfig,
    LaunchConfig,
    Preset,
    ProfileConfig,
    TrainConfig,
    check_resumable,
    preset_config,
    validate,
    validate_evaluation,
    validate_profile,
)
from stormfast.envs.games import BUILT_IN, SCORES, check_game
from stormfast.errors import UserError
from stormfast.schema import check_name, nearest

HELP = """\
usage: stormfast COMMAND [ARGUMENTS]

A STORM world-model agent, trained from pixels in the least wall-clock time.

  train         train an agent:            stormfast train --game Pong
  evaluate RUN  score a run's agent:       stormfast evaluate runs/Pong/DATE-TIME --episodes 100
  profile       time the phases of a step: stormfast profile --preset storm --steps 10
  games         list the games, with random and human scores
  doctor        say what is installed, what will be used, and why

`stormfast COMMAND --help` lists the arguments of a command. `stormfast --version` prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; argv is sys.argv[1:] unless given. Returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed; leave it open, or send it to a file")
        status = _run_or_help(args)
        sys.stdout.flush()
    except UserError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("stormfast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader left, as in `stormfast games | head -1`
        _discard_stdout()
        return 141
    except OSError as error:
        if _stdout_works():
            raise
        _discard_stdout()
        return _fail(f"standard output cannot be written: {error.strerror or error}; send it elsewhere")
    return status


def _fail(error: object) -> int:
    """Tells an error in one line, whatever line breaks the names in it have. Returns the exit status."""
    if sys.stderr is not None:  # print would take stdout instead
        print(f"stormfast: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _stdout_works() -> bool:
    """False where it was stdout that failed: it then fails again."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _discard_stdout() -> None:
    """What is still to be written goes nowhere: the interpreter flushes once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_or_help(args: list[str]) -> int:
    try:
        return _run(args)
    except SystemExit as stop:  # tyro printed a help text
        return int(stop.code or 0)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(f"stormfast {__version__}")
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        raise UserError(f"Unknown command '{args[0]}'.{nearest(args[0], COMMANDS)} Commands are {', '.join(COMMANDS)}.")
    return command(args[1:])


# --- train -------------------------------------------------------------------------------------------------------


def _train(args: list[str]) -> int:
    launch = train_config(args)
    if launch.is_several:
        from stormfast.runs.launch import train_several

        return train_several(launch, args, train_config)
    config = launch.one_run()
    from stormfast.plan import plan
    from stormfast.runs.directory import create, discard_unused
    from stormfast.train import train

    decided = plan(config)
    run_dir = create(config)
    try:
        decided.save(run_dir)
        return train(config, run_dir, decided)
    except (UserError, KeyboardInterrupt):
        if not config.resume:
            discard_unused(run_dir)  # so that the same command can be given again once what is wrong is put right
        raise


def train_config(args: list[str]) -> LaunchConfig:
    """The settings that the arguments of `stormfast train` ask for, checked; those of several runs to resume, only as far as they go.

    Two passes: the first shows which preset and protocol, or which saved run, the user's own settings go on top of.
    Raises: UserError for anything wrong with them.
    """
    from stormfast.arguments import wants_help

    plain = dataclasses.replace(preset_config("storm", "standard"), preset="auto")
    words = [word for word in args if word not in ("-h", "--help")]
    asked = _parse_train(words, plain)
    if wants_help(args):
        return _parse_train(args, _help_defaults(asked), _help_description(asked))
    for game in asked.games:
        check_game(game)
    validate(LaunchConfig(seeds=asked.seeds, parallel=asked.parallel))
    if asked.resume:
        return asked if asked.is_several else _resumed(args, asked)
    preset = _choose_preset(asked) if asked.preset == "auto" else asked.preset
    config = _parse_train(args, preset_config(preset, asked.protocol))
    config = dataclasses.replace(config, preset=preset)  # the name in full, even where the user typed auto
    validate(config)
    return config


def _parse_train(args: list[str], default: TrainConfig, description: str | None = None) -> LaunchConfig:
    """What the arguments ask for, on top of the settings of a run."""
    from stormfast.arguments import parse

    launch = parse(LaunchConfig, args, "stormfast train", LaunchConfig(**vars(default)), description)
    return dataclasses.replace(launch, game=",".join(launch.games))


def _resumed(args: list[str], asked: TrainConfig) -> LaunchConfig:
    """The saved settings of a run, with what a resume may change on top."""
    from stormfast.runs.directory import load_config, newest_run

    if asked.run_dir is None:
        newest = newest_run()
        hint = (
            f"the newest run is {newest}: add --run-dir {newest}"
            if newest
            else "there is no run under runs/ yet; leave --resume out to start one"
        )
        raise UserError(f"--resume needs the --run-dir of the run to go on with; {hint}")
    check_name("run_dir", asked.run_dir)
    saved = load_config(Path(asked.run_dir))
    config = _parse_train(args, saved)
    if config.preset == "auto":
        config = dataclasses.replace(config, preset=saved.preset)
    validate(config)
    check_resumable(saved, config)
    return config


def _choose_preset(asked: TrainConfig) -> Preset:
    """What `--preset auto` takes, said out loud."""
    from stormfast.plan import choose_preset

    preset, why = choose_preset(asked.preset, asked.device)
    print(f"preset {preset}: {why}", flush=True)
    return preset


def _help_defaults(asked: TrainConfig) -> TrainConfig:
    config = preset_config("storm" if asked.preset == "auto" else asked.preset, asked.protocol)
    return dataclasses.replace(config, preset=asked.preset)


def _help_description(asked: TrainConfig) -> str:
    if asked.preset == "auto":
        shown = (
            "the storm preset (--preset auto takes fast with CUDA and cpu without; add --preset NAME to see another's)"
        )
    else:
        shown = f"the {asked.preset} preset"
    return f"Train an agent. Defaults shown are those of {shown} under the {asked.protocol} protocol."


# --- the other commands --------------------------------------------------------------------------------------------


def _evaluate(args: list[str]) -> int:
    from stormfast.arguments import parse

    config = parse(
        EvaluateConfig, args, "stormfast evaluate", description="Play full episodes with a run's agent and score them."
    )
    validate_evaluation(config)
    from stormfast.runs.directory import load_config

    load_config(Path(config.run))
    from stormfast.device import resolve_device

    resolve_device(config.device)
    from stormfast.evaluate import evaluate

    return evaluate(config)


def _profile(args: list[str]) -> int:
    from stormfast.arguments import parse

    what = "Time each phase of a training step, and compare it with what the device could do."
    config = parse(ProfileConfig, args, "stormfast profile", description=what)
    validate_profile(config)
    check_game(config.game)
    from stormfast.plan import choose_preset

    preset, why = choose_preset(config.preset, config.device)
    if config.preset == "auto":
        print(f"preset {preset}: {why}", file=sys.stderr, flush=True)
    config = dataclasses.replace(config, preset=preset)
    from stormfast.measure.profile import profile

    return profile(config)


def _games(args: list[str]) -> int:
    if _only_help(args, "games", "List the games, with the scores of the random policy and of a human."):
        return 0
    print(f"{'game':<16}{'random':>10}{'human':>10}")
    for game, (random, human) in SCORES.items():
        print(f"{game:<16}{random:>10.1f}{human:>10.1f}")
    for game in BUILT_IN:
        print(f"{game:<16}{'built in, no published scores':>20}")
    return 0


def _doctor(args: list[str]) -> int:
    if _only_help(
        args,
        "doctor",
        "Say what is installed, what will be used, and why. Status 1 when something required is missing.",
    ):
        return 0
    from stormfast.commands.doctor import doctor

    return doctor()


def _only_help(args: list[str], command: str, what: str) -> bool:
    """True when the help was asked for and printed. Raises: UserError for any other argument."""
    extra = [arg for arg in args if arg not in ("-h", "--help")]
    if extra:
        raise UserError(f"`stormfast {command}` takes no arguments, got '{extra[0]}'; leave it out")
    if args:
        print(f"usage: stormfast {command}\n\n{what}")
    return bool(args)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "profile": _profile,
    "games": _games,
    "doctor": _doctor,
}
