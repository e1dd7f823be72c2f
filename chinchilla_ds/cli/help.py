"""`chinchilla-ds help`: the commands, or what `chinchilla-ds COMMAND --help` shows."""

import argparse

from chinchilla_ds.cli.commands import Command, find, overview, parser_of
from chinchilla_ds.errors import ConfigError

COMMAND = Command(
    name="help",
    group="command line",
    summary="list the commands, or the flags of a command",
    examples=("chinchilla-ds help plan",),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="the command to explain (default: list them)")


def run(arguments: argparse.Namespace) -> str:
    """Return the help.

    Raises:
        ConfigError: there is no such command.
    """
    if not arguments.command:
        return overview()
    name, rest = find(arguments.command)
    if rest:
        raise ConfigError(f"help explains one command: {name!r}, and {' '.join(rest)!r} is not part of it")
    return parser_of(name).format_help()
