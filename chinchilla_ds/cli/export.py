"""`chinchilla-ds export`: a checkpoint as a Hugging Face folder, quantised or not."""

import argparse
import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from chinchilla_ds.cli.arguments import choice, flag, path
from chinchilla_ds.errors import DataError
from chinchilla_ds.processes.libraries import hide_progress_bars, quieten
from chinchilla_ds.run_plan import Precision, RunPlan
from chinchilla_ds.structured import read_bytes
from chinchilla_ds.units import format_bytes, format_count

if TYPE_CHECKING:
    from torch import Tensor

    from chinchilla_ds.checkpoint.reader import CheckpointReader
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.exporting.card import TrainingFacts
    from chinchilla_ds.exporting.measure import Measured
    from chinchilla_ds.exporting.quantize import Quantized

_Number = TypeVar("_Number", int, float)
_METHODS = "int8|2:4|vq4|vq3|vq2"
_REPORT_TOKENS = 32_768
"""Held-out tokens that the report before and after quantising reads."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run's folder, or a checkpoint in it")
    flag(parser, "out", path, "folder to make; nothing is overwritten", metavar="DIR", required=True)
    flag(parser, "dtype", choice(Precision), "of the weights (default: that of training)", metavar="fp32|bf16|fp16")
    flag(parser, "quantize", _method, "shrink the matrices of the layers, and report the loss", metavar=_METHODS)
    flag(parser, "licence", _licence, "licence for the model card, such as apache-2.0", metavar="ID")
    flag(parser, "data", path, "prepared text for card and report (default: looked for beside RUN)", metavar="FOLDER")


def run(arguments: argparse.Namespace) -> str:
    """Export, and return what was written."""
    from chinchilla_ds.exporting.write import check_free

    check_free(arguments.out)
    quieten()
    from chinchilla_ds.checkpoint.folded import FoldedReader
    from chinchilla_ds.exporting.quantize import Quantization, check_installed
    from chinchilla_ds.exporting.write import export_checkpoint

    reader = FoldedReader.open(arguments.run)
    prepared = find_prepared(arguments.run, reader, named=arguments.data)
    facts = _facts(reader, prepared, licence=arguments.licence)
    dtype = arguments.dtype or reader.plan.precision
    if arguments.quantize is None:
        written = export_checkpoint(reader, out=arguments.out, dtype=dtype, facts=facts)
        return (
            f"wrote {arguments.out}: {format_count(written.num_params)} parameters, "
            f"{format_bytes(written.num_bytes)} in {dtype.value}, from {reader.folder}"
        )
    check_installed(Quantization(arguments.quantize))
    plain = arguments.out.with_name(f".{arguments.out.name}.plain")
    try:
        shutil.rmtree(plain, ignore_errors=True)  # of a process that was killed
        export_checkpoint(reader, out=plain, dtype=dtype, facts=facts)
        return _quantize(plain, arguments, plan=reader.plan, prepared=prepared)
    finally:
        shutil.rmtree(plain, ignore_errors=True)


class Held(NamedTuple):
    """Held-out text: windows of tokens and the tokens after them, and the bytes of text per token."""

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
    note = "No held-out text was found beside the run: name its prepared folder with --data."
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


def _facts(reader: "CheckpointReader", prepared: "PreparedData | None", *, licence: str | None) -> "TrainingFacts":
    from chinchilla_ds.data.prepared import LEDGER_NAME
    from chinchilla_ds.data.preparing.ledger import Ledger
    from chinchilla_ds.exporting.card import TrainingFacts

    plan, state = reader.plan, reader.state
    ledger = None
    if prepared is not None and (file := prepared.folder / LEDGER_NAME).is_file():
        text = read_bytes(file, what="the ledger", error=DataError).decode(errors="replace")
        ledger = Ledger.from_json(text)
    return TrainingFacts(
        licence=licence,
        consumed_tokens=state.iteration * plan.tokens_per_iter,
        flops_spent=state.attempts * plan.tokens_per_iter * plan.flops_per_token,
        held_out_loss=state.held_out_loss,
        held_out_bits_per_byte=state.held_out_bits_per_byte,
        ledger=ledger,
        tokenizer_sha256=state.tokenizer_sha256,
    )


def find_prepared(run: Path, reader: "CheckpointReader", *, named: Path | None) -> "PreparedData | None":
    """Return the prepared text of a run: the folder that is named, or one below the run's output folder.

    Raises:
        DataError: the named one is none, or was made with another tokenizer.
    """
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer

    wanted = reader.state.tokenizer_sha256
    if wanted is None and reader.tokenizer_path is not None:
        wanted = Tokenizer.load(reader.tokenizer_path, home=reader.folder).sha256
    if named is not None:
        prepared = PreparedData.load(named)
        if prepared.tokenizer_sha256 != wanted:
            raise DataError(f"--data {named} was made with another tokenizer than {run}: its tokens mean other text")
        return prepared
    beside = (PreparedData.load(folder) for folder in _prepared_beside(run.absolute()))
    return next((prepared for prepared in beside if prepared.tokenizer_sha256 == wanted), None)


def _prepared_beside(run: Path) -> Iterator[Path]:
    """Yield prepared folders where `launchers/pretrain.py` puts them: below `data` beside the run."""
    from chinchilla_ds.data.prepared import MANIFEST_NAME

    for parent in itertools.islice(run.parents, 3):  # of a run, of its checkpoints, of one of them
        yield from sorted(path.parent for path in parent.glob(f"data/*/{MANIFEST_NAME}"))


def _method(text: str) -> str:
    if text not in _METHODS.split("|"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_METHODS.split('|'))}")
    return text


def _licence(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a licence identifier, such as apache-2.0 or cc-by-4.0")
    return text.lower()
