"""The formulae against torch's FLOP counter on the real phases and modules, and against bytes counted by hand and from real tensors."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import work_sizes
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from work_formulas import Part, calls_per_step, parts
from work_sizes import Sizes

from stormfast.learner import Learner
from stormfast.measure.op_counts import FORMULAS, count
from stormfast.measure.phases import FullStep
from stormfast.memory.estimate import MetaTensorLearner, full_replay
from stormfast.memory.meta_tensors import META, meta_autocast
from stormfast.player import Player
from stormfast.records import OBS_SHAPE
from stormfast.replay import ROW_BYTES, Replay
from stormfast.runs.run import Run
from stormfast.schema import override
from stormfast.settings import PRESETS, PROTOCOLS, TrainConfig, preset_config, validate
from stormfast.world_model.encoder import FEATURE_SIZE
from stormfast.world_model.heads import NUM_BINS
from tests.model_fixtures import NUM_ACTIONS, make_batch, tiny_config, tiny_learner

ODD: dict[str, dict[str, Any]] = {
    "fused": {},
    "separate": {"world_model.tokens": "separate"},
    "one layer": {"world_model.layers": 1, "agent.state": "hidden"},
    "three layers": {
        "world_model.layers": 3,
        "agent.state": "latent",
        "imagination.context": 2,
        "world_model.max_length": 30,
    },
    "minibatches": {"agent.minibatches": 3, "num_envs": 3, "acting.context": 1, "world_model.updates_per_step": 0.5},
}
CONFIGS = {f"{preset}, {protocol}": preset_config(preset, protocol) for preset in PRESETS for protocol in PROTOCOLS}
CONFIGS |= {
    f"odd {name}, {protocol}": tiny_config(protocol, values) for name, values in ODD.items() for protocol in PROTOCOLS
}


def total(found: list[Part], *names: str, phase: str) -> int:
    """FLOPs of a phase, or of parts of it."""
    chosen = [part for part in found if part.phase == phase and (not names or part.name in names)]
    assert chosen and (not names or len(chosen) == len(names))
    return sum(part.flops for part in chosen)


def weightless_run(config: TrainConfig, num_actions: int) -> Run:
    """What FullStep needs of a run, on tensors without memory."""
    replay, learner = full_replay(config, num_actions), MetaTensorLearner(config, num_actions, torch.bfloat16)
    player = Player(learner.inference, learner.agent, config.acting, config.num_envs)
    collector, phases = SimpleNamespace(player=player), SimpleNamespace(generator=torch.default_generator)
    return cast(Run, SimpleNamespace(config=config, learner=learner, replay=replay, phases=phases, collector=collector))


def counted_phases(config: TrainConfig, num_actions: int) -> dict[str, int]:
    """FLOPs that torch counts in each phase of the real program. Acting is called behind its host's part."""
    with meta_autocast("cuda"):
        run = weightless_run(config, num_actions)
        envs, player = config.num_envs, run.collector.player
        frames = torch.zeros(envs, *OBS_SHAPE, dtype=torch.uint8, device=META)
        flags = torch.zeros(envs, dtype=torch.bool, device=META)
        calls = {phase.name: phase.call for phase in FullStep(run).phases() if phase.name not in ("act", "env")}
        calls["act"] = lambda: player.act_on_device(frames, flags, flags)
        return {name: count(call, META).flops for name, call in calls.items()}


def whole_cache(config: TrainConfig) -> int:
    """FLOPs of imagined attention to positions that hold nothing yet: the reference computes them, masked."""
    sizes = Sizes(config, 1, "float32")
    room = sizes.per_step * (sizes.context + sizes.horizon)
    lengths = range(sizes.per_step * sizes.prefilled, sizes.per_step * (sizes.prefilled + sizes.horizon))
    return sum(4 * sizes.batch * sizes.width * sizes.layers * (room - length - 1) for length in lengths)


SOON = {
    "storm, standard",
    "tiny, reference",
    "odd separate, standard",
    "odd one layer, reference",
    "odd minibatches, standard",
}


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_flops_of_each_phase_are_torchs(name):
    config, num_actions = CONFIGS[name], 7
    validate(config)
    found, counted = parts(config, num_actions, "bfloat16"), counted_phases(config, num_actions)
    assert counted.pop("imagination") - total(found, phase="imagination") == whole_cache(config)
    assert counted == {phase: total(found, phase=phase) for phase in counted}
    assert {part.phase for part in found} == counted.keys() | {"imagination"} == calls_per_step(config).keys()


# --- each part on its module, in memory --------------------------------------------------------------------------


