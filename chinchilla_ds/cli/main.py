"""The `chinchilla-ds` command: one module per subcommand, imported when it is called."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import FrameType

from chinchilla_ds.cli.commands import COMMANDS, find, module_of, overview, parser_of
from chinchilla_ds.cli.flags import flags_named
from chinchilla_ds.errors import EXIT_CODE_USER_ERROR, ChinchillaError, machine_problem
from chinchilla_ds.processes.endings import no_library_exits
from chinchilla_ds.processes.packages import missing_packages
from chinchilla_ds.tracking.redaction import redacted
from chinchilla_ds.training.watchdog import place_of

_SIGINT_EXIT_CODE = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 0, 2 for a user's error, 130 for Ctrl-C; a bug keeps its traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("--local_rank"):  # which `deepspeed --module` puts first
        words = [*words[1:], words[0]]
    try:
        if words[:1] == ["pretrain"]:
            return _train(words[1:], ends_process=argv is None)
        if text := run_command(words):
            print(text, flush=True)
    except ChinchillaError as error:
        return _refuse(*error.problems)
    except KeyboardInterrupt:
        return _SIGINT_EXIT_CODE
    except BrokenPipeError:  # `chinchilla-ds plan | head`: the reader has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError as error:
        asked = f" ({error})" if str(error) else ""
        return _refuse(f"out of memory{asked}, {place_of(_innermost(error))}: use a machine with more, or less input")
    except OSError as error:
        if (problem := machine_problem(error)) is None:
            raise
        return _refuse(problem)
    return 0


def _innermost(error: BaseException) -> FrameType | None:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return None if traceback is None else traceback.tb_frame


def _refuse(*problems: str) -> int:
    sys.stderr.write("".join(f"error: {redacted(problem)}\n" for problem in problems))
    return EXIT_CODE_USER_ERROR


def run_command(words: Sequence[str], /) -> str:
    """Run a command other than `pretrain` and return the text to print."""
    if not words or words[0] in ("-h", "--help"):
        return overview()
    if words[0] == "--version":
        return f"chinchilla-ds {_version()}"
    name, rest = find(words)
    with missing_packages(name, needed=COMMANDS[name].packages):
        parser = parser_of(name)
        arguments: argparse.Namespace = parser.parse_args(rest)
        with no_library_exits(), flags_named(parser):
            text: str = importlib.import_module(module_of(name)).run(arguments)
    return text.rstrip("\n")


def _train(words: Sequence[str], *, ends_process: bool) -> int:
    """Train; with `ends_process` the process exits without tearing torch down, as launchers/pretrain.py does."""
    with missing_packages("pretrain"):
        from chinchilla_ds.cli import pretrain
    if ends_process:
        pretrain.run(words)
    return pretrain.main(words)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("chinchilla-ds")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
