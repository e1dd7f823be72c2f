"""`config.json` of a model of transformers, from a ModelShape and to one."""

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
"""`quant_method` in `quantization_config` if our vector codec has coded the weights."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of transformers that compute what this decoder computes with its switches in certain positions."""

    title: str
    """Its common name."""
    model_type: str
    architecture: str
    switches: Mapping[str, bool]
    """Switches of the decoder that are the family's; the others are the model's own."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the family's own configuration says of a size that is left out, where Llama's says something else."""


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
"""The first that fits a shape is what it is exported as."""


def family_of(shape: ModelShape, /) -> Family:
    """Return the family that a decoder is exported as."""
    switches = shape.switches()
    return next(family for family in FAMILIES if all(switches[name] is on for name, on in family.switches.items()))


_Heads = Annotated[int, Ge(1), Le(2048)]
_Base = Annotated[float, Gt(0), Lt(1e15)]


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """The section on rotary positions: `rope_parameters`, or `rope_scaling` before transformers 5."""

    rope_type: str | None = None
    type: str | None = None
    """What older versions call `rope_type`."""
    rope_theta: _Base | None = None
    partial_rotary_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How weights are stored."""

    quant_method: str | None = None
    dimension: Annotated[int, Ge(1), Le(64)] | None = None
    """Our vector codec's d."""
    codebook_size: Annotated[int, Ge(2), Le(1 << 16)] | None = None
    """Our vector codec's k."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape in a `config.json`, under Llama's names; the limits are ten times the largest known values."""

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
        """The sections on rotary positions that there are, the one that goes first in front."""
        return tuple(section for section in (self.rope_parameters, self.rope_scaling) if section is not None)

    @property
    def num_groups(self) -> int:
        """Key/value heads."""
        return self.num_key_value_heads or self.num_attention_heads


def config_of(
    shape: ModelShape, /, *, vocab_size: int, token_ids: Mapping[str, Any], dtype: Precision
) -> dict[str, Any]:
    """Return the configuration that makes a model of its family the decoder of `shape`.

    Args:
        shape: The decoder.
        vocab_size: Rows of the embedding tables.
        token_ids: Those that begin, end and fill texts, all of them: Llama's own defaults are tokens 1 and 2.
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
        "rope_theta": shape.rotary_base,  # what vLLM and llama.cpp read; transformers 5 reads rope_parameters
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
        ConfigError: it is of none, or has a part that this decoder does not have; all such parts are named.
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
    """Return what is read of a configuration; everything else does not affect what the model computes.

    Raises:
        ConfigError: listing every value of another type, or out of range.
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
    """Return the family that a configuration names; a ConfigError says which there are."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    for family in FAMILIES:
        if model_type == family.model_type and (not architectures or architectures == [family.architecture]):
            return family
    names = architectures if isinstance(architectures, list) and architectures else [f"model_type {model_type!r}"]
    other = ", ".join(str(name) for name in names)[:200]
    known = " and ".join(f"{family.architecture} (model_type '{family.model_type}')" for family in FAMILIES)
    raise ConfigError(f"{place}: it is a {other}, and only {known} can be imported")


def _unsupported(llama: LlamaConfig) -> Iterator[str]:
    """Yield every part of a configuration that this decoder does not have."""
    if llama.auto_map:
        yield "it names Python code of its own (auto_map), which is never run; save it with a class of transformers"
    for name in ("attention_bias", "mlp_bias"):
        if getattr(llama, name):
            yield f"{name} is true, and this decoder has no biases"
    if llama.hidden_act != "silu":
        yield f"hidden_act is {llama.hidden_act!r}, and this decoder's SwiGLU takes 'silu'"
    for section in llama.rotary:
        if (kind := section.rope_type or section.type or "default") != "default":
            yield f"rope_type is {kind!r}, and this decoder rotates without scaling, 'default'"
    for share in (*(section.partial_rotary_factor for section in llama.rotary), llama.partial_rotary_factor):
        if share not in (None, 1.0):
            yield f"partial_rotary_factor is {share}, and this decoder rotates every channel, 1.0"
    if llama.use_sliding_window or set(llama.layer_types or ()) - {"full_attention"}:
        yield "some layers attend within a window, and this decoder's attend to all that came before"
    stored = llama.quantization_config
    if stored is not None and stored.quant_method != QUANT_METHOD:
        yield f"its weights are quantised ({stored.quant_method}); import the model before it was quantised"
    heads, groups = llama.num_attention_heads, llama.num_groups
    if heads % groups:
        yield f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})"
    if llama.head_dim is None and llama.hidden_size % heads:
        yield f"hidden_size ({llama.hidden_size}) must be a multiple of num_attention_heads ({heads})"
    if (llama.head_dim or llama.hidden_size // heads) % 2:
        yield "head_dim must be even: channels are rotated in pairs"
