"""FLOPs and bytes of every part of a training step, in closed form from the settings: work_kernels.py has the rules, work_sizes.py the letters.

    parts(preset_config("storm", "standard"), num_actions=18, precision="bfloat16")

The parts follow the code under stormfast/, phase by phase as `stormfast profile` has them. tests/profiling/test_work_formulas.py
holds their FLOPs against torch's counter on the real modules: equal, but for attention. In an imagined step the reference
computes the whole cache, and only what is visible counts here; a backward pass that makes the scores anew is counted by
torch with five products, and with four here.

B windows   T steps   N frames or tokens   S*K latent   D width   H horizon
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.kernels.work import attention_work
from work_kernels import (
    Kernel,
    attention,
    attention_gradients,
    convolution,
    convolution_gradients,
    mlp_products,
    product,
    product_gradients,
)
from work_sizes import (
    FRAME_BYTES,
    INDEX,
    NUM_BINS,
    NUMBER,
    ROW_BYTES,
    Sizes,
    agent_parameters,
    mlp_parameters,
    world_model_parameters,
)

from stormfast.settings import TrainConfig

ADAM = 28  # bytes a parameter: weight, gradient and two moments read, weight and moments written
NORM = 4  # the gradient, read once more before


@dataclass(frozen=True)
class Part:
    """A phase, or a piece of one; flops and bytes are of one call of the phase."""

    phase: str
    name: str
    kernels: tuple[Kernel, ...]

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)


def parts(config: TrainConfig, num_actions: int, precision: str) -> list[Part]:
    """Every part of a step, in the order of the phases. precision: bfloat16 or float32."""
    sizes = Sizes(config, num_actions, precision)
    return [
        Part(phase, name, tuple(kernels(sizes))) for phase, named in PHASES.items() for name, kernels in named.items()
    ]


def calls_per_step(config: TrainConfig) -> dict[str, float]:
    """Phase -> calls an environment step, as stormfast/measure/phases.py has them; stepping the games is no work of the device."""
    collected, learned, imagined = (
        1 / config.num_envs,
        config.world_model.updates_per_step,
        config.agent.updates_per_step,
    )
    rates = {
        "sample_windows": learned,
        "world_model": learned,
        "sample_contexts": imagined,
        "imagination": imagined,
        "agent": imagined,
    }
    return {"act": collected, **rates, "refresh": min(learned, collected)}


# --- the world model's update ------------------------------------------------------------------------------------


def gather(rows: int) -> list[Kernel]:
    """Rows of replay, read and written."""
    return [Kernel("gather", 0, 2 * rows * ROW_BYTES)]


def encode(s: Sizes, images: int) -> list[Kernel]:
    return [convolution(layer, s.itemsize, frames=i == 0) for i, layer in enumerate(s.encoder(images))]


def encode_gradients(s: Sizes) -> list[Kernel]:
    return [
        kernel
        for i, layer in enumerate(s.encoder(s.frames))
        for kernel in convolution_gradients(layer, s.itemsize, frames=i == 0)
    ]


def posterior(s: Sizes, images: int) -> list[Kernel]:
    """Logits, or the sample drawn from them: as many bytes."""
    return [product("posterior", images, s.features, s.latent, s.itemsize)]


def posterior_and_gradients(s: Sizes) -> list[Kernel]:
    return posterior(s, s.frames) + product_gradients("posterior", s.frames, s.features, s.latent, s.itemsize, saved=1)


def sample_and_kl(s: Sizes) -> list[Kernel]:
    """Gradients of both logits come from the KL, the posterior's also from the two users of the sample."""
    one = s.frames * s.latent * s.itemsize
    return [Kernel("sample", 0, 2 * one), Kernel("KL", 0, 2 * one), Kernel("gradients", 0, 6 * one)]


def decode(s: Sizes) -> list[Kernel]:
    """The last convolution reads the frames too, and writes the difference."""
    *inner, last = s.decoder(s.frames)
    first = product("linear", s.frames, s.latent, s.features, s.itemsize)
    return [first, *(convolution(layer, s.itemsize) for layer in inner), convolution(last, s.itemsize, extra=last.made)]


