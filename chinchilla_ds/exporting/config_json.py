"""Conversion between a ModelShape and the `config.json` of a transformers model."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from chinchilla_ds.budget.shape.search import pad_vocab
from chinchilla_ds.data.named_files import find_named
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.ranges import Ge, Gt, Le, Lt
from chinchilla_ds.run_plan import ModelShape, Precision
from chinchilla_ds.structured import build, read_json

CONFIG_NAME = "config.json"
QUANT_METHOD = "chinchilla_ds_vq"
"""`quant_method` in `quantization_config` if the weights are coded by our vector codec."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A transformers model class that computes what this decoder computes with certain settings of its switches."""

    title: str
    """Common name."""
    model_type: str
    architecture: str
    switches: Mapping[str, bool]
    """The decoder's switches that the family fixes; the others vary between its models."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The family's defaults for values that a configuration leaves out, if they differ from Llama's."""


FAMILIES = (
    Family(title="Llama", model_type="llama", architecture="LlamaForCausalLM", switches={"qk_norm": False}),
    Family(
        title="Qwen3",
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        switches={"qk_norm": True},
        defaults={"head_dim": 128, "num_key_value_heads": 32},
    ),
)
"""A shape is exported as the first family that fits it."""


def family_of(shape: ModelShape, /) -> Family:
    """Return the family as which a decoder is exported."""
    switches = shape.switches()
    return next(family for family in FAMILIES if all(switches[name] is on for name, on in family.switches.items()))


_Heads = Annotated[int, Ge(1), Le(2048)]
_Base = Annotated[float, Gt(0), Lt(1e15)]


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """The section on rotary positions: `rope_parameters`, or `rope_scaling` before transformers 5."""

    rope_type: str | None = None
    type: str | None = None
    """Name of `rope_type` in older versions."""
    rope_theta: _Base | None = None
    partial_rotary_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How weights are stored."""

    quant_method: str | None = None
    dimension: Annotated[int, Ge(1), Le(64)] | None = None
    """`d` of our vector codec."""
    codebook_size: Annotated[int, Ge(2), Le(1 << 16)] | None = None
    """`k` of our vector codec."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape in a `config.json`, under Llama's names; limits are ten times the largest known values."""

    architectures: tuple[str, ...] | None = None
    model_type: str | None = None
    hidden_size: Annotated[int, Ge(1), Le(1 << 18)]
    intermediate_size: Annotated[int, Ge(1), Le(1 << 20)]
    num_hidden_layers: Annotated[int, Ge(1), Le(1024)]
    num_attention_heads: _Heads
    num_key_value_heads: _Heads | None = None
    head_dim: Annotated[int, Ge(1), Le(4096)] | None = None
    vocab_size: Annotated[int, Ge(1), Le(1 << 22)]
    max_position_embeddings: Annotated[int, Ge(1), Le(1 << 27)] = 2048
    tie_word_embeddings: bool | None = None
    hidden_act: str = "silu"
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    rms_norm_eps: Annotated[float, Gt(0), Lt(1)] = 1e-6
    initializer_range: Annotated[float, Gt(0), Lt(100)] = 0.02
    rope_theta: _Base | None = None
    rope_parameters: RotaryConfig | None = None
    rope_scaling: RotaryConfig | None = None
    partial_rotary_factor: float | None = None
    use_sliding_window: bool | None = None
    layer_types: tuple[str, ...] | None = None
    quantization_config: QuantizationConfig | None = None
    auto_map: dict[str, Any] | None = None

    @property
    def rotary(self) -> tuple[RotaryConfig, ...]:
        """The sections on rotary positions that are present, in order of precedence."""
        return tuple(section for section in (self.rope_parameters, self.rope_scaling) if section is not None)

    @property
    def num_groups(self) -> int:
        """Number of key/value heads."""
        return self.num_key_value_heads or self.num_attention_heads


def config_of(
    shape: ModelShape, /, *, vocab_size: int, token_ids: Mapping[str, Any], dtype: Precision
) -> dict[str, Any]:
    """Return the configuration of the transformers model that equals the decoder of `shape`.

    Args:
        shape: The decoder.
        vocab_size: Rows of the embedding tables.
        token_ids: BOS, EOS and padding ids, all given explicitly, since Llama's defaults are tokens 1 and 2.
        dtype: Type of the weights.
    """
    family = family_of(shape)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
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
        "rope_theta": shape.rotary_base,  # for vLLM and llama.cpp; transformers 5 reads rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rotary_base},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied_embeddings,
        "initializer_range": shape.init_std,
        **token_ids,
        "use_cache": True,
        "dtype": dtype.dtype_name,
    }


def read_config(folder: Path, /) -> dict[str, Any]:
    """Return the `config.json` of a Hugging Face folder.

    Raises:
        DataError: there is none, or it is not a JSON object.
    """
    path = find_named(folder, CONFIG_NAME)
    if path is None:
        raise DataError(f"{folder} is not a Hugging Face model: it holds no {CONFIG_NAME}")
    values = read_json(path, what="the model's", error=DataError)
    if not isinstance(values, dict):
        raise DataError(f"{folder / CONFIG_NAME} is not a JSON object")
    return values


