"""Are we the original? Rebuilds its world model and agent from a file of recorded figures and compares every quantity
in float64.

    python tests/reference_parity.py tests/data/storm_reference.json

The file holds settings, parameter names and shapes, and what the original computed; parameters and inputs are made from
the seed by the rules below. Prints each quantity with its relative error; exits with status 1 when one is above 1e-9 or
of another size, and with status 2 when the file holds no figures.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from stormfast.agent import Agent  # noqa: E402
from stormfast.learner import Learner  # noqa: E402
from stormfast.presets import preset_config  # noqa: E402
from stormfast.records import Batch, Rollout  # noqa: E402
from stormfast.returns import percentiles  # noqa: E402
from stormfast.schema import override  # noqa: E402
from stormfast.settings import TrainConfig  # noqa: E402
from stormfast.world_model import WorldModel  # noqa: E402
from stormfast.world_model.encoder import normalize_frames  # noqa: E402
from stormfast.world_model.heads import TwoHot, symexp, symlog  # noqa: E402
from stormfast.world_model.losses import Prediction, world_model_loss  # noqa: E402

TOLERANCE = 1e-9
SECTIONS = {"settings", "world_model_parameters", "agent_parameters", "train_mode", "eval_mode", "agent", "functions"}

# The original's parameter names, as patterns, and ours.
NAMES = [
    (r"dist_head\.post_head\.", "posterior.linear."),
    (r"dist_head\.prior_head\.", "prior.linear."),
    (r"encoder\.backbone\.", "encoder.layers."),
    (r"image_decoder\.backbone\.0\.", "decoder.linear."),
    (r"image_decoder\.backbone\.(\d+)\.", lambda m: f"decoder.layers.{int(m[1]) - 2}."),
    (r"(reward|termination)_decoder\.backbone\.", r"\1."),
    (r"(reward|termination)_decoder\.head\.(?:0\.)?", r"\1.6."),
    (r"storm_transformer\.stem\.", "sequence.tokens.stem."),
    (r"storm_transformer\.position_encoding\.pos_emb\.", "sequence.positions."),
    (r"storm_transformer\.layer_norm\.", "sequence.norm."),
    (r"storm_transformer\.layer_stack\.(\d+)\.slf_attn\.layer_norm\.", r"sequence.blocks.\1.attention.norm."),
    (r"storm_transformer\.layer_stack\.(\d+)\.slf_attn\.w_qs\.", r"sequence.blocks.\1.attention.query."),
    (r"storm_transformer\.layer_stack\.(\d+)\.slf_attn\.w_ks\.", r"sequence.blocks.\1.attention.key."),
    (r"storm_transformer\.layer_stack\.(\d+)\.slf_attn\.w_vs\.", r"sequence.blocks.\1.attention.value."),
    (r"storm_transformer\.layer_stack\.(\d+)\.slf_attn\.fc\.", r"sequence.blocks.\1.attention.out."),
    (r"storm_transformer\.layer_stack\.(\d+)\.pos_ffn\.layer_norm\.", r"sequence.blocks.\1.feed_forward.norm."),
    (r"storm_transformer\.layer_stack\.(\d+)\.pos_ffn\.w_1\.", r"sequence.blocks.\1.feed_forward.inner."),
    (r"storm_transformer\.layer_stack\.(\d+)\.pos_ffn\.w_2\.", r"sequence.blocks.\1.feed_forward.outer."),
    (r"(actor|critic|slow_critic)\.", r"\1."),
]


def our_name(name: str) -> str:
    for pattern, ours in NAMES:
        match = re.match(pattern, name)
        if match:
            return (ours(match) if callable(ours) else match.expand(ours)) + name[match.end() :]
    raise KeyError(f"no parameter of ours stands for {name}")


def build_config(figures: dict[str, Any]) -> TrainConfig:
    """The reference protocol at the file's sizes; convolution and latent sizes are read off the parameter shapes."""
    settings, shapes = figures["settings"], dict(figures["world_model_parameters"])
    channels = tuple(shapes[f"encoder.backbone.{i}.weight"][0] for i in (0, 3, 6, 9))
    classes = settings.get("classes", 32)
    return override(
        preset_config("storm", "reference"),
        {
            "seed": settings["seed"],
            "world_model.channels": channels,
            "world_model.classes": classes,
            "world_model.categoricals": shapes["dist_head.post_head.bias"][0] // classes,
            "world_model.width": settings["hidden"],
            "world_model.layers": settings["layers"],
            "world_model.heads": settings["heads"],
            "world_model.dropout": 0.0,
            "world_model.max_length": settings["max_length"],
            "agent.width": settings["agent_hidden"],
            "agent.gamma": settings["gamma"],
            "agent.lam": settings["lam"],
            "agent.entropy": settings["entropy_coef"],
            # the rollout is not used here, only its buffers are made
            "imagination.batch_size": 1,
            "imagination.context": 1,
            "imagination.horizon": 1,
        },
    )


