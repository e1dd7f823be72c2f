"""A trained model, ready for use: weights, tokenizer and context from a run's folder or a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chinchilla_ds.checkpoint.folded import FoldedReader
from chinchilla_ds.checkpoint.folder import run_folder_of
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.distributed.devices import device_type
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.inference.decoder import InferenceDecoder
from chinchilla_ds.inference.load import load_decoder
from chinchilla_ds.inference.ranks import ModelRanks
from chinchilla_ds.model.dtypes import DTYPES
from chinchilla_ds.run_plan import Precision


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """An open checkpoint; `load` reads its weights."""

    reader: FoldedReader
    tokenizer: Tokenizer

    @classmethod
    def open(cls, path: Path, /) -> "TrainedModel":
        """Open the newest checkpoint of a run's folder, or a checkpoint itself.

        Raises:
            CheckpointError: there is none, it holds no tokenizer, or a different one from that of training.
            DataError: its tokenizer cannot be read.
        """
        reader = FoldedReader.open(path)
        if reader.tokenizer_path is None:
            raise CheckpointError(
                f"{reader.folder} holds no tokenizer, neither tokenizer.model nor tokenizer/; copy the one of its "
                "training text there"
            )
        tokenizer = Tokenizer.load(reader.tokenizer_path, home=reader.folder)
        known = reader.state.tokenizer_sha256
        # version 0.1.0 recorded the last one for imports
        if known is not None and known not in (tokenizer.sha256, tokenizer.text_sha256):
            raise CheckpointError(
                f"{reader.tokenizer_path} is not the tokenizer of the training text: its SHA-256 is "
                f"{tokenizer.sha256[:12]}..., and the checkpoint was trained with {known[:12]}...; replace it"
            )
        if tokenizer.vocab_size > (rows := reader.plan.shape.padded_vocab_size):
            raise CheckpointError(
                f"{reader.tokenizer_path} has {tokenizer.vocab_size} tokens, and the model's embedding has {rows} "
                "rows: it is not the tokenizer of the training text; replace it with that one"
            )
        return cls(reader=reader, tokenizer=tokenizer)

    @property
    def run_folder(self) -> Path:
        """The folder of the run that wrote the checkpoint, or the parent folder of a checkpoint outside a run."""
        return run_folder_of(self.reader.folder)

    @property
    def context_tokens(self) -> int:
        """The model's context: the longest sequence that it was trained on, in tokens."""
        return self.reader.plan.shape.seq_length

    def load(
        self, *, ranks: ModelRanks, precision: Precision | None = None, device: torch.device | None = None
    ) -> InferenceDecoder:
        """Return this rank's stage of the decoder.

        Args:
            ranks: The layout for inference, independent of that of training.
            precision: Type of weights and activations; None: fp32 on the CPU, that of training on a GPU.
            device: Where the weights go; None: this rank's GPU, or the CPU if there is none.
        """
        place = device or default_device()
        chosen = precision or (self.reader.plan.precision if place.type == "cuda" else Precision.FP32)
        return load_decoder(self.reader, ranks=ranks, eod_id=self.tokenizer.eod_id, dtype=DTYPES[chosen], device=place)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the tokens of a prompt, which begins as documents do: with the tokenizer's BOS, if it has one.

        Otherwise an empty prompt is an end-of-document token, after which a new document begins.
        """
        tokens, bos = self.tokenizer.encode(prompt), self.tokenizer.bos_id
        if bos is not None:
            return [bos, *tokens]
        return tokens or [self.tokenizer.eod_id]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model whose weights are in memory."""

    trained: TrainedModel
    """The checkpoint and the tokenizer."""
    decoder: InferenceDecoder


def default_device() -> torch.device:
    """Return this rank's GPU, or the CPU if there is none.

    Raises:
        LayoutError: there is a GPU that torch cannot use.
    """
    return torch.device("cuda", torch.cuda.current_device()) if device_type() == "cuda" else torch.device("cpu")


def new_tokens_within(
    context_tokens: int, *, prompts: Sequence[Sequence[int]], max_new_tokens: int | None, default: int
) -> int:
    """Return the largest number of tokens to draw: what was requested, or `default` within the context.

    Args:
        context_tokens: The model's context.
        prompts: Tokens of each prompt.
        max_new_tokens: Requested number of tokens; None: not set.
        default: Number of tokens if none is requested.

    Raises:
        ConfigError: a prompt fills the context, or the longest one leaves no room for what was requested.
    """
    problems = [
        f"prompt {number} has {len(prompt)} tokens, and the model's context has {context_tokens}; shorten it to at "
        f"most {context_tokens - 1}"
        for number, prompt in enumerate(prompts, start=1)
        if len(prompt) >= context_tokens
    ]
    if problems:
        raise ConfigError(problems)
    longest = max(map(len, prompts))
    room = context_tokens - longest
    if max_new_tokens is None:
        return min(default, room)
    if max_new_tokens > room:
        raise ConfigError(
            f"`max_new_tokens={max_new_tokens}` after a prompt of {longest} tokens exceeds the model's context of "
            f"{context_tokens} tokens; at most {room} fit"
        )
    return max_new_tokens
