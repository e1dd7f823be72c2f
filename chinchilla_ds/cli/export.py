"""`chinchilla-ds export`: write a checkpoint as a Hugging Face folder, quantised or not."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from chinchilla_ds.cli.arguments import choice, flag, path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.files import check_free, scratch_folder
from chinchilla_ds.processes.libraries import hide_progress_bars, quieten
from chinchilla_ds.run_plan import Precision, RunPlan
from chinchilla_ds.units import format_bytes, format_count

if TYPE_CHECKING:
    from torch import Tensor

    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.exporting.measure import Measured
    from chinchilla_ds.exporting.quantize import Quantized

COMMAND = Command(
    name="export",
    group="use",
    summary="write a trained model as a Hugging Face folder, quantised or not",
    examples=("chinchilla-ds export runs/first --out model/ --dtype bf16",),
)

_Number = TypeVar("_Number", int, float)
_METHODS = "int8|2:4|vq4|vq3|vq2"
_REPORT_TOKENS = 32_768
"""Held-out tokens on which losses before and after quantisation are measured."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run's folder, or a checkpoint in it")
    flag(parser, "out", path, "folder to make; nothing is overwritten", metavar="DIR", required=True)
    flag(
        parser,
        "dtype",
        choice(Precision),
        "precision of the weights (default: that of training)",
        metavar="fp32|bf16|fp16",
    )
    flag(parser, "quantize", _method, "quantise the matrices of the layers, and report the loss", metavar=_METHODS)
    flag(parser, "licence", _licence, "licence to name in the model card, such as apache-2.0", metavar="ID")
    flag(parser, "data", path, "prepared text for model card and report (default: the run's own)", metavar="FOLDER")


def run(arguments: argparse.Namespace) -> str:
    """Export a checkpoint; return a description of the result."""
    check_free(arguments.out)
    quieten()
    from chinchilla_ds.checkpoint.folded import FoldedReader
    from chinchilla_ds.exporting.card import TrainingFacts
    from chinchilla_ds.exporting.quantize import Quantization, check_installed
    from chinchilla_ds.exporting.write import export_checkpoint
    from chinchilla_ds.runs.text import text_of_checkpoint

    reader = FoldedReader.open(arguments.run)
    prepared = text_of_checkpoint(reader, named=arguments.data)
    facts = TrainingFacts.of_checkpoint(reader, text=prepared, licence=arguments.licence)
    dtype = arguments.dtype or reader.plan.precision
    if arguments.quantize is None:
        written = export_checkpoint(reader, out=arguments.out, dtype=dtype, facts=facts)
        return (
            f"wrote {arguments.out}: {format_count(written.num_params)} parameters, "
            f"{format_bytes(written.num_bytes)} in {dtype.value}, from {reader.folder}"
        )
    check_installed(Quantization(arguments.quantize))
    with scratch_folder(arguments.out.with_name(f"{arguments.out.name}.plain")) as plain:
        export_checkpoint(reader, out=plain, dtype=dtype, facts=facts)
        return _quantize(plain, arguments, plan=reader.plan, prepared=prepared)


class Held(NamedTuple):
    """Held-out text: windows of tokens with their labels, and the bytes of text per token."""

    windows: "list[tuple[Tensor, Tensor]]"
    bytes_per_token: float


def _quantize(plain: Path, arguments: argparse.Namespace, *, plan: RunPlan, prepared: "PreparedData | None") -> str:
    from chinchilla_ds.exporting.measure import measure
    from chinchilla_ds.exporting.quantize import Quantization, quantize_folder

    hide_progress_bars()
    quantized = quantize_folder(plain, out=arguments.out, method=Quantization(arguments.quantize))
    held = Held(windows=[], bytes_per_token=1.0) if prepared is None else _held_out(prepared, plan=plan)
    before = measure(plain, windows=held.windows)
    after = measure(arguments.out, windows=held.windows)
    return _report(arguments, quantized, before=before, after=after, bytes_per_token=held.bytes_per_token)


def _held_out(prepared: "PreparedData", *, plan: RunPlan) -> Held:
    from chinchilla_ds.data.feeding.loader import open_held_out

    sequences = open_held_out(prepared, seq_length=plan.shape.seq_length)
    most = max(1, _REPORT_TOKENS // plan.shape.seq_length)
    items = (sequences[index] for index in range(min(most, len(sequences))))
    return Held(windows=[(item["tokens"], item["labels"]) for item in items], bytes_per_token=prepared.bytes_per_token)


def _report(
    arguments: argparse.Namespace,
    quantized: "Quantized",
    *,
    before: "Measured",
    after: "Measured",
    bytes_per_token: float,
) -> str:
    from chinchilla_ds.evaluation.bits_per_byte import bits_per_byte

    rows = [
        _row("tensors", quantized.source_bytes, quantized.num_bytes, show=format_bytes),
        _row("tokens/s", before.tokens_per_s, after.tokens_per_s, show="{:.1f}".format),
    ]
    note = "The place of the run's text is unknown: name its prepared folder with --data."
    if before.loss is not None and after.loss is not None:
        num_bytes = round(before.num_tokens * bytes_per_token)
        bits = [
            bits_per_byte(loss_nats_per_token=loss, num_tokens=before.num_tokens, num_bytes=num_bytes)
            for loss in (before.loss, after.loss)
        ]
        rows.insert(1, _row("bits per byte", *bits, show="{:.4f}".format))
        note = f"Over {before.num_tokens:,} held-out tokens; greedy generation of one sequence, both on this machine."
    lines = [
        f"wrote {arguments.out}: {arguments.quantize}, {quantized.bits_per_weight:.3f} bits per weight of the layers' "
        f"matrices, squared error {quantized.relative_error:.3g} of their squares",
        "",
        f"{'':<15}{'before':>12}{'after':>12}{'change':>10}",
        *(f"{name:<15}{old:>12}{new:>12}{change:>10}" for name, old, new, change in rows),
        "",
        note,
    ]
    return "\n".join(lines)


def _row(name: str, before: _Number, after: _Number, *, show: Callable[[_Number], str]) -> tuple[str, ...]:
    return name, show(before), show(after), f"{after / before - 1:+.2%}"


def _method(text: str) -> str:
    if text not in _METHODS.split("|"):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(_METHODS.split('|'))}")
    return text


def _licence(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a licence identifier, such as apache-2.0 or cc-by-4.0")
    return text.lower()
