"""The commands of `chinchilla-ds`: each module of this folder with a COMMAND is one.

They are read from the modules' source. Listing the commands imports none of them, so the list is complete even where
packages that some commands need are missing.
"""

import argparse
import ast
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chinchilla_ds.cli.arguments import Help, Parser, examples_text, training_parser
from chinchilla_ds.errors import ConfigError, did_you_mean

GROUPS = ("plan", "data", "train", "use", "checkpoints", "command line")
"""The order of the groups in the list of commands; others come last."""


class Command(NamedTuple):
    """A command, as a literal in its module, which has `add_flags(parser)` and `run(arguments)`, the text to print."""

    name: str
    """One word or two."""
    group: str
    """The heading under which it is listed."""
    summary: str
    examples: tuple[str, ...]
    """Shown at the end of the help; a test runs all of them in one folder."""
    packages: tuple[str, ...] = ()
    """All packages that the command needs, if it needs fewer than training: those to install after `--no-deps`."""


def _declared() -> Iterator[tuple[str, Command]]:
    """Yield the modules of commands, and what each declares."""
    for path in Path(__file__).parent.glob("*.py"):
        _, declaration, after = path.read_text(encoding="utf-8").partition("\nCOMMAND = Command(\n")
        if declaration:
            arguments, _, _ = after.partition("\n)\n")
            call = ast.parse(f"Command({arguments})", mode="eval").body
            assert isinstance(call, ast.Call)
            fields = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
            yield f"{__package__}.{path.stem}", Command(**fields)


def _place(declared: tuple[str, Command]) -> tuple[int, str, str]:
    _, command = declared
    known = GROUPS.index(command.group) if command.group in GROUPS else len(GROUPS)
    return known, command.group, command.name


_DECLARED = sorted(_declared(), key=_place)
COMMANDS = {command.name: command for _, command in _DECLARED}
_MODULES = {command.name: module for module, command in _DECLARED}


def module_of(name: str, /) -> str:
    """Return the full name of a command's module."""
    return _MODULES[name]


def find(words: Sequence[str], /) -> tuple[str, Sequence[str]]:
    """Return the command that `words` begin with, of one word or two, and the words after it.

    Raises:
        ConfigError: there is none.
    """
    for num_words in (2, 1):
        name = " ".join(words[:num_words])
        if name in COMMANDS:
            return name, words[num_words:]
    family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    name = " ".join(words[:2]) if family else words[0]
    guess = "; did you mean 'pretrain'?" if name == "train" else did_you_mean(name, family or COMMANDS)
    raise ConfigError(f"{name!r} is not one of {', '.join(family or COMMANDS)}{guess}")


def parser_of(name: str, /) -> Parser:
    """Return the parser of a command."""
    if name == "pretrain":
        return training_parser()
    command = COMMANDS[name]
    parser = Parser(
        prog=f"chinchilla-ds {name}",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        epilog=examples_text(command.examples),
        formatter_class=Help,
        allow_abbrev=False,
    )
    add_flags(parser, name)
    return parser


def add_flags(parser: argparse.ArgumentParser, name: str, /) -> None:
    """Add the flags of a command to a parser."""
    importlib.import_module(module_of(name)).add_flags(parser)


def overview() -> str:
    """Return the list of commands."""
    lines = ["usage: chinchilla-ds COMMAND [flags]", "       chinchilla-ds --version"]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        members = [command for command in COMMANDS.values() if command.group == group]
        lines += ["", f"{group}:", *(f"  {command.name:<20}{command.summary}" for command in members)]
    return "\n".join([*lines, "", "chinchilla-ds COMMAND --help lists the flags, with examples."])
