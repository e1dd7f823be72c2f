"""`chinchilla-ds checkpoint convert`: a checkpoint without its optimizer, or in DeepSpeed's universal format."""

import argparse
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.cli.arguments import choice, flag, path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.files import check_free, new_folder
from chinchilla_ds.run_plan import ADAM_STATES
from chinchilla_ds.units import format_bytes

if TYPE_CHECKING:
    from chinchilla_ds.checkpoint.reader import CheckpointReader

COMMAND = Command(
    name="checkpoint convert",
    group="checkpoints",
    summary="reduce a checkpoint to its weights, or write DeepSpeed's format",
    examples=("chinchilla-ds checkpoint convert runs/first --to weights --out weights/",),
)


class Target(StrEnum):
    """The result of a conversion."""

    WEIGHTS = "weights"
    """A checkpoint with only the weights, a third of the bytes, from which --init-from starts new runs."""
    UNIVERSAL = "universal"
    """DeepSpeed's universal format, for other programs that use DeepSpeed."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run's folder (its newest checkpoint), or a checkpoint")
    names = "|".join(target.value for target in Target)
    text = "weights: without the optimizer, for --init-from; universal: as DeepSpeed's load_universal reads it"
    flag(parser, "to", choice(Target), text, metavar=names, required=True)
    flag(parser, "out", path, "folder to make; nothing is overwritten", metavar="DIR", required=True)


def run(arguments: argparse.Namespace) -> str:
    """Convert a checkpoint; return a description of the result.

    Raises:
        CheckpointError: no checkpoint of the run is intact, or it lacks what is requested.
        OutputError: the folder exists, or cannot be written.
    """
    out: Path = arguments.out
    check_free(out)
    from chinchilla_ds.checkpoint.reader import CheckpointReader

    reader = CheckpointReader.open(arguments.run)
    if arguments.to is Target.UNIVERSAL and reader.plan.optimizer.states != ADAM_STATES:
        raise CheckpointError(
            f"{reader.folder} was trained by the optimizer {reader.plan.optimizer.plugin}, and DeepSpeed's universal "
            "format needs AdamW's moments; --to weights converts it without its optimizer"
        )
    if arguments.to is Target.UNIVERSAL and not reader.has_optimizer:
        raise CheckpointError(
            f"{reader.folder} holds weights alone, and the universal format needs AdamW's moments; convert a "
            "checkpoint that a run has saved"
        )
    convert = _to_universal if arguments.to is Target.UNIVERSAL else _to_weights
    with new_folder(out) as aside:
        num_bytes = convert(reader, aside)
    where = f" of {reader.folder}"
    if arguments.to is Target.UNIVERSAL:
        tag = reader.folder.name
        return (
            f"wrote {out}: {format_bytes(num_bytes)}{where} in DeepSpeed's universal format, tag {tag}; load it with "
            '"checkpoint": {"load_universal": true} in the ds_config'
        )
    return f"wrote {out}: {format_bytes(num_bytes)}, the weights{where}; start a run from them with --init-from {out}"


def _to_universal(reader: "CheckpointReader", aside: Path) -> int:
    from chinchilla_ds.checkpoint.universal import write_universal

    return write_universal(reader, out=aside)


def _to_weights(reader: "CheckpointReader", aside: Path) -> int:
    from chinchilla_ds.checkpoint.writer import write_checkpoint

    checkpoint = write_checkpoint(
        aside / reader.folder.name,
        plan=reader.plan,
        ds_config=reader.ds_config(),
        weights=((name, reader.read(name)) for name in reader.names()),
        tokenizer=reader.tokenizer_path,
        state=reader.state,
    )
    return sum(record.bytes for record in folders.read_manifest(checkpoint).files.values())
