"""Published scores of other methods on the 26 games of Atari 100k, from data/atari100k_baselines.json."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from stormfast.errors import UserError
from stormfast.schema import nearest

DATA = resources.files("stormfast") / "data" / "atari100k_baselines.json"
DEFAULT = "STORM"


@dataclass(frozen=True)
class Baseline:
    """A method, and what its authors released of each game: the final return of each seed, or their mean alone."""

    name: str
    returns: Mapping[str, tuple[float, ...]]  # game: [seeds]

    @property
    def means_only(self) -> bool:
        """No method was trained with a single seed: one number for each game is a mean."""
        return all(len(seeds) == 1 for seeds in self.returns.values())

    def mean(self, game: str) -> float | None:
        """Mean return of a game, None where there is none."""
        seeds = self.returns.get(game)
        return sum(seeds) / len(seeds) if seeds else None


@functools.cache
def load_baselines() -> dict[str, Baseline]:
    """All methods of the file by name, in its order."""
    methods = json.loads(DATA.read_text(encoding="utf-8"))["methods"]
    return {
        name: Baseline(name, {game: tuple(seeds) for game, seeds in returns.items()})
        for name, returns in methods.items()
    }


def find_baseline(name: str) -> Baseline:
    """The method of a name in upper or lower case. Raises: UserError for an unknown one, with what it may stand for."""
    known = load_baselines()
    by_lower = {key.lower(): key for key in known}
    if name.lower() in by_lower:
        return known[by_lower[name.lower()]]
    begin_so = [key for lower, key in by_lower.items() if name and lower.startswith(name.lower())]
    guess = f" Did you mean {' or '.join(begin_so)}?" if begin_so else nearest(name, known)
    raise UserError(f"Unknown baseline '{name}'.{guess} There are {', '.join(known)}; none leaves them out.")


def find_baselines(names: str | None) -> list[Baseline]:
    """The methods of names such as 'storm,iris'; None is STORM, if the file has it; 'none' is no method.

    Raises: UserError for a name that is unknown or given twice.
    """
    if names is None:
        return [load_baselines()[DEFAULT]] if DEFAULT in load_baselines() else []
    if names.strip().lower() == "none":
        return []
    found = [find_baseline(name.strip()) for name in names.split(",")]
    check_once([each.name for each in found], names)
    return found


def check_once(found: Sequence[str], names: str) -> None:
    """Raises UserError for a name that is given twice."""
    if len(set(found)) < len(found):
        raise UserError(f"--baselines must name each method once, got '{names}'")