def fill_parameters(module: nn.Module, names_and_shapes: list[list[Any]], seed: int) -> None:
    """Draws every parameter in sorted name order and loads it under our name, leaving none of ours undrawn."""
    rng = np.random.RandomState(seed)
    state = {}
    for name, shape in sorted(names_and_shapes):
        if name.endswith((".bins", ".num_batches_tracked")):
            continue
        value = rng.standard_normal(shape)
        if name.endswith("running_mean"):
            value = np.zeros(shape)
        elif name.endswith("running_var"):
            value = np.ones(shape)
        elif value.ndim >= 2:
            value = value / np.sqrt(np.prod(shape[1:]))
        else:
            value = 0.1 * value + (1.0 if name.endswith("weight") else 0.0)
        state[our_name(name)] = torch.from_numpy(np.asarray(value))
    ours = {
        name
        for name in module.state_dict()
        if not name.endswith("num_batches_tracked") and not name.startswith("return_scale")
    }
    if ours != set(state):
        raise KeyError(
            f"parameters differ: only ours {sorted(ours - set(state))}, only the file's {sorted(set(state) - ours)}"
        )
    module.load_state_dict(state, strict=False)


def make_batch(settings: dict[str, Any]) -> Batch:
    rng = np.random.RandomState(settings["seed"] + 2)
    shape = (settings["batch"], settings["length"])
    obs = torch.from_numpy(rng.uniform(size=(*shape, 3, 64, 64)))
    action = torch.from_numpy(rng.randint(0, settings["actions"], size=shape)).long()
    reward = torch.from_numpy(3 * rng.standard_normal(shape))
    terminated = torch.from_numpy(rng.uniform(size=shape) < 0.1)
    off = torch.zeros(shape, dtype=torch.bool)
    return Batch(obs, action, reward, terminated, truncated=off, life_lost=off, is_first=off, is_last=off)


class Comparison:
    """Collects (quantity, relative error) and remembers which figures of the file were compared."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}

    def check(self, name: str, ours: Any, theirs: Any) -> None:
        """A number, a list of numbers, or a tensor against its summary {size, sum, l2, at, values}."""
        if isinstance(theirs, dict) and "l2" in theirs:
            self.check_summary(name, ours, theirs)
        elif isinstance(theirs, dict):
            if set(ours) != set(theirs):
                raise KeyError(
                    f"{name}: only ours {sorted(set(ours) - set(theirs))}, only the file's "
                    f"{sorted(set(theirs) - set(ours))}"
                )
            for key in theirs:
                self.check(f"{name}.{key}", ours[key], theirs[key])
        else:
            ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
            if ours.shape != theirs.shape:
                self.errors[f"{name}.shape"] = np.inf
                return
            self.errors[name] = worst(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-12))

    def check_summary(self, name: str, ours: Tensor, theirs: dict[str, Any]) -> None:
        """Sums and single values are compared on the tensor's own scale: a sum near 0 has no relative error."""
        flat = ours.detach().double().contiguous().flatten().numpy()
        if flat.size != theirs["size"]:
            self.errors[f"{name}.size"] = np.inf
            return
        typical = theirs["l2"] / np.sqrt(theirs["size"])
        self.errors[f"{name}.l2"] = worst(abs(np.linalg.norm(flat) - theirs["l2"]) / max(theirs["l2"], 1e-12))
        self.errors[f"{name}.sum"] = worst(
            abs(flat.sum() - theirs["sum"]) / max(abs(theirs["sum"]), theirs["l2"], 1e-12)
        )
        values = np.asarray(theirs["values"])
        self.errors[f"{name}.values"] = worst(
            np.abs(flat[theirs["at"]] - values) / np.maximum(np.abs(values), max(typical, 1e-12))
        )


def worst(error: np.ndarray | float) -> float:
    """The largest error; a NaN counts as infinite."""
    return float(np.nan_to_num(np.max(error), nan=np.inf))


def parameter_figures(names: Iterator[str], module: nn.Module, figure: Any) -> dict[str, float]:
    parameters = dict(module.named_parameters())
    return {name: figure(parameters[our_name(name)].detach(), our_name(name)).item() for name in names}


