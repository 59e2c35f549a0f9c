"""The sizes of a preset that another world model can be given too."""

from dataclasses import dataclass

from stormfast.settings import TrainConfig

NUM_ACTIONS = 18  # the most of any game


@dataclass(frozen=True)
class Sizes:
    batch: int  # windows of a world-model update (B)
    length: int  # steps of a window (T)
    channels: tuple[int, ...]  # of the encoder; the decoder mirrors them
    categoricals: int  # S
    classes: int  # K
    width: int  # of the deterministic state and of the world model's heads (D)
    starts: int  # rollouts of an agent update (N)
    horizon: int  # imagined steps (H)
    agent_width: int
    num_actions: int
    gamma: float
    lam: float


def sizes_of(config: TrainConfig) -> Sizes:
    model, imagined, agent = config.world_model, config.imagination, config.agent
    return Sizes(
        batch=model.batch_size,
        length=model.batch_length,
        channels=model.channels,
        categoricals=model.categoricals,
        classes=model.classes,
        width=model.width,
        starts=imagined.batch_size,
        horizon=imagined.horizon,
        agent_width=agent.width,
        num_actions=NUM_ACTIONS,
        gamma=agent.gamma,
        lam=agent.lam,
    )
