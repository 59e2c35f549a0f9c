"""Command-line arguments -> config dataclass, by tyro; every mistake is reported in one line.

tyro explains a mistake in a box of many lines and exits. Its printed text is its only stable interface to errors, so
the box is caught and its first paragraph, which names the argument and what came, becomes the UserError.
"""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import tyro
from typing_extensions import Doc

from stormfast.envs.games import BUILT_IN, SCORES
from stormfast.errors import UserError
from stormfast.schema import flatten, nearest

Config = TypeVar("Config")

# A message of tyro -> the same in one plain sentence.
PLAIN = (
    (re.compile(r"Missing from .*: (\S+) (.*) \(required\)"), r"\1 is missing: \2"),
    (
        re.compile(r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)"),
        r"\1 must be an integer, got \2",
    ),
    (
        re.compile(r"Error parsing (\S+): no type matching \{None\}\|INT could be instantiated from \[(.*)\]"),
        r"\1 must be an integer, got \2",
    ),
    (re.compile(r"Error parsing (\S+): could not convert string to float: (.*)"), r"\1 must be a number, got \2"),
    (
        re.compile(r"Error parsing (\S+): Could not parse arguments \[(.*)\] into tuple type .*uple\[int\b.*\]"),
        r"\1 must be integers, got \2",
    ),
)


def wants_help(args: Sequence[str]) -> bool:
    return any(word in args for word in ("-h", "--help", "--help-all"))


def short_help(defaults: Any, names: Sequence[str], prog: str, about: str) -> str:
    """A help text of some settings of a config dataclass, with their documentation and defaults; the rest by name of
    group.
    """
    hints = get_type_hints(type(defaults), include_extras=True)
    lines = [f"usage: {prog} [SETTINGS]", "", about, ""]
    for name in names:
        doc = next(note.documentation for note in get_args(hints[name])[1:] if isinstance(note, Doc))
        value = getattr(defaults, name)
        shown = "" if value is None or value is False else f" (default {value})"
        lines.append(f"  --{name.replace('_', '-'):<14}{doc}{shown}")
    count = len(flatten(defaults)) - len(names)
    groups = [f"--{f.name.replace('_', '-')}.*" for f in fields(defaults) if is_dataclass(getattr(defaults, f.name))]
    more = f"{count} more settings, in groups {', '.join(groups)}: `{prog} --help-all`"
    return "\n".join([*lines, "", more])


def parse(
    kind: type[Config], args: Sequence[str], prog: str, default: Config | None = None, description: str | None = None
) -> Config:
    """The config that args ask for, on top of default. Prints the help and exits with status 0 where args ask for that.

    Args:
        kind: a config dataclass; its fields without a default are positional arguments.
        prog: the command as typed, for messages: "stormfast train".
    Raises: UserError for an unknown field, a missing or wrong value, or a stray word.
    """
    caught = io.StringIO()
    with contextlib.redirect_stderr(caught):
        try:
            config, unknown = tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=list(args),
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
                config=(
                    tyro.conf.PositionalRequiredArgs,
                    tyro.conf.PositionalMetavarFromFieldName,
                    tyro.conf.HelptextFromCommentsOff,  # a third of the time; settings document themselves by Doc
                ),
            )
        except SystemExit as stop:
            if not stop.code:
                raise
            raise UserError(f"{first_paragraph(caught.getvalue())} `{prog} --help` lists the arguments.") from None
    if unknown:
        stray = "Unexpected argument '--'. Leave it out." if "--" in args else _unknown(unknown[0], config)
        raise UserError(f"{stray} `{prog} --help` lists the arguments.")
    return config


def first_paragraph(box: str) -> str:
    """tyro's error box without its title and frame (UTF-8 or blank, as the terminal takes it), up to its first rule, on
    one line.
    """
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in box.splitlines()]
    is_rule = [not row.strip("╭╮╰╯─-") for row in rows]
    start = (
        2 if is_rule[1:2] == [True] else 1
    )  # after the title, which has a rule of its own where it is no part of the frame
    rows = rows[start : is_rule.index(True, start) if True in is_rule[start:] else None]
    line = " ".join(rows)
    for pattern, plain in PLAIN:
        line = pattern.sub(plain, line)
    line = line[:1].upper() + line[1:]
    return line if line.endswith(".") else line + "."


def _unknown(token: str, config: Any) -> str:
    """What to say about an argument that tyro did not take."""
    if not token.startswith("--"):
        game = next((name for name in (*SCORES, *BUILT_IN) if name.lower() == token.lower()), None)
        guess = f" Did you mean '--game {game}'?" if game and hasattr(config, "game") else ""
        return f"Unexpected argument '{token}'.{guess}"
    name = token.partition("=")[0].replace("_", "-")
    fields = [field.replace("_", "-") for field in flatten(config)]
    same_leaf = [f"--{field}" for field in fields if field.split(".")[-1] == name[2:].split(".")[-1]]
    guess = (
        f" Did you mean '{same_leaf[0]}'?" if len(same_leaf) == 1 else nearest(name, [f"--{field}" for field in fields])
    )
    return f"Unknown field '{token.partition('=')[0]}'.{guess}"
