"""`chinchilla-ds import`: turn a Llama or Qwen3 model from elsewhere into a checkpoint that training can start from."""

import argparse

from chinchilla_ds.cli.arguments import flag, path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.processes.libraries import quieten
from chinchilla_ds.units import format_count

COMMAND = Command(
    name="import",
    group="use",
    summary="turn a Llama or Qwen3 model from elsewhere into a checkpoint for further training",
    examples=("chinchilla-ds import model/ --out imported/",),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("model", type=path, metavar="HF_DIR", help="folder with config.json, safetensors and tokenizer")
    flag(parser, "out", path, "folder to make; nothing is overwritten", metavar="DIR", required=True)


def run(arguments: argparse.Namespace) -> str:
    """Import a model; return a description of the result."""
    from chinchilla_ds.files import check_free

    check_free(arguments.out)
    quieten()
    from chinchilla_ds.exporting.read import import_folder

    imported = import_folder(arguments.model, out=arguments.out)
    shape = imported.plan.shape
    lines = [
        f"wrote {imported.checkpoint}: {format_count(imported.plan.num_params)} parameters, {shape.num_layers} layers, "
        f"hidden {shape.hidden_size}, {shape.vocab_size} vocabulary"
    ]
    if imported.restored_plan:
        lines.append("the plan and the padding are those of the run that was exported")
    return "\n".join(lines)
