"""Train an agent on a game, or several agents on several games and seeds."""

import dataclasses
from pathlib import Path

from stormfast.envs.games import canonical_name, check_game
from stormfast.errors import UserError
from stormfast.presets import preset_config
from stormfast.schema import check_name
from stormfast.settings import LaunchConfig, Preset, TrainConfig, check_resumable, validate
from stormfast.settings import LaunchConfig as Config

__all__ = ["Config", "main", "read_config"]

# The settings that people change, in the order in which the short help shows them.
COMMON = (
    "game",
    "preset",
    "protocol",
    "seed",
    "seeds",
    "steps",
    "num_envs",
    "parallel",
    "run_dir",
    "resume",
    "device",
    "env_backend",
)


def main(args: list[str]) -> int:
    """Reads the arguments and trains. Returns the exit status: 0, or 128 + the signal that stopped it."""
    launch = read_config(args)
    if launch.is_several:
        from stormfast.runs.launch import train_several

        return train_several(launch, args, read_config)
    if launch.parallel is not None:
        raise UserError(f"--parallel is for several runs, and this is one, got {launch.parallel}; leave --parallel out")
    config = launch.one_run()
    from stormfast.loop import train
    from stormfast.plan import plan
    from stormfast.runs.opened import opened
    from stormfast.runs.progress import log_line

    decided = plan(config)
    with opened(config, log_line) as run_dir:
        run = train(config, run_dir, decided)
    if not run.stopped_by:
        log_line(f"finished at step {run.step}, saved in {run_dir}; score it with `stormfast evaluate {run_dir}`")
        return 0
    import signal

    how = f"stopped by {signal.Signals(run.stopped_by).name} at step {run.step}, saved in {run_dir}"
    log_line(f"{how}; go on with `stormfast train --run-dir {run_dir} --resume`")
    return 128 + run.stopped_by


def read_config(args: list[str]) -> LaunchConfig:
    """The settings that the arguments ask for, checked; those of several runs to resume, only as far as they go.

    Two passes: the first shows which preset and protocol, or which saved run, the user's own settings go on top of.
    Raises: UserError for anything wrong with them.
    """
    from stormfast.arguments import wants_help

    plain = dataclasses.replace(preset_config("storm", "standard"), preset="auto")
    words = [word for word in args if word not in ("-h", "--help", "--help-all")]
    asked = _parse(words, plain)
    if wants_help(args):
        _show_help(args, asked)
    if not all(asked.games):
        raise UserError(f"--game must name a game before and after each comma, got '{asked.game}'")
    for game in asked.games:
        check_game(game)
    validate(LaunchConfig(seeds=asked.seeds, parallel=asked.parallel))
    if asked.resume:
        return asked if asked.is_several else _resumed(args, asked)
    preset = _choose_preset(asked) if asked.preset == "auto" else asked.preset
    config = _parse(args, preset_config(preset, asked.protocol))
    config = dataclasses.replace(config, preset=preset)  # the name in full, even where the user typed auto
    validate(config)
    return config


def _parse(args: list[str], default: TrainConfig, description: str | None = None) -> LaunchConfig:
    """What the arguments ask for, on top of the settings of a run."""
    from stormfast.arguments import parse

    launch = parse(LaunchConfig, args, "stormfast train", LaunchConfig(**vars(default)), description)
    return dataclasses.replace(launch, game=",".join(map(canonical_name, launch.games)))


def _resumed(args: list[str], asked: TrainConfig) -> LaunchConfig:
    """The saved settings of a run, with what a resume may change on top."""
    from stormfast.runs.directory import load_config, newest_run

    if asked.run_dir is None:
        newest = newest_run()
        hint = "there is no run under runs/ yet; leave --resume out to start one"
        if newest:
            hint = f"the newest run is {newest}: add --run-dir {newest}"
        raise UserError(f"--resume needs the --run-dir of the run to go on with; {hint}")
    check_name("run_dir", asked.run_dir)
    saved = load_config(Path(asked.run_dir))
    config = _parse(args, saved)
    if config.preset == "auto":
        config = dataclasses.replace(config, preset=saved.preset)
    validate(config, is_new=False)
    check_resumable(saved, config)
    return config


def _choose_preset(asked: TrainConfig) -> Preset:
    """What `--preset auto` takes, printed."""
    from stormfast.plan import choose_preset

    preset, why = choose_preset(asked.preset, asked.device)
    print(f"preset {preset}: {why}", flush=True)
    return preset


def _show_help(args: list[str], asked: LaunchConfig) -> None:
    """Prints the settings that people change, or all with --help-all, and exits."""
    from stormfast.arguments import short_help

    config = preset_config("storm" if asked.preset == "auto" else asked.preset, asked.protocol)
    defaults = LaunchConfig(**vars(dataclasses.replace(config, preset=asked.preset)))
    preset = f"the {asked.preset} preset"
    if asked.preset == "auto":
        preset = "the storm preset (auto takes fast with CUDA and cpu without; --preset NAME shows another's)"
    about = f"Train an agent. Defaults shown are those of {preset} under the {asked.protocol} protocol."
    if "--help-all" in args:
        _parse(["--help"], defaults, about)
    print(short_help(defaults, COMMON, "stormfast train", about))
    raise SystemExit(0)
