"""Flags in place of the fields that messages name: `micro_batch_size=2` is --micro-batch-size 2 on a command line.

No table of names is needed: the destination of a flag has the name of the field of the config, or of the parameter of
the function, that it sets.
"""

import argparse
import re
from contextlib import AbstractContextManager
from functools import partial

from chinchilla_ds.cli.config_file import flags_of
from chinchilla_ds.errors import reworded

_REFERENCE = re.compile(r"`(?P<path>[a-z]\w*(?:\.[a-z]\w*)*)(?:=(?P<value>[^`]*))?`")


def flags_named(parser: argparse.ArgumentParser, /) -> AbstractContextManager[None]:
    """Put the flags of a command into the problems raised within this context."""
    return reworded(partial(with_flags, parser=parser))


def with_training_flags(text: str, /) -> str:
    """Return a message with the flags of training in place of the fields that it names."""
    from chinchilla_ds.cli.arguments import training_parser

    return with_flags(text, parser=training_parser())


def with_flags(text: str, *, parser: argparse.ArgumentParser) -> str:
    """Return a message with flags in place of the fields that it names.

    Args:
        text: A message of the library.
        parser: The command's parser. A field for which it has no flag gets the flag of training; a name that is
            neither is left unchanged.
    """
    return _REFERENCE.sub(lambda reference: _flag(reference, parser) or reference[0], text)


def _flag(reference: re.Match[str], parser: argparse.ArgumentParser) -> str | None:
    """Return the flag for a field, with its value, after the command's name if the field belongs to another command."""
    from chinchilla_ds.cli.arguments import training_parser
    from chinchilla_ds.cli.commands import COMMANDS, parser_of

    room, _, name = reference["path"].rpartition(".")
    if room in COMMANDS:
        own = _option(name, reference["value"], parser_of(room))
        return own and f"chinchilla-ds {room} {own}"
    return _option(name, reference["value"], parser) or _option(name, reference["value"], training_parser())


def _option(name: str, value: str | None, parser: argparse.ArgumentParser) -> str | None:
    action = next((flag for flag in flags_of(parser) if flag.dest == name), None)
    if action is None:
        return None
    if isinstance(action, argparse.BooleanOptionalAction) and value in ("true", "false"):
        return action.option_strings[0 if value == "true" else 1]
    return action.option_strings[0] if value is None else f"{action.option_strings[0]} {value}"
