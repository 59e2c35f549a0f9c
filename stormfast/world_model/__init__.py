"""The world model: frames to latents, latents and actions to the next latent, reward and continuation."""

from stormfast.world_model.model import WorldModel

__all__ = ["WorldModel"]
