"""The arguments of `stormfast train` that make a config."""

from stormfast.presets import preset_config
from stormfast.schema import flatten
from stormfast.settings import TrainConfig


def begin(config: TrainConfig) -> list[str]:
    """The arguments that begin a run of a config. Raises: UserError where its preset is auto."""
    kind = ["--preset", config.preset, "--protocol", config.protocol]
    return [*kind, *flags(config, preset_config(config.preset, config.protocol))]


def flags(config: TrainConfig, base: TrainConfig) -> list[str]:
    """The arguments of `stormfast train` that make config out of base."""
    before, words = flatten(base), []
    for name, value in flatten(config).items():
        group, dot, leaf = name.replace("_", "-").rpartition(".")
        if value == before[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{group}{dot}{'' if value else 'no-'}{leaf}")
        elif isinstance(value, tuple):
            words += [f"--{group}{dot}{leaf}", *map(str, value)]
        else:
            words.append(f"--{group}{dot}{leaf}={value}")
    return words
