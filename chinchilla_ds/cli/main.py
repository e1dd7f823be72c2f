"""The `chinchilla-ds` command: one module per subcommand, imported when it is called."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from chinchilla_ds.cli.arguments import Help, Parser
from chinchilla_ds.cli.flags import flags_named
from chinchilla_ds.errors import EXIT_CODE_USER_ERROR, ChinchillaError, ConfigError, did_you_mean, machine_problem
from chinchilla_ds.processes.endings import no_library_exits
from chinchilla_ds.tracking.redaction import redacted
from chinchilla_ds.training.watchdog import place_of


class Command(NamedTuple):
    """A subcommand: its module has `add_flags(parser)` and `run(arguments)`, which returns the text to print."""

    module: str
    summary: str


COMMANDS = {
    "plan": Command("chinchilla_ds.cli.plan", "turn FLOPs or GPU-hours into a model, a batch and a layout that fits"),
    "fit": Command("chinchilla_ds.cli.fit", "fit a scaling law to a table of runs"),
    "laws": Command("chinchilla_ds.cli.laws", "compare what published laws say of a budget"),
    "ds-config": Command("chinchilla_ds.cli.ds_config", "write the DeepSpeed JSON of a plan"),
    "prepare": Command("chinchilla_ds.cli.prepare", "clean, deduplicate, split and tokenise text"),
    "export": Command("chinchilla_ds.cli.export", "write a trained model as a Hugging Face folder, quantised or not"),
    "import": Command("chinchilla_ds.cli.import_", "make a checkpoint of a Llama from elsewhere, to train on"),
    "memory": Command("chinchilla_ds.cli.memory", "show what a plan needs per device, stage by stage"),
    "generate": Command("chinchilla_ds.cli.generate", "continue prompts with a trained model"),
    "evaluate": Command("chinchilla_ds.cli.evaluate", "bits per byte, perplexity and tasks of a trained model"),
    "track": Command("chinchilla_ds.cli.track", "bring MLflow to what a run's metrics.jsonl holds"),
    "checkpoint inspect": Command("chinchilla_ds.cli.checkpoint_inspect", "show what a run's checkpoints hold"),
    "checkpoint verify": Command("chinchilla_ds.cli.checkpoint_verify", "read checkpoints in full and name damage"),
    "checkpoint convert": Command("chinchilla_ds.cli.checkpoint_convert", "weights alone, or DeepSpeed's format"),
    "mix design": Command("chinchilla_ds.cli.mix_design", "choose mixtures of a corpus's sources for small runs"),
    "mix run": Command("chinchilla_ds.cli.mix_run", "train a small run on each mixture"),
    "mix fit": Command("chinchilla_ds.cli.mix_fit", "find the best mixture from the losses of small runs"),
}
_SIGINT_EXIT_CODE = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 0, 2 for a user's error, 130 for Ctrl-C; a bug keeps its traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if text := run_command(words):
            print(text, flush=True)
    except ChinchillaError as error:
        return _refuse(*error.problems)
    except KeyboardInterrupt:
        return _SIGINT_EXIT_CODE
    except BrokenPipeError:  # `chinchilla-ds plan | head`: the reader has seen enough
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
    found = error.__traceback__
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return None if found is None else found.tb_frame


def _refuse(*problems: str) -> int:
    sys.stderr.write("".join(f"error: {redacted(problem)}\n" for problem in problems))
    return EXIT_CODE_USER_ERROR


def run_command(words: Sequence[str], /) -> str:
    """Run a subcommand and return the text that it prints; raises what it raises."""
    if not words or words[0] in ("-h", "--help"):
        return _overview()
    name, rest = _command(words)
    parser = parser_of(name)
    arguments: argparse.Namespace = parser.parse_args(rest)
    with no_library_exits(), flags_named(parser):
        text: str = _module_of(name).run(arguments)
    return text.rstrip("\n")


def parser_of(name: str) -> Parser:
    """Return the parser of a command, with its flags."""
    parser = Parser(
        prog=f"chinchilla-ds {name}",
        description=COMMANDS[name].summary[0].upper() + COMMANDS[name].summary[1:] + ".",
        formatter_class=Help,
        allow_abbrev=False,
    )
    _module_of(name).add_flags(parser)
    return parser


def _module_of(name: str) -> Any:
    return importlib.import_module(COMMANDS[name].module)


def _command(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the command that `words` begin with, of one word or two, and the words after it."""
    for num_words in (2, 1):
        name = " ".join(words[:num_words])
        if name in COMMANDS:
            return name, words[num_words:]
    if words[0] in ("train", "pretrain"):
        raise ConfigError("training is started by `deepspeed launchers/pretrain.py --ds_config FILE`, not from here")
    family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    name = " ".join(words[:2]) if family else words[0]
    raise ConfigError(f"{name!r} is none of {', '.join(family or COMMANDS)}{did_you_mean(name, family or COMMANDS)}")


def _overview() -> str:
    rows = [f"  {name:<20}{command.summary}" for name, command in COMMANDS.items()]
    lines = ["usage: chinchilla-ds COMMAND [flags]", "", *rows, "", "chinchilla-ds COMMAND --help lists the flags."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