def shape_of(config: Mapping[str, Any], /, *, place: str) -> ModelShape:
    """Return the decoder that a configuration of one of FAMILIES describes.

    Args:
        config: What `read_config` returned.
        place: Its name in messages.

    Raises:
        ConfigError: it describes another family, or parts that this decoder lacks; lists all of them.
    """
    family = _family_named_by(config, place=place)
    llama = typed({**family.defaults, **config}, place=place)
    if problems := [f"{place}: {problem}" for problem in _unsupported(llama)]:
        raise ConfigError(problems)
    values = {
        "num_layers": llama.num_hidden_layers,
        "hidden_size": llama.hidden_size,
        "ffn_hidden_size": llama.intermediate_size,
        "num_attention_heads": llama.num_attention_heads,
        "num_query_groups": llama.num_groups,
        "kv_channels": llama.head_dim or llama.hidden_size // llama.num_attention_heads,
        "vocab_size": llama.vocab_size,
        "padded_vocab_size": pad_vocab(vocab_size=llama.vocab_size),
        "seq_length": llama.max_position_embeddings,
        "tied_embeddings": bool(llama.tie_word_embeddings),
        "rotary_base": next(filter(None, [*(part.rope_theta for part in llama.rotary), llama.rope_theta]), 10000.0),
        "norm_epsilon": llama.rms_norm_eps,
        "init_std": llama.initializer_range,
    }
    shape: ModelShape = build(ModelShape, {**values, **family.switches}, where=f"{place}: the decoder's shape")
    return shape


def typed(config: Mapping[str, Any], /, *, place: str) -> LlamaConfig:
    """Return the fields of a configuration that affect what the model computes.

    Raises:
        ConfigError: lists every value that has the wrong type or is out of range.
    """
    known = _known(config, LlamaConfig)
    for name, cls in (("rope_parameters", RotaryConfig), ("rope_scaling", RotaryConfig)):
        known |= {name: _known(known[name], cls)} if isinstance(known.get(name), dict) else {}
    if isinstance(section := known.get("quantization_config"), dict):
        known["quantization_config"] = _known(section, QuantizationConfig)
    llama_config: LlamaConfig = build(LlamaConfig, known, where=place)
    return llama_config


def _known(values: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def _family_named_by(config: Mapping[str, Any], *, place: str) -> Family:
    """Return the family that a configuration names.

    Raises:
        ConfigError: it names another one; lists those that can be imported.
    """
    architectures, model_type = config.get("architectures"), config.get("model_type")
    for family in FAMILIES:
        if model_type == family.model_type and (not architectures or architectures == [family.architecture]):
            return family
    names = architectures if isinstance(architectures, list) and architectures else [f"model_type {model_type!r}"]
    other = ", ".join(str(name) for name in names)[:200]
    known = " and ".join(f"{family.architecture} (model_type '{family.model_type}')" for family in FAMILIES)
    raise ConfigError(f"{place}: it is a {other}, and only {known} can be imported")


def _unsupported(llama: LlamaConfig) -> Iterator[str]:
    """Yield each feature of a configuration that this decoder lacks."""
    if llama.auto_map:
        yield "it names its own Python code (auto_map), which is never run; save it with a class of transformers"
    for name in ("attention_bias", "mlp_bias"):
        if getattr(llama, name):
            yield f"{name} is true, and this decoder has no biases"
    if llama.hidden_act != "silu":
        yield f"hidden_act is {llama.hidden_act!r}, and this decoder's SwiGLU requires 'silu'"
    for section in llama.rotary:
        if (kind := section.rope_type or section.type or "default") != "default":
            yield f"rope_type is {kind!r}, and this decoder supports only unscaled rotary positions, 'default'"
    for share in (*(section.partial_rotary_factor for section in llama.rotary), llama.partial_rotary_factor):
        if share not in (None, 1.0):
            yield f"partial_rotary_factor is {share}, and this decoder rotates every channel, 1.0"
    if llama.use_sliding_window or set(llama.layer_types or ()) - {"full_attention"}:
        yield "some layers use sliding-window attention, and this decoder attends to all earlier tokens"
    stored = llama.quantization_config
    if stored is not None and stored.quant_method != QUANT_METHOD:
        yield f"its weights are quantised ({stored.quant_method}); import the model as it was before quantisation"
    heads, groups = llama.num_attention_heads, llama.num_groups
    if heads % groups:
        yield f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})"
    if llama.head_dim is None and llama.hidden_size % heads:
        yield f"hidden_size ({llama.hidden_size}) must be a multiple of num_attention_heads ({heads})"
    if (llama.head_dim or llama.hidden_size // heads) % 2:
        yield "head_dim must be even: channels are rotated in pairs"
