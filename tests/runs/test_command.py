"""The arguments of `stormfast train` that make a config."""

from stormfast.commands.train import read_config
from stormfast.presets import preset_config
from stormfast.runs.command import begin, flags
from stormfast.schema import override


def test_flags_say_only_what_differs() -> None:
    base = preset_config("tiny", "standard")
    config = override(
        base,
        {
            "seed": 2,
            "agent.gamma": 0.1 + 0.2,
            "world_model.channels": (1, 2, 3, 4),
            "logging.tensorboard": False,
            "resume": True,
        },
    )
    expected = (
        "--seed=2 --resume --world-model.channels 1 2 3 4 --agent.gamma=0.30000000000000004 --logging.no-tensorboard"
    )
    assert flags(config, base) == expected.split()


def test_the_arguments_that_begin_a_run_make_its_config() -> None:
    changed = {"game": "Breakout", "run_dir": "my runs/1", "env.same_seed_resets": False, "acting.context": 5}
    config = override(preset_config("tiny", "reference"), changed)
    assert read_config(begin(config)).one_run() == config
