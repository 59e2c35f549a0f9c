"""Settings: presets and protocols are valid, bad values are refused in one line, saved configs read back, resumes keep
settings.
"""

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typing_extensions import Doc

from stormfast import presets, schema
from stormfast import settings as c
from stormfast.commands import evaluate
from stormfast.errors import UserError

PRESETS = list(presets.PRESETS)
PROTOCOLS = list(presets.PROTOCOLS)
BATCH_CONTEXTS = {"imagination.contexts": "batch", "imagination.batch_size": 912}  # of storm: 16 windows of 57 contexts


def refused(settings: dict[str, object], base: c.TrainConfig | None = None) -> str:
    """What validate says about settings on top of the storm preset."""
    with pytest.raises(UserError) as caught:
        c.validate(schema.override(base or c.TrainConfig(), settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_under_each_protocol(preset: str, protocol: str) -> None:
    config = presets.preset_config(preset, protocol)
    c.validate(config)
    assert (config.preset, config.protocol) == (preset, protocol)
    assert c.from_json(schema.to_json(config)) == config


def test_the_rules_of_a_protocol_win_over_a_preset() -> None:
    for preset, protocol in itertools.product(presets.PRESETS, presets.PROTOCOLS):
        flat = schema.flatten(presets.preset_config(preset, protocol))
        given = presets.PRESETS[preset] | presets.PROTOCOLS[protocol]
        assert {name: flat[name] for name in given} == given


def test_storm_has_the_sizes_of_the_paper() -> None:
    flat = schema.flatten(presets.preset_config("storm", "standard"))
    paper = {
        "world_model.channels": (32, 64, 128, 256),
        "world_model.categoricals": 32,
        "world_model.classes": 32,
        "world_model.width": 512,
        "world_model.layers": 2,
        "world_model.heads": 8,
        "world_model.batch_size": 16,
        "world_model.batch_length": 64,
        "world_model.learning_rate": 1e-4,
        "world_model.clip_norm": 1000.0,
        "imagination.batch_size": 1024,
        "imagination.context": 8,
        "imagination.horizon": 16,
        "agent.gamma": 0.985,
        "agent.lam": 0.95,
        "agent.entropy": 3e-4,
        "agent.learning_rate": 3e-5,
        "agent.clip_norm": 100.0,
        "agent.slow_critic_decay": 0.98,
        "acting.context": 16,
        "acting.random_steps": 1024,
        "steps": 100_000,
    }
    assert {name: flat[name] for name in paper} == paper


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"agent.gamma": 2.0}, "agent.gamma must be > 0 and <= 1, got 2.0"),
        ({"agent.gamma": float("nan")}, "agent.gamma must be > 0 and <= 1, got nan"),
        ({"world_model.learning_rate": float("inf")}, "world_model.learning_rate must be > 0, got inf"),
        ({"steps": 0}, "steps must be >= 1 and <= 1000000000, got 0"),
        ({"steps": True}, "steps must be int, got True"),
        ({"steps": "7"}, "steps must be int, got '7'"),
        ({"seed": 2**31}, "seed must be >= 0 and < 2147482624, got 2147483648"),
        ({"num_envs": 0}, "num_envs must be >= 1 and <= 256, got 0"),
        ({"atari.noop_max": -1}, "atari.noop_max must be >= 0 and <= 100000, got -1"),
        ({"atari.frame_skip": 5000}, "atari.frame_skip must be >= 1 and <= 1000, got 5000"),
        ({"env.max_episode_steps": 2**31 - 1}, "env.max_episode_steps must be >= 1 and <= 2147483646, got 2147483647"),
        ({"atari.sticky": 1.0}, "atari.sticky must be >= 0 and < 1, got 1.0"),
        ({"run_dir": " "}, "run_dir must not be empty, got ' '"),
        ({"replay.demonstration": "\udcff"}, "replay.demonstration must be UTF-8 text, got '\\udcff'"),
        ({"preset": "big"}, "preset must be one of auto, storm, fast, cpu, tiny, got 'big'"),
        ({"world_model.channels": (4, 8)}, "world_model.channels must be tuple[int, int, int, int], got (4, 8)"),
        (
            {"world_model.channels": (4, 8, 0, 1)},
            "world_model.channels must be >= 1 and <= 1000000000, got (4, 8, 0, 1)",
        ),
        ({"agent": 3}, "agent must be a group of settings, got 3"),
        ({"world_model.heads": 7}, "world_model.width must be a multiple of world_model.heads (7), got 512"),
        ({"world_model.batch_length": 65}, "world_model.batch_length must be <= world_model.max_length (64), got 65"),
        (
            {"imagination.horizon": 57},
            "imagination.context + imagination.horizon must be <= world_model.max_length (64), got 65",
        ),
        (
            {"imagination.horizon": 56},
            "imagination.context + imagination.horizon must be < world_model.batch_length (64), which is how far "
            "positions are trained, got 64",
        ),
        (
            {"acting.context": 23},
            "acting.context must be < world_model.batch_length (64) and <= imagination.context + imagination.horizon "
            "- 2 (22), or the agent acts at positions where nothing was trained; got 23",
        ),
        ({"acting.context": 65}, "acting.context must be <= world_model.max_length (64), got 65"),
        (
            {"world_model.focus_on": "mean_frame", "world_model.centre_frames": False},
            "world_model.focus_on mean_frame needs world_model.centre_frames, which finds the mean frame",
        ),
        (
            {"world_model.decode_every": 65},
            "world_model.decode_every must be <= world_model.batch_length (64), got 65",
        ),
        (
            {"imagination.contexts_per_window": 3},
            "imagination.batch_size must be a multiple of imagination.contexts_per_window (3), got 1024",
        ),
        (
            {"imagination.contexts": "batch", "imagination.contexts_per_window": 2},
            "imagination.contexts_per_window must be 1 where imagination.contexts is batch, which takes all contexts "
            "of a window, got 2",
        ),
        (
            {"imagination.contexts": "batch"},
            "imagination.batch_size must be 912 where imagination.contexts is batch: 57 contexts in each of 16 "
            "windows; got 1024",
        ),
        (
            {"imagination.contexts": "batch", "imagination.context": 40, "world_model.batch_length": 32},
            "imagination.context must be <= world_model.batch_length (32) where imagination.contexts is batch, got 40",
        ),
        (
            BATCH_CONTEXTS | {"agent.updates_per_step": 0.3, "world_model.updates_per_step": 0.5},
            "each agent update needs a world-model update in the same step where imagination.contexts is batch, but "
            "step 1031 has too few, got agent.updates_per_step 0.3; give 0.5 as world_model.updates_per_step, and "
            "agent.start <= acting.random_steps (1024)",
        ),
        (
            BATCH_CONTEXTS | {"agent.updates_per_step": 0.5, "world_model.updates_per_step": 0.5, "agent.start": 1_025},
            "each agent update needs a world-model update in the same step where imagination.contexts is batch, but "
            "step 1027 has too few",
        ),
        (
            {"agent.replay_value": 0.3},
            "agent.replay_value needs imagination.contexts batch and imagination.start posterior, so that imagination "
            "starts from the states of replayed steps, got replay and posterior",
        ),
        (
            BATCH_CONTEXTS | {"agent.replay_value": 0.3, "imagination.start": "prior"},
            "agent.replay_value needs imagination.contexts batch and imagination.start posterior, so that imagination "
            "starts from the states of replayed steps, got batch and prior",
        ),
        (
            BATCH_CONTEXTS | {"agent.replay_value": 0.3, "agent.minibatches": 3},
            "world_model.batch_size must be a multiple of agent.minibatches (3) where agent.replay_value is not 0, as "
            "windows stay whole, got 16",
        ),
        ({"agent.minibatches": 3}, "imagination.batch_size must be a multiple of agent.minibatches (3), got 1024"),
        ({"replay.capacity": 63}, "replay.capacity must hold one window of 64 steps in each of 1 environments, got 63"),
        ({"num_envs": 17}, "acting.random_steps must fill one window of 64 steps in each of 17 environments, got 1024"),
        (
            {"replay.demonstration": "d.npz"},
            "replay.demonstration and replay.demonstration_share must be given together, got d.npz and 0.0",
        ),
        (
            {"env.same_seed_resets": True, "env_backend": "envpool"},
            "env_backend must be ale or auto, because envpool cannot re-seed, as env.same_seed_resets asks; got "
            "envpool",
        ),
        (
            {"atari.noop_max": 0, "env_backend": "envpool"},
            "env_backend must be ale or auto, because envpool cannot start an episode without a no-op frame, as "
            "atari.noop_max 0 asks; got envpool",
        ),
    ],
)
def test_bad_settings_are_told_in_one_line(settings: dict[str, object], expected: str) -> None:
    assert refused(settings).startswith(expected)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"agent.updates_per_step": 0.25, "agent.start": 2_500},  # a world-model update at every step
        {"agent.updates_per_step": 0.5, "world_model.updates_per_step": 0.5, "agent.start": 1_026},
        {"agent.updates_per_step": 0.5, "world_model.updates_per_step": 1.5},
        {"agent.updates_per_step": 0.0, "world_model.updates_per_step": 0.0},
        {"agent.replay_value": 0.3, "agent.minibatches": 4},
    ],
)
def test_contexts_of_the_batch_where_each_agent_update_has_its_batch(values: dict[str, object]) -> None:
    c.validate(schema.override(c.TrainConfig(), BATCH_CONTEXTS | values))


