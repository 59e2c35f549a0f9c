"""What is said to envpool, and what its wrapper adds."""

import numpy as np
import pytest

from stormfast.envs import make_env
from stormfast.envs.envpool_backend import EnvpoolVectorEnv
from stormfast.settings import AtariConfig, EnvConfig


def test_options_reach_envpool() -> None:
    atari = AtariConfig(frame_skip=3, sticky=0.25, noop_max=7)
    env = EnvpoolVectorEnv("Freeway", EnvConfig(max_episode_steps=99), atari, num_envs=3, seed=17)
    got = env._pool.spec.config._asdict()
    want = {
        "num_envs": 3,
        "batch_size": 3,
        "seed": 17,
        "frame_skip": 3,
        "noop_max": 7,
        "max_episode_steps": 99,
        "repeat_action_probability": 0.25,
    }
    want |= {
        "stack_num": 1,
        "img_height": 64,
        "img_width": 64,
        "gray_scale": False,
        "episodic_life": False,
        "use_fire_reset": False,
    }
    want |= {"full_action_space": False, "reward_clip": False, "use_inter_area_resize": True, "task": "freeway"}
    assert {name: got[name] for name in want} == want
    assert env.num_actions == 3


def test_no_state() -> None:
    env = make_env("Pong", EnvConfig(), AtariConfig(), num_envs=2, backend="envpool", seed=0)
    env.reset()
    assert env.state() is None
    with pytest.raises(ValueError, match="envpool backend has no state"):
        env.load_state({})


def test_life_lost_per_environment() -> None:
    env = make_env("Breakout", EnvConfig(), AtariConfig(), num_envs=4, backend="envpool", seed=2)
    env.reset()
    rng, lost, over = np.random.default_rng(0), np.zeros(4, int), np.zeros(4, int)
    for _ in range(400):
        step = env.step(rng.integers(4, size=4))
        assert not (step.life_lost & step.is_first).any()
        assert (step.life_lost | ~step.terminated).all()  # Breakout ends with the fifth life
        lost += step.life_lost
        over += step.terminated
    assert over.all()
    assert (lost // 5 == over).all()


def test_fewer_lives_after_a_reset_are_none_lost() -> None:
    """An episode can end with lives won on the way, more than the next one starts with."""
    env = EnvpoolVectorEnv("Breakout", EnvConfig(max_episode_steps=3), AtariConfig(), num_envs=2, seed=0)
    env.reset()
    steps = [env.step(np.zeros(2, np.int64)) for _ in range(3)]
    assert steps[2].truncated.all()
    env._lives = env._lives + 4
    step = env.step(np.zeros(2, np.int64))
    assert step.is_first.all() and not step.life_lost.any()
