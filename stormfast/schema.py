"""What a config dataclass is: fields with bounds and documentation in their types; and how to read and change it.

    steps: Annotated[int, Bounds(ge=1), Doc("environment steps to train for")] = 100_000

One definition serves the command line, the JSON of a saved run, the checks and the documentation. No torch here.
"""

import dataclasses
import json
import math
import numbers
import types
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stormfast.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number (or of each number of a tuple); None is unbounded."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            abs(value) < math.inf  # false for nan; math.isfinite would overflow on a huge int
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        bounds = [(">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt)]
        return " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None) or "finite"


# --- reading and changing ------------------------------------------------------------------------------------------


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names -> values."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat |= flatten(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else {prefix + f.name: value}
    return flat


def override(config: Any, values: dict[str, Any]) -> Any:
    """A copy of a config dataclass with dotted fields replaced.

    Raises: UserError for a field that does not exist, with the nearest name.
    """
    known = flatten(config)
    for name, value in values.items():
        if name not in known and any(field.startswith(f"{name}.") for field in known):
            raise UserError(f"{name} must be a group of settings, got {value!r}")
        if name not in known:
            raise UserError(
                f"Unknown field '{name}'.{nearest(name, known)} `stormfast train --help-all` lists them all."
            )
        config = _replace(config, name.split("."), value)
    return config


def _replace(config: Any, path: list[str], value: Any) -> Any:
    if len(path) > 1:
        value = _replace(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})


def nearest(name: str, known: Any) -> str:
    """' Did you mean 'X'?', or nothing where no known name is near."""
    lower = {k.lower(): k for k in known}
    match = get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f" Did you mean '{lower[match[0]]}'?" if match else ""


# --- checking ------------------------------------------------------------------------------------------------------


def check_fields(config: Any, prefix: str = "") -> None:
    """Raises UserError for a value of the wrong type or out of its bounds, named with its group."""
    hints = get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, name, hint = getattr(config, f.name), prefix + f.name, hints[f.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise UserError(f"{name} must be a group of settings, got {value!r}")
            check_fields(value, name + ".")
            continue
        kind, *notes = get_args(hint)
        if not _fits(value, kind):
            raise UserError(f"{name} must be {_kind_name(kind)}, got {value!r}")
        if isinstance(value, str):
            check_name(name, value)
        for bounds in (note for note in notes if isinstance(note, Bounds)):
            numbers = value if isinstance(value, tuple) else (value,)
            if value is not None and not all(number in bounds for number in numbers):
                raise UserError(f"{name} must be {bounds}, got {value!r}")


def check_name(field_name: str, value: str) -> None:
    """Raises UserError for text that can name nothing: empty, or bytes of the command line that are not UTF-8."""
    if not value.strip():
        raise UserError(f"{field_name} must not be empty, got '{value}'; give a name or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:  # surrogates stand for bytes that do not decode
        raise UserError(f"{field_name} must be UTF-8 text, got {value!a}; choose another name") from None


def check_whole_number(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raises UserError for an argument that is no whole number from least to most."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} must be a whole number {bounds}, got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(get_args(kind)) and all(map(_fits, value, get_args(kind)))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)


# --- JSON ----------------------------------------------------------------------------------------------------------


def to_json(config: Any) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_json(text: str, name: str) -> dict[str, Any]:
    """Dotted field names -> values of the JSON object that to_json wrote; lists as tuples.

    Raises: UserError, naming the file, for what is no JSON object.
    """
    try:
        nested = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python reads
        reason = f"{name} must be what stormfast saved, but it does not parse ({error}); start a new run"
        raise UserError(reason) from None
    values = _flatten_dict(nested, "") if isinstance(nested, dict) else []
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values}


def _flatten_dict(nested: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in nested.items():
        pairs += (
            _flatten_dict(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
        )
    return pairs
