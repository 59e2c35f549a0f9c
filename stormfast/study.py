"""What a study is: a question, and the settings that are compared to answer it, as a table. No torch here.

A study of one's own is the same table in a JSON file:

    {"question": "Does more entropy help?", "games": ["Catch"], "seeds": 3, "steps": 4500, "preset": "cpu",
     "arms": {"default": {}, "more": {"agent.entropy": 0.03}}}
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from stormfast.envs.games import ATARI_100K, check_game, find
from stormfast.errors import UserError
from stormfast.presets import preset_config
from stormfast.schema import check_whole_number, flatten, nearest, override
from stormfast.settings import Preset, TrainConfig, validate

DEMONSTRATION = "{demonstration}"  # as a setting: the file that --demonstration names
RETURN = "episode_return"
# What a study, its command or the machine decides, so that no arm may.
NOT_OF_ARMS = ("game", "preset", "seed", "run_dir", "resume", "device")


@dataclass(frozen=True)
class Study:
    """A comparison of settings.

    Attributes:
        question: what it answers.
        arms: name -> dotted settings, on top of the preset's. steps may be "x10": ten times the study's.
        games, seeds: every arm is trained on each game with seeds 0, 1, ..., seeds - 1.
        steps: environment steps; None takes the preset's.
        preset: sizes; auto takes fast with CUDA and cpu without.
        show: the metric of metrics.jsonl that the figure draws.
    Raises: UserError for a value of another type or out of range; the settings themselves are not looked at.
    """

    question: str
    arms: Mapping[str, Mapping[str, Any]]
    games: tuple[str, ...] = ("Pong",)
    seeds: int = 3
    steps: int | None = None
    preset: Preset = "auto"
    show: str = RETURN

    def __post_init__(self) -> None:
        for name in ("question", "show"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise UserError(f"{name} must be text, got {getattr(self, name)!r:.80}")
        if not isinstance(self.arms, Mapping) or not self.arms:
            raise UserError(f"arms must be an object of name: settings, got {self.arms!r:.80}")
        for arm, settings in self.arms.items():
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", arm):  # they name directories
                raise UserError(f"the name of an arm must be letters, digits, '-', '_' and '.', got '{arm}'")
            if not isinstance(settings, Mapping):
                raise UserError(f"arm {arm} must be an object of setting: value, got {settings!r:.80}")
        if not isinstance(self.games, tuple) or not self.games or not all(isinstance(g, str) for g in self.games):
            raise UserError(f"games must be a list of names, got {self.games!r:.80}")
        check_whole_number("seeds", self.seeds, most=1_000)
        if self.steps is not None:
            check_whole_number("steps", self.steps)
        if self.preset not in get_args(Preset):
            raise UserError(f"preset must be one of {', '.join(get_args(Preset))}, got {self.preset!r}")


_PLAIN: dict[str, Any] = {
    "world_model.centre_frames": False,
    "world_model.decoder_init": "default",
    "world_model.focus": 0.0,
    "world_model.norm_momentum": 0.1,
}
_CENTRE: dict[str, Any] = {"world_model.centre_frames": True}
_ZERO: dict[str, Any] = {"world_model.decoder_init": "zero"}
_FOCUS: dict[str, Any] = {"world_model.focus": 9.0}
_MOMENTUM: dict[str, Any] = {"world_model.norm_momentum": 0.3}
_ALL: dict[str, Any] = _CENTRE | _ZERO | _FOCUS | _MOMENTUM
_SEEING: dict[str, dict[str, Any]] = {  # what helps to see small things that move, each alone and together
    "plain": _PLAIN,
    "centre": _PLAIN | _CENTRE,
    "centre-zero": _PLAIN | _CENTRE | _ZERO,
    "focus": _PLAIN | _FOCUS,
    "momentum": _PLAIN | _MOMENTUM,
    "all": _ALL,
    "all-mean-frame": _ALL | {"world_model.focus_on": "mean_frame"},
}
_OFF: dict[str, Any] = {"agent.updates_per_step": 0.0}  # its actor stays as it began

STUDIES: dict[str, Study] = {
    "table": Study("How well is each game of Atari 100k played?", {"default": {}}, games=ATARI_100K, seeds=5),
    "agent-state": Study(
        "What should actor and critic see?",
        {"both": {}, "latent": {"agent.state": "latent"}, "hidden": {"agent.state": "hidden"}},
    ),
    "tokens": Study(
        "One token a step, or one of the observation and one of the action?",
        {"fused": {}, "separate": {"world_model.tokens": "separate"}},
    ),
    "model-size": Study(
        "Does a larger model play better after as many steps?",
        {
            str(width): {"world_model.width": width, "world_model.heads": width // 32, "agent.width": width}
            for width in (128, 256, 512)
        },
    ),
    "budget": Study(
        "What do 10 and 100 times as many steps bring?", {"x1": {}, "x10": {"steps": "x10"}, "x100": {"steps": "x100"}}
    ),
    "demonstration": Study(
        "Does one demonstration help?",
        {
            "without": {},
            "with": {"replay.demonstration": DEMONSTRATION, "replay.demonstration_share": 0.25},
        },
    ),
    "small-objects": Study(
        "Does seeing small things that move make a better agent?",
        _SEEING,
        games=("Pong", "UpNDown"),
    ),
    "seeing": Study(
        "What makes the world model see small things that move, on random play?",
        {
            arm: settings | _OFF | {"acting.random_steps": 4_000, "world_model.updates_per_step": 0.5}
            for arm, settings in _SEEING.items()
        },
        games=("Pong", "Breakout", "UpNDown", "Krull"),
        steps=5_000,
        show="diagnosis/motion_explained",
    ),
    "random-policy": Study(
        "What does the world model learn from random play?",
        {"random": _OFF | {"agent.unimix": 0.999}},  # a new actor alone plays nearly at random
        show="world_model/total",
    ),
    "autoencoder": Study(
        "What does the autoencoder learn alone?",
        {"alone": _OFF | {"world_model.loss.dynamics": 0.0, "world_model.loss.representation": 0.0}},
        show="world_model/reconstruction",
    ),
    "frozen-autoencoder": Study(
        "What does the sequence model learn on an autoencoder that learns no more?",
        {
            "learning": _OFF,
            "frozen": _OFF | {"world_model.autoencoder_first": 1_000, "world_model.autoencoder_every": 10**9},
        },
        show="diagnosis/reward_nonzero",
    ),
}
"""The built-in studies: name -> table of settings.

