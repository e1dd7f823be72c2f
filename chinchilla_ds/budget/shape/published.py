"""Published decoders by name, as shapes of this package's decoder.

All become RMSNorm, SwiGLU, rotary positions, no biases and the same initialisation: only the sizes and the switches of
`DecoderSwitches` are theirs. Newer models are listed where they are such a decoder. These are not: OLMo 2 and 3 (norms
after each block, QK-norm over all heads together), SmolLM3 (no positions in every fourth layer), Gemma (GeGLU, scaled
embeddings, windows of attention), Qwen2.5 (biases).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from chinchilla_ds.budget.shape.search import initial_std, pad_vocab
from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.run_plan import DecoderSwitches, ModelShape


@dataclass(frozen=True, kw_only=True)
class NamedShape(DecoderSwitches):
    """The sizes of a published model, and what it switches on."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    source: str
    rotary_base: float = 10000.0


def _qwen3(*, layers: int, hidden: int, ffn: int, heads: int, tied: bool) -> NamedShape:
    return NamedShape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=151936,
        rotary_base=1000000.0,
        tied_embeddings=tied,
        qk_norm=True,
        source="Qwen Team 2025 (arXiv:2505.09388), table 1, and the released config.json",
    )


def _smollm2(*, layers: int, hidden: int, ffn: int, groups: int, rotary_base: float) -> NamedShape:
    return NamedShape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=hidden // 64,
        num_query_groups=groups,
        kv_channels=64,
        vocab_size=49152,
        rotary_base=rotary_base,
        tied_embeddings=True,
        source="Allal et al. 2025 (arXiv:2502.02737), and the released config.json",
    )


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
    # Llama 3.2 extends its context by scaled rotary positions; pretraining at 8192 tokens rotates as this decoder does.
    "llama-3.2-1b": NamedShape(
        num_layers=16,
        hidden_size=2048,
        ffn_hidden_size=8192,
        num_attention_heads=32,
        num_query_groups=8,
        kv_channels=64,
        vocab_size=128256,
        rotary_base=500000.0,
        tied_embeddings=True,
        source="the released config.json of Llama 3.2 1B",
    ),
    "llama-3.2-3b": NamedShape(
        num_layers=28,
        hidden_size=3072,
        ffn_hidden_size=8192,
        num_attention_heads=24,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=128256,
        rotary_base=500000.0,
        tied_embeddings=True,
        source="the released config.json of Llama 3.2 3B",
    ),
    "qwen3-0.6b": _qwen3(layers=28, hidden=1024, ffn=3072, heads=16, tied=True),
    "qwen3-1.7b": _qwen3(layers=28, hidden=2048, ffn=6144, heads=16, tied=True),
    "qwen3-4b": _qwen3(layers=36, hidden=2560, ffn=9728, heads=32, tied=True),
    "qwen3-8b": _qwen3(layers=36, hidden=4096, ffn=12288, heads=32, tied=False),
    "qwen3-14b": _qwen3(layers=40, hidden=5120, ffn=17408, heads=40, tied=False),
    "qwen3-32b": _qwen3(layers=64, hidden=5120, ffn=25600, heads=64, tied=False),
    "smollm2-135m": _smollm2(layers=30, hidden=576, ffn=1536, groups=3, rotary_base=100000.0),
    "smollm2-360m": _smollm2(layers=32, hidden=960, ffn=2560, groups=5, rotary_base=100000.0),
    "smollm2-1.7b": _smollm2(layers=24, hidden=2048, ffn=8192, groups=32, rotary_base=130000.0),
    "tinyllama-1.1b": NamedShape(
        num_layers=22,
        hidden_size=2048,
        ffn_hidden_size=5632,
        num_attention_heads=32,
        num_query_groups=4,
        kv_channels=64,
        vocab_size=32000,
        source="Zhang et al. 2024 (arXiv:2401.02385), table 2, and the released config.json",
    ),
}

SAME_SIZES: Mapping[str, str] = {
    "llama-3.1-8b": "llama-3-8b",
    "llama-3.1-70b": "llama-3-70b",
    "llama-3.1-405b": "llama-3-405b",
    "llama-3.3-70b": "llama-3-70b",
}
"""Later models, and the entries whose sizes they have."""


def named_shape(name: str, /) -> NamedShape:
    """Return the published shape of that name, ignoring case.

    Raises:
        ConfigError: there is none.
    """
    named = NAMED_SHAPES.get(SAME_SIZES.get(name.lower(), name.lower()))
    if named is None:
        names = sorted([*NAMED_SHAPES, *SAME_SIZES])
        raise ConfigError(f"`shape` ({name!r}) must be one of {', '.join(names)}{did_you_mean(name.lower(), names)}")
    return named


def decoder_of(
    named: NamedShape, /, *, seq_length: int, vocab_size: int | None, switches: DecoderSwitches
) -> ModelShape:
    """Return our decoder in those sizes.

    Args:
        named: The published model.
        seq_length: Tokens per training sequence.
        vocab_size: Tokenizer pieces; None: as published.
        switches: What is switched on besides that of the published model.
    """
    sizes = {field.name: getattr(named, field.name) for field in dataclasses.fields(named) if field.name != "source"}
    sizes |= {name: on or sizes[name] for name, on in switches.switches().items()}
    sizes["vocab_size"] = vocab_size or named.vocab_size
    return ModelShape(
        **sizes,
        padded_vocab_size=pad_vocab(vocab_size=sizes["vocab_size"]),
        seq_length=seq_length,
        init_std=initial_std(hidden_size=named.hidden_size),
    )
