"""Run directories as training and evaluating leave them, written by hand: without weights, in no time."""

import json
from pathlib import Path

from stormfast.presets import preset_config
from stormfast.schema import override
from tests.model_fixtures import create

MANIFEST = json.loads((Path(__file__).parent / "data" / "run-8b83cc7" / "checkpoint" / "checkpoint.json").read_text())


def write_run(
    path: Path,
    *,
    evaluated: dict[int, float] | None = None,
    saved: int | None = 100,
    minutes: float = 2.0,
    preset: str = "tiny",
    protocol: str = "standard",
    **fields: object,
) -> Path:
    """A run of 100 steps, and its evaluations.

    Args:
        evaluated: step of a checkpoint: mean return; None is {saved: 1.0}, {} is not at all.
        saved: step of the checkpoint; None is no checkpoint.
        minutes: of training for each 100 steps; metrics are logged every 10.
        fields: settings.
    """
    config = preset_config(preset, protocol)  # type: ignore[arg-type]
    create(override(config, {"run_dir": str(path), "steps": 100} | fields))
    if saved is not None:
        (path / "checkpoint").mkdir()
        (path / "checkpoint" / "checkpoint.json").write_text(json.dumps(MANIFEST | {"step": saved}))
        lines = [{"step": step, "seconds": step * minutes * 0.6, "other": 1.0} for step in range(10, saved + 1, 10)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, mean in ({saved: 1.0} if evaluated is None else evaluated).items():
        write_evaluation(path / f"evaluation-{step}.json", step, mean)
    return path


def write_evaluation(path: Path, step: int | None, mean: float) -> None:
    path.write_text(json.dumps({"step": step, "return": {"mean": mean}, "episode_returns": [mean, mean]}))
