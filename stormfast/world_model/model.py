"""The world model as one module: encode, predict a batch, and the losses of a training step.

B batch   T time   S categoricals   K classes   D width
"""

import torch
from torch import Tensor, nn

from stormfast.records import Batch
from stormfast.settings import WorldModelConfig
from stormfast.world_model.encoder import Decoder, Encoder, normalize_frames
from stormfast.world_model.harmony import LossScales
from stormfast.world_model.heads import TwoHot, upcast
from stormfast.world_model.latent import LatentHead, sample_latent, sample_latent_with_log_probs
from stormfast.world_model.losses import HEADS, Prediction, sequence_loss, world_model_loss
from stormfast.world_model.transformer import SequenceModel


class WorldModel(nn.Module):
    """Categorical VAE + causal transformer. Source: STORM, arXiv 2310.09615, section 3.1."""

    reward: nn.Module
    termination: nn.Module

    def __init__(self, config: WorldModelConfig, num_actions: int) -> None:
        super().__init__()
        latent_features = config.categoricals * config.classes
        momentum = config.norm_momentum
        self.encoder = Encoder(config.channels, centre=config.centre_frames, momentum=momentum)
        weights = config.loss.weights()
        zero = config.decoder_init == "zero"
        self.decoder = (
            Decoder(latent_features, config.channels, zero=zero, momentum=momentum)
            if weights["reconstruction"]
            else None
        )
        self.posterior = LatentHead(self.encoder.num_features, config.categoricals, config.classes)
        self.prior = LatentHead(config.width, config.categoricals, config.classes)
        self.sequence = SequenceModel(config, num_actions)
        for name, make_head in HEADS.items():
            if weights[name]:
                self.add_module(name, make_head(config))
        self.two_hot = TwoHot(config.read_out)
        self.scales = LossScales() if config.balance == "harmony" else None
        self.config, self.num_actions = config, num_actions

    @property
    def device(self) -> torch.device:
        return self.two_hot.bins.device

    def encode(self, obs: Tensor) -> Tensor:
        """Posterior logits of frames [..., 3, 64, 64] (uint8, or float in [0, 1]) -> [..., S, K]."""
        return self.posterior(self.encoder.embed(obs)).unflatten(0, obs.shape[:-3])

    def decode(self, latent: Tensor) -> Tensor:
        """Frames [B, 3, 64, 64], unbounded, of latents [B, S*K]. The model must have a decoder."""
        assert self.decoder is not None
        frames, mean = self.decoder(latent), self.encoder.mean_frame
        return frames if mean is None else upcast(frames) + mean

    @torch.no_grad()
    def centre(self, mean_frame: Tensor) -> None:
        """Sets the frame that encoder and decoder take as zero: [3, 64, 64] in [0, 1]. Only with centre_frames."""
        assert self.encoder.mean_frame is not None
        self.encoder.mean_frame.copy_(mean_frame)

    def sample(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """Latent [..., S*K] from logits [..., S, K] and uniform numbers [..., S]; the mode without them."""
        return sample_latent(logits, uniform, self.config.unimix)

    def predict(
        self,
        frames: Tensor,
        batch: Batch,
        uniform: Tensor | None,
        decoded: Tensor | None = None,
        latent_buffer: Tensor | None = None,
    ) -> Prediction:
        """All predictions for a batch.

        Args:
            frames: [B*T, 3, 64, 64] in [0, 1].
            uniform: [B, T, S].
            decoded: [T'] steps to reconstruct; None for all.
            latent_buffer: [B, T, S*K], which gets the sampled latents.
        """
        posterior = self.posterior(self.encoder(frames)).unflatten(0, tuple(batch.action.shape))
        return self.predict_from(posterior, batch, uniform, decoded, latent_buffer)

    def predict_from(
        self,
        posterior: Tensor,
        batch: Batch,
        uniform: Tensor | None,
        decoded: Tensor | None = None,
        latent_buffer: Tensor | None = None,
        *,
        draw: bool = True,
    ) -> Prediction:
        """predict() from the posterior's logits [B, T, S, K]; without `draw` nothing is reconstructed."""
        latent, posterior_log_probs = sample_latent_with_log_probs(posterior, uniform, self.config.unimix)
        if latent_buffer is not None:
            latent_buffer.copy_(latent.detach())
        hidden = self.sequence(latent, batch.action, batch.is_first if self.config.separate_episodes else None)
        return Prediction(
            posterior=posterior,
            posterior_log_probs=posterior_log_probs,
            prior=self.prior(hidden),
            reconstruction=self.reconstruct(latent, decoded) if draw and self.decoder is not None else None,
            heads={name: getattr(self, name)(hidden) for name in HEADS if hasattr(self, name)},
            hidden=hidden,
        )

    def reconstruct(self, latent: Tensor, decoded: Tensor | None) -> Tensor:
        """Frames [B, T', 3, 64, 64] of the steps `decoded` [T'] of latents [B, T, S*K]; of all where it is None."""
        shown = latent if decoded is None else latent.index_select(1, decoded)
        return self.decode(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])

    def loss(self, batch: Batch, latent_buffer: Tensor | None = None) -> dict[str, Tensor]:
        """All loss terms of a batch, `total` among them; draws one uniform number a categorical.

        Args: latent_buffer: [B, T, S*K], which gets the sampled latents.
        """
        uniform, decoded = self.draw_uniform(batch.action), self.draw_decoded(batch.action)
        return self.loss_with_uniform(batch, uniform, decoded, latent_buffer)

    def draw_uniform(self, action: Tensor) -> Tensor:
        """One uniform number for each categorical of windows [B, T]: [B, T, S]."""
        return torch.rand(*action.shape, self.config.categoricals, device=action.device)

    def draw_decoded(self, action: Tensor) -> Tensor | None:
        """Every decode_every-th step of windows [B, T] from a random one on, [T'] int64; None for all. No host sync."""
        every, length = self.config.decode_every, action.shape[1]
        if every == 1:
            return None
        count = length // every
        first = torch.randint(length - every * (count - 1), (1,), device=action.device)
        return first + every * torch.arange(count, device=action.device)

    def loss_with_uniform(
        self, batch: Batch, uniform: Tensor, decoded: Tensor | None = None, latent_buffer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """loss() with its random numbers given, uniform [B, T, S] and decoded [T'], so that it compiles to the same
        draws.
        """
        frames = normalize_frames(batch.obs)
        prediction = self.predict(frames, batch, uniform, decoded, latent_buffer)
        return world_model_loss(
            prediction, frames, batch, self.two_hot, self.config, self.scales, decoded, self.encoder.mean_frame
        )

    def sequence_loss(self, batch: Batch, logits: Tensor, latent_buffer: Tensor | None = None) -> dict[str, Tensor]:
        """loss() of the sequence model and the heads alone, on posteriors that get no gradient.

        Args: logits: [B, T, S, K] of the posterior of each frame, as encode gives them. latent_buffer: as of loss.
        """
        return self.sequence_loss_with_uniform(batch, logits, self.draw_uniform(batch.action), latent_buffer)

    def sequence_loss_with_uniform(
        self, batch: Batch, logits: Tensor, uniform: Tensor, latent_buffer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """sequence_loss() with its random numbers given, uniform [B, T, S]."""
        prediction = self.predict_from(logits.detach(), batch, uniform, latent_buffer=latent_buffer, draw=False)
        return sequence_loss(prediction, batch, self.two_hot, self.config, self.scales)
