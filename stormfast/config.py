"""Every setting, once: the dataclasses below make the command line, the saved config and the docs.

A preset sets sizes, a protocol sets rules; both are tables of dotted overrides at the end of this file, and they are
independent. No torch here: `stormfast --help` must be instant.
"""

import dataclasses
import json
import math
import types
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from stormfast.errors import UserError

Preset = Literal["auto", "storm", "fast", "cpu", "tiny"]
Protocol = Literal["standard", "reference"]
EnvBackend = Literal["auto", "envpool", "ale"]


@dataclass(frozen=True)
class Range:
    """Bounds of a number (or of each number of a tuple); None is unbounded."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            abs(value) < math.inf  # false for nan; math.isfinite would overflow on a huge int
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        bounds = [(">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt)]
        return " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None) or "finite"


POSITIVE = Range(ge=1, le=10**9)  # an upper bound, so that no size overflows; what does not fit in memory is told when it is made
SHARE = Range(ge=0, le=1)
RATE = Range(ge=0, le=64)  # a step must end: signals are answered between steps
SEED = Range(ge=0, lt=2**31 - 1024)  # envpool takes int32, and environment k gets seed + k
NUM_ENVS = Range(ge=1, le=256)


@dataclass(frozen=True)
class EnvConfig:
    # C++ takes bad values in silence or dies of them: these bounds keep its ints from overflowing, and a reset from running for hours.
    frame_skip: Annotated[int, Range(ge=1, le=1_000), Doc("emulator frames an action lasts; the last two are max-pooled")] = 4
    sticky: Annotated[float, Range(ge=0, lt=1), Doc("chance that an emulator frame repeats the last action")] = 0.0
    noop_max: Annotated[int, Range(ge=0, le=100_000), Doc("a reset plays 1..noop_max no-op frames; 0 plays none (ale backend only)")] = 30
    # envpool adds one
    max_episode_steps: Annotated[int, Range(ge=1, le=2**31 - 2), Doc("agent steps before an episode is truncated")] = 27_000
    same_seed_resets: Annotated[bool, Doc("re-seed each reset with the same seed (ale backend only)")] = False


@dataclass(frozen=True)
class ReplayConfig:
    capacity: Annotated[int, POSITIVE, Doc("rows kept, over all streams; 100k rows are 1.23 GB")] = 100_000
    mark_resets: Annotated[bool, Doc("store is_first and last observations; nothing leaks across a reset")] = True
    recency: Annotated[float, Range(ge=1), Doc("1 samples windows uniformly; 2 and more favour recent ones")] = 1.0
    demonstration: Annotated[str | None, Doc(".npz with obs, action, reward, termination to mix into batches")] = None
    demonstration_share: Annotated[float, SHARE, Doc("share of each batch taken from the demonstration")] = 0.0


@dataclass(frozen=True)
class WorldModelConfig:
    channels: Annotated[tuple[int, int, int, int], POSITIVE, Doc("encoder channels; the decoder mirrors them")] = (32, 64, 128, 256)
    categoricals: Annotated[int, POSITIVE, Doc("categorical variables of a latent (S)")] = 32
    classes: Annotated[int, Range(ge=2), Doc("classes of each categorical (K)")] = 32
    unimix: Annotated[float, Range(ge=0, lt=1), Doc("uniform share mixed into each categorical")] = 0.01
    width: Annotated[int, POSITIVE, Doc("model width of the sequence model (D)")] = 512
    layers: Annotated[int, Range(ge=1, le=128), Doc("transformer blocks")] = 2
    heads: Annotated[int, POSITIVE, Doc("attention heads")] = 8
    dropout: Annotated[float, Range(ge=0, lt=1), Doc("dropout in the transformer")] = 0.1
    max_length: Annotated[int, Range(ge=2), Doc("learned positions: the longest window, in steps")] = 64
    tokens: Annotated[Literal["fused", "separate"], Doc("one token a step, or an observation and an action token")] = "fused"
    batch_size: Annotated[int, POSITIVE, Doc("windows a batch (B)")] = 16
    batch_length: Annotated[int, Range(ge=2), Doc("steps a window (T)")] = 64
    updates_per_step: Annotated[float, RATE, Doc("updates per environment step")] = 1.0
    learning_rate: Annotated[float, Range(gt=0), Doc("Adam step size")] = 1e-4
    clip_norm: Annotated[float, Range(gt=0), Doc("gradient norm limit")] = 1000.0
    dynamics_scale: Annotated[float, Range(ge=0), Doc("weight of the dynamics KL")] = 0.5
    representation_scale: Annotated[float, Range(ge=0), Doc("weight of the representation KL")] = 0.1
    free_bits: Annotated[float, Range(ge=0), Doc("nats of KL that cost nothing")] = 1.0
    free_bits_per: Annotated[Literal["step", "batch"], Doc("free bits on each step's KL, or on the batch mean")] = "step"
    head_init: Annotated[Literal["zero", "default"], Doc("first weights of the reward head's output layer")] = "zero"
    life_loss_terminates: Annotated[bool, Doc("a lost life counts as termination in the continuation target")] = True


@dataclass(frozen=True)
class ImaginationConfig:
    batch_size: Annotated[int, POSITIVE, Doc("replayed contexts a rollout batch starts from")] = 1024
    context: Annotated[int, Range(ge=2), Doc("replayed steps before imagination")] = 8
    start: Annotated[Literal["posterior", "prior"], Doc("first state: the last context frame as when acting, or its predicted next")] = "posterior"
    horizon: Annotated[int, POSITIVE, Doc("imagined steps (H)")] = 16
    continuation: Annotated[Literal["probability", "threshold"], Doc("predicted continuation as probability, or 0/1")] = "probability"


@dataclass(frozen=True)
class AgentConfig:
    state: Annotated[Literal["both", "latent", "hidden"], Doc("what actor and critic see")] = "both"
    width: Annotated[int, POSITIVE, Doc("width of actor and critic")] = 512
    updates_per_step: Annotated[float, RATE, Doc("imagined rollout batches per environment step")] = 1.0
    minibatches: Annotated[int, POSITIVE, Doc("updates a rollout batch is split into, importance-weighted")] = 1
    gamma: Annotated[float, Range(gt=0, le=1), Doc("discount")] = 0.985
    lam: Annotated[float, SHARE, Doc("lambda of the lambda-return")] = 0.95
    entropy: Annotated[float, Range(ge=0), Doc("weight of the policy entropy")] = 3e-4
    unimix: Annotated[float, Range(ge=0, lt=1), Doc("uniform share mixed into the policy")] = 0.0
    learning_rate: Annotated[float, Range(gt=0), Doc("Adam step size")] = 3e-5
    clip_norm: Annotated[float, Range(gt=0), Doc("gradient norm limit")] = 100.0
    slow_critic_decay: Annotated[float, Range(ge=0, lt=1), Doc("EMA decay of the slow critic")] = 0.98
    percentile_decay: Annotated[float, Range(ge=0, lt=1), Doc("EMA decay of the return percentiles")] = 0.99
    bootstrap: Annotated[Literal["next", "current"], Doc("lambda-return mixes in V(s[t+1]), or V(s[t]) as the original does")] = "next"
    weight_by_continuation: Annotated[bool, Doc("weight an imagined step by the chance it is reached")] = True
    head_init: Annotated[Literal["zero", "default"], Doc("first weights of the critic's output layer")] = "zero"


@dataclass(frozen=True)
class ActingConfig:
    latent: Annotated[Literal["posterior", "prior"], Doc("act on the current frame's posterior, or on its prediction")] = "posterior"
    context: Annotated[int, POSITIVE, Doc("past steps the hidden state sees while acting")] = 16
    reset_context: Annotated[bool, Doc("forget the context when an episode ends")] = True
    random_steps: Annotated[int, POSITIVE, Doc("random environment steps before learning starts")] = 1024


@dataclass(frozen=True)
class EvaluationConfig:
    episodes_from: Annotated[Literal["each_env", "first_finished"], Doc("a fixed number from each env, or the first to finish")] = "each_env"
    count_last_reward: Annotated[bool, Doc("count the last step's reward in a return")] = True


@dataclass(frozen=True)
class LoggingConfig:
    every: Annotated[int, POSITIVE, Doc("environment steps between two metric flushes")] = 500
    save_every: Annotated[int, POSITIVE, Doc("environment steps between two checkpoints")] = 10_000
    tensorboard: Annotated[bool, Doc("write TensorBoard event files")] = True


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run. Defaults are the `storm` preset under the `standard` protocol."""

    game: Annotated[str, Doc("one of the 26 games of `stormfast games`, or Catch (built in)")] = "Pong"
    preset: Annotated[Preset, Doc("sizes; auto takes fast with CUDA and cpu without")] = "auto"
    protocol: Annotated[Protocol, Doc("rules: standard (recommended), or reference (what the original does)")] = "standard"
    seed: Annotated[int, SEED, Doc("seed of everything random")] = 0
    steps: Annotated[int, POSITIVE, Doc("environment steps to train for; one is env.frame-skip frames")] = 100_000
    num_envs: Annotated[int, NUM_ENVS, Doc("environments stepped together")] = 1
    env_backend: Annotated[EnvBackend, Doc("auto takes ale for one environment and envpool for more")] = "auto"
    run_dir: Annotated[str | None, Doc("where the run is kept; default runs/GAME/DATE-TIME")] = None
    resume: Annotated[bool, Doc("go on from the checkpoint in --run-dir")] = False
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Doc("auto takes bfloat16 where the device computes it natively")] = "auto"
    compile: Annotated[
        Literal["auto", "off", "default", "graphs"],
        Doc("off is eager, default compiles, graphs also captures CUDA graphs; auto takes graphs on CUDA where Triton works, else off"),
    ] = "auto"
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True)
class LaunchConfig(TrainConfig):
    """What `stormfast train` is asked for: the settings of a run, and of which runs. A run knows nothing of the others."""

    game: Annotated[str, Doc("one of the 26 games of `stormfast games`, or Catch (built in); several as Pong,Breakout")] = "Pong"
    seeds: Annotated[int, Range(ge=1, le=1_000), Doc("runs of each game: seeds --seed, --seed + 1, ... each in its own process and directory")] = 1
    parallel: Annotated[int | None, Range(ge=1, le=1_000), Doc("of several runs, how many at once; default all with CUDA, one a core without")] = None

    @property
    def games(self) -> list[str]:
        return [game.strip() for game in self.game.split(",")]

    @property
    def is_several(self) -> bool:
        return self.seeds > 1 or len(self.games) > 1

    def one_run(self) -> TrainConfig:
        """The settings without what only a launch has."""
        return TrainConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(TrainConfig)})


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation; the rules of play come from the run."""

    run: Annotated[str, Doc("run directory, as `stormfast train` printed it")]
    episodes: Annotated[
        int | None, POSITIVE, Doc("full episodes to play; by default 100, or 20 where the run's evaluation.episodes_from is first_finished")
    ] = None
    num_envs: Annotated[int, NUM_ENVS, Doc("environments stepped together; never more than episodes")] = 5
    seed: Annotated[int, SEED, Doc("seed of environments and policy")] = 0
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    video: Annotated[str | None, Doc("write the first episode to this .mp4")] = None
    policy: Annotated[Literal["agent", "random"], Doc("score the trained agent, or random actions on the same footing")] = "agent"


@dataclass(frozen=True)
class ProfileConfig:
    """Settings of a profile; those that TrainConfig has too mean the same there."""

    game: Annotated[str, Doc("game to step: one of `stormfast games`")] = "Catch"
    preset: Annotated[Preset, Doc("sizes; auto takes fast with CUDA and cpu without")] = "auto"
    protocol: Annotated[Protocol, Doc("rules: standard (recommended), or reference (what the original does)")] = "standard"
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Doc("auto takes bfloat16 where the device computes it natively")] = "auto"
    compile: Annotated[Literal["auto", "off", "default", "graphs"], Doc("as of `stormfast train`, auto likewise")] = "auto"
    steps: Annotated[int, POSITIVE, Doc("environment steps to measure")] = 10
    warmup: Annotated[int, POSITIVE, Doc("environment steps before, with updates")] = 1
    seed: Annotated[int, SEED, Doc("seed of everything random")] = 0
    json: Annotated[bool, Doc("print one JSON object, and nothing else, on stdout")] = False


# --- presets (sizes) and protocols (rules) -----------------------------------------------------------------------

PRESETS: dict[str, dict[str, Any]] = {
    "storm": {},  # the paper's sizes are the defaults
    "fast": {  # the authors' 2026 re-tune: same IQM at 36 % of the FLOPs
        "world_model.width": 256,
        "world_model.heads": 4,
        "world_model.batch_size": 32,
        "world_model.batch_length": 32,
        "world_model.max_length": 32,
        "imagination.batch_size": 2048,
        "imagination.context": 4,
        "agent.updates_per_step": 0.25,
        "agent.minibatches": 4,
        "replay.recency": 1.5,
    },
    "cpu": {
        "steps": 15_000,
        "num_envs": 4,
        "world_model.channels": (16, 32, 64, 128),
        "world_model.categoricals": 16,
        "world_model.classes": 16,
        "world_model.width": 128,
        "world_model.heads": 4,
        "world_model.dropout": 0.0,
        "world_model.batch_size": 8,
        "world_model.batch_length": 16,
        "world_model.max_length": 32,
        "world_model.updates_per_step": 0.5,
        "world_model.learning_rate": 6e-4,
        "imagination.batch_size": 128,
        "imagination.context": 4,
        "imagination.horizon": 10,
        "agent.width": 256,
        "agent.updates_per_step": 0.5,
        "agent.learning_rate": 3e-4,
        "agent.entropy": 3e-3,
        "agent.unimix": 0.01,
        "replay.recency": 1.5,
        "logging.every": 250,
        "logging.save_every": 2_000,
    },
    "tiny": {
        "steps": 1_000,
        "world_model.channels": (4, 8, 16, 32),
        "world_model.categoricals": 8,
        "world_model.classes": 8,
        "world_model.width": 32,
        "world_model.layers": 1,
        "world_model.heads": 2,
        "world_model.batch_size": 4,
        "world_model.batch_length": 8,
        "world_model.max_length": 16,
        "imagination.batch_size": 16,
        "imagination.context": 4,
        "imagination.horizon": 6,
        "agent.width": 32,
        "acting.context": 8,
        "acting.random_steps": 64,
        "logging.every": 50,
        "logging.save_every": 200,
    },
}

PROTOCOLS: dict[str, dict[str, Any]] = {
    "standard": {},  # the recommended rules are the defaults
    "reference": {
        "env.sticky": 0.25,
        "env.noop_max": 0,
        "env.same_seed_resets": True,
        "env_backend": "ale",
        "replay.mark_resets": False,
        "world_model.free_bits_per": "batch",
        "world_model.head_init": "default",
        "imagination.start": "prior",
        "imagination.continuation": "threshold",
        "agent.bootstrap": "current",
        "agent.weight_by_continuation": False,
        "agent.head_init": "default",
        "acting.latent": "prior",
        "acting.reset_context": False,
        "evaluation.episodes_from": "first_finished",
        "evaluation.count_last_reward": False,
    },
}


def preset_config(preset: str, protocol: str) -> TrainConfig:
    """The settings of a preset (any but auto) under a protocol, before the user's own."""
    base = TrainConfig(preset=preset, protocol=protocol)  # type: ignore[arg-type]
    return override(base, PRESETS[preset] | PROTOCOLS[protocol])