def test_a_saved_run_may_break_rules_that_came_later() -> None:
    saved = schema.override(c.TrainConfig(), {"acting.context": 23})
    assert c.from_json(schema.to_json(saved)) == saved


@pytest.mark.parametrize("backend", ["auto", "ale"])
def test_no_noops_need_no_envpool(backend: str) -> None:
    c.validate(schema.override(c.TrainConfig(), {"atari.noop_max": 0, "env_backend": backend, "num_envs": 4}))


def test_the_reference_protocol_starts_without_noops() -> None:
    assert presets.preset_config("storm", "reference").env == c.EnvConfig(same_seed_resets=True)
    assert presets.preset_config("storm", "reference").atari == c.AtariConfig(sticky=0.25, noop_max=0)


def test_the_limits_of_an_environment_are_allowed() -> None:
    limits = c.AtariConfig(frame_skip=1000, noop_max=100_000, sticky=0.999)
    c.validate_env(c.EnvConfig(max_episode_steps=2**31 - 2), limits, num_envs=256, backend="envpool", seed=2**31 - 1025)


def test_huge_integers_do_not_overflow() -> None:
    assert "num_envs must be" in refused({"num_envs": 10**400})
    assert "learning_rate must be" in refused({"agent.learning_rate": -(10**400)})