def decode_gradients(s: Sizes) -> list[Kernel]:
    *inner, last = s.decoder(s.frames)
    kernels = convolution_gradients(last, s.itemsize, normed=False)
    kernels += [kernel for layer in reversed(inner) for kernel in convolution_gradients(layer, s.itemsize)]
    return kernels + product_gradients("linear", s.frames, s.latent, s.features, s.itemsize, normed=True)


def stems(s: Sizes, steps: int) -> list[Kernel]:
    """Latents and actions to tokens; the one-hot actions are made inside."""
    latent, index, second = (
        steps * s.latent * s.itemsize,
        steps * INDEX,
        product("stem 2", steps, s.width, s.width, s.itemsize),
    )
    if s.per_step == 1:
        return [product("stem 1", steps, s.latent + s.actions, s.width, s.itemsize, given=latent + index), second]
    action = product("action stem 1", steps, s.actions, s.width, s.itemsize, given=index)
    return [product("stem 1", steps, s.latent, s.width, s.itemsize), action, second, second]


def stem_gradients(s: Sizes) -> list[Kernel]:
    """Actions need no gradient; where they are part of the token, the product computes it and it is dropped."""
    n, latent, index = s.frames, s.frames * s.latent * s.itemsize, s.frames * INDEX
    second = product_gradients("stem 2", n, s.width, s.width, s.itemsize, saved=1)
    if s.per_step == 1:
        return second + product_gradients(
            "stem 1", n, s.latent + s.actions, s.width, s.itemsize, given=latent + index, sent=latent
        )
    action = product_gradients("action stem 1", n, s.actions, s.width, s.itemsize, given=index, sent=0)
    return second + second + product_gradients("stem 1", n, s.latent, s.width, s.itemsize) + action


def after_attention(s: Sizes, tokens: int) -> list[Kernel]:
    """Out, inner, outer; out and outer add a residual."""
    residual = tokens * s.width * s.itemsize
    return [
        product("out", tokens, s.width, s.width, s.itemsize, extra=residual),
        product("inner", tokens, s.width, 2 * s.width, s.itemsize),
        product("outer", tokens, 2 * s.width, s.width, s.itemsize, extra=residual),
    ]


def layer(s: Sizes, tokens: int, length: int) -> list[Kernel]:
    """A transformer block on windows of `length` tokens."""
    before = product("query, key, value", tokens, s.width, 3 * s.width, s.itemsize)
    return [before, attention("attention", tokens, tokens, length, s.width, s.itemsize), *after_attention(s, tokens)]


def last_layer(s: Sizes, windows: int, length: int) -> list[Kernel]:
    """The same where only one token a window is asked for."""
    return [
        product("key, value", windows * length, s.width, 2 * s.width, s.itemsize),
        product("query", windows, s.width, s.width, s.itemsize),
        attention("attention", windows, windows * length, length, s.width, s.itemsize),
        *after_attention(s, windows),
    ]


def layer_gradients(s: Sizes, tokens: int, length: int) -> list[Kernel]:
    """Two saved tensors: the residual's gradient, and what the norm made of the input."""
    return [
        *product_gradients("outer", tokens, 2 * s.width, s.width, s.itemsize, saved=1),
        *product_gradients("inner", tokens, s.width, 2 * s.width, s.itemsize, saved=2),
        *product_gradients("out", tokens, s.width, s.width, s.itemsize),
        attention_gradients("attention", tokens, length, s.width, s.itemsize),
        *product_gradients("query, key, value", tokens, s.width, 3 * s.width, s.itemsize, saved=2),
    ]


def sequence_and_prior(s: Sizes) -> list[Kernel]:
    """Forward and backward; the prior's input gradient adds that of the heads."""
    tokens, length = s.per_step * s.frames, s.per_step * s.length
    prior = product("prior", s.frames, s.width, s.latent, s.itemsize)
    forward = [*stems(s, s.frames), *s.layers * layer(s, tokens, length), prior]
    backward = product_gradients(
        "prior", s.frames, s.width, s.latent, s.itemsize, saved=2
    ) + s.layers * layer_gradients(s, tokens, length)
    return forward + backward + stem_gradients(s)


