"""`config.json` of `transformers.LlamaForCausalLM`, from a ModelShape and to one."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.shapes import pad_vocab
from chinchilla_ds.errors import ConfigError, DataError, reason
from chinchilla_ds.export.vector_folder import QUANT_METHOD
from chinchilla_ds.plan import ModelShape, Precision

CONFIG_NAME = "config.json"
ARCHITECTURE = "LlamaForCausalLM"
DTYPE_NAMES = {Precision.FP32: "float32", Precision.BF16: "bfloat16", Precision.FP16: "float16"}
"""What Hugging Face calls a precision."""

_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def config_of(shape: ModelShape, /, *, vocab_size: int, eod_id: int, dtype: Precision) -> dict[str, Any]:
    """Return the configuration that makes LlamaForCausalLM the decoder of `shape`."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_query_groups,
        "head_dim": shape.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": shape.seq_length,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rotary_base,  # what vLLM and llama.cpp read; transformers 5 reads rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rotary_base},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied_embeddings,
        "initializer_range": shape.init_std,
        "bos_token_id": None,  # Llama's own defaults are tokens 1 and 2
        "eos_token_id": eod_id,
        "pad_token_id": None,
        "use_cache": True,
        "dtype": DTYPE_NAMES[dtype],
    }


def read_config(folder: Path, /) -> dict[str, Any]:
    """Return the `config.json` of a Hugging Face folder.

    Raises:
        DataError: there is none, or it is no JSON object.
    """
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder} is no Hugging Face model: {CONFIG_NAME}: {reason(error)}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object")
    return values


def shape_of(config: Mapping[str, Any], /, *, place: str) -> ModelShape:
    """Return the decoder that a Llama configuration describes.

    Args:
        config: What `read_config` returned.
        place: How messages name it.

    Raises:
        ConfigError: it is no Llama, or one with a part that this decoder does not have; all such parts are named.
    """
    if problems := [f"{place}: {problem}" for problem in _unsupported(config)]:
        raise ConfigError(problems)
    heads, hidden_size = config["num_attention_heads"], config["hidden_size"]
    return ModelShape(
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden_size,
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=config.get("head_dim") or hidden_size // heads,
        vocab_size=config["vocab_size"],
        padded_vocab_size=pad_vocab(vocab_size=config["vocab_size"]),
        seq_length=config.get("max_position_embeddings", 2048),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        rotary_base=float(_rope(config).get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        init_std=float(config.get("initializer_range", 0.02)),
    )


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section on rotary positions: `rope_parameters`, or `rope_scaling` before transformers 5."""
    section = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return section if isinstance(section, dict) else {}


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield every part of a configuration that this decoder does not have; the family first, and then alone."""
    architectures = config.get("architectures") or []
    family = config.get("model_type")
    if family != "llama" or (architectures and architectures != [ARCHITECTURE]):
        named = ", ".join(map(str, architectures)) or f"model_type {family!r}"
        yield f"it is a {named}, and only {ARCHITECTURE} (model_type 'llama') can be imported"
        return
    if missing := [name for name in _REQUIRED if not isinstance(config.get(name), int)]:
        yield f"{', '.join(missing)} must be whole numbers"
        return
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            yield f"{name} is true, and this decoder has no biases"
    if (activation := config.get("hidden_act", "silu")) != "silu":
        yield f"hidden_act is {activation!r}, and this decoder's SwiGLU takes 'silu'"
    section = _rope(config)
    if (kind := section.get("rope_type") or section.get("type") or "default") != "default":
        yield f"rope_type is {kind!r}, and this decoder rotates without scaling, 'default'"
    if (share := section.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) not in (None, 1.0):
        yield f"partial_rotary_factor is {share}, and this decoder rotates every channel, 1.0"
    if (quantized := config.get("quantization_config")) and quantized.get("quant_method") != QUANT_METHOD:
        yield f"its weights are quantised ({quantized.get('quant_method')}); import the model before it was quantised"
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % groups:
        yield f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})"
    if not config.get("head_dim") and config["hidden_size"] % heads:
        yield f"hidden_size ({config['hidden_size']}) must be a multiple of num_attention_heads ({heads})"