# --- reading, checking, saving -----------------------------------------------------------------------------------


def override(config: Any, values: dict[str, Any]) -> Any:
    """A copy of a config dataclass with dotted fields replaced.

    Raises: UserError for a field that does not exist, with the nearest name.
    """
    for name, value in values.items():
        config = _replace(config, name.split("."), name, value)
    return config


def _replace(config: Any, path: list[str], name: str, value: Any) -> Any:
    if path[0] not in getattr(config, "__dataclass_fields__", ()):  # a plain value has no fields
        raise UserError(f"Unknown field '{name}'.{nearest(name, flatten(TrainConfig()))} `stormfast train --help` lists them all.")
    if len(path) > 1:
        value = _replace(getattr(config, path[0]), path[1:], name, value)
    return dataclasses.replace(config, **{path[0]: value})


def nearest(name: str, known: Any) -> str:
    """' Did you mean 'X'?', or nothing where no known name is near."""
    lower = {k.lower(): k for k in known}
    match = get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f" Did you mean '{lower[match[0]]}'?" if match else ""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names -> values."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat |= flatten(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else {prefix + f.name: value}
    return flat


def validate(config: TrainConfig) -> None:
    """Raises UserError for a value of the wrong type, out of range, or at odds with another."""
    _validate_fields(config, "")
    for holds, message in _rules(config):
        if not holds:
            raise UserError(message)
    _validate_backend(config)