`autoencoder` trains no prior and no agent; reward and termination, whose weights cannot be 0, still reach it.
"""


# --- which study -------------------------------------------------------------------------------------------------


def read_study(name: str) -> Study:
    """A built-in study by its name, or one's own by the path of its JSON file.

    Raises: UserError for a name or a file that is none.
    """
    if name in STUDIES:
        return STUDIES[name]
    if not name.endswith(".json"):
        known = ", ".join(STUDIES)
        raise UserError(f"Unknown study '{name}'.{nearest(name, STUDIES)} Studies are {known}, or path/to/file.json.")
    try:
        values = json.loads(Path(name).read_bytes())
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}; name a file of a study") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} must be JSON, but it does not parse: {error}") from None
    try:
        return study_of(values)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def study_of(values: Any) -> Study:
    """The study of a JSON object. Raises: UserError for an unknown or missing key, and a value of another type."""
    known = {field.name for field in dataclasses.fields(Study)}
    if not isinstance(values, dict):
        raise UserError(f"a study must be an object, got {type(values).__name__}")
    for key in values:
        if key not in known:
            raise UserError(f"Unknown key '{key}'.{nearest(key, known)} Keys are {', '.join(sorted(known))}.")
    for key in ("question", "arms"):
        if key not in values:
            raise UserError(f"{key} is missing; keys are {', '.join(sorted(known))}")
    if isinstance(values.get("games"), list):
        values = values | {"games": tuple(values["games"])}
    return Study(**values)


def choose(what: str, names: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names in a list such as "a,b", in its order; all where there is none. Raises: UserError for another name."""
    wanted = tuple(known) if names is None else tuple(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in known:
            raise UserError(f"--{what} must be some of {','.join(known)}, got '{name}'.{nearest(name, known)}")
    return tuple(dict.fromkeys(wanted))


def choose_games(names: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Any games, as a study's need not be those that are wanted. Raises: UserError for one that there is not."""
    games = tuple(check_game(name.strip()).name for name in (known if names is None else names.split(",")))
    if len({find(game).slug for game in games}) < len(games):  # they name directories
        raise UserError(f"--games must name each game once, got '{','.join(games)}'")
    return games


# --- settings ----------------------------------------------------------------------------------------------------


def config_of(
    study: Study,
    arm: str,
    *,
    preset: str,
    steps: int | None = None,
    device: str = "auto",
    demonstration: str | None = None,
) -> TrainConfig:
    """The settings of an arm, checked, without game, seed and directory.

    Args: preset: any but auto. steps: instead of the study's. demonstration: the file that stands for DEMONSTRATION.
    Raises: UserError, which names the arm.
    """
    settings: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in study.arms[arm].items()}
    try:
        for name in NOT_OF_ARMS:
            if name in settings:
                raise UserError(f"{name} cannot be set by an arm; leave it out")
        base = preset_config(preset, settings.pop("protocol", "standard"))
        total = steps or study.steps or base.steps
        if isinstance(times := settings.get("steps"), str) and re.fullmatch(r"x[1-9]\d{0,5}", times):
            settings["steps"] = total * int(times[1:])
        for name, value in settings.items():
            if value == DEMONSTRATION:
                if demonstration is None:
                    raise UserError(f"{name} needs a file: add --demonstration FILE.npz")
                settings[name] = demonstration
        config: TrainConfig = override(base, {"steps": total, "device": device} | settings)
        validate(config)
    except UserError as error:
        raise UserError(f"arm {arm}: {error}") from None
    return config


def takes_demonstration(study: Study) -> bool:
    return any(DEMONSTRATION in settings.values() for settings in study.arms.values())


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """What makes a run what it is beside its game, seed, preset and protocol: settings that differ from theirs, and
    steps.
    """
    kept = {"game", "seed", "preset", "protocol", "run_dir", "resume", "device", "compile"}
    before = flatten(preset_config(config.preset, config.protocol))
    changed = {name: value for name, value in flatten(config).items() if name == "steps" or value != before[name]}
    changed = {name: v for name, v in changed.items() if name not in kept and not name.startswith("logging.")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
