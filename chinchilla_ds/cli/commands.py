"""The commands of `chinchilla-ds`: the summary, the examples and the parser of each."""

import argparse
import importlib
from collections.abc import Sequence
from typing import NamedTuple

from chinchilla_ds.cli.arguments import TRAINING_EXAMPLES, Help, Parser, examples_text, training_parser
from chinchilla_ds.errors import ConfigError, did_you_mean


class Command(NamedTuple):
    """A command: its module has `add_flags(parser)` and `run(arguments)`, which returns the text to print."""

    module: str
    summary: str
    examples: tuple[str, ...]
    """Shown at the end of the help; a test runs all of them in one folder."""
    packages: tuple[str, ...] = ()
    """All packages that the command needs, if it needs fewer than training: those to install after `--no-deps`."""


COMMANDS = {
    "plan": Command(
        "chinchilla_ds.cli.plan",
        "turn FLOPs or GPU-hours into a model, a batch and a layout that fits",
        (
            "chinchilla-ds plan --flops 1e21",
            "chinchilla-ds plan --gpu-hours 5000 --gpus 64 --gpu h100 --out plan.json",
            "chinchilla-ds plan --flops 1e21 --law law.json        # your own law, by chinchilla-ds fit",
        ),
    ),
    "fit": Command(
        "chinchilla_ds.cli.fit",
        "fit a scaling law to a table of runs",
        (
            "chinchilla-ds fit runs.csv --out law.json --picture fit.png",
            "chinchilla-ds fit runs.csv --approach all --flops 1e21",
        ),
        packages=("numpy", "scipy", "matplotlib"),
    ),
    "fit-curves": Command(
        "chinchilla_ds.cli.fit_curves",
        "fit a law of whole loss curves, and predict those of other schedules",
        (
            "chinchilla-ds fit-curves cosine.csv constant.csv --warmup 200 --predict wsd.csv --picture curves.png",
            "chinchilla-ds fit-curves small.csv@25e6 large.csv@100e6 --predict next.csv@400e6 --json",
        ),
        packages=("numpy", "scipy", "matplotlib"),
    ),
    "laws": Command(
        "chinchilla_ds.cli.laws",
        "compare published laws at a budget",
        ("chinchilla-ds laws --flops 1e21",),
    ),
    "ds-config": Command(
        "chinchilla_ds.cli.ds_config",
        "write the DeepSpeed JSON of a plan",
        ("chinchilla-ds ds-config plan.json --out ds_config.json",),
    ),
    "memory": Command(
        "chinchilla_ds.cli.memory",
        "show what a plan needs per device, stage by stage",
        ("chinchilla-ds memory plan.json",),
    ),
    "prepare": Command(
        "chinchilla_ds.cli.prepare",
        "clean, deduplicate, split and tokenise text",
        (
            "chinchilla-ds prepare --source web=web/*.jsonl --source code=code/ --out corpus/",
            "chinchilla-ds prepare --verify corpus/",
        ),
    ),
    "pretrain": Command(
        "chinchilla_ds.cli.pretrain",
        "plan a run, train it, and compare the result with the plan",
        TRAINING_EXAMPLES,
    ),
    "generate": Command(
        "chinchilla_ds.cli.generate",
        "continue prompts with a trained model",
        (
            'chinchilla-ds generate runs/first --prompt "def " --stream',
            'chinchilla-ds generate runs/first --prompt "def " "class " --temperature 0 --max-tokens 20 --json',
        ),
    ),
    "evaluate": Command(
        "chinchilla_ds.cli.evaluate",
        "measure bits per byte, perplexity and tasks of a trained model",
        (
            "chinchilla-ds evaluate runs/first                     # the run's own held-out text",
            "chinchilla-ds evaluate runs/first --data mine=notes.txt",
        ),
    ),
    "export": Command(
        "chinchilla_ds.cli.export",
        "write a trained model as a Hugging Face folder, quantised or not",
        ("chinchilla-ds export runs/first --out model/ --dtype bf16",),
    ),
    "import": Command(
        "chinchilla_ds.cli.import_",
        "turn a Llama from elsewhere into a checkpoint for further training",
        ("chinchilla-ds import model/ --out imported/",),
    ),
    "track": Command(
        "chinchilla_ds.cli.track",
        "synchronise MLflow with a run's metrics.jsonl",
        ("chinchilla-ds track runs/first",),
    ),
    "checkpoint inspect": Command(
        "chinchilla_ds.cli.checkpoint_inspect",
        "show the content of a run's checkpoints",
        ("chinchilla-ds checkpoint inspect runs/first",),
    ),
    "checkpoint verify": Command(
        "chinchilla_ds.cli.checkpoint_verify",
        "read checkpoints in full and report damage",
        ("chinchilla-ds checkpoint verify runs/first",),
    ),
    "checkpoint convert": Command(
        "chinchilla_ds.cli.checkpoint_convert",
        "reduce a checkpoint to its weights, or write DeepSpeed's format",
        ("chinchilla-ds checkpoint convert runs/first --to weights --out weights/",),
    ),
    "mix design": Command(
        "chinchilla_ds.cli.mix_design",
        "choose mixtures of a corpus's sources for small runs",
        ("chinchilla-ds mix design corpus/ --runs 8 --out mixtures.csv",),
    ),
    "mix run": Command(
        "chinchilla_ds.cli.mix_run",
        "train a small run on each mixture",
        ("chinchilla-ds mix run mixtures.csv --corpus corpus/ --ds_config zero1 --flops 2e10",),
    ),
    "mix fit": Command(
        "chinchilla_ds.cli.mix_fit",
        "find the best mixture from the losses of small runs",
        ("chinchilla-ds mix fit mixtures.csv --corpus corpus/ --out blend.yaml",),
    ),
    "completion": Command(
        "chinchilla_ds.cli.completion",
        "print a shell's completion script for commands and flags",
        ("source <(chinchilla-ds completion bash)",),
    ),
    "help": Command(
        "chinchilla_ds.cli.help",
        "list the commands, or the flags of a command",
        ("chinchilla-ds help plan",),
    ),
}


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
    importlib.import_module(COMMANDS[name].module).add_flags(parser)


def overview() -> str:
    """Return the list of commands."""
    rows = [f"  {name:<20}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: chinchilla-ds COMMAND [flags]",
            "       chinchilla-ds --version",
            "",
            *rows,
            "",
            "chinchilla-ds COMMAND --help lists the flags, with examples.",
        ]
    )