def _rules(config: TrainConfig) -> list[tuple[bool, str]]:
    """What fields must be to each other: (does it hold, what to say if not)."""
    model, imagination, replay = config.world_model, config.imagination, config.replay
    longest = f"must be <= world_model.max_length ({model.max_length})"
    rollout = imagination.context + imagination.horizon
    window = max(model.batch_length, imagination.context)
    smallest = min(model.batch_size, imagination.batch_size)
    each = f"one window of {window} steps in each of {config.num_envs} environments"
    return [
        (model.width % model.heads == 0, f"world_model.width must be a multiple of world_model.heads ({model.heads}), got {model.width}"),
        (model.batch_length <= model.max_length, f"world_model.batch_length {longest}, got {model.batch_length}"),
        (rollout <= model.max_length, f"imagination.context + imagination.horizon {longest}, got {rollout}"),
        (config.acting.context <= model.max_length, f"acting.context {longest}, got {config.acting.context}"),
        (
            imagination.batch_size % config.agent.minibatches == 0,
            f"imagination.batch_size must be a multiple of agent.minibatches ({config.agent.minibatches}), got {imagination.batch_size}",
        ),
        (replay.capacity // config.num_envs >= window, f"replay.capacity must hold {each}, got {replay.capacity}"),
        (
            config.acting.random_steps // config.num_envs >= window,
            f"acting.random_steps must fill {each}, got {config.acting.random_steps}",
        ),
        (
            (replay.demonstration is None) == (replay.demonstration_share == 0),
            "replay.demonstration and replay.demonstration_share must be given together, "
            f"got {replay.demonstration} and {replay.demonstration_share}",
        ),
        (
            replay.demonstration_share == 0 or round(replay.demonstration_share * smallest) >= 1,
            f"replay.demonstration_share must give one window or more of each batch, of world_model.batch_size ({model.batch_size}) "
            f"and of imagination.batch_size ({imagination.batch_size}), got {replay.demonstration_share}; give {1 / smallest:.2g} or more",
        ),
    ]


def validate_env(env: EnvConfig, *, num_envs: int, backend: str, seed: int) -> None:
    """Raises UserError for what no emulator may be given, whoever makes the environment."""
    config = TrainConfig(env=env, num_envs=num_envs, env_backend=backend, seed=seed)  # type: ignore[arg-type]
    _validate_fields(config, "")
    _validate_backend(config)


def _validate_backend(config: TrainConfig) -> None:
    if config.env_backend == "envpool" and (reason := envpool_lacks(config.env)):
        raise UserError(f"env_backend must be ale or auto, because {reason}; got envpool")


def envpool_lacks(env: EnvConfig) -> str:
    """Why these rules need the ale backend, or nothing."""
    if env.same_seed_resets:
        return "envpool cannot re-seed, as env.same_seed_resets asks"
    if env.noop_max == 0:
        return "envpool cannot start an episode without a no-op frame, as env.noop_max 0 asks"
    return ""


def validate_evaluation(config: EvaluateConfig) -> None:
    """Raises UserError for a value of the wrong type or out of range."""
    _validate_fields(config, "")
    if config.video is not None and not config.video.endswith(".mp4"):
        raise UserError(f"video must be the name of an .mp4 file, got '{config.video}'")


def validate_profile(config: ProfileConfig) -> None:
    """Raises UserError for a value of the wrong type or out of range."""
    _validate_fields(config, "")


def _validate_fields(config: Any, prefix: str) -> None:
    hints = get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, name, hint = getattr(config, f.name), prefix + f.name, hints[f.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise UserError(f"{name} must be a group of settings, got {value!r}")
            _validate_fields(value, name + ".")
            continue
        kind, *notes = get_args(hint)
        if not _fits(value, kind):
            raise UserError(f"{name} must be {_kind_name(kind)}, got {value!r}")
        if isinstance(value, str):
            check_name(name, value)
        for bounds in (note for note in notes if isinstance(note, Range)):
            numbers = value if isinstance(value, tuple) else (value,)
            if value is not None and not all(number in bounds for number in numbers):
                raise UserError(f"{name} must be {bounds}, got {value!r}")


def check_name(field_name: str, value: str) -> None:
    """Raises UserError for text that can name nothing: an empty one, or bytes of the command line that are not UTF-8."""
    if not value.strip():
        raise UserError(f"{field_name} must not be empty, got '{value}'; give a name or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:  # surrogates stand for bytes that do not decode
        raise UserError(f"{field_name} must be UTF-8 text, got {value!a}; choose another name") from None


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(get_args(kind)) and all(map(_fits, value, get_args(kind)))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)


def to_json(config: TrainConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> TrainConfig:
    """The config that to_json wrote. Raises UserError for anything else."""
    try:
        nested = json.loads(text)
        values = dict(_flatten_dict(nested, "")) if isinstance(nested, dict) else {}
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python reads
        raise UserError(f"config.json must be what stormfast saved, but it does not parse ({error}); start a new run") from None
    if "game" not in values:
        raise UserError("config.json must be what stormfast saved, but it holds no settings; start a new run")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    config = override(TrainConfig(), values)
    validate(config)
    missing = [name for name in flatten(config) if name not in values]  # its default today may not be what the run was trained with
    if missing:
        reason = "another version saved it, or it was edited"
        raise UserError(f"config.json must hold every setting, but {missing[0]} is missing: {reason}; start a new run")
    return config


def _flatten_dict(nested: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in nested.items():
        pairs += _flatten_dict(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return pairs


# What a resume may change: where and how long it runs, not what is learned.
RESUMABLE = frozenset({"steps", "run_dir", "resume", "device", "compile", "logging.every", "logging.save_every", "logging.tensorboard"})


def check_resumable(saved: TrainConfig, asked: TrainConfig) -> None:
    """Raises UserError when a resume would change what the saved run is."""
    before, after = flatten(saved), flatten(asked)
    changed = [f"{name} was {before[name]!r} and is now {after[name]!r}" for name in before if name not in RESUMABLE and before[name] != after[name]]
    if changed:
        raise UserError(f"A resumed run keeps its settings, but {'; '.join(changed)}. Leave them out, or start a new run with another --run-dir.")
