"""The results of a study on disk: one JSON file for each game and arm, with an entry for each seed.

    {"game", "preset", "protocol", "study", "arm", "device", "commit", "command", "random": {"mean", "sem", ...},
     "seeds": [{"seed", "mean_return", "sem", "episodes", "minutes", "steps", "settings", "curve", "commit", ...}]}

device, commit and command at the top are those of the last run; an entry has a commit of its own, "unknown" where
nothing says, which ends in "-dirty" where the checkout had changes.
"""

import json
import math
from pathlib import Path
from typing import Any

from stormfast.errors import UserError
from stormfast.runs.directory import METRICS, write_whole
from stormfast.runs.provenance import commit

CURVE = {  # metric -> its name in a curve
    "episode_return": "return",
    "world_model/total": "world_model/total",
    "world_model/reconstruction": "world_model/reconstruction",
    "world_model/dynamics_kl": "world_model/dynamics_kl",
    "agent/entropy": "agent/entropy",
    "diagnosis/latent_information": "diagnosis/latent_information",
    "diagnosis/motion_explained": "diagnosis/motion_explained",
    "diagnosis/reward_nonzero": "diagnosis/reward_nonzero",
}


def current_commit() -> str:
    """The commit that results of now are of. Raises: UserError where STORMFAST_COMMIT is none."""
    head, dirty = commit()
    return f"{head}-dirty" if dirty else head


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result file; without entries where there is none yet. Raises: UserError for a damaged one."""
    try:
        document = json.loads(path.read_bytes())
        for entry in document["seeds"]:
            if type(entry["seed"]) is not int or not math.isfinite(entry["mean_return"]):
                raise ValueError(f"seed {entry['seed']!r} has no mean return")
        return dict(document)
    except FileNotFoundError:
        return {"seeds": []}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; make it readable") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        reason = f"{error!r:.80}"
        raise UserError(f"{path} must hold results of a study, but {reason}; move it away, or repair it") from None


def entry_of(document: dict[str, Any], seed: int) -> dict[str, Any] | None:
    return next((dict(entry) for entry in document["seeds"] if entry["seed"] == seed), None)


def write_entry(path: Path, about: dict[str, Any], entry: dict[str, Any]) -> None:
    """Puts an entry in place of the one of its seed, whole or not at all. Raises: UserError where it cannot be written.

    Args: about: what stands at the top.
    """
    before = read_result(path)
    entries = [old for old in before.pop("seeds") if old["seed"] != entry["seed"]] + [entry]
    lines = [json.dumps(one, allow_nan=False) for one in sorted(entries, key=lambda one: one["seed"])]
    top = json.dumps(before | about | {"seeds": []}, indent=1, allow_nan=False)
    body = ",\n  ".join(lines)  # an entry a line: a curve of a number a line is not read
    text = top.removesuffix('"seeds": []\n}') + f'"seeds": [\n  {body}\n ]\n}}\n'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from None


def read_curve(run_dir: Path, show: str) -> dict[str, list[float | None]]:
    """step, seconds, return and some losses of a run, each a list with a value for each interval; None where it has
    none.

    Args: show: a metric that is kept too.
    Raises: UserError for a metrics.jsonl that is missing or damaged.
    """
    path = run_dir / METRICS
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        names = {"step": "step", "seconds": "seconds", show: show} | CURVE
        curve = {name: [line.get(metric) for line in lines] for metric, name in names.items()}
        float(curve["seconds"][-1])
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        reason = f"{error!r:.80}"
        raise UserError(f"{path} must hold a JSON object a line, with step and seconds, but {reason}") from None
    return {name: values for name, values in curve.items() if any(value is not None for value in values)}
