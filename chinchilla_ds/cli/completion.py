"""`chinchilla-ds completion`: a script for a shell that completes commands, flags, choices and paths."""

import argparse

from chinchilla_ds.cli.arguments import path
from chinchilla_ds.cli.commands import COMMANDS, fill

SHELLS = ("bash", "zsh")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
"""shtab's own functions."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="whose completion to print")


def run(arguments: argparse.Namespace) -> str:
    """Return the script."""
    import shtab

    text: str = shtab.complete(whole_parser(), shell=arguments.shell)
    return text


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser of all commands; those of two words are parsers within parsers."""
    root = argparse.ArgumentParser(prog="chinchilla-ds", allow_abbrev=False)
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    families = {}
    for name, command in COMMANDS.items():
        *family, word = name.split()
        if family and family[0] not in families:
            families[family[0]] = commands.add_parser(family[0], help=f"{family[0]} ...").add_subparsers()
        place = families[family[0]] if family else commands
        parser = fill(place.add_parser(word, help=command.summary, allow_abbrev=False), name)
        for action in parser._actions:
            if action.type is path:
                action.complete = _FILES  # type: ignore[attr-defined]
    return root
