"""What an export is worth, measured by transformers: nats per token on given tokens, tokens per second, bytes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_ds.export.config_json import read_config
from chinchilla_ds.export.vector_folder import VectorReader, open_weights

_TIMED_TOKENS = 64
_WARM_UP_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's size, loss and speed."""

    num_bytes: int
    """Of the safetensors files."""
    loss: float | None
    """Nats per token; None where there was no text."""
    num_tokens: int
    """Tokens that the loss is over."""
    tokens_per_s: float
    """Greedy, one sequence, with a key/value cache."""


def measure(folder: Path, /, *, windows: Iterable[tuple[Tensor, Tensor]]) -> Measured:
    """Measure a folder that `export_checkpoint` or `quantize_folder` wrote.

    Args:
        folder: The export.
        windows: Tokens and the tokens after them, both [s]; each window is read by itself.
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
        num_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        loss=total / count if count else None,
        num_tokens=count,
        tokens_per_s=_tokens_per_s(model, prompt=torch.zeros(1, dtype=torch.long) if prompt is None else prompt),
    )


def load_model(folder: Path, /) -> Any:
    """Return the LlamaForCausalLM of an export; what the vector codec coded is decoded."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = read_config(folder)
    weights = open_weights(folder, config)
    if not isinstance(weights, VectorReader):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**plain)).eval()
    missing, unexpected = model.load_state_dict({name: weights.read(name) for name in weights.names()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, f"{missing} missing, {unexpected} left over"
    model.tie_weights()
    return model


def _tokens_per_s(model: Any, *, prompt: Tensor) -> float:
    context = model.config.max_position_embeddings
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
    started = time.perf_counter()
    generate(new)
    return new / (time.perf_counter() - started)