def heads_and_gradients(s: Sizes) -> list[Kernel]:
    """Reward and termination, which share their input; what the last products write is the gradient of the loss."""
    n, d, size = s.frames, s.width, s.itemsize
    kernels = [product("first layers", n, d, 2 * d, size), *product_gradients("first layers", n, d, 2 * d, size)]
    for name, outputs in (("reward", NUM_BINS), ("termination", 1)):
        kernels += [product(f"{name} 2", n, d, d, size), product(f"{name} 3", n, d, outputs, size)]
        kernels += product_gradients(f"{name} 3", n, d, outputs, size, saved=1) + product_gradients(
            f"{name} 2", n, d, d, size, saved=1
        )
    return kernels


def adam(s: Sizes, parameters: int) -> list[Kernel]:
    """Gradient norm, then Adam, which also writes the copy that products read."""
    return [Kernel("gradient norm", 0, NORM * parameters), Kernel("Adam", 0, (ADAM + s.copy) * parameters)]


# --- imagination -------------------------------------------------------------------------------------------------


def cached(s: Sizes, windows: int, steps: int) -> list[Kernel]:
    """A context in one pass, of whose last token only the hidden state is wanted."""
    length = s.per_step * steps
    return [
        *stems(s, windows * steps),
        *(s.layers - 1) * layer(s, windows * length, length),
        *last_layer(s, windows, length),
    ]


def prefill(s: Sizes) -> list[Kernel]:
    first = [product("prior", s.batch, s.width, s.latent, s.itemsize)] if s.config.imagination.start == "prior" else []
    return cached(s, s.batch, s.prefilled) + first


def step_products(s: Sizes) -> list[Kernel]:
    """All of an imagined step but attention, H times; the prior's product draws the sample too."""
    token = [product("query, key, value", s.batch, s.width, 3 * s.width, s.itemsize), *after_attention(s, s.batch)]
    actor = mlp_products("actor", s.batch, s.actor_mlp, s.itemsize)
    prior = product("prior", s.batch, s.width, s.latent, s.itemsize)
    return [kernel.times(s.horizon) for kernel in (*actor, *stems(s, s.batch), *s.per_step * s.layers * token, prior)]


def step_attention(s: Sizes) -> list[Kernel]:
    """Over what the cache holds and the new token. bench/kernels/work.py counts the bytes, as it does for the kernel's bench."""
    lengths = range(s.per_step * s.prefilled, s.per_step * (s.prefilled + s.horizon))
    one = attention_work(
        s.batch, s.heads, s.width // s.heads, lengths, s.itemsize, masked=s.config.world_model.separate_episodes
    )
    flops = 4 * s.batch * s.width * sum(length + 1 for length in lengths)
    return [
        Kernel(
            "cached attention", s.layers * flops, s.layers * round(len(lengths) * one.bytes), s.layers * len(lengths)
        )
    ]


def judge(s: Sizes) -> list[Kernel]:
    """Reward and termination heads on all imagined steps at once, decoded as they come: a number a step each."""
    n, d, size, number = s.batch * s.horizon, s.width, s.itemsize, s.batch * s.horizon * NUMBER
    kernels = [product("first layers", n, d, 2 * d, size)]
    for name, outputs in (("reward", NUM_BINS), ("termination", 1)):
        kernels += [product(f"{name} 2", n, d, d, size), product(f"{name} 3", n, d, outputs, size, made=number)]
    return kernels


# --- the agent's update ------------------------------------------------------------------------------------------


def agent_rows(s: Sizes) -> tuple[int, int, int]:
    """Minibatches of a rollout batch; in one of them states that the actor sees, and that the critic sees."""
    count = s.config.agent.minibatches
    rollouts = s.batch // count
    return count, rollouts * s.horizon, rollouts * (s.horizon + 1)


def agent_forward(s: Sizes) -> list[Kernel]:
    """Actor, critic and slow critic, which share their input; the slow critic's value is decoded as it comes."""
    count, acted, valued = agent_rows(s)
    width, size = s.config.agent.width, s.itemsize
    made, weights = width * (acted + 2 * valued), 3 * s.state * width
    kernels = [Kernel("first layers", 2 * s.state * made, size * (s.state * valued + weights + made))]
    for name, rows, outputs in (
        ("actor", acted, s.actions),
        ("critic", valued, NUM_BINS),
        ("slow critic", valued, NUM_BINS),
    ):
        decoded = rows * NUMBER if name == "slow critic" else None
        kernels += [
            product(f"{name} 2", rows, width, width, size),
            product(f"{name} 3", rows, width, outputs, size, made=decoded),
        ]
    return [kernel.times(count) for kernel in kernels]


