"""A Hugging Face folder of the Llama family becomes a checkpoint that training can start from."""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chinchilla_ds.budget import ds_config
from chinchilla_ds.checkpoint.folder import CHECKPOINTS_NAME, checkpoint_name
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.checkpoint.writer import WeightRows, library_versions, write_checkpoint
from chinchilla_ds.data.tokenizer import Tokenizer
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.export import llama
from chinchilla_ds.export.config_json import CONFIG_NAME, read_config, shape_of
from chinchilla_ds.export.imported_plan import plan_of
from chinchilla_ds.export.shards import ShardReader
from chinchilla_ds.export.tokenizer_files import find_tokenizer
from chinchilla_ds.export.vector_folder import VectorReader, open_weights
from chinchilla_ds.export.write import OURS_NAME, PADDING_STEM, PLAN_NAME, written_aside
from chinchilla_ds.plan import ModelShape, RunPlan


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was written."""

    checkpoint: Path
    plan: RunPlan
    restored_plan: bool
    """Whether the plan is that of the run which was exported, and not one made for the shape."""


def import_folder(source: Path, /, *, out: Path) -> Imported:
    """Write the weights of a Llama as the checkpoint of step 0 below `out`.

    An export of ours gets its plan and its rows of padding back, so that the checkpoint is that which was exported, bit
    by bit. Of other models the padding is zero.

    Args:
        source: A Hugging Face folder with safetensors files.
        out: The folder to make; `RUN` for everything that takes a run or a checkpoint.

    Raises:
        DataError: the folder or its tokenizer cannot be read.
        ConfigError: it is another family, or has parts that this decoder does not have.
        OutputError: `out` holds something, or cannot be written.
    """
    config = read_config(source)
    shape = shape_of(config, place=str(source / CONFIG_NAME))
    tokenizer = find_tokenizer(source)
    loaded = Tokenizer.load(tokenizer)
    if loaded.vocab_size > shape.vocab_size:
        raise DataError(
            f"{tokenizer} has {loaded.vocab_size} tokens, and the model's embedding has {shape.vocab_size} rows"
        )
    plan = _own_plan(source, shape)
    weights = _Weights(open_weights(source, config), source, plan.shape if plan else shape, vocab_size=shape.vocab_size)
    restored = plan is not None
    plan = plan or plan_of(shape)
    with written_aside(out) as aside:
        checkpoint = Path(CHECKPOINTS_NAME) / checkpoint_name(0)
        write_checkpoint(
            aside / checkpoint,
            plan=plan,
            ds_config=ds_config.emit(plan),
            weights=weights.read(),
            tokenizer=tokenizer,
            state=_before_the_first_step(tokenizer_sha256=loaded.sha256),
        )
    return Imported(checkpoint=out / checkpoint, plan=plan, restored_plan=restored)


def _before_the_first_step(*, tokenizer_sha256: str) -> CheckpointState:
    return CheckpointState(
        iteration=0,
        data_step=0,
        attempts=0,
        optimizer_step=0,
        elapsed_s=0.0,
        tokenizer_sha256=tokenizer_sha256,
        world_size=1,
        versions=library_versions(),
    )


def _own_plan(source: Path, shape: ModelShape) -> RunPlan | None:
    """Return the plan that an export of ours carries, where its model is still that of the plan."""
    path = source / OURS_NAME / PLAN_NAME
    if not path.is_file():
        return None
    plan = RunPlan.from_json(path.read_text(encoding="utf-8"))
    cut = dataclasses.replace(plan.shape, vocab_size=shape.vocab_size, padded_vocab_size=shape.padded_vocab_size)
    return plan if cut == shape and shape.vocab_size <= plan.shape.padded_vocab_size else None


class _Weights:
    """The weights of a Hugging Face folder under Megatron's names, some rows in memory at a time."""

    def __init__(self, reader: ShardReader | VectorReader, source: Path, shape: ModelShape, *, vocab_size: int) -> None:
        self._reader = reader
        self._weights = list(llama.weights(shape, vocab_size=vocab_size))
        self._padding = _padding_of(source, shape, vocab_size=vocab_size)
        self._check(source)

    def read(self) -> Iterator[tuple[str, WeightRows]]:
        """Yield global names and weights in FP32."""
        for weight in self._weights:
            yield weight.name, WeightRows(shape=weight.shape, read=functools.partial(self._rows, weight))

    def _rows(self, weight: llama.Weight, wanted: slice) -> Tensor:
        found = torch.zeros((wanted.stop - wanted.start, *weight.shape[1:]))
        for piece in weight.pieces:
            start = 0
            for rows in piece.rows:
                if (own := _overlap(rows, wanted, start=start)) is not None:
                    first = rows.start - start + own.start - wanted.start
                    found[first : first + own.stop - own.start] = self._reader.read(piece.name, rows=own)
                start += rows.stop - rows.start
        padding = self._padding.get(weight.name, found[:0])
        own = _overlap(slice(weight.shape[0] - len(padding), weight.shape[0]), wanted, start=0)
        if own is not None:
            found[own.start - own.stop :] = padding[own]
        return found

    def _check(self, source: Path) -> None:
        """Check names and shapes before anything is written."""
        pieces = {
            piece.name: (piece.num_rows, *weight.shape[1:]) for weight in self._weights for piece in weight.pieces
        }
        found = set(self._reader.names())
        ignored = {name for name in found if name.endswith("rotary_emb.inv_freq")}
        if llama.OUTPUT not in {weight.name for weight in self._weights}:
            ignored.add("lm_head.weight")  # tied: some folders hold the table twice
        problems = [f"{source} lacks the weight {name}" for name in pieces if name not in found]
        problems += [f"{source} has a weight of no Llama: {name}" for name in sorted(found - pieces.keys() - ignored)]
        problems += [
            f"{source}: {name} is {list(self._reader.shape(name))}, and config.json makes it {list(shape)}"
            for name, shape in pieces.items()
            if name in found and self._reader.shape(name) != shape
        ]
        if problems:
            raise ConfigError(problems)


def _overlap(rows: slice, wanted: slice, *, start: int) -> slice | None:
    """Return which rows of a piece are wanted, of those that lie at `rows`, the first of which is its row `start`."""
    first, last = max(rows.start, wanted.start), min(rows.stop, wanted.stop)
    return slice(start + first - rows.start, start + last - rows.start) if first < last else None


def _padding_of(source: Path, shape: ModelShape, *, vocab_size: int) -> dict[str, Tensor]:
    """Return the rows of padding of an export of ours; none where they are of another size."""
    folder = source / OURS_NAME
    if not folder.is_dir():
        return {}
    reader, rows = ShardReader(folder, stem=PADDING_STEM), shape.padded_vocab_size - vocab_size
    return {name: reader.read(name) for name in reader.names() if reader.shape(name)[0] == rows}
