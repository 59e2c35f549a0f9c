"""Settings of environments, for tests: both groups by their names."""

import dataclasses
from typing import Any

from stormfast.settings import AtariConfig, EnvConfig

Rules = tuple[EnvConfig, AtariConfig]


def rules(**settings: Any) -> Rules:
    """The arguments of make_env with these settings, whichever group each is in."""
    names = {f.name for f in dataclasses.fields(EnvConfig)}
    env = {name: value for name, value in settings.items() if name in names}
    return EnvConfig(**env), AtariConfig(**{name: value for name, value in settings.items() if name not in names})
