"""The letters of work_formulas.py, from the settings of a run: sizes of tensors, layers of the convolutional nets, numbers of parameters.

No torch here. Three numbers that stand in modules with torch are repeated, and the tests compare them.
"""

import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from work_kernels import Convolution  # noqa: E402

from stormfast.settings import TrainConfig  # noqa: E402

CHANNELS, SIDE, FEATURE_SIDE = 3, 64, 4  # of a frame, and of what the encoder makes of it
NUM_BINS = 255
ROW_BYTES = 12_304  # of replay
FRAME_BYTES = CHANNELS * SIDE**2
ITEMSIZE = {"bfloat16": 2, "float32": 4}
INDEX, NUMBER = 8, 4  # bytes of an action, and of a float32

MLP = tuple[int, int, int]  # features, width, outputs


class Sizes:
    """Named as in the code: B*T frames a batch of the world model, S*K of a latent, D of a token."""

    def __init__(self, config: TrainConfig, num_actions: int, precision: str) -> None:
        model, imagination = config.world_model, config.imagination
        self.config = config
        self.itemsize = ITEMSIZE[precision]
        self.copy = (
            self.itemsize if self.itemsize < NUMBER else 0
        )  # bytes a parameter, beside the float32: what products read
        self.channels, self.actions = model.channels, num_actions
        self.latent = model.categoricals * model.classes
        self.width, self.layers, self.heads = model.width, model.layers, model.heads
        self.features = model.channels[-1] * FEATURE_SIDE**2
        self.per_step = 1 if model.tokens == "fused" else 2  # tokens
        self.frames, self.length = model.batch_size * model.batch_length, model.batch_length
        self.batch, self.context, self.horizon = imagination.batch_size, imagination.context, imagination.horizon
        self.prefilled = imagination.context - (
            imagination.start == "posterior"
        )  # steps of the context that fill the cache
        self.reward_mlp: MLP = (model.width, model.width, NUM_BINS)
        self.termination_mlp: MLP = (model.width, model.width, 1)
        self.state = {"both": self.latent + self.width, "latent": self.latent, "hidden": self.width}[config.agent.state]
        self.actor_mlp: MLP = (self.state, config.agent.width, num_actions)
        self.critic_mlp: MLP = (self.state, config.agent.width, NUM_BINS)

    def encoder(self, images: int) -> list[Convolution]:
        pairs = zip((CHANNELS, *self.channels), self.channels, strict=False)
        return [
            Convolution(f"convolution {i + 1}", images, a, b, SIDE >> i, SIDE >> (i + 1))
            for i, (a, b) in enumerate(pairs)
        ]

    def decoder(self, images: int) -> list[Convolution]:
        upward = (*self.channels[::-1], CHANNELS)
        pairs = itertools.pairwise(upward)
        return [
            Convolution(f"convolution {i + 1}", images, a, b, FEATURE_SIDE << i, FEATURE_SIDE << (i + 1))
            for i, (a, b) in enumerate(pairs)
        ]


def mlp_parameters(sizes: MLP) -> int:
    """Two linear layers without bias, each with a layer norm, and one with."""
    features, width, outputs = sizes
    return width * (features + width + 4) + (width + 1) * outputs


def agent_parameters(s: Sizes) -> int:
    """Of actor and critic: what the optimiser moves."""
    return mlp_parameters(s.actor_mlp) + mlp_parameters(s.critic_mlp)


def world_model_parameters(s: Sizes) -> int:
    convolutions = sum(layer.weights for layer in (*s.encoder(1), *s.decoder(1))) + 4 * sum(s.channels) + CHANNELS
    latent = (
        (s.features + 1) * s.latent + (s.width + 1) * s.latent + s.latent * s.features
    )  # posterior, prior, decoder's first layer
    inputs = s.latent + s.actions + s.per_step * (s.width + 4)  # of the stems' products and norms
    positions = s.config.world_model.max_length * s.per_step + 2
    tokens = s.width * (inputs + positions + s.layers * (8 * s.width + 7))
    return convolutions + latent + tokens + mlp_parameters(s.reward_mlp) + mlp_parameters(s.termination_mlp)
