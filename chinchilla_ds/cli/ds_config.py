"""`chinchilla-ds ds-config`: the DeepSpeed JSON of a plan."""

import argparse

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.cli.arguments import flag, path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.files import write_text
from chinchilla_ds.runs.plan_file import read_plan

COMMAND = Command(
    name="ds-config",
    group="plan",
    summary="write the DeepSpeed JSON of a plan",
    examples=("chinchilla-ds ds-config plan.json --out ds_config.json",),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("plan", type=path, metavar="PLAN", help="plan.json that `chinchilla-ds plan --out` wrote")
    flag(parser, "out", path, "write the JSON to a file instead of printing it", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="also print the JSON if it is written to a file")


def run(arguments: argparse.Namespace) -> str:
    """Return the JSON, or where it was written."""
    text = ds_config.to_json(ds_config.emit_for_pretrain(read_plan(arguments.plan)))
    if arguments.out is None:
        return text
    write_text(arguments.out, text=text)
    return text if arguments.json else f"wrote {arguments.out}"
