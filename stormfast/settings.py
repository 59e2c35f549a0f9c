"""Every setting of a run, once: the dataclasses below make the command line, the saved config and the docs.

presets.py has the tables that set many of them at once. No torch here: `stormfast --help` must be instant.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from stormfast.errors import UserError
from stormfast.schedule import first_unpaired
from stormfast.schema import Bounds, check_fields, flatten, override, read_json

Preset = Literal["auto", "storm", "fast", "cpu", "tiny"]
Protocol = Literal["standard", "reference"]
EnvBackend = Literal["auto", "envpool", "ale"]
LatentKind = Literal["posterior", "prior"]
HeadInit = Literal["zero", "default"]
ReadOut = Literal["symlog", "mean"]
Precision = Literal["auto", "float32", "bfloat16"]
Compile = Literal["auto", "off", "default", "graphs"]

# Bounded kinds of numbers. POSITIVE has an upper bound so that no size overflows.
POSITIVE = Bounds(ge=1, le=10**9)
RATE = Bounds(ge=0, le=64)  # a step must end: signals are handled between steps
SEED = Bounds(ge=0, lt=2**31 - 1024)  # envpool takes int32, and environment k gets seed + k
Size = Annotated[int, POSITIVE]
Share = Annotated[float, Bounds(ge=0, le=1)]
BelowOne = Annotated[float, Bounds(ge=0, lt=1)]
NotNegative = Annotated[float, Bounds(ge=0)]
AboveZero = Annotated[float, Bounds(gt=0)]
UpdatesPerStep = Annotated[float, RATE]
Seed = Annotated[int, SEED]
NumEnvs = Annotated[int, Bounds(ge=1, le=256)]
GAME = "a name of `stormfast games`, gym:ENV_ID, package.module:make or path/to/file.py:make"


@dataclass(frozen=True)
class EnvConfig:
    """Rules of any game."""

    max_episode_steps: Annotated[
        int, Bounds(ge=1, le=2**31 - 2), Doc("agent steps before an episode is truncated")  # envpool adds one
    ] = 27_000
    same_seed_resets: Annotated[bool, Doc("re-seed each reset with the same seed (of Atari, ale backend only)")] = False
    render_obs: Annotated[
        bool, Doc("gymnasium games: see what render() draws, where the observations are not pixels")
    ] = False  # fmt: skip


@dataclass(frozen=True)
class AtariConfig:
    """Rules of Atari games alone."""

    # C++ takes bad values in silence or dies of them: these bounds keep its ints from overflowing, and a reset from
    # running for hours.
    frame_skip: Annotated[
        int, Bounds(ge=1, le=1_000), Doc("emulator frames an action lasts; the last two are max-pooled")
    ] = 4
    sticky: Annotated[BelowOne, Doc("chance that an emulator frame repeats the last action")] = 0.0
    noop_max: Annotated[
        int, Bounds(ge=0, le=100_000), Doc("a reset plays 1..noop_max no-op frames; 0 plays none (ale backend only)")
    ] = 30


@dataclass(frozen=True)
class ReplayConfig:
    capacity: Annotated[Size, Doc("rows kept, over all streams; 100k rows are 1.23 GB")] = 100_000
    recency: Annotated[float, Bounds(ge=1), Doc("1 samples windows uniformly; 2 and more favour recent ones")] = 1.0
    demonstration: Annotated[str | None, Doc(".npz with obs, action, reward, termination to mix into batches")] = None
    demonstration_share: Annotated[Share, Doc("share of each batch taken from the demonstration")] = 0.0


@dataclass(frozen=True)
class WorldModelLossConfig:
    """Weights of the terms of the world model's loss, and how the KL terms count.

    A term's weight has the term's name. One whose parameters serve it alone makes them only where its weight is not 0.
    """

    reconstruction: Annotated[NotNegative, Doc("weight of the squared error, summed over a frame; 0: no decoder")] = 1.0
    reward: Annotated[AboveZero, Doc("weight of the two-hot cross-entropy of the reward")] = 1.0
    termination: Annotated[AboveZero, Doc("weight of the cross-entropy of the end of an episode")] = 1.0
    dynamics: Annotated[NotNegative, Doc("weight of the KL that trains the prior")] = 0.5
    representation: Annotated[NotNegative, Doc("weight of the KL that trains the posterior")] = 0.1
    free_bits: Annotated[NotNegative, Doc("nats of KL that cost nothing")] = 1.0
    free_bits_per: Annotated[Literal["step", "batch"], Doc("free bits of each step's KL, or of the mean")] = "step"

    def weights(self) -> dict[str, float]:
        """Term -> weight."""
        options = {"free_bits", "free_bits_per"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in options}


@dataclass(frozen=True)
class WorldModelConfig:
    channels: Annotated[
        tuple[int, int, int, int], POSITIVE, Doc("encoder channels; the decoder mirrors them")
    ] = (32, 64, 128, 256)  # fmt: skip
    categoricals: Annotated[Size, Doc("categorical variables of a latent (S)")] = 32
    classes: Annotated[int, Bounds(ge=2), Doc("classes of each categorical (K)")] = 32
    unimix: Annotated[BelowOne, Doc("uniform share mixed into each categorical")] = 0.01
    width: Annotated[Size, Doc("model width of the sequence model (D)")] = 512
    layers: Annotated[int, Bounds(ge=1, le=128), Doc("transformer blocks")] = 2
    heads: Annotated[Size, Doc("attention heads")] = 8
    dropout: Annotated[BelowOne, Doc("dropout in the transformer")] = 0.1
    max_length: Annotated[int, Bounds(ge=2), Doc("learned positions: the longest window, in steps")] = 64
    tokens: Annotated[
        Literal["fused", "separate"], Doc("one token a step, or an observation and an action token")
    ] = "fused"  # fmt: skip
    batch_size: Annotated[Size, Doc("windows a batch (B)")] = 16
    batch_length: Annotated[int, Bounds(ge=2), Doc("steps a window (T)")] = 64
    updates_per_step: Annotated[UpdatesPerStep, Doc("updates per environment step")] = 1.0
    learning_rate: Annotated[AboveZero, Doc("Adam step size")] = 1e-4
    clip_norm: Annotated[AboveZero, Doc("gradient norm limit")] = 1000.0
    head_init: Annotated[HeadInit, Doc("first weights of the reward head's output layer")] = "zero"
    read_out: Annotated[
        ReadOut, Doc("the reward is read as the symexp of the mean bin, or as the mean of what the bins stand for")
    ] = "symlog"  # fmt: skip
    centre_frames: Annotated[
        bool, Doc("the networks see and draw the difference to the mean frame of replay when learning starts")
    ] = True  # fmt: skip
    decoder_init: Annotated[HeadInit, Doc("first weights of the decoder's output layer")] = "zero"
    decode_every: Annotated[
        Size, Doc("steps of a window of which one is reconstructed, from a random one on; neighbours are alike")
    ] = 1
    autoencoder_every: Annotated[
        Size, Doc("updates of which one trains encoder and decoder too; the others are of what predicts, and cheap")
    ] = 1
    autoencoder_first: Annotated[
        int,
        Bounds(ge=0, le=10**9),
        Doc("updates at first that all train encoder and decoder"),
    ] = 0
    focus: Annotated[
        NotNegative, Doc("a pixel that focus-on names weighs 1 + focus in the reconstruction; the mean weight is 1")
    ] = 9.0
    focus_on: Annotated[
        Literal["motion", "mean_frame"], Doc("pixels that move, or that differ from the mean frame")
    ] = "motion"
    balance: Annotated[
        Literal["fixed", "harmony"], Doc("weights of the losses as set below, or also divided by learned scales")
    ] = "fixed"  # fmt: skip
    norm_momentum: Annotated[
        float, Bounds(gt=0, le=1), Doc("share of a batch in the running batch-norm statistics")
    ] = 0.1
    life_loss_terminates: Annotated[bool, Doc("a lost life counts as the end of an episode in the loss")] = True
    separate_episodes: Annotated[bool, Doc("keep where episodes begin and end; nothing leaks across a reset")] = True
    loss: WorldModelLossConfig = field(default_factory=WorldModelLossConfig)


@dataclass(frozen=True)
class ImaginationConfig:
    batch_size: Annotated[Size, Doc("replayed contexts a rollout batch starts from")] = 1024
    contexts_per_window: Annotated[
        Size, Doc("contexts cut from one replayed window, each a step later, so that they share its encoded frames")
    ] = 1
    contexts: Annotated[
        Literal["replay", "batch"],
        Doc("drawn from replay, or all in the batch that the world model has just learned from, with its latents"),
    ] = "replay"
    context: Annotated[int, Bounds(ge=2), Doc("replayed steps before imagination")] = 8
    start: Annotated[LatentKind, Doc("first state: the last context frame as when acting, or its predicted next")] = (
        "posterior"
    )
    horizon: Annotated[Size, Doc("imagined steps (H)")] = 16
    continuation: Annotated[
        Literal["probability", "threshold"], Doc("predicted continuation as probability, or 0/1")
    ] = "probability"  # fmt: skip

    @property
    def num_windows(self) -> int:
        """Windows of replay a rollout batch starts from."""
        return self.batch_size // self.contexts_per_window

    @property
    def window_length(self) -> int:
        """Steps of such a window."""
        return self.context + self.contexts_per_window - 1


@dataclass(frozen=True)
class AgentConfig:
    start: Annotated[
        int, Bounds(ge=0, le=10**9), Doc("environment steps before the agent learns; the world model learns before")
    ] = 0
    state: Annotated[Literal["both", "latent", "hidden"], Doc("what actor and critic see")] = "both"
    width: Annotated[Size, Doc("width of actor and critic")] = 512
    updates_per_step: Annotated[UpdatesPerStep, Doc("imagined rollout batches per environment step")] = 1.0
    minibatches: Annotated[Size, Doc("updates a rollout batch is split into, importance-weighted")] = 1
    gamma: Annotated[float, Bounds(gt=0, le=1), Doc("discount")] = 0.985
    lam: Annotated[Share, Doc("lambda of the lambda-return")] = 0.95
    entropy: Annotated[NotNegative, Doc("weight of the policy entropy")] = 3e-4
    unimix: Annotated[BelowOne, Doc("uniform share mixed into the policy")] = 0.0
    learning_rate: Annotated[AboveZero, Doc("Adam step size")] = 3e-5
    clip_norm: Annotated[AboveZero, Doc("gradient norm limit")] = 100.0
    slow_critic_decay: Annotated[BelowOne, Doc("EMA decay of the slow critic")] = 0.98
    percentile_decay: Annotated[BelowOne, Doc("EMA decay of the return percentiles")] = 0.99
    bootstrap: Annotated[
        Literal["next", "current"], Doc("lambda-return mixes in V(s[t+1]), or V(s[t]) as the original does")
    ] = "next"  # fmt: skip
    read_out: Annotated[ReadOut, Doc("how values are read, as world_model.read_out")] = "symlog"
    return_floor: Annotated[
        AboveZero, Doc("advantages are divided by the spread of returns where it is larger than this, else by this")
    ] = 1.0
    replay_value: Annotated[
        NotNegative,
        Doc("weight of the critic's loss on returns of what was replayed; needs imagination.contexts batch"),
    ] = 0.0
    weight_by_continuation: Annotated[bool, Doc("weight an imagined step by the chance it is reached")] = True
    head_init: Annotated[HeadInit, Doc("first weights of the critic's output layer")] = "zero"


@dataclass(frozen=True)
class ActingConfig:
    latent: Annotated[LatentKind, Doc("act on the current frame's posterior, or on its prediction")] = "posterior"
    context: Annotated[Size, Doc("past steps the hidden state sees while acting")] = 16
    reset_context: Annotated[bool, Doc("forget the context when an episode ends")] = True
    random_steps: Annotated[Size, Doc("random environment steps before learning starts")] = 1024


@dataclass(frozen=True)
class EvaluationConfig:
    episodes_from: Annotated[
        Literal["each_env", "first_finished"], Doc("a fixed number from each env, or the first to finish")
    ] = "each_env"  # fmt: skip
    count_last_reward: Annotated[bool, Doc("count the last step's reward in a return")] = True


@dataclass(frozen=True)
class LoggingConfig:
    every: Annotated[Size, Doc("environment steps between two metric flushes")] = 500
    save_every: Annotated[Size, Doc("environment steps between two checkpoints")] = 10_000
    tensorboard: Annotated[bool, Doc("write TensorBoard event files")] = True
    diagnose: Annotated[bool, Doc("log what the world model sees, too: diagnosis/latent_information and others")] = True
    dreams: Annotated[
        bool, Doc("film what the world model imagines at each checkpoint, into RUN/dreams; log dream/...")
    ] = True


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run. Defaults are the `storm` preset under the `standard` protocol."""

    game: Annotated[str, Doc(GAME)] = "Pong"
    preset: Annotated[Preset, Doc("sizes; auto takes fast with CUDA and cpu without")] = "auto"
    protocol: Annotated[Protocol, Doc("rules: standard (recommended), or reference (what the original does)")] = (
        "standard"
    )
    seed: Annotated[Seed, Doc("seed of everything random")] = 0
    steps: Annotated[Size, Doc("environment steps to train for; of Atari, one is atari.frame-skip frames")] = 100_000
    num_envs: Annotated[NumEnvs, Doc("environments stepped together")] = 1
    env_backend: Annotated[
        EnvBackend, Doc("of Atari games; auto takes ale for one environment and envpool for more")
    ] = "auto"
    run_dir: Annotated[str | None, Doc("where the run is kept; default runs/GAME/DATE-TIME")] = None
    resume: Annotated[bool, Doc("go on from the checkpoint in --run-dir")] = False
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[Precision, Doc("auto takes bfloat16 where the device computes it natively")] = "auto"
    compile: Annotated[
        Compile,
        Doc(
            "off is eager, default compiles, graphs also captures CUDA graphs; auto: graphs on CUDA with Triton, "
            "else off"
        ),
    ] = "auto"
    env: EnvConfig = field(default_factory=EnvConfig)
    atari: AtariConfig = field(default_factory=AtariConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True)
