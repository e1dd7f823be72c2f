"""`chinchilla-ds completion`: a script for a shell that completes commands, flags, choices and paths."""

import argparse

from chinchilla_ds.cli import commands
from chinchilla_ds.cli.arguments import path
from chinchilla_ds.cli.commands import Command

COMMAND = Command(
    name="completion",
    group="command line",
    summary="print a shell's completion script for commands and flags",
    examples=("source <(chinchilla-ds completion bash)",),
)

SHELLS = ("bash", "zsh")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
"""shtab's own functions."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="shell whose script to print")


def run(arguments: argparse.Namespace) -> str:
    """Return the script."""
    import shtab

    text: str = shtab.complete(whole_parser(), shell=arguments.shell)
    return text


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser for all commands; those of two words are nested parsers."""
    root = argparse.ArgumentParser(prog="chinchilla-ds", allow_abbrev=False)
    root.add_argument("--version", action="store_true", help="print the version")
    places = {"": root.add_subparsers()}
    for name, command in commands.COMMANDS.items():
        family, _, word = name.rpartition(" ")
        if family not in places:
            places[family] = places[""].add_parser(family, help=f"commands of {family}").add_subparsers()
        parser = places[family].add_parser(word, help=command.summary, allow_abbrev=False)
        commands.add_flags(parser, name)
        for action in parser._actions:
            if action.type is path:
                action.complete = _FILES  # type: ignore[attr-defined]
    return root
