"""Export of a checkpoint as a Hugging Face folder: streamed, and renamed into place once complete."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chinchilla_ds.checkpoint.folded import FoldedReader
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.data.tokenizing.files import GENERATION_NAME
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.exporting import llama
from chinchilla_ds.exporting.card import TrainingFacts, model_card
from chinchilla_ds.exporting.config_json import CONFIG_NAME, config_of
from chinchilla_ds.exporting.finite import is_finite
from chinchilla_ds.exporting.shards import MAX_SHARD_BYTES, ShardWriter
from chinchilla_ds.exporting.tokenizer_files import generation_config, token_ids, write_tokenizer
from chinchilla_ds.files import new_folder, write_json
from chinchilla_ds.model.dtypes import DTYPES
from chinchilla_ds.run_plan import Precision

OURS_NAME = "chinchilla_ds"
"""Sub-folder that other tools ignore: it holds what an import needs to restore the checkpoint exactly."""
PLAN_NAME = "plan.json"
PADDING_STEM = "padding"
CARD_NAME = "README.md"

_CHUNK_BYTES = 256 * 1024**2
"""Size in FP32 above which a weight is read in parts, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    folder: Path
    num_params: int
    """Parameters of the exported model, without padding."""
    num_bytes: int
    """Bytes of its tensors."""


def export_checkpoint(
    reader: FoldedReader,
    /,
    *,
    out: Path,
    dtype: Precision,
    facts: TrainingFacts,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write a checkpoint as a folder that `transformers` loads as a model of the shape's family.

    Args:
        reader: The checkpoint.
        out: The folder to make.
        dtype: Type of the exported weights; the checkpoint's are FP32.
        facts: What the model card reports in addition to the plan.
        max_shard_bytes: Largest size of a file of weights, unless a single tensor exceeds it.

    Raises:
        OutputError: `out` is not empty, or cannot be written.
        DataError: the checkpoint has no tokenizer, or one whose ids would change, or weights are non-finite.
        ConfigError: a weight is outside the range of `dtype`.
    """
    tokenizer_path = reader.tokenizer_path
    if tokenizer_path is None:
        raise DataError(
            f"{reader.folder} holds no tokenizer, without which nothing can be generated; put the one of the training "
            "text into it as tokenizer.model or tokenizer/"
        )
    tokenizer = Tokenizer.load(tokenizer_path, home=reader.folder)
    shape = reader.plan.shape
    if tokenizer.vocab_size > shape.padded_vocab_size:
        raise DataError(
            f"{tokenizer_path} has {tokenizer.vocab_size} tokens, and the model's embedding {shape.padded_vocab_size} "
            "rows: it is not the one of the training text"
        )
    with new_folder(out) as aside:
        write_tokenizer(tokenizer, folder=aside, seq_length=shape.seq_length)
        config = config_of(shape, vocab_size=tokenizer.vocab_size, token_ids=token_ids(tokenizer), dtype=dtype)
        write_json(aside / CONFIG_NAME, config)
        if GENERATION_NAME not in tokenizer.files.contents:
            write_json(aside / GENERATION_NAME, generation_config(tokenizer))
        weights = list(llama.weights(shape, vocab_size=tokenizer.vocab_size))
        num_tensors = sum(len(weight.pieces) for weight in weights)
        with ShardWriter(aside, num_tensors=num_tensors, max_shard_bytes=max_shard_bytes) as writer:
            for weight in weights:
                _write_weight(writer, weight, read=_rows_of(reader, weight), dtype=dtype)
        _write_ours(aside / OURS_NAME, reader, vocab_size=tokenizer.vocab_size, dtype=dtype)
        num_params = writer.total_bytes // DTYPES[dtype].itemsize
        bos = None if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)
        card = model_card(reader.plan, facts=facts, num_params=num_params, dtype=dtype, bos=bos)
        (aside / CARD_NAME).write_text(card, encoding="utf-8")
    return Exported(folder=out, num_params=num_params, num_bytes=writer.total_bytes)


def _rows_of(reader: CheckpointReader, weight: llama.Weight) -> Callable[[slice], Tensor]:
    """Return a function that reads rows of a weight, which is read only once unless it is large."""
    if 4 * weight.shape[0] * (weight.shape[1] if len(weight.shape) > 1 else 1) > _CHUNK_BYTES:
        return lambda rows: reader.read_rows(weight.name, rows=rows)
    whole = reader.read(weight.name)
    return lambda rows: whole[rows]


def _write_weight(
    writer: ShardWriter, weight: llama.Weight, *, read: Callable[[slice], Tensor], dtype: Precision
) -> None:
    for piece in weight.pieces:
        parts = (_checked(read(rows), dtype=dtype, name=piece.name) for rows in _chunks(weight, piece))
        writer.add(piece.name, shape=(piece.num_rows, *weight.shape[1:]), dtype=DTYPES[dtype], parts=parts)


def _chunks(weight: llama.Weight, piece: llama.LlamaWeight) -> Iterator[slice]:
    """Yield a piece's rows in parts of bounded size."""
    row_bytes = 4 * (weight.shape[1] if len(weight.shape) > 1 else 1)
    most = max(1, _CHUNK_BYTES // row_bytes)
    for rows in piece.rows:
        for start in range(rows.start, rows.stop, most):
            yield slice(start, min(start + most, rows.stop))


def _checked(values: Tensor, *, dtype: Precision, name: str) -> Tensor:
    """Return the values in `dtype`, after checking that they are finite and within its range."""
    converted = values.to(DTYPES[dtype])
    if is_finite(converted):
        return converted
    if not is_finite(values):
        raise DataError(
            f"the checkpoint's {name} holds non-finite values: the run has diverged; export an earlier checkpoint"
        )
    largest, end = values.abs().max().item(), torch.finfo(DTYPES[dtype]).max
    other = Precision.BF16 if dtype is Precision.FP16 else Precision.FP32
    raise ConfigError(
        f"`dtype={dtype.value}` holds values up to {end:.6g}, and {name} holds {largest:.4g}; use `dtype={other.value}`"
    )


def _write_ours(folder: Path, reader: CheckpointReader, *, vocab_size: int, dtype: Precision) -> None:
    """Write the plan, and the rows of padding, which the export itself leaves out."""
    folder.mkdir()
    (folder / PLAN_NAME).write_text(reader.plan.to_json(), encoding="utf-8")
    rows = slice(vocab_size, reader.plan.shape.padded_vocab_size)
    with ShardWriter(folder, num_tensors=len(llama.TABLES), stem=PADDING_STEM) as writer:
        for name in (name for name in llama.TABLES if name in reader.names()):
            padding = _checked(reader.read_rows(name, rows=rows), dtype=dtype, name=name)
            writer.add(name, shape=tuple(padding.shape), dtype=padding.dtype, parts=[padding])
