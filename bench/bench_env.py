"""Environments: one step of all of them with random actions, by game, number and backend.

They run on the CPU whatever --device says.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bench.conftest import TimeRounds
from bench.timing import as_calls
from stormfast.envs import make_env
from stormfast.envs.vector import VectorEnv
from stormfast.errors import UserError
from stormfast.settings import AtariConfig, EnvConfig

PONG = [("Pong", num_envs, backend) for num_envs in (1, 4) for backend in ("ale", "envpool")]
CASES = [("Catch", 1, "auto"), ("Catch", 4, "auto"), *PONG]
WARMUP_STEPS = 100  # past the no-op starts


@pytest.fixture(params=CASES, ids=["-".join(map(str, case)) for case in CASES])
def env(request: pytest.FixtureRequest) -> Iterator[VectorEnv]:
    game, num_envs, backend = request.param
    try:
        made = make_env(game, EnvConfig(), AtariConfig(), num_envs=num_envs, backend=backend, seed=0)
    except UserError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def test_env(env: VectorEnv, request: pytest.FixtureRequest, time_rounds: TimeRounds, benchmark: Any) -> None:
    rng = np.random.default_rng(0)

    def step() -> None:
        env.step(rng.integers(env.num_actions, size=env.num_envs))

    env.reset()
    for _ in range(WARMUP_STEPS):
        step()
    took = time_rounds(as_calls(step, torch.device("cpu")))
    if took is not None:
        game = request.node.callspec.params["env"][0]
        benchmark.extra_info.update(
            game=game, num_envs=env.num_envs, env_backend=env.backend, steps_per_second=env.num_envs / took
        )
