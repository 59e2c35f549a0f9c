"""TorchRL's DreamerV3 at the sizes of a preset, put together from its public classes as its own example does.

B batch   T time   S categoricals   K classes   D width   N starts of imagination

Encoder -> RSSM (block GRU) -> decoder, reward and continuation heads; actor and critic on rollouts of the RSSM.
The same as ours: batch, frames, S x K, D as the width of belief and heads, channels of the four convolutions, two
hidden layers in every head, 255 bins, imagined steps, actions. Different: an RSSM stepped T times in place of a
transformer over all T at once, convolutions of an odd kernel size (ours are 4), RMS norms, and the optimiser, without
warm-up here, so that every weight moves from the first update.

Importing this file needs torchrl.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl import modules, objectives
from torchrl.data import Composite, OneHot, Unbounded
from torchrl.envs.model_based import DreamerEnv
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

from stormfast.records import OBS_SHAPE, Batch
from stormfast.settings import TrainConfig

NUM_ACTIONS = 18  # the most of any game
BINS = 255
HIDDEN_LAYERS = 2  # of every head, as in ours
UNIMIX = 0.01
STATE = ["belief", "state"]
NEXT_STATE = [("next", "belief"), ("next", "state")]
Losses = dict[str, Tensor]


def to_float32(logits: Tensor) -> Tensor:
    return logits.float()


def head(net: nn.Module, inputs: list, logits: Any, decode: nn.Module | None = None, out: Any = None) -> nn.Module:
    """A network on belief and state. Its logits are float32 also under autocast; `decode` turns them into `out`."""
    steps = [TensorDictModule(net, inputs, [logits]), TensorDictModule(to_float32, [logits], [logits])]
    if decode is not None:
        steps.append(TensorDictModule(decode, [logits], [out]))
    return TensorDictSequential(*steps)


def build_networks(config: TrainConfig, kernel_size: int, device: torch.device) -> nn.ModuleDict:
    """Newly initialised: world_model, imagined_step and continuation, which share its modules, actor, critic."""
    sizes, agent_width = config.world_model, config.agent.width
    latent, belief, channels = sizes.categoricals * sizes.classes, sizes.width, sizes.channels
    images = {"depth": channels[0], "mults": tuple(c // channels[0] for c in channels), "kernel_size": kernel_size}
    categorical = {"num_categoricals": sizes.categoricals, "num_classes": sizes.classes, "unimix": UNIMIX}
    rssm = {"hidden_dim": belief, "rnn_hidden_dim": belief, **categorical}
    actions = {"action_shape": torch.Size([NUM_ACTIONS]), "action_dim": NUM_ACTIONS}

    def mlp(outputs: int, width: int, outscale: float = 1.0) -> nn.Module:
        return modules.DreamerV3MLP(latent + belief, outputs, depth=HIDDEN_LAYERS, num_cells=width, outscale=outscale)

    encoder = modules.DreamerV3ImageEncoder(OBS_SHAPE[0], **images)
    embedding = encoder.output_features(OBS_SHAPE)
    prior = modules.RSSMPriorV3(**actions, **rssm, recurrent_model="block_gru")
    posterior = modules.RSSMPosteriorV3(**rssm, obs_embed_dim=embedding, use_rms_norm=True)
    decoder = modules.DreamerV3ImageDecoder(latent + belief, image_shape=OBS_SHAPE, **images)
    reward, continuation, two_hot = mlp(BINS, belief, 0.0), mlp(1, belief), modules.SymExpTwoHot(BINS)
    prior_in, prior_out = ["state", "belief", "action"], [("next", "prior_logits"), *NEXT_STATE[::-1]]
    embedded, posterior_out = ("next", "encoded_latents"), [("next", "posterior_logits"), ("next", "state")]
    world_model = TensorDictSequential(
        TensorDictModule(encoder, [("next", "pixels")], [embedded]),
        modules.RSSMRolloutV3(
            TensorDictModule(prior, prior_in, prior_out),
            TensorDictModule(posterior, [("next", "belief"), embedded], posterior_out),
        ),
        head(decoder, NEXT_STATE[::-1], ("next", "reco_pixels")),
        head(reward, NEXT_STATE, ("next", "reward_logits"), two_hot, ("next", "reward")),
        head(continuation, NEXT_STATE, ("next", "continue_pred")),
    )
    imagined_step = modules.WorldModelWrapper(
        TensorDictModule(prior, prior_in, ["_", "state", "belief"]),
        head(reward, STATE, "reward_logits", two_hot, "reward"),
    )
    actor = modules.DreamerV3DiscreteActor(latent + belief, NUM_ACTIONS, depth=HIDDEN_LAYERS, num_cells=agent_width)
    values = head(mlp(BINS, agent_width, 0.0), STATE, "state_value_logits", modules.SymExpTwoHot(BINS), "state_value")
    continues = head(continuation, STATE, "continue_logits", nn.Sigmoid(), "continuation")
    networks = {"world_model": world_model, "imagined_step": imagined_step, "continuation": continues}
    return nn.ModuleDict({**networks, "actor": actor, "critic": values}).to(device)


def imagination_env(step: nn.Module, latent: int, belief: int, device: torch.device) -> DreamerEnv:
    """The world model as the environment that the actor loss rolls out. latent: S*K; belief: D."""
    env = DreamerEnv(step, prior_shape=(latent,), belief_shape=(belief,), device=device)
    env.observation_spec = Composite(state=Unbounded(latent), belief=Unbounded(belief)).to(device)
    env.state_spec = env.observation_spec.clone()
    env.action_spec = OneHot(NUM_ACTIONS, device=device, dtype=torch.float32)
    env.reward_spec = Unbounded((1,), device=device)
    return env


class Dreamer:
    """Losses, optimisers and the three updates that are timed. Weights are float32; bfloat16 is autocast.

    Args:
        kernel_size: of the convolutions; odd.
        whole: built for whole_update, called once; otherwise for the other two.
    """

    def __init__(
        self, config: TrainConfig, kernel_size: int, device: torch.device, precision: torch.dtype, whole: bool
    ):
        self.config, self.device, self.precision = config, device, precision
        self.latent, self.belief = (
            config.world_model.categoricals * config.world_model.classes,
            config.world_model.width,
        )
        self.networks = networks = build_networks(config, kernel_size, device)
        actor, critic, continuation = networks["actor"], networks["critic"], networks["continuation"]
        kl = {"kl_mode": "separate", "lambda_dynamic": 0.5, "lambda_representation": 0.1, "unimix": UNIMIX}  # as ours
        model_options = {"num_reward_bins": BINS, "lambda_continue": 1.0, "reco_symlog": False, **kl}
        self.model_loss = objectives.DreamerV3ModelLoss(
            networks["world_model"], detach_output=not whole, **model_options
        ).to(device)
        env = imagination_env(networks["imagined_step"], self.latent, self.belief, device)
        actor_options = {"imagination_horizon": config.imagination.horizon, "use_reinforce": True}
        self.actor_loss = objectives.DreamerV3ActorLoss(
            actor, critic, env, continuation_model=continuation, **actor_options
        )
        td_lambda = objectives.ValueEstimators.TDLambda
        self.actor_loss.make_value_estimator(td_lambda, gamma=config.agent.gamma, lmbda=config.agent.lam)
        self.actor_loss.to(device)
        value_options = {"value_loss": "two_hot", "num_value_bins": BINS, "slow_critic_regularization": 1.0}
        self.value_loss = objectives.DreamerV3ValueLoss(critic, actor_loss=self.actor_loss, **value_options).to(device)
        self.slow_critic = objectives.SoftUpdate(self.value_loss, tau=0.02)
        values = [p for p in self.value_loss.parameters() if p.requires_grad]
        self.trained = {
            "world_model": [*networks["world_model"].parameters()],
            "agent": [*actor.parameters(), *values],
        }
        parts = {} if whole else self.trained
        self.optimizers = {part: DreamerV3Optimizer(weights, warmup_steps=0) for part, weights in parts.items()}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def sample(self, batch: Batch) -> TensorDict:
        """A batch [B, T] in TorchRL's layout: what an action led to is under `next`; the recurrent state is zero."""
        shape, ended = batch.action.shape, batch.terminated.unsqueeze(-1)
        after = {"pixels": batch.obs, "reward": batch.reward.unsqueeze(-1), "done": ended, "terminated": ended.clone()}
        values = {
            "state": torch.zeros(*shape, self.latent, device=self.device),
            "belief": torch.zeros(*shape, self.belief, device=self.device),
            "action": nn.functional.one_hot(batch.action, NUM_ACTIONS).float(),
            "is_init": batch.is_first.unsqueeze(-1),
            "next": TensorDict(after, shape),
        }
        return TensorDict(values, shape, device=self.device)

    def starts(self) -> TensorDict:
        """N random states to imagine from: one-hot latents [N, S*K] and beliefs [N, D]."""
        sizes, num_starts = self.config.world_model, self.config.imagination.batch_size
        index = torch.randint(sizes.classes, (num_starts, sizes.categoricals), device=self.device)
        state = nn.functional.one_hot(index, sizes.classes).flatten(-2).float()
        belief = torch.rand(num_starts, self.belief, device=self.device) * 2 - 1
        return TensorDict({"state": state, "belief": belief}, [num_starts])

    def update_world_model(self, sample: TensorDict) -> Losses:
        """Loss, backward and optimiser of the world model."""
        with self.autocast():
            losses, _ = self.model_loss(sample)
        return descend(losses, self.optimizers["world_model"])

    def update_agent(self, starts: TensorDict) -> Losses:
        """Imagination, both losses, backward, optimiser, and the slow critic's step."""
        with self.autocast():
            losses, imagined = self.actor_loss(starts)
            losses.update(self.value_loss(imagined.detach())[0])
        losses = descend(losses, self.optimizers["agent"])
        self.slow_critic.step()
        return losses

    def whole_update(self, sample: TensorDict, *, eager: bool) -> Callable[[], Losses]:
        """TorchRL's own stepper: world model, imagination from all B*T posterior states, agent, values of replayed
        states, one backward pass, one optimiser. Not `eager`, it compiles and captures on CUDA.
        """
        loss = objectives.DreamerV3Loss(self.model_loss, self.actor_loss, self.value_loss)
        if (
            self.device.type == "cpu"
        ):  # on CUDA the stepper does it; around the backward pass it would cost 1.7 times as long
            loss.forward = self.autocast()(loss.forward)
        optimizer = DreamerV3Optimizer([*self.trained["world_model"], *self.trained["agent"]], warmup_steps=0)
        mode: dict[str, Any] = {"compile_train_step": False, "cudagraph": False} if eager else {}
        mode["mixed_precision"] = self.device.type == "cuda" and self.precision == torch.bfloat16
        stepper = DreamerV3OptimizationStepper(loss, optimizer, self.slow_critic, **mode)
        if any(stepper.resolve(self.device)):
            stepper.warmup(sample)
        return lambda: dict(stepper.step(None, sample).items())


def descend(losses: TensorDict, optimizer: DreamerV3Optimizer) -> Losses:
    """One optimiser step on the sum of all losses. Returns them, detached."""
    named = {name: value for name, value in losses.items() if name.startswith("loss_")}
    optimizer.zero_grad()
    torch.stack([value.sum() for value in named.values()]).sum().backward()
    optimizer.step()
    return {name: value.detach() for name, value in named.items()}