def agent_backward(s: Sizes) -> list[Kernel]:
    """The rollout gets no gradient."""
    count, acted, valued = agent_rows(s)
    width, size, made = s.config.agent.width, s.itemsize, s.config.agent.width * (acted + valued)
    kernels = []
    for name, rows, outputs in (("actor", acted, s.actions), ("critic", valued, NUM_BINS)):
        kernels += product_gradients(f"{name} 3", rows, width, outputs, size, saved=1)
        kernels += product_gradients(f"{name} 2", rows, width, width, size, saved=1)
    weights = NUMBER * 2 * s.state * width
    kernels.append(
        Kernel("first layers, weight gradient", 2 * s.state * made, size * (made + s.state * valued) + weights)
    )
    return [kernel.times(count) for kernel in kernels]


def targets_and_optimiser(s: Sizes) -> list[Kernel]:
    """Values decoded, lambda-returns, their percentiles, losses and their gradients at the logits; Adam; the slow critic's step."""
    count, acted, valued = agent_rows(s)
    logits = s.itemsize * (acted * s.actions + valued * NUM_BINS)
    critic = mlp_parameters(s.critic_mlp)
    kernels = [
        Kernel("values", 0, valued * (NUM_BINS * s.itemsize + NUMBER)),
        Kernel(
            "returns", 0, NUMBER * (2 * acted + 2 * valued) + NUMBER * 2 * acted
        ),  # of reward, continuation and both values
        Kernel("percentiles", 0, NUMBER * acted),
        Kernel(
            "losses", 0, 2 * logits + acted * (INDEX + NUMBER * 5)
        ),  # action; log-probability, continuation, value and both returns
        *adam(s, agent_parameters(s)),
        Kernel("slow critic", 0, critic * (2 * NUMBER + s.copy)),  # the critic itself is at hand
    ]
    return [kernel.times(count) for kernel in kernels]


# --- acting ------------------------------------------------------------------------------------------------------


def act(s: Sizes) -> list[Kernel]:
    """One decision in every environment. Of the memory only the new frame and latent are written."""
    envs, acting = s.config.num_envs, s.config.acting
    kernels = [*encode(s, envs), *posterior(s, envs), *cached(s, envs, acting.context)]
    if acting.latent == "prior":
        kernels.append(product("prior", envs, s.width, s.latent, s.itemsize))
    remember = Kernel("remember", 0, 2 * envs * (FRAME_BYTES + s.latent * s.itemsize))
    return [*kernels, *mlp_products("actor", envs, s.actor_mlp, s.itemsize), remember]


def refresh(s: Sizes) -> list[Kernel]:
    """The remembered frames encoded anew."""
    images = s.config.num_envs * s.config.acting.context
    return encode(s, images) + posterior(s, images)


# phase -> part -> kernels of one call of the phase
PHASES: dict[str, dict[str, Callable[[Sizes], list[Kernel]]]] = {
    "act": {"act": act},
    "sample_windows": {"gather": lambda s: gather(s.frames)},
    "world_model": {
        "encoder forward": lambda s: encode(s, s.frames),
        "encoder backward": encode_gradients,
        "posterior head": posterior_and_gradients,
        "sample + KL": sample_and_kl,
        "decoder forward": decode,
        "decoder backward": decode_gradients,
        "stem + layers + prior": sequence_and_prior,
        "reward + termination heads": heads_and_gradients,
        "gradient norm + Adam": lambda s: adam(s, world_model_parameters(s)),
    },
    "sample_contexts": {"gather": lambda s: gather(s.batch * s.context)},
    "imagination": {
        "encode contexts": lambda s: encode(s, s.batch * s.context),
        "posterior head + sample": lambda s: posterior(s, s.batch * s.context),
        "prefill": prefill,
        "steps: matrix products": step_products,
        "steps: cached attention": step_attention,
        "reward + termination heads": judge,
    },
    "agent": {
        "forward": agent_forward,
        "backward": agent_backward,
        "returns, losses, Adam, EMA": targets_and_optimiser,
    },
    "refresh": {"refresh": refresh},
}
