"""Import of a Hugging Face folder, of a family in `config_json.FAMILIES`, as a checkpoint to start training from."""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.checkpoint.folder import CHECKPOINTS_NAME, checkpoint_name
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.checkpoint.writer import WeightRows, library_versions, write_checkpoint
from chinchilla_ds.data.named_files import read_named
from chinchilla_ds.errors import ChinchillaError, ConfigError, DataError
from chinchilla_ds.exporting import llama
from chinchilla_ds.exporting.config_json import CONFIG_NAME, read_config, shape_of
from chinchilla_ds.exporting.finite import count_non_finite, is_finite
from chinchilla_ds.exporting.imported_plan import plan_of
from chinchilla_ds.exporting.shards import ShardReader
from chinchilla_ds.exporting.tokenizer_files import find_tokenizer
from chinchilla_ds.exporting.vector_folder import VectorReader, open_weights
from chinchilla_ds.exporting.write import OURS_NAME, PADDING_STEM, PLAN_NAME
from chinchilla_ds.files import new_folder
from chinchilla_ds.run_plan import ModelShape, RunPlan
from chinchilla_ds.weights import OUTPUT

_TYPES = ("F32", "BF16", "F16")
"""Types of weights, by safetensors' names, that FP32 represents exactly."""
_SHOWN_PROBLEMS = 8
_COUNTED_ROWS = 4096
"""Rows counted at a time, once non-finite values are known to exist."""
_TOKENIZER_NAME = ".tokenizer"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import."""

    checkpoint: Path
    plan: RunPlan
    restored_plan: bool
    """Whether the plan is that of the exported run, instead of one made for the shape."""


def import_folder(source: Path, /, *, out: Path) -> Imported:
    """Write the weights of a model as the checkpoint of step 0 below `out`.

    A folder that this package exported gets its plan and its rows of padding back, so that the checkpoint equals the
    exported one bit for bit. The padding of other models is zero.

    Only files with known names are read, none outside the folder, and no code in it is run.

    Args:
        source: A Hugging Face folder with safetensors files.
        out: The folder to make, which can be used wherever a run or a checkpoint is expected.

    Raises:
        DataError: the folder or its tokenizer cannot be read, or weights are non-finite.
        ConfigError: the model is of another family, or has parts that this decoder lacks.
        OutputError: `out` is not empty, or cannot be written.
    """
    config = read_config(source)
    shape = shape_of(config, place=str(source / CONFIG_NAME))
    tokenizer = find_tokenizer(source)
    if tokenizer.vocab_size > shape.vocab_size:
        raise DataError(
            f"{tokenizer.files.place} has {tokenizer.vocab_size} tokens, and the model's embedding has "
            f"{shape.vocab_size} rows"
        )
    plan = _own_plan(source, shape)
    weights = _Weights(open_weights(source, config), source, plan.shape if plan else shape, vocab_size=shape.vocab_size)
    restored = plan is not None
    plan = plan or plan_of(shape)
    with new_folder(out) as aside:
        checkpoint, files = Path(CHECKPOINTS_NAME) / checkpoint_name(0), aside / _TOKENIZER_NAME
        files.mkdir()
        tokenizer.save(files / tokenizer.saved_as)
        with _own_errors():
            write_checkpoint(
                aside / checkpoint,
                plan=plan,
                ds_config=ds_config.emit(plan),
                weights=weights.read(),
                tokenizer=files / tokenizer.saved_as,
                state=_before_the_first_step(tokenizer_sha256=tokenizer.sha256),
            )
        shutil.rmtree(files)
    return Imported(checkpoint=out / checkpoint, plan=plan, restored_plan=restored)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise errors from reading weights as they were: torch wraps those that occur while it writes."""
    try:
        yield
    except CheckpointException as wrapped:
        for error, _ in wrapped.failures.values():
            if isinstance(error, ChinchillaError | OSError):
                raise error from None
        raise


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
    """Return the plan in a folder that this package exported, if the model still matches it."""
    content = read_named(source / OURS_NAME, PLAN_NAME, home=source)
    if content is None:
        return None
    try:
        plan = RunPlan.from_json(content.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        path = source / OURS_NAME / PLAN_NAME
        raise DataError(f"{path} is damaged: {error}; remove {OURS_NAME}/ to import without it") from None
    cut = dataclasses.replace(plan.shape, vocab_size=shape.vocab_size, padded_vocab_size=shape.padded_vocab_size)
    return plan if cut == shape and shape.vocab_size <= plan.shape.padded_vocab_size else None


class _Weights:
    """The weights of a Hugging Face folder under Megatron's names, read a few rows at a time."""

    def __init__(self, reader: ShardReader | VectorReader, source: Path, shape: ModelShape, *, vocab_size: int) -> None:
        self._reader, self._source = reader, source
        _check_layers(reader, source, shape)
        self._weights = list(llama.weights(shape, vocab_size=vocab_size))
        self._check()
        self._padding = _padding_of(source, shape, vocab_size=vocab_size)

    def read(self) -> Iterator[tuple[str, WeightRows]]:
        """Yield the global name and the FP32 rows of each weight."""
        for weight in self._weights:
            yield weight.name, WeightRows(shape=weight.shape, read=functools.partial(self._rows, weight))

    def _rows(self, weight: llama.Weight, wanted: slice) -> Tensor:
        values = torch.zeros((wanted.stop - wanted.start, *weight.shape[1:]))
        for piece in weight.pieces:
            start = 0
            for rows in piece.rows:
                if (own := _overlap(rows, wanted, start=start)) is not None:
                    first = rows.start - start + own.start - wanted.start
                    values[first : first + own.stop - own.start] = self._reader.read(piece.name, rows=own)
                start += rows.stop - rows.start
        self._check_finite(values)
        padding = self._padding.get(weight.name, values[:0])
        own = _overlap(slice(weight.shape[0] - len(padding), weight.shape[0]), wanted, start=0)
        if own is not None:
            values[own.start - own.stop :] = padding[own]
        return values

    def _check(self) -> None:
        """Check names, types and shapes before anything is written."""
        pieces = {
            piece.name: (piece.num_rows, *weight.shape[1:]) for weight in self._weights for piece in weight.pieces
        }
        reader, names = self._reader, set(self._reader.names())
        ignored = {name for name in names if name.endswith("rotary_emb.inv_freq")}
        if OUTPUT.name not in {weight.name for weight in self._weights}:
            ignored.add("lm_head.weight")  # tied tables: some folders store them twice
        problems = [f"lacks the weight {name}" for name in pieces if name not in names]
        problems += [f"has an unknown weight: {name}" for name in sorted(names - pieces.keys() - ignored)]
        there = [name for name in pieces if name in names]
        problems += [
            f"has {name} as {list(reader.shape(name))}, and {CONFIG_NAME} makes it {list(pieces[name])}"
            for name in there
            if reader.shape(name) != pieces[name]
        ]
        problems += [
            f"has {name} as {reader.dtype(name)}, and {', '.join(_TYPES)} can be imported"
            for name in there
            if reader.dtype(name) not in _TYPES
        ]
        _raise(ConfigError, self._source, problems)

    def _check_finite(self, values: Tensor) -> None:
        """Check the rows read; if any value is non-finite, count those in all weights."""
        if is_finite(values):
            return
        names = [piece.name for weight in self._weights for piece in weight.pieces]
        counts = {name: self._count_non_finite(name) for name in names}
        _raise(
            DataError,
            self._source,
            [f"has {count:,} NaN or infinite values in {name}" for name, count in counts.items() if count],
        )

    def _count_non_finite(self, name: str) -> int:
        starts = range(0, self._reader.shape(name)[0], _COUNTED_ROWS)
        return sum(
            count_non_finite(self._reader.read(name, rows=slice(start, start + _COUNTED_ROWS))) for start in starts
        )


def _raise(kind: type[ConfigError | DataError], source: Path, problems: list[str]) -> None:
    """Raise the first few problems and the number of further ones, if there are any."""
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        rest = [f"{source}: {more} more of its weights are wrong"] if more > 0 else []
        raise kind([*(f"{source} {problem}" for problem in problems[:_SHOWN_PROBLEMS]), *rest])


def _check_layers(reader: ShardReader | VectorReader, source: Path, shape: ModelShape) -> None:
    """Check the number of layers and the width of keys, before a list of all expected weights is made from them."""
    name = "model.layers.{}.self_attn.k_proj.weight"
    names, width = set(reader.names()), shape.num_query_groups * shape.kv_channels
    there = next(number for number in itertools.count() if name.format(number) not in names)
    if there != shape.num_layers:
        raise ConfigError(f"{source} has {there} layers, and {CONFIG_NAME} says {shape.num_layers}")
    if reader.shape(name.format(0)) != (width, shape.hidden_size):
        raise ConfigError(
            f"{source} has {name.format(0)} as {list(reader.shape(name.format(0)))}, and {CONFIG_NAME} makes it "
            f"{[width, shape.hidden_size]}"
        )


def _overlap(rows: slice, wanted: slice, *, start: int) -> slice | None:
    """Return the rows at `rows`, the first of which is row `start` of the weight, that are within `wanted`."""
    first, last = max(rows.start, wanted.start), min(rows.stop, wanted.stop)
    return slice(start + first - rows.start, start + last - rows.start) if first < last else None


def _padding_of(source: Path, shape: ModelShape, *, vocab_size: int) -> dict[str, Tensor]:
    """Return the rows of padding in a folder that this package exported; none if their size does not match."""
    folder, rows = source / OURS_NAME, shape.padded_vocab_size - vocab_size
    if not folder.is_dir():
        return {}
    reader = ShardReader(folder, stem=PADDING_STEM, home=source)
    names = [name for name in reader.names() if name in llama.TABLES]
    if any(reader.dtype(name) not in _TYPES for name in names):
        types = ", ".join(_TYPES)
        raise DataError(f"{folder} holds padding whose type is not one of {types}; remove it to import without it")
    padding = {name: reader.read(name) for name in names if reader.shape(name) == (rows, shape.hidden_size)}
    if not all(map(is_finite, padding.values())):
        raise DataError(f"{folder} holds non-finite padding; remove it to import without it")
    return padding