def torch_flops(call: Callable[[], Any]) -> int:
    """By torch's own counter. Attention is two products then, as the library has it; a fused kernel's formula is another test's matter."""
    step = torch.ops.stormfast.cached_attention_step
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping={step: FORMULAS[step]}) as counter:
        call()
    return counter.get_total_flops()


def backward_flops(*outputs: Tensor) -> int:
    return torch_flops(lambda: torch.autograd.backward([out.sum() for out in outputs]))


@pytest.fixture(params=ODD)
def sizes_changed(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ODD[request.param]


@pytest.fixture
def config(sizes_changed: dict[str, Any]) -> TrainConfig:
    return tiny_config("standard", sizes_changed)


@pytest.fixture
def learner(sizes_changed: dict[str, Any]) -> Learner:
    return tiny_learner("standard", sizes_changed)


@pytest.fixture
def found(config: TrainConfig) -> list[Part]:
    return parts(config, NUM_ACTIONS, "float32")


def test_flops_of_the_world_models_parts(config, learner, found):
    model, batch = learner.world_model.train(), make_batch()
    n, states, phase = 4 * 7, (4, 7, config.world_model.width), "world_model"
    features = torch.rand(n, model.encoder.num_features, requires_grad=True)
    latent = torch.rand(4, 7, 15, requires_grad=True)
    hidden = torch.rand(states, requires_grad=True)
    out: dict[str, Any] = {}

    def forward(name: str, call: Callable[[], Any]) -> int:
        return torch_flops(lambda: out.update({name: call()}))

    assert forward("encoder", lambda: model.encoder.embed(batch.obs)) == total(found, "encoder forward", phase=phase)
    assert backward_flops(out["encoder"]) == total(found, "encoder backward", phase=phase)
    posterior = forward("posterior", lambda: model.posterior(features)) + backward_flops(out["posterior"])
    assert posterior == total(found, "posterior head", phase=phase)
    assert forward("decoder", lambda: model.decoder(latent.flatten(0, 1))) == total(
        found, "decoder forward", phase=phase
    )
    assert backward_flops(out["decoder"]) == total(found, "decoder backward", phase=phase)
    sequence = forward(
        "sequence", lambda: model.prior(model.sequence(latent, batch.action, batch.is_first))
    ) + backward_flops(out["sequence"])
    assert sequence == total(found, "stem + layers + prior", phase=phase)
    heads = forward("heads", lambda: (model.reward(hidden), model.termination(hidden))) + backward_flops(*out["heads"])
    assert heads == total(found, "reward + termination heads", phase=phase)


def test_flops_of_imaginations_parts(config, learner, found):
    imagination, phase = learner.imagination, "imagination"
    model, batch, horizon = imagination.world_model, config.imagination.batch_size, config.imagination.horizon
    context, uniform = make_batch(batch, config.imagination.context), torch.rand(batch, 3)
    with torch.no_grad():
        embedded = torch_flops(lambda: model.encoder.embed(context.obs))
        assert embedded == total(found, "encode contexts", phase=phase)
        observed = torch_flops(
            lambda: imagination.observe(context.obs, torch.rand(batch, config.imagination.context, 3))
        )
        assert observed - embedded == total(found, "posterior head + sample", phase=phase)
        latents = torch.rand(batch, config.imagination.context, 15)
        begun: list[tuple[Tensor, Tensor]] = []
        assert torch_flops(lambda: begun.append(imagination.prefill(context, latents, uniform))) == total(
            found, "prefill", phase=phase
        )
        latent, hidden = begun[0]
        imagination.cache.reserve(model.sequence.tokens.per_step)
        step = torch_flops(
            lambda: imagination.step(learner.agent.state(latent, hidden), latent, torch.rand(batch), uniform)
        )
        steps = total(found, "steps: matrix products", "steps: cached attention", phase=phase)
        assert horizon * step - steps == whole_cache(config)
        judged = torch_flops(
            lambda: imagination.predict_reward_and_continuation(torch.rand(batch, horizon, config.world_model.width))
        )
        assert judged == total(found, "reward + termination heads", phase=phase)


def test_flops_of_the_agents_parts(config, learner, found):
    with torch.no_grad():
        rollout = learner.imagination(make_batch(config.imagination.batch_size, config.imagination.context))
    losses: list[Tensor] = []
    forward = torch_flops(
        lambda: losses.append(learner.agent.loss(rollout)["total"])
    )  # in one minibatch: the rows are the same
    assert forward == total(found, "forward", phase="agent")
    assert torch_flops(lambda: losses[0].backward()) == total(found, "backward", phase="agent")


@pytest.mark.parametrize("tokens", ["fused", "separate"])
def test_a_fused_backward_pass_is_counted_with_one_product_more(tokens):
    """It makes the scores anew; `whole_cache` has the other difference."""
    config = tiny_config("standard", {"world_model.tokens": tokens, "world_model.dropout": 0.0})
    learner = tiny_learner("standard", {"world_model.tokens": tokens, "world_model.dropout": 0.0})
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        counts = count(lambda: learner.update_world_model(make_batch(resets=False)), torch.device("cpu"))
    assert any("flash" in work.operator and "backward" in work.operator for work in counts.work)
    positions = 7 * learner.world_model.sequence.tokens.per_step
    scores = config.world_model.layers * 2 * 4 * positions * positions * config.world_model.width
    assert counts.flops - total(parts(config, NUM_ACTIONS, "float32"), phase="world_model") == scores


# --- numbers that stand twice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_the_modules(name):
    config = CONFIGS[name]
    sizes = Sizes(config, 7, "float32")
    with META:
        learner = MetaTensorLearner(config, 7, torch.float32)
    assert work_sizes.world_model_parameters(sizes) == sum(p.numel() for p in learner.world_model.parameters())
    assert work_sizes.agent_parameters(sizes) == sum(p.numel() for p in learner.agent.trained_parameters())
    assert work_sizes.mlp_parameters(sizes.critic_mlp) == sum(p.numel() for p in learner.agent.slow_critic.parameters())


def test_constants_are_those_of_the_package():
    assert (work_sizes.CHANNELS, work_sizes.SIDE, work_sizes.SIDE) == OBS_SHAPE
    assert (work_sizes.FEATURE_SIDE, work_sizes.NUM_BINS, work_sizes.ROW_BYTES) == (FEATURE_SIZE, NUM_BINS, ROW_BYTES)


@pytest.mark.parametrize("name", CONFIGS)
def test_phases_are_called_as_often_as_in_a_full_step(name):
    run = SimpleNamespace(config=CONFIGS[name], collector=SimpleNamespace(player=SimpleNamespace(refresh=None)))
    rates = {phase.name: phase.per_step for phase in FullStep(cast(Run, run)).phases()}
    del rates["env"]  # the host's work
    assert calls_per_step(CONFIGS[name]) == rates


# --- bytes -------------------------------------------------------------------------------------------------------


def part(config: TrainConfig, name: str, precision: str = "bfloat16", phase: str = "world_model") -> Part:
    return next(part for part in parts(config, NUM_ACTIONS, precision) if (part.phase, part.name) == (phase, name))


def test_bytes_of_the_encoder_by_hand():
    # Channels 2, 3, 4, 5 on 28 frames. Numbers between the layers: 32 * 32 * 2, 16 * 16 * 3, 8 * 8 * 4, 4 * 4 * 5 a frame.
    between, weights = [28 * n for n in (2048, 768, 256, 80)], [16 * n for n in (6, 6, 12, 20)]
    frames = 28 * 12_288  # bytes
    forward = frames + 2 * (sum(between) + sum(between[:3]) + sum(weights))
    assert part(tiny_config(), "encoder forward").bytes == forward
    weight_gradients = 2 * 2 * sum(between) + frames + 2 * sum(between[:3]) + 4 * sum(weights)
    input_gradients = 2 * 2 * sum(between[1:]) + 2 * sum(weights[1:]) + 2 * 2 * sum(between[:3])
    assert part(tiny_config(), "encoder backward").bytes == weight_gradients + input_gradients


def test_bytes_of_imagined_attention_by_hand():
    # 6 rollouts, 2 layers of width 12, 5 steps after a context of 3: 3, 4, 5, 6, 7 positions lie in the cache.
    vector = 6 * 12 * 2
    step = 6 * vector + 8 + 6 * 8  # query, key, value, output, two into the cache; the length; first positions
    assert part(tiny_config(), "steps: cached attention", phase="imagination").bytes == 2 * (5 * step + 2 * 25 * vector)
    unmasked = part(
        tiny_config("reference"), "steps: cached attention", phase="imagination"
    ).bytes  # a context of 4, no marks
    assert unmasked == 2 * (5 * (6 * vector + 8) + 2 * 30 * vector)


def test_bytes_of_adam_by_hand():
    number = work_sizes.world_model_parameters(Sizes(tiny_config(), NUM_ACTIONS, "bfloat16"))
    assert part(tiny_config(), "gradient norm + Adam").bytes == (4 + 28 + 2) * number  # norm, Adam, a copy in bfloat16
    assert part(tiny_config(), "gradient norm + Adam", "float32").bytes == 32 * number


def test_bytes_of_a_gather_are_rows_read_and_written():
    replay = Replay(20, 1, torch.device("cpu"))
    batch = replay.gather(torch.zeros(4, 7, dtype=torch.int64))
    assert part(tiny_config(), "gather", phase="sample_windows").bytes == 2 * batch.obs.untyped_storage().nbytes()


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_part_moves_less_than_what_it_takes_and_makes(name, precision):
    """Weights of the real modules, what comes in from other parts and what goes out to them, each once."""
    config, size = tiny_config("standard", ODD[name]), {"float32": 4, "bfloat16": 2}[precision]
    learner = tiny_learner("standard", ODD[name])
    model, agent = learner.world_model, learner.agent
    n, d, latent, features = 28, 12, 15, model.encoder.num_features
    rollouts, frames = config.imagination.batch_size, config.imagination.batch_size * config.imagination.context
    steps, states = (
        rollouts * config.imagination.horizon,
        rollouts * (config.imagination.horizon + 1) * Sizes(config, NUM_ACTIONS, precision).state,
    )
    state_bytes = states * size

    def matrices(*modules: torch.nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters() if p.dim() > 1)

    sequence = matrices(model.sequence.tokens, model.sequence.blocks, model.prior)
    heads = matrices(model.reward, model.termination)
    least = {
        ("world_model", "encoder forward"): n * 12_288 + size * (matrices(model.encoder) + n * features),
        ("world_model", "encoder backward"): n * 12_288 + 4 * matrices(model.encoder) + size * n * features,
        ("world_model", "posterior head"): (size + 4) * matrices(model.posterior) + 2 * size * n * (features + latent),
        ("world_model", "decoder forward"): size * (matrices(model.decoder) + n * latent + n * 12_288) + n * 12_288,
        ("world_model", "decoder backward"): (size + 4) * matrices(model.decoder) + size * n * (latent + 12_288),
        ("world_model", "stem + layers + prior"): (size + 4) * sequence + size * n * (2 * latent + 2 * d),
        ("world_model", "reward + termination heads"): (size + 4) * heads + size * n * 2 * d,
        ("imagination", "encode contexts"): frames * 12_288 + size * (matrices(model.encoder) + frames * features),
        ("imagination", "posterior head + sample"): size * (matrices(model.posterior) + frames * (features + latent)),
        ("imagination", "prefill"): size * matrices(model.sequence.tokens, model.sequence.blocks),
        ("imagination", "steps: matrix products"): size * (sequence + matrices(agent.actor))
        + size * steps * (latent + d),
        ("imagination", "reward + termination heads"): size * (heads + steps * d) + 8 * steps,
        ("agent", "forward"): size * matrices(agent.actor, agent.critic, agent.slow_critic) + state_bytes,
        ("agent", "backward"): 4 * matrices(agent.actor, agent.critic) + state_bytes,
        ("refresh", "refresh"): size * matrices(model.encoder, model.posterior)
        + config.num_envs * config.acting.context * 12_288,
        ("act", "act"): size
        * (matrices(model.encoder, model.posterior, agent.actor) + sequence - matrices(model.prior)),
    }
    found = {(part.phase, part.name): part.bytes for part in parts(config, NUM_ACTIONS, precision)}
    assert {key: found[key] for key in least if found[key] < least[key]} == {}
    assert found.keys() - least.keys() == {
        ("world_model", "sample + KL"),
        ("world_model", "gradient norm + Adam"),
        ("imagination", "steps: cached attention"),
        ("agent", "returns, losses, Adam, EMA"),
        ("sample_windows", "gather"),
        ("sample_contexts", "gather"),
    }


def test_bytes_of_one_products_kernel_are_what_the_counter_sees():
    """Where nothing is fused: a head on features, in float32 with its bias left out."""
    learner = tiny_learner()
    features = torch.rand(24, learner.world_model.encoder.num_features)
    with torch.no_grad():
        (work,) = count(lambda: learner.world_model.posterior(features), torch.device("cpu")).work
    assert work.bytes - 4 * 15 == part(tiny_config(), "posterior head + sample", "float32", "imagination").bytes


def test_overriding_a_size_changes_what_it_should():
    config = preset_config("storm", "standard")
    wider = override(config, {"world_model.width": 1024})
    before, after = ({(p.phase, p.name): (p.flops, p.bytes) for p in parts(c, 18, "bfloat16")} for c in (config, wider))
    same = {key for key in before if before[key] == after[key]}
    assert {("world_model", "encoder forward"), ("imagination", "encode contexts"), ("refresh", "refresh")} <= same
    assert ("world_model", "stem + layers + prior") not in same and (
        "imagination",
        "steps: cached attention",
    ) not in same
