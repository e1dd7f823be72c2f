"""Small models for the tests of inference and evaluation: random weights under Megatron's names, held in memory."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla_ds.checkpoint.folder import checkpoint_name
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.data.tokenizing.tokenizer import SentencePieceTokenizer, train_tokenizer
from chinchilla_ds.inference.decoder import InferenceDecoder
from chinchilla_ds.inference.load import load_decoder
from chinchilla_ds.inference.ranks import ModelRanks
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.reference_llama import ReferenceLlama, load_from_megatron_state, random_megatron_state

EOD_ID = 1


class StateReader:
    """Reads weights out of a dictionary, as a CheckpointReader reads them out of files."""

    def __init__(self, plan: RunPlan, state: dict[str, Tensor]) -> None:
        self.plan, self.state = plan, state

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.state[name].shape)

    def read(self, name: str) -> Tensor:
        return self.state[name]

    def read_rows(self, name: str, *, rows: slice) -> Tensor:
        return self.state[name][rows]


def reader(*, document_mask: bool = False, seed: int = 0, **shape: Any) -> StateReader:
    """Return random weights of a tiny shape; `shape` are fields of ModelShape."""
    plan = dataclasses.replace(tiny_plan(shape=tiny_shape(**shape)), document_mask=document_mask)
    return StateReader(plan, random_megatron_state(plan.shape, seed=seed))


def decoder_of(weights: StateReader, *, ranks: ModelRanks | None = None, **more: Any) -> InferenceDecoder:
    return load_decoder(weights, ranks=ranks or ModelRanks(), eod_id=EOD_ID, **more)


def reference_of(weights: StateReader) -> ReferenceLlama:
    model = ReferenceLlama(weights.plan.shape)
    load_from_megatron_state(model, weights.state)
    return model


def random_tokens(number: int, *, length: int, vocab_size: int = 256, seed: int = 0) -> Tensor:
    """Return tokens [number, length], none of them an end of document."""
    return torch.randint(2, vocab_size, (number, length), generator=torch.Generator().manual_seed(seed))


def small_tokenizer(*, vocab_size: int = 400) -> SentencePieceTokenizer:
    words = "def return import class self value number name list the of and to in is that for with as on"
    texts = [f"{a} {b} {a}_{b}(x) = {number}\n" for number in range(4) for a in words.split() for b in words.split()]
    return train_tokenizer([text.encode() for text in texts], vocab_size=vocab_size)


def write_run(folder: Path, weights: StateReader, *, tokenizer: SentencePieceTokenizer | None) -> Path:
    """Write weights as the one checkpoint of a run's folder, which is returned."""
    file = None
    if tokenizer is not None:
        file = folder.with_name(f"{folder.name}.tokenizer.model")
        tokenizer.save(file)
    write_checkpoint(
        folder / "checkpoints" / checkpoint_name(0),
        plan=weights.plan,
        ds_config={},
        weights=weights.state.items(),
        tokenizer=file,
    )
    return folder
