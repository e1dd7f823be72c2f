"""`chinchilla-ds checkpoint inspect`: the content of a run's checkpoints, without reading their tensors."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.budget.report import describe_layout
from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.cli.arguments import path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.run_plan import ADAMW
from chinchilla_ds.structured import parse_json
from chinchilla_ds.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from chinchilla_ds.checkpoint.reader import CheckpointReader

COMMAND = Command(
    name="checkpoint inspect",
    group="checkpoints",
    summary="show the content of a run's checkpoints",
    examples=("chinchilla-ds checkpoint inspect runs/first",),
)

_LABEL_WIDTH = 16


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run's folder, or a checkpoint in it")
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its shape")
    parser.add_argument("--json", action="store_true", help="print the newest checkpoint's facts as JSON")


def run(arguments: argparse.Namespace) -> str:
    """Return the list of checkpoints and the newest one's facts.

    Raises:
        CheckpointError: there is none that can be read.
    """
    from chinchilla_ds.checkpoint.reader import CheckpointReader

    checkpoints = folders.find_checkpoints(arguments.run)
    problems = {checkpoint: _problems(checkpoint) for checkpoint in checkpoints}
    right = [checkpoint for checkpoint in checkpoints if not problems[checkpoint]]
    if not right:
        raise CheckpointError([problem for checkpoint in checkpoints for problem in problems[checkpoint]])
    reader = CheckpointReader(right[0])
    if arguments.json:
        return json.dumps(_facts(reader), indent=2)
    lines = [
        f"{checkpoints[0].parent}, newest first",
        *(f"  {_line(path, problems[path])}" for path in checkpoints),
        "",
    ]
    lines += [f"{label:<{_LABEL_WIDTH}}{text}" for label, text in _rows(reader)]
    if arguments.tensors:
        lines += ["", *(f"{name:<64} {list(reader.shape(name))}" for name in reader.names())]
    return "\n".join(lines)


def _problems(checkpoint: Path) -> list[str]:
    """Return the problems of a checkpoint that the sizes of its files reveal."""
    try:
        return list(folders.damage(checkpoint, names=frozenset()))
    except CheckpointError as error:
        return list(error.problems)


def _line(checkpoint: Path, problems: list[str]) -> str:
    if problems:
        return f"{checkpoint.name}  damaged: {problems[0]}"
    size = sum(record.bytes for record in folders.read_manifest(checkpoint).files.values())
    return f"{checkpoint.name}  {format_bytes(size)}"


def _rows(reader: "CheckpointReader") -> Iterator[tuple[str, str]]:
    plan, state = reader.plan, reader.state
    tokens = plan.consumed_tokens(iteration=state.iteration)
    yield "checkpoint", reader.folder.name
    yield (
        "trained",
        (
            f"{state.iteration:,} of {plan.batch.train_iters:,} steps, {format_count(tokens)} of "
            f"{format_count(plan.num_tokens)} tokens, in {format_duration(state.elapsed_s)}"
            + (": to the plan's end" if state.complete else "")
        ),
    )
    passed_over = f", {state.bad_batches} passed over" if state.bad_batches else ""
    yield "data", f"{state.data_step:,} batches consumed{passed_over}; text {state.data_key or 'unknown'}"
    if state.loss is not None:
        yield "train loss", f"{state.loss:.4f} nats per token"
    if state.held_out_loss is not None and state.held_out_bits_per_byte is not None:
        yield "held-out loss", f"{state.held_out_loss:.4f} nats per token, {state.held_out_bits_per_byte:.4f} bits/byte"
    yield "model", f"{format_count(plan.num_params)} parameters in {len(reader.names())} weights, FP32"
    yield "optimizer", _optimizer(reader) if reader.has_optimizer else "none: weights only"
    if state.loss_scaler:
        yield "loss scale", f"{state.loss_scaler.get('cur_scale', '?')}"
    yield "saved under", f"{describe_layout(plan.layout)}, {plan.precision}; loads under any other"
    tokenizer = reader.tokenizer_path.name if reader.tokenizer_path else "none in the checkpoint"
    yield "tokenizer", f"{tokenizer}, SHA-256 {state.tokenizer_sha256 or 'unknown'}"
    yield "software", ", ".join(f"{name} {number}" for name, number in state.versions.items())


def _optimizer(reader: "CheckpointReader") -> str:
    chosen = reader.plan.optimizer
    if chosen.plugin == ADAMW:
        return f"AdamW's moments, after {reader.state.optimizer_step:,} steps"
    return f"{chosen.plugin}: {', '.join(chosen.states) or 'no states'}"


def _facts(reader: "CheckpointReader") -> dict[str, Any]:
    tensors = {name: list(reader.shape(name)) for name in reader.names()}
    return {
        "checkpoint": str(reader.folder),
        "state": dataclasses.asdict(reader.state),
        "plan": parse_json(reader.plan.to_json(), where="the plan"),
        "has_moments": reader.has_optimizer,
        "num_params": sum(math.prod(shape) for shape in tensors.values()),
        "tensors": tensors,
    }
