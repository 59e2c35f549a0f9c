"""Settings that go together: a preset sets sizes and what goes with them, a protocol sets rules.

Both are tables of dotted overrides; where both name a setting, the protocol's rule wins. No torch here:
`stormfast --help` must be instant.
"""

from typing import Any

from stormfast.errors import UserError
from stormfast.schema import override
from stormfast.settings import TrainConfig

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
        "agent.start": 2_500,
        "agent.updates_per_step": 0.25,
        "agent.minibatches": 4,
        "agent.entropy": 1e-3,
        "agent.unimix": 0.01,
        "replay.recency": 3.3,
    },
    "cpu": {  # play costs a CPU next to nothing: an update for every eighth step, so that no frame is learned by heart
        "steps": 40_000,
        "num_envs": 8,
        "world_model.channels": (8, 16, 32, 64),
        "world_model.categoricals": 8,
        "world_model.classes": 32,
        "world_model.width": 128,
        "world_model.heads": 4,
        "world_model.dropout": 0.0,
        "world_model.batch_size": 8,
        "world_model.batch_length": 16,
        "world_model.max_length": 32,
        "world_model.updates_per_step": 0.125,
        "world_model.learning_rate": 1e-3,
        "world_model.norm_momentum": 0.3,
        "world_model.decode_every": 4,
        "world_model.focus": 30.0,
        "world_model.balance": "harmony",
        "imagination.batch_size": 128,
        "imagination.contexts_per_window": 16,
        "imagination.context": 5,
        "imagination.horizon": 10,
        "agent.start": 8_000,
        "agent.width": 128,
        "acting.context": 12,
        "acting.random_steps": 4_000,
        "agent.updates_per_step": 0.125,
        "agent.learning_rate": 3e-4,
        "agent.entropy": 1e-3,
        "agent.unimix": 0.01,
        "replay.recency": 1.5,
        "logging.every": 1_000,
        "logging.save_every": 8_000,
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
        "world_model.batch_length": 12,
        "world_model.max_length": 16,
        "imagination.batch_size": 16,
        "imagination.context": 4,
        "imagination.horizon": 6,
        "agent.width": 32,
        "acting.context": 8,
        "acting.random_steps": 64,
        "logging.every": 50,
        "logging.save_every": 200,
        "logging.dreams": False,  # as long as some of its runs
    },
}

PROTOCOLS: dict[str, dict[str, Any]] = {
    "standard": {},  # the recommended rules are the defaults
    "reference": {
        "atari.sticky": 0.25,
        "atari.noop_max": 0,
        "env.same_seed_resets": True,
        "env_backend": "ale",
        "world_model.separate_episodes": False,
        "world_model.loss.free_bits_per": "batch",
        "world_model.head_init": "default",
        "world_model.centre_frames": False,
        "world_model.decoder_init": "default",
        "world_model.focus": 0.0,
        "world_model.balance": "fixed",
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
    """The settings of a preset (any but auto) under a protocol, before the user's own. Raises: UserError."""
    for what, name, known in (("preset", preset, PRESETS), ("protocol", protocol, PROTOCOLS)):
        if name not in list(known):  # of a list, so that what cannot be hashed is looked up too
            raise UserError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    base = TrainConfig(preset=preset, protocol=protocol)  # type: ignore[arg-type]
    return override(base, PRESETS[preset] | PROTOCOLS[protocol])