class LaunchConfig(TrainConfig):
    """What `stormfast train` is asked for: the settings of a run, and of which runs.

    A run knows nothing of the others.
    """

    game: Annotated[str, Doc(f"{GAME}; several as Pong,Breakout")] = "Pong"
    seeds: Annotated[
        int,
        Bounds(ge=1, le=1_000),
        Doc("runs of each game: seeds --seed, --seed + 1, ... each in its own process and directory"),
    ] = 1
    parallel: Annotated[
        int | None,
        Bounds(ge=1, le=1_000),
        Doc("of several runs, how many at once; default all with CUDA, one a core without"),
    ] = None

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
class ProfileConfig:
    """Settings of a profile; those that TrainConfig has too mean the same there."""

    game: Annotated[str, Doc(GAME)] = "Catch"
    preset: Annotated[Preset, Doc("sizes; auto takes fast with CUDA and cpu without")] = "auto"
    protocol: Annotated[Protocol, Doc("rules: standard (recommended), or reference (what the original does)")] = (
        "standard"
    )
    device: Annotated[str, Doc("auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], Doc("auto takes bfloat16 where the device computes it natively")
    ] = "auto"
    compile: Annotated[Literal["auto", "off", "default", "graphs"], Doc("as of `stormfast train`, auto likewise")] = (
        "auto"
    )
    steps: Annotated[int, POSITIVE, Doc("environment steps to measure")] = 10
    warmup: Annotated[int, POSITIVE, Doc("environment steps before, with updates")] = 1
    seed: Annotated[Seed, Doc("seed of everything random")] = 0
    json: Annotated[bool, Doc("print one JSON object, and nothing else, on stdout")] = False


# --- checks --------------------------------------------------------------------------------------------------------


def validate(config: TrainConfig, *, is_new: bool = True) -> None:
    """Raises UserError for a value of the wrong type, out of range, or at odds with another.

    Args: is_new: False for the settings of a saved run, which may break rules that came later.
    """
    check_fields(config)
    batched = _rules_of_batch_contexts(config) if config.imagination.contexts == "batch" else []
    later = _rules_of_positions(config) if is_new else []
    for holds, message in _rules(config) + batched + later:
        if not holds:
            raise UserError(message)
    _validate_backend(config)


def _rules(config: TrainConfig) -> list[tuple[bool, str]]:
    """What fields must be to each other: (does it hold, what to say if not)."""
    model, imagination, replay, agent = config.world_model, config.imagination, config.replay, config.agent
    longest = f"must be <= world_model.max_length ({model.max_length})"
    rollout = imagination.context + imagination.horizon
    window = max(model.batch_length, imagination.window_length)
    smallest = max(1, min(model.batch_size, imagination.num_windows))
    each = f"one window of {window} steps in each of {config.num_envs} environments"
    return [
        (
            model.width % model.heads == 0,
            f"world_model.width must be a multiple of world_model.heads ({model.heads}), got {model.width}",
        ),
        (
            model.decode_every <= model.batch_length,
            f"world_model.decode_every must be <= world_model.batch_length ({model.batch_length}), got "
            f"{model.decode_every}",
        ),
        (
            model.focus_on == "motion" or model.centre_frames,
            "world_model.focus_on mean_frame needs world_model.centre_frames, which finds the mean frame",
        ),
        (model.batch_length <= model.max_length, f"world_model.batch_length {longest}, got {model.batch_length}"),
        (rollout <= model.max_length, f"imagination.context + imagination.horizon {longest}, got {rollout}"),
        (config.acting.context <= model.max_length, f"acting.context {longest}, got {config.acting.context}"),
        (
            imagination.batch_size % config.agent.minibatches == 0,
            f"imagination.batch_size must be a multiple of agent.minibatches ({config.agent.minibatches}), got "
            f"{imagination.batch_size}",
        ),
        (
            imagination.batch_size % imagination.contexts_per_window == 0,
            f"imagination.batch_size must be a multiple of imagination.contexts_per_window "
            f"({imagination.contexts_per_window}), got {imagination.batch_size}",
        ),
        (
            agent.replay_value == 0 or (imagination.contexts, imagination.start) == ("batch", "posterior"),
            "agent.replay_value needs imagination.contexts batch and imagination.start posterior, so that imagination "
            f"starts from the states of replayed steps, got {imagination.contexts} and {imagination.start}",
        ),
        (
            agent.replay_value == 0 or model.batch_size % agent.minibatches == 0,
            f"world_model.batch_size must be a multiple of agent.minibatches ({agent.minibatches}) where "
            f"agent.replay_value is not 0, as windows stay whole, got {model.batch_size}",
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
            "replay.demonstration_share must give one window or more of each batch, of world_model.batch_size "
            f"({model.batch_size}) "
            f"and of the windows that imagination starts from ({imagination.num_windows}), got "
            f"{replay.demonstration_share}; give {1 / smallest:.2g} or more",
        ),
    ]


def _rules_of_batch_contexts(config: TrainConfig) -> list[tuple[bool, str]]:
    """What imagination.contexts "batch" needs: all contexts of a batch, and a world-model update for each of the agent.

    Each step that owes updates of the agent must owe as many of the world model, or windows would be used twice; and a
    resumed run, whose buffers are empty, would go on otherwise than one that was never stopped.
    """
    model, imagination, agent = config.world_model, config.imagination, config.agent
    per_window = model.batch_length - imagination.context + 1
    size, learning = model.batch_size * per_window, config.acting.random_steps
    unpaired = first_unpaired(agent.updates_per_step, max(learning, agent.start), model.updates_per_step, learning)
    where = "where imagination.contexts is batch"
    return [
        (
            per_window >= 1,
            f"imagination.context must be <= world_model.batch_length ({model.batch_length}) {where}, got "
            f"{imagination.context}",
        ),
        (
            imagination.contexts_per_window == 1,
            f"imagination.contexts_per_window must be 1 {where}, which takes all contexts of a window, got "
            f"{imagination.contexts_per_window}",
        ),
        (
            imagination.batch_size == size,
            f"imagination.batch_size must be {size} {where}: {per_window} contexts in each of {model.batch_size} "
            f"windows; got {imagination.batch_size}",
        ),
        (
            unpaired is None,
            f"each agent update needs a world-model update in the same step {where}, but step {unpaired} has too few, "
            f"got agent.updates_per_step {agent.updates_per_step:g}; give {model.updates_per_step:g} as "
            f"world_model.updates_per_step, and agent.start <= acting.random_steps ({learning})",
        ),
    ]


def _rules_of_positions(config: TrainConfig) -> list[tuple[bool, str]]:
    """Positions that nobody trains are random vectors to whoever acts or imagines there."""
    length, imagination, context = config.world_model.batch_length, config.imagination, config.acting.context
    last = imagination.context + imagination.horizon
    return [
        (
            last <= length - 1,
            f"imagination.context + imagination.horizon must be < world_model.batch_length ({length}), which is how "
            f"far positions are trained, got {last}",
        ),
        (
            context <= min(length - 1, last - 2),
            f"acting.context must be < world_model.batch_length ({length}) and <= imagination.context + "
            f"imagination.horizon - 2 ({last - 2}), or the agent acts at positions where nothing was trained; got "
            f"{context}",
        ),
    ]


def validate_env(env: EnvConfig, atari: AtariConfig, *, num_envs: int, backend: str, seed: int) -> None:
    """Raises UserError for what no emulator may be given, whoever makes the environment."""
    config = TrainConfig(env=env, atari=atari, num_envs=num_envs, env_backend=backend, seed=seed)  # type: ignore[arg-type]
    check_fields(config)
    _validate_backend(config)


def _validate_backend(config: TrainConfig) -> None:
    if config.env_backend == "envpool" and (reason := why_not_envpool(config.env, config.atari)):
        raise UserError(f"env_backend must be ale or auto, because {reason}; got envpool")


def why_not_envpool(env: EnvConfig, atari: AtariConfig) -> str:
    """Why these rules need the ale backend, or nothing."""
    if env.same_seed_resets:
        return "envpool cannot re-seed, as env.same_seed_resets asks"
    if atari.noop_max == 0:
        return "envpool cannot start an episode without a no-op frame, as atari.noop_max 0 asks"
    return ""


# --- saved configs -------------------------------------------------------------------------------------------------

# A setting that a later version added -> the value that runs saved before it behaved by. Whoever adds a setting adds it
# here.
SINCE: dict[str, Any] = {
    "env.render_obs": False,
    "agent.start": 0,
    "agent.read_out": "symlog",
    "agent.return_floor": 1.0,
    "agent.replay_value": 0.0,
    "imagination.contexts_per_window": 1,
    "imagination.contexts": "replay",
    "world_model.balance": "fixed",
    "world_model.autoencoder_every": 1,
    "world_model.autoencoder_first": 0,
    "logging.diagnose": False,
    "logging.dreams": False,
    "world_model.centre_frames": False,
    "world_model.decode_every": 1,
    "world_model.decoder_init": "default",
    "world_model.focus": 0.0,
    "world_model.focus_on": "motion",
    "world_model.norm_momentum": 0.1,
    "world_model.read_out": "symlog",
    "world_model.loss.reconstruction": 1.0,
    "world_model.loss.reward": 1.0,
    "world_model.loss.termination": 1.0,
}
# What a setting was called in runs that earlier versions saved -> what it is called now.
RENAMED: dict[str, str] = {
    "env.frame_skip": "atari.frame_skip",
    "env.sticky": "atari.sticky",
    "env.noop_max": "atari.noop_max",
    "replay.mark_resets": "world_model.separate_episodes",
    "world_model.dynamics_scale": "world_model.loss.dynamics",
    "world_model.representation_scale": "world_model.loss.representation",
    "world_model.free_bits": "world_model.loss.free_bits",
    "world_model.free_bits_per": "world_model.loss.free_bits_per",
}


def from_json(text: str) -> TrainConfig:
    """The config that to_json wrote, of this or an earlier version. Raises UserError for anything else."""
    values = read_json(text, "config.json")
    if "game" not in values:
        raise UserError("config.json must be what stormfast saved, but it holds no settings; start a new run")
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    config = override(TrainConfig(), SINCE | values)
    validate(config, is_new=False)
    missing = [name for name in flatten(config) if name not in values and name not in SINCE]
    if missing:  # its default today may not be what the run was trained with
        reason = "it was edited, or a version saved it that this one does not know"
        raise UserError(f"config.json must hold every setting, but {missing[0]} is missing: {reason}; start a new run")
    return config


# What a resume may change: where and how long it runs, not what is learned.
RESUMABLE = frozenset(
    {
        *("steps", "run_dir", "resume", "device", "compile"),
        *("logging.every", "logging.save_every", "logging.tensorboard", "logging.diagnose", "logging.dreams"),
    }
)


def check_resumable(saved: TrainConfig, asked: TrainConfig) -> None:
    """Raises UserError when a resume would change what the saved run is."""
    before, after = flatten(saved), flatten(asked)
    changed = [
        f"{name} was {before[name]!r} and is now {after[name]!r}"
        for name in before
        if name not in RESUMABLE and before[name] != after[name]
    ]
    if changed:
        raise UserError(
            f"A resumed run keeps its settings, but {'; '.join(changed)}. Leave them out, or start a new run with "
            "another --run-dir."
        )
