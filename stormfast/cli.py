"""The stormfast program: finds the command, reads its arguments, runs it.

No torch is imported before a command needs it.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from stormfast import __version__
from stormfast.commands import COMMANDS
from stormfast.errors import UserError
from stormfast.exit_status import exit_status
from stormfast.schema import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; argv is sys.argv[1:] unless given. Returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    return exit_status("stormfast", lambda: _run(args))


def help_text() -> str:
    commands = "\n".join(f"  {name:<10}{what}\n{'':<12}{example}" for name, (what, example) in COMMANDS.items())
    return f"""\
usage: stormfast COMMAND [ARGUMENTS]

A STORM world-model agent, trained from pixels in the least wall-clock time.

{commands}

`stormfast COMMAND --help` lists the arguments of a command. `stormfast --version` prints the version.
"""


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if args[0] == "--version":
        print(f"stormfast {__version__}")
        return 0
    if args[0] not in COMMANDS:
        raise UserError(f"Unknown command '{args[0]}'.{nearest(args[0], COMMANDS)} Commands are {', '.join(COMMANDS)}.")
    try:
        return run_command(importlib.import_module(f"stormfast.commands.{args[0]}"), args[0], args[1:])
    except SystemExit as stop:  # tyro printed a help text
        return int(stop.code or 0)


def run_command(command: ModuleType, name: str, args: list[str]) -> int:
    """Reads the arguments of a command, checks them, runs it. A command that reads its own has main(args)."""
    if hasattr(command, "main"):
        return int(command.main(args))
    from stormfast.arguments import parse

    config = parse(command.Config, args, f"stormfast {name}", description=command.__doc__)
    if hasattr(command, "check"):
        command.check(config)
    return int(command.run(config))
