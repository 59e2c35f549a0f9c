"""TorchRL's DreamerV3 at the sizes of a preset, put together from its public classes as its own example does.

B batch   T time   S categoricals   K classes   D width   N starts of imagination   H horizon

Encoder -> RSSM (block GRU, belief D) -> decoder, reward and continuation heads; actor and critic on imagined rollouts of the
same RSSM. What is the same as ours: batch, frames, S x K, D as the width of belief and heads, channels of the four convolutions,
two hidden layers in every head, 255 bins, imagined steps, actions. What is TorchRL's: an RSSM, stepped T times, in the place of a
transformer over all T at once; convolutions of an odd kernel (5 by default; ours are 4); RMS norms; its optimiser, whose learning rate
begins at its full value here, so that every weight is seen to move.

Importing this file needs torchrl.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Composite, OneHot, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.modules import (
    DreamerV3DiscreteActor,
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    WorldModelWrapper,
)
from torchrl.objectives import (
    DreamerV3ActorLoss,
    DreamerV3Loss,
    DreamerV3ModelLoss,
    DreamerV3ValueLoss,
    SoftUpdate,
    ValueEstimators,
)
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

from bench.peers.sizes import Sizes
from stormfast.records import OBS_SHAPE, Batch

BINS = 255
HIDDEN_LAYERS = 2  # of every head, as ours have
UNIMIX = 0.01
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """What its losses are made of; imagination shares the modules of the world model."""

    world_model: TensorDictSequential
    imagined_step: WorldModelWrapper
    continuation: TensorDictSequential
    actor: DreamerV3DiscreteActor
    critic: TensorDictSequential


def _float(logits: Tensor) -> Tensor:
    return logits.float()


def _head(
    net: nn.Module, inputs: list, logits: object, out: nn.Module | None = None, key: object = None
) -> TensorDictSequential:
    """A network on belief and state whose logits are float32 under autocast too, and what they stand for."""
    steps = [
        TensorDictModule(net, in_keys=inputs, out_keys=[logits]),
        TensorDictModule(_float, in_keys=[logits], out_keys=[logits]),
    ]
    return TensorDictSequential(
        *steps, *([TensorDictModule(out, in_keys=[logits], out_keys=[key])] if out is not None else [])
    )


def build_parts(sizes: Sizes, kernel_size: int, device: torch.device) -> Parts:
    """Freshly initialised."""
    latent, belief = sizes.categoricals * sizes.classes, sizes.width
    images = {
        "depth": sizes.channels[0],
        "mults": tuple(c // sizes.channels[0] for c in sizes.channels),
        "kernel_size": kernel_size,
    }
    encoder = DreamerV3ImageEncoder(OBS_SHAPE[0], **images)
    hidden = {"hidden_dim": belief, "rnn_hidden_dim": belief}
    categorical = {"num_categoricals": sizes.categoricals, "num_classes": sizes.classes, "unimix": UNIMIX}
    actions = {"action_shape": torch.Size([sizes.num_actions]), "action_dim": sizes.num_actions}
    prior = RSSMPriorV3(**actions, **hidden, **categorical, recurrent_model="block_gru")
    posterior = RSSMPosteriorV3(
        **hidden, **categorical, obs_embed_dim=encoder.output_features(OBS_SHAPE), use_rms_norm=True
    )
    decoder = DreamerV3ImageDecoder(latent + belief, image_shape=OBS_SHAPE, **images)

    def mlp(outputs: int, width: int, outscale: float = 1.0) -> DreamerV3MLP:
        return DreamerV3MLP(latent + belief, outputs, depth=HIDDEN_LAYERS, num_cells=width, outscale=outscale)

    reward, continuation, two_hot = mlp(BINS, belief, 0.0), mlp(1, belief), SymExpTwoHot(BINS)
    following, embedded = [("next", "belief"), ("next", "state")], ("next", "encoded_latents")
    rollout = RSSMRolloutV3(
        TensorDictModule(
            prior, in_keys=["state", "belief", "action"], out_keys=[("next", "prior_logits"), *following[::-1]]
        ),
        TensorDictModule(
            posterior,
            in_keys=[("next", "belief"), embedded],
            out_keys=[("next", "posterior_logits"), ("next", "state")],
        ),
    )
    world_model = TensorDictSequential(
        TensorDictModule(encoder, in_keys=[("next", "pixels")], out_keys=[embedded]),
        rollout,
        _head(decoder, following[::-1], ("next", "reco_pixels")),
        _head(reward, following, ("next", "reward_logits"), two_hot, ("next", "reward")),
        _head(continuation, following, ("next", "continue_pred")),
    )
    here = ["belief", "state"]
    parts = Parts(
        world_model=world_model,
        imagined_step=WorldModelWrapper(
            TensorDictModule(prior, in_keys=["state", "belief", "action"], out_keys=["_", "state", "belief"]),
            _head(reward, here, "reward_logits", two_hot, "reward"),
        ),
        continuation=_head(continuation, here, "continue_logits", nn.Sigmoid(), "continuation"),
        actor=DreamerV3DiscreteActor(
            latent + belief, sizes.num_actions, depth=HIDDEN_LAYERS, num_cells=sizes.agent_width
        ),
        critic=_head(mlp(BINS, sizes.agent_width, 0.0), here, "state_value_logits", SymExpTwoHot(BINS), "state_value"),
    )
    for module in vars(parts).values():
        module.to(device)
    return parts


def imagination(parts: Parts, sizes: Sizes, device: torch.device) -> DreamerEnv:
    """The world model as the environment that its actor loss rolls out."""
    env = DreamerEnv(
        parts.imagined_step,
        prior_shape=(sizes.categoricals * sizes.classes,),
        belief_shape=(sizes.width,),
        device=device,
    )
    env.observation_spec = Composite(
        state=Unbounded(sizes.categoricals * sizes.classes), belief=Unbounded(sizes.width)
    ).to(device)
    env.state_spec = env.observation_spec.clone()
    env.action_spec = OneHot(sizes.num_actions, device=device, dtype=torch.float32)
    env.reward_spec = Unbounded((1,), device=device)
    return env


class Dreamer:
    """Its losses and their optimisers, and the three updates that are timed. Weights are float32; bfloat16 is autocast.

    Args:
        kernel_size: odd, of the convolutions.
        whole: for whole_update, once: its stepper brings one optimiser over all, and may compile what it is given; else for the others.
    """

    def __init__(
        self, sizes: Sizes, kernel_size: int, device: torch.device, precision: torch.dtype, *, whole: bool
    ) -> None:
        self.sizes, self.device, self.precision = sizes, device, precision
        self.parts = parts = build_parts(sizes, kernel_size, device)
        kl = {
            "kl_mode": "separate",
            "lambda_dynamic": 0.5,
            "lambda_representation": 0.1,
            "unimix": UNIMIX,
        }  # scales as ours
        self.model_loss = DreamerV3ModelLoss(
            parts.world_model,
            num_reward_bins=BINS,
            lambda_continue=1.0,
            reco_symlog=False,
            detach_output=not whole,
            **kl,
        ).to(device)
        self.actor_loss = DreamerV3ActorLoss(
            parts.actor,
            parts.critic,
            imagination(parts, sizes, device),
            continuation_model=parts.continuation,
            imagination_horizon=sizes.horizon,
            use_reinforce=True,
        )
        self.actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=sizes.gamma, lmbda=sizes.lam)
        self.actor_loss.to(device)
        self.value_loss = DreamerV3ValueLoss(
            parts.critic,
            value_loss="two_hot",
            num_value_bins=BINS,
            actor_loss=self.actor_loss,
            slow_critic_regularization=1.0,
        ).to(device)
        self.slow_critic = SoftUpdate(self.value_loss, tau=0.02)
        self.world_model_parameters = [*parts.world_model.parameters()]
        self.agent_parameters = [
            *parts.actor.parameters(),
            *(p for p in self.value_loss.parameters() if p.requires_grad),
        ]
        halves = (self.world_model_parameters, self.agent_parameters)
        self.optimizers = [] if whole else [DreamerV3Optimizer(half, warmup_steps=0) for half in halves]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def sample(self, batch: Batch) -> TensorDict:
        """A batch as it wants it, [B, T]: what an action led to lies under `next`; the recurrent state begins at zero."""
        shape, sizes = batch.action.shape, self.sizes
        zeros = {"state": sizes.categoricals * sizes.classes, "belief": sizes.width}
        ended = batch.terminated.unsqueeze(-1)
        following = {
            "pixels": batch.obs,
            "reward": batch.reward.unsqueeze(-1),
            "done": ended,
            "terminated": ended.clone(),
        }
        return TensorDict(
            {
                **{name: torch.zeros(*shape, features, device=self.device) for name, features in zeros.items()},
                "action": nn.functional.one_hot(batch.action, sizes.num_actions).float(),
                "is_init": batch.is_first.unsqueeze(-1),
                "next": TensorDict(following, shape),
            },
            shape,
            device=self.device,
        )

    def starts(self) -> TensorDict:
        """N states to imagine from: one-hot latents and beliefs of no meaning."""
        sizes = self.sizes
        index = torch.randint(sizes.classes, (sizes.starts, sizes.categoricals), device=self.device)
        state = nn.functional.one_hot(index, sizes.classes).flatten(-2).float()
        return TensorDict(
            {"state": state, "belief": torch.rand(sizes.starts, sizes.width, device=self.device) * 2 - 1},
            [sizes.starts],
        )

    def world_model_update(self, sample: TensorDict) -> Callable[[], Losses]:
        """Loss, backward and optimiser of the world model."""

        def update() -> Losses:
            with self.autocast():
                losses, _ = self.model_loss(sample)
            return self._descend(losses, self.optimizers[0])

        return update

    def agent_update(self, starts: TensorDict) -> Callable[[], Losses]:
        """Imagination, both losses, backward, optimiser, and the slow critic's step."""

        def update() -> Losses:
            with self.autocast():
                losses, imagined = self.actor_loss(starts)
                losses.update(self.value_loss(imagined.detach())[0])
            out = self._descend(losses, self.optimizers[1])
            self.slow_critic.step()
            return out

        return update

    def whole_update(self, sample: TensorDict, *, eager: bool) -> Callable[[], Losses]:
        """Its stepper: world model, imagination from all B*T posterior states, agent, replayed values, one backward, one optimiser.

        Without `eager` it chooses for the device: on CUDA compiled and captured, on a CPU eager.
        """
        loss = DreamerV3Loss(self.model_loss, self.actor_loss, self.value_loss)
        if (
            self.device.type == "cpu"
        ):  # on CUDA the stepper does it; around its step, backward would take 1.7 times as long
            loss.forward = self.autocast()(loss.forward)
        stepper = DreamerV3OptimizationStepper(
            loss,
            DreamerV3Optimizer([*self.world_model_parameters, *self.agent_parameters], warmup_steps=0),
            self.slow_critic,
            **({"compile_train_step": False, "cudagraph": False} if eager else {}),
            mixed_precision=self.device.type == "cuda" and self.precision == torch.bfloat16,
        )
        if any(stepper.resolve(self.device)):
            stepper.warmup(sample)

        def update() -> Losses:
            return dict(stepper.step(None, sample).items())

        return update

    @staticmethod
    def _descend(losses: TensorDict, optimizer: DreamerV3Optimizer) -> Losses:
        named = {name: value for name, value in losses.items() if name.startswith("loss_")}
        optimizer.zero_grad()
        torch.stack([value.sum() for value in named.values()]).sum().backward()
        optimizer.step()
        return {name: value.detach() for name, value in named.items()}
