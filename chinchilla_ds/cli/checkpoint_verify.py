"""`chinchilla-ds checkpoint verify`: read every file of a run's checkpoints and compare it with the manifest."""

import argparse
from pathlib import Path

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.contents import problems_of
from chinchilla_ds.cli.arguments import path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.units import format_bytes

COMMAND = Command(
    name="checkpoint verify",
    group="checkpoints",
    summary="read checkpoints in full and report damage",
    examples=("chinchilla-ds checkpoint verify runs/first",),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "run", type=path, metavar="RUN", help="a run's folder, for all its checkpoints, or one checkpoint"
    )


def run(arguments: argparse.Namespace) -> str:
    """Read every file; return a line per checkpoint.

    Raises:
        CheckpointError: checkpoints are damaged; names each damaged file, and the intact checkpoints.
    """
    whole: list[str] = []
    damaged: list[str] = []
    for checkpoint in folders.find_checkpoints(arguments.run):
        if problems := problems_of(checkpoint):
            damaged += problems
        else:
            whole.append(_line(checkpoint))
    if damaged:
        names = ", ".join(line.split()[0] for line in whole) or "none"
        raise CheckpointError([*damaged, f"intact: {names}; a run resumes from the newest that is intact"])
    return "\n".join(whole)


def _line(checkpoint: Path) -> str:
    records = folders.read_manifest(checkpoint).files
    size = sum(record.bytes for record in records.values())
    return f"{checkpoint.name}  whole: {len(records)} files, {format_bytes(size)}"