def test_unknown_field_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"Unknown field 'agent\.gama'\. Did you mean 'agent\.gamma'\?"):
        schema.override(c.TrainConfig(), {"agent.gama": 1.0})
    with pytest.raises(UserError, match=r"Unknown field 'steps\.x'"):
        schema.override(c.TrainConfig(), {"steps.x": 1})


def test_flatten_and_override_are_inverse() -> None:
    config = presets.preset_config("cpu", "reference")
    assert schema.override(c.TrainConfig(), schema.flatten(config)) == config
    assert list(schema.flatten(config)) == [name for name, _ in fields_of(c.TrainConfig)]


def fields_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def test_every_field_is_documented() -> None:
    for kind in (c.TrainConfig, evaluate.Config):
        for name, annotated in fields_of(kind):
            assert any(isinstance(note, Doc) for note in get_args(annotated)), f"{name} has no Doc"


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"steps": 5}, True),
        ({"device": "cpu"}, True),
        ({"logging.every": 7}, True),
        ({"seed": 5}, False),
        ({"num_envs": 2}, False),
        ({"agent.gamma": 0.9}, False),
        ({"atari.sticky": 0.1}, False),
        ({"preset": "fast"}, False),
    ],
)
def test_resume_keeps_what_is_learned(change: dict[str, object], allowed: bool) -> None:
    saved = presets.preset_config("tiny", "standard")
    asked = schema.override(saved, change)
    if allowed:
        c.check_resumable(saved, asked)
        return
    with pytest.raises(UserError) as caught:
        c.check_resumable(saved, asked)
    (name,) = change
    assert f"{name} was" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"episodes": 0}, "episodes must be >= 1 and <= 1000000000, got 0"),
        ({"num_envs": 257}, "num_envs must be >= 1 and <= 256, got 257"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"video": "film.avi"}, "video must be the name of a file in .mp4, .gif, .webp, got 'film.avi'"),
    ],
)
def test_bad_evaluation_settings(changes: dict[str, object], expected: str) -> None:
    evaluate.check(evaluate.Config("run", video="film.mp4"))
    with pytest.raises(UserError) as caught:
        evaluate.check(dataclasses.replace(evaluate.Config("run"), **changes))
    assert str(caught.value).startswith(expected)


def test_config_does_not_import_torch() -> None:
    modules = (
        "stormfast, stormfast.settings, stormfast.envs.games, stormfast.errors, stormfast.cli, stormfast.runs.directory"
    )
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