def compare_world_model(
    figures: dict[str, Any], learner: Learner, batch: Batch, check: Comparison
) -> tuple[Tensor, Tensor]:
    """Train-mode figures, then eval-mode ones, then the Adam step. Returns eval-mode (latent, hidden)."""
    model, recorded = learner.world_model, figures["train_mode"]
    embedding: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda *args: embedding.append(args[-1]))
    frames = normalize_frames(batch.obs)
    model.train()
    prediction = model.predict(frames, batch, None)
    losses = world_model_loss(prediction, frames, batch, model.two_hot, model.config)
    check_prediction("train_mode", embedding[-1], prediction, model, recorded, check)
    check.check("train_mode.losses", {name: value.item() for name, value in losses.items()}, recorded["losses"])

    model.eval()
    latent, hidden = compare_eval_mode(figures["eval_mode"], model, frames, batch, embedding, check)
    hook.remove()

    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradients.__setitem__(name, p.grad.clone()))
    norm = learner.descend("world_model", losses["total"], learner.config.world_model.clip_norm)
    check.check(
        "train_mode.gradient_l2",
        parameter_figures(iter(recorded["gradient_l2"]), model, lambda p, name: gradients[name].norm()),
        recorded["gradient_l2"],
    )
    check.check("train_mode.gradient_l2_total", norm.item(), recorded["gradient_l2_total"])
    moved = recorded["parameter_change_l2_after_adam"]
    check.check(
        "train_mode.parameter_change_l2_after_adam",
        parameter_figures(iter(moved), model, lambda p, name: (p - before[name]).norm()),
        moved,
    )
    return latent, hidden


def check_prediction(
    mode: str, embedding: Tensor, prediction: Prediction, model: WorldModel, recorded: dict[str, Any], check: Comparison
) -> None:
    ours = {
        "embedding": embedding,
        "posterior_logits": prediction.posterior,
        "sampled_class": prediction.posterior.argmax(-1),
        "reconstruction": prediction.reconstruction,
        "hidden": prediction.hidden,
        "prior_logits": prediction.prior,
        "reward_logits": prediction.heads["reward"],
        "reward_decoded": model.two_hot.decode(prediction.heads["reward"]),
        "termination_logits": prediction.heads["termination"].squeeze(-1),
    }
    for name in ours.keys() & recorded.keys():
        theirs = recorded[name]
        if name.endswith("_logits") and name.startswith(("posterior", "prior")):
            ours[name] = unimixed(ours[name], model)
        check.check(f"{mode}.{name}", ours[name], theirs)


def unimixed(logits: Tensor, model: WorldModel) -> Tensor:
    """The recorded logits are those after the uniform mix."""
    from stormfast_kernels import unimix_log_probs

    return unimix_log_probs(logits, model.config.unimix)


@torch.no_grad()
def compare_eval_mode(
    recorded: dict[str, Any],
    model: WorldModel,
    frames: Tensor,
    batch: Batch,
    embedding: list[Tensor],
    check: Comparison,
) -> tuple[Tensor, Tensor]:
    prediction = model.predict(frames, batch, None)
    check_prediction("eval_mode", embedding[-1], prediction, model, recorded, check)
    latent, action = model.sample(prediction.posterior, None), batch.action
    length = action.shape[1]
    cache = model.sequence.new_cache(action.shape[0], length, frames.dtype, frames.device)
    stepped = torch.stack([model.sequence.step(latent[:, t], action[:, t], cache) for t in range(length)], 1)
    apart = (stepped - prediction.hidden).abs().max().item()
    check.errors["eval_mode.cached_minus_full_max"] = apart / prediction.hidden.abs().max().item()
    half = max(1, length // 2)
    prefilled = [model.sequence.prefill(latent[:, :half], action[:, :half], None, cache)]
    prefilled += [model.sequence.step(latent[:, t], action[:, t], cache) for t in range(half, length)]
    apart = (torch.stack(prefilled, 1) - prediction.hidden[:, half - 1 :]).abs().max().item()
    check.errors["eval_mode.prefilled_minus_full_max"] = apart / prediction.hidden.abs().max().item()
    return latent, prediction.hidden


def compare_agent(
    figures: dict[str, Any], learner: Learner, batch: Batch, latent: Tensor, hidden: Tensor, check: Comparison
) -> None:
    agent, recorded = learner.agent, figures["agent"]
    state = agent.state(latent, hidden)
    state = torch.cat([state, state[:, -1:]], 1)
    ones = torch.ones_like(batch.reward)
    rollout = Rollout(
        state,
        batch.action,
        log_prob=0 * ones,
        reward=batch.reward,
        continuation=1 - batch.terminated.to(state.dtype),
        alive=ones[:, 0],
    )
    check.check("agent.policy_logits", agent.actor(state), recorded["policy_logits"])
    value_logits = agent.critic(state)
    check.check("agent.value_logits", value_logits, recorded["value_logits"])
    compare_targets(agent, rollout, value_logits, recorded, check)
    losses = agent.loss(rollout)
    ours = {name: losses[name].item() for name in ("policy", "value", "entropy", "total")} | {
        "slow_value_regularisation": losses["slow_value"].item()
    }
    check.check("agent.losses", ours, recorded["losses"])

    before = {name: value.detach().clone() for name, value in agent.named_parameters()}
    gradients: dict[str, Tensor] = {}
    for name, parameter in agent.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: gradients.__setitem__(name, p.grad.clone())
            )
    learner.descend("agent", losses["total"], learner.config.agent.clip_norm)
    agent.update_slow_critic()
    check.check(
        "agent.gradient_l2",
        parameter_figures(iter(recorded["gradient_l2"]), agent, lambda p, name: gradients[name].norm()),
        recorded["gradient_l2"],
    )
    moved = recorded["parameter_change_l2_after_adam_and_ema"]
    check.check(
        "agent.parameter_change_l2_after_adam_and_ema",
        parameter_figures(iter(moved), agent, lambda p, name: (p - before[name]).norm()),
        moved,
    )


