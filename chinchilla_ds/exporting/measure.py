"""Quality and speed of an export, measured with transformers: nats per token on given tokens, and tokens per second."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_ds.exporting.config_json import read_config
from chinchilla_ds.exporting.vector_folder import VectorReader, open_weights

_TIMED_TOKENS = 64
_WARM_UP_TOKENS = 4
_TIMED_RUNS = 3
"""Repetitions, of which the fastest is reported: other processes can only slow one down."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's loss and speed."""

    loss: float | None
    """In nats per token; None without text."""
    num_tokens: int
    """Number of tokens that the loss averages over."""
    tokens_per_s: float
    """Speed of greedy generation of one sequence with a key/value cache."""


def measure(folder: Path, /, *, windows: Iterable[tuple[Tensor, Tensor]]) -> Measured:
    """Measure a folder that `export_checkpoint` or `quantize_folder` wrote.

    Args:
        folder: The export.
        windows: Tokens and their labels, both [s]; each window is read separately.
    """
    model = load_model(folder)
    total, count, prompt = 0.0, 0, None
    with torch.no_grad():
        for tokens, labels in windows:
            prompt = tokens if prompt is None else prompt
            logits = model(tokens[None]).logits[0].float()
            total += float(F.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return Measured(
        loss=total / count if count else None,
        num_tokens=count,
        tokens_per_s=_tokens_per_s(model, prompt=torch.zeros(1, dtype=torch.long) if prompt is None else prompt),
    )


def load_model(folder: Path, /) -> Any:
    """Return an export as a transformers model; weights coded by the vector codec are decoded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_config(folder)
    weights = open_weights(folder, config)
    if not isinstance(weights, VectorReader):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain), dtype=torch.float32).eval()
    state = {name: weights.read(name) for name in weights.names()}
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def _tokens_per_s(model: Any, *, prompt: Tensor) -> float:
    context: int = model.config.max_position_embeddings
    new = max(1, min(_TIMED_TOKENS, context // 2))
    inputs = prompt[None, : max(1, context - new - 1)]

    def generate(number: int) -> None:
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
            pad_token_id=0,
        )

    generate(min(new, _WARM_UP_TOKENS))
    seconds: list[float] = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        generate(new)
        seconds.append(time.perf_counter() - started)
    return new / min(seconds)
