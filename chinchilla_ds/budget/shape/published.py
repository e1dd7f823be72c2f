"""Published decoders by name, as shapes of this package's decoder.

All are built with RMSNorm, SwiGLU, rotary positions, no biases and the same initialisation; only the sizes are theirs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from chinchilla_ds.budget.shape.search import initial_std, pad_vocab
from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.run_plan import DecoderSwitches, ModelShape


@dataclass(frozen=True, kw_only=True)
class NamedShape:
    """The sizes of a published model."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    source: str
    rotary_base: float = 10000.0


NAMED_SHAPES: Mapping[str, NamedShape] = {
    # GELU blocks of width 4 h become SwiGLU blocks of the same weights, 8/3 h, to a multiple of 256 (arXiv:2002.05202).
    "chinchilla-70b": NamedShape(
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=21760,
        num_attention_heads=64,
        num_query_groups=64,
        kv_channels=128,
        vocab_size=32000,
        source="Hoffmann et al. 2022 (arXiv:2203.15556), table 4, without the 5.4B parameters of its relative "
        "positions; FFN of 4 h GELU as SwiGLU of the same weights",
    ),
    "gpt-3-175b": NamedShape(
        num_layers=96,
        hidden_size=12288,
        ffn_hidden_size=32768,
        num_attention_heads=96,
        num_query_groups=96,
        kv_channels=128,
        vocab_size=50257,
        source="Brown et al. 2020 (arXiv:2005.14165), table 2.1; FFN of 4 h GELU as SwiGLU of the same weights",
    ),
    "llama-2-7b": NamedShape(
        num_layers=32,
        hidden_size=4096,
        ffn_hidden_size=11008,
        num_attention_heads=32,
        num_query_groups=32,
        kv_channels=128,
        vocab_size=32000,
        source="Touvron et al. 2023 (arXiv:2307.09288) and the released config.json",
    ),
    "llama-2-70b": NamedShape(
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=28672,
        num_attention_heads=64,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=32000,
        source="Touvron et al. 2023 (arXiv:2307.09288) and the released config.json",
    ),
    "llama-3-8b": NamedShape(
        num_layers=32,
        hidden_size=4096,
        ffn_hidden_size=14336,
        num_attention_heads=32,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=128256,
        rotary_base=500000.0,
        source="Dubey et al. 2024 (arXiv:2407.21783), table 3",
    ),
    "llama-3-70b": NamedShape(
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=28672,
        num_attention_heads=64,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=128256,
        rotary_base=500000.0,
        source="Dubey et al. 2024 (arXiv:2407.21783), table 3",
    ),
    "llama-3-405b": NamedShape(
        num_layers=126,
        hidden_size=16384,
        ffn_hidden_size=53248,
        num_attention_heads=128,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=128256,
        rotary_base=500000.0,
        source="Dubey et al. 2024 (arXiv:2407.21783), table 3",
    ),
}


def named_shape(name: str, /) -> NamedShape:
    """Return the published shape of that name, ignoring case.

    Raises:
        ConfigError: there is none.
    """
    named = NAMED_SHAPES.get(name.lower())
    if named is None:
        near = did_you_mean(name.lower(), NAMED_SHAPES)
        raise ConfigError(f"`shape` ({name!r}) must be one of {', '.join(NAMED_SHAPES)}{near}")
    return named


def decoder_of(
    named: NamedShape, /, *, seq_length: int, vocab_size: int | None, switches: DecoderSwitches
) -> ModelShape:
    """Return our decoder in those sizes.

    Args:
        named: The published model.
        seq_length: Tokens per training sequence.
        vocab_size: Tokenizer pieces; None: as published.
        switches: The decoder's switches; those of the published model are ignored.
    """
    sizes = {field.name: getattr(named, field.name) for field in dataclasses.fields(named) if field.name != "source"}
    sizes["vocab_size"] = vocab_size or named.vocab_size
    return ModelShape(
        **sizes,
        padded_vocab_size=pad_vocab(vocab_size=sizes["vocab_size"]),
        seq_length=seq_length,
        **switches.switches(),
        init_std=initial_std(hidden_size=named.hidden_size),
    )