def compare_targets(
    agent: Agent, rollout: Rollout, value_logits: Tensor, recorded: dict[str, Any], check: Comparison
) -> None:
    """Value, returns, percentiles, scale, advantage; the percentile averages are put back to 0 for the loss."""
    targets = agent.targets(rollout, value_logits)
    check.check("agent.value", targets.value, recorded["value"])
    check.check("agent.slow_value", targets.slow_value, recorded["slow_value"])
    check.check("agent.lambda_return", targets.returns, recorded["lambda_return"])
    check.check("agent.slow_lambda_return", targets.slow_returns, recorded["slow_lambda_return"])
    low, high = percentiles(targets.returns, 0.05, 0.95)
    check.check("agent.percentile_05", low.item(), recorded["percentile_05"])
    check.check("agent.percentile_95", high.item(), recorded["percentile_95"])
    check.check("agent.scale_S_after_one_ema_step", targets.scale.item(), recorded["scale_S_after_one_ema_step"])
    check.check("agent.advantage", targets.advantage, recorded["advantage"])
    agent.return_scale.low.zero_()
    agent.return_scale.high.zero_()


def compare_functions(recorded: dict[str, Any], seed: int, check: Comparison) -> None:
    x = torch.tensor(recorded["x"])
    logits = torch.from_numpy(np.random.RandomState(seed + 3).standard_normal((len(x), 255)))
    two_hot = TwoHot()
    check.check("functions.symlog", symlog(x), recorded["symlog"])
    check.check("functions.symexp_of_symlog", symexp(symlog(x)), recorded["symexp_of_symlog"])
    check.check("functions.twohot_loss_each", two_hot.loss(logits, x), recorded["twohot_loss_each"])
    check.check("functions.twohot_decode", two_hot.decode(logits), recorded["twohot_decode"])


def compare(figures: dict[str, Any]) -> dict[str, float]:
    """Every quantity of the file -> its relative error against ours, in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        settings = figures["settings"]
        learner = Learner(build_config(figures), settings["actions"], torch.device("cpu"), torch.float64)
        fill_parameters(learner.world_model, figures["world_model_parameters"], settings["seed"])
        fill_parameters(learner.agent, figures["agent_parameters"], settings["seed"] + 1)
        batch, check = make_batch(settings), Comparison()
        latent, hidden = compare_world_model(figures, learner, batch, check)
        compare_agent(figures, learner, batch, latent, hidden, check)
        compare_functions(figures["functions"], settings["seed"], check)
        uncompared = [
            f"{section}.{name}"
            for section in ("train_mode", "eval_mode", "agent", "functions")
            for name in figures[section]
            if name != "x" and not any(f"{done}.".startswith(f"{section}.{name}.") for done in check.errors)
        ]
        if uncompared:
            raise KeyError(f"the file records quantities that nothing here compares: {uncompared}")
        return check.errors
    finally:
        torch.set_default_dtype(default)


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python tests/reference_parity.py FILE.json", file=sys.stderr)
        return 2
    try:
        figures = json.loads(Path(argv[0]).read_text())
        missing = SECTIONS - set(figures)
    except (OSError, ValueError, TypeError) as error:  # ValueError: neither text nor JSON; TypeError: a number
        print(f"expected a JSON file of recorded figures, got {argv[0]}: {error}", file=sys.stderr)
        return 2
    if missing:
        print(
            f"expected a JSON file of recorded figures, but {argv[0]} lacks {', '.join(sorted(missing))}",
            file=sys.stderr,
        )
        return 2
    errors = compare(figures)
    for name, error in errors.items():
        print(f"{error:9.2e}  {'' if error <= TOLERANCE else 'ABOVE  '}{name}")
    above = [name for name, error in errors.items() if not error <= TOLERANCE]
    print(
        f"{len(errors)} quantities, largest relative error {max(errors.values()):.2e}, {len(above)} above {TOLERANCE:g}"
    )
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
