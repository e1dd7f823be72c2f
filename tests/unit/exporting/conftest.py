"""Small checkpoints with random weights and a real tokenizer."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.data.tokenizing.tokenizer import SentencePieceTokenizer, train_tokenizer
from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.reference_llama import random_megatron_state
from tests.unit.data.conftest import make_documents

VOCAB_SIZE = 500
"""Not a multiple of 128, so that the tables are padded."""


@functools.cache
def english_tokenizer() -> SentencePieceTokenizer:
    """Return a byte-pair tokenizer of English words."""
    documents = [text.encode() for text in make_documents(number=200)]
    return train_tokenizer(documents, vocab_size=VOCAB_SIZE)


def small_shape(**changes: Any) -> ModelShape:
    """Return a decoder with padded tables whose sizes all differ."""
    values: dict[str, Any] = {"num_layers": 2, "ffn_hidden_size": 192, "vocab_size": VOCAB_SIZE}
    return tiny_shape(**{**values, "padded_vocab_size": 512, **changes})


MakeCheckpoint = Callable[..., CheckpointReader]


def write_random(folder: Path, shape: ModelShape, *, seed: int = 0) -> CheckpointReader:
    """Write a checkpoint of a shape with random weights, in a run of its own below a folder."""
    plan = tiny_plan(shape=shape)
    assert plan.num_params == count_parameters(shape=plan.shape).total
    english_tokenizer().save(folder / "tokenizer.model")
    checkpoint = write_checkpoint(
        folder / f"run-{seed}" / "checkpoints" / "step_0000000",
        plan=plan,
        ds_config=ds_config.emit(plan),
        weights=random_megatron_state(plan.shape, seed=seed).items(),
        tokenizer=folder / "tokenizer.model",
    )
    return CheckpointReader.open(checkpoint)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Return what makes a checkpoint of a shape with random weights."""

    def make(shape: ModelShape | None = None, *, seed: int = 0) -> CheckpointReader:
        return write_random(tmp_path, shape or small_shape(), seed=seed)

    return make
