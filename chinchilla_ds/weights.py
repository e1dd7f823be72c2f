"""The table of the decoder's weights: name, shape, tensor-parallel split, weight decay and initialisation of each.

`TABLE` has a row per kind of weight. All code that refers to weights by name reads it: initialisation, the optimizer's
groups, checkpoints, the decoder for inference, exports, and the counts of parameters, FLOPs and memory. A new weight is
a new row, and a line in each of the two decoders that compute with it (docs/add-a-model-variant.md).

Sizes: h hidden_size, n attention heads, g query groups, d kv_channels, f ffn_hidden_size, v padded_vocab_size.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from chinchilla_ds.run_plan import ModelShape

Rows = tuple[slice, ...]
"""Rows of a weight, in the order of the exported weight; each slice has a start and a stop."""
_LAYER = "decoder.layers."


@dataclass(frozen=True, kw_only=True)
class Split:
    """How tensor parallelism splits a weight: each rank gets an equal part of every run along `dim`."""

    dim: int
    runs: int = 1
    """Number of equal runs of the dimension, each of which is split separately."""

    def parts(self, length: int, *, rank: int, world_size: int) -> Rows:
        """Return the slices along `dim` of the whole weight that make up a rank's part, in their order within the part.

        Args:
            length: Length of the whole weight along `dim`.
            rank: Tensor-parallel rank.
            world_size: Tensor-parallel size.
        """
        run, part = length // self.runs, length // (self.runs * world_size)
        starts = (number * run + rank * part for number in range(self.runs))
        return tuple(slice(start, start + part) for start in starts)


ROWS = Split(dim=0)
COLUMNS = Split(dim=1)
HALVES = Split(dim=0, runs=2)
"""The weight is [gate; up], and each rank needs [its gate; its up]."""


class Initialization(StrEnum):
    """The initial values of a weight."""

    NORMAL = "normal"
    """Normal, with the shape's init_std."""
    RESIDUAL = "residual"
    """Normal, with init_std / sqrt(2 num_layers): for projections into the residual stream."""
    ONE = "one"


Holds = Callable[[ModelShape, bool, bool], bool]
"""Returns whether a pipeline stage holds a weight, from the shape and whether the stage is the first or the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightKind:
    """A row of the table: one weight, or one weight of every layer."""

    name: str
    """Name in an undivided GPTModel of Megatron-core; for a layer's weight, the part after the layer's number."""
    shape: Callable[[ModelShape], tuple[int, ...]]
    """Returns the shape of the whole weight for a decoder."""
    in_layers: bool = False
    """Whether every layer has one."""
    is_held: Holds | None = None
    """Which pipeline stages hold it, or, for a layer's weight, whether the decoder's layers have it; None: all do."""
    split: Split | None = None
    """How tensor parallelism splits it; None: every rank has all of it."""
    initialization: Initialization = Initialization.NORMAL
    is_decayed: bool = True
    """Whether the optimizer's weight decay applies."""
    exported: Mapping[str, Callable[[ModelShape], Rows]]
    """Weights of an exported Llama or Qwen3, and the rows of this weight that form each: all rows except padding.
    Names lack `.weight`; for a layer's weight they are the part after the layer's number."""

    @property
    def attribute(self) -> str:
        """Name of the weight's module."""
        return self.name.split(".")[-2]

    def full_name(self, layer: int) -> str:
        """Return the weight's name in an undivided GPTModel; `layer` counts from 0, and matters only within layers."""
        return f"{_LAYER}{layer}.{self.name}" if self.in_layers else self.name

    def local_shape(self, shape: ModelShape, *, tensor: int) -> tuple[int, ...]:
        """Return the shape of a rank's part under tensor_model_parallel_size `tensor`."""
        local = list(self.shape(shape))
        if self.split is not None:
            local[self.split.dim] //= tensor
        return tuple(local)

    def std(self, shape: ModelShape) -> float | None:
        """Return the standard deviation of the initial values; None: they are all 1.

        Source: Radford et al. 2019, section 2.3, for projections into the residual stream; Megatron-LM's
        scaled_init_method_normal.
        """
        if self.initialization is Initialization.ONE:
            return None
        is_residual = self.initialization is Initialization.RESIDUAL
        return shape.init_std / (math.sqrt(2 * shape.num_layers) if is_residual else 1.0)


# ---- rows of the weights that an export splits up --------------------------------------------------------------------


def _group(shape: ModelShape) -> tuple[int, int, int]:
    """Return the number of rows of a group's queries, of its key or value, and of the whole group."""
    queries, d = shape.num_attention_heads // shape.num_query_groups * shape.kv_channels, shape.kv_channels
    return queries, d, queries + 2 * d


def _query_rows(shape: ModelShape) -> Rows:
    queries, _, stride = _group(shape)
    return tuple(slice(group * stride, group * stride + queries) for group in range(shape.num_query_groups))


def _key_rows(shape: ModelShape) -> Rows:
    queries, d, stride = _group(shape)
    starts = (group * stride + queries for group in range(shape.num_query_groups))
    return tuple(slice(start, start + d) for start in starts)


def _value_rows(shape: ModelShape) -> Rows:
    return tuple(slice(keys.stop, keys.stop + shape.kv_channels) for keys in _key_rows(shape))


def _gate_rows(shape: ModelShape) -> Rows:
    return (slice(0, shape.ffn_hidden_size),)


def _up_rows(shape: ModelShape) -> Rows:
    return (slice(shape.ffn_hidden_size, 2 * shape.ffn_hidden_size),)


def _hidden_rows(shape: ModelShape) -> Rows:
    return (slice(0, shape.hidden_size),)


def _table_rows(shape: ModelShape) -> Rows:
    return (slice(0, shape.padded_vocab_size),)


# ---- the table -------------------------------------------------------------------------------------------------------


def _vector(shape: ModelShape) -> tuple[int, ...]:
    return (shape.hidden_size,)


def _channels(shape: ModelShape) -> tuple[int, ...]:
    return (shape.kv_channels,)


def _tokens(shape: ModelShape) -> tuple[int, ...]:
    return (shape.padded_vocab_size, shape.hidden_size)


def _embeds(shape: ModelShape, is_first: bool, is_last: bool) -> bool:
    """If the tables are tied, the last stage needs the embedding for its logits."""
    return is_first or (is_last and shape.tied_embeddings)


def _makes_logits(shape: ModelShape, _is_first: bool, is_last: bool) -> bool:
    return is_last and not shape.tied_embeddings


def _on_last(_shape: ModelShape, _is_first: bool, is_last: bool) -> bool:
    return is_last


def _has_qk_norm(shape: ModelShape, _is_first: bool, _is_last: bool) -> bool:
    return shape.qk_norm


def _norm(name: str, exported: str, *, in_layers: bool = True, is_held: Holds | None = None) -> WeightKind:
    return WeightKind(
        name=name,
        shape=_vector,
        in_layers=in_layers,
        is_held=is_held,
        initialization=Initialization.ONE,
        is_decayed=False,
        exported={exported: _hidden_rows},
    )


def _head_norm(name: str, exported: str) -> WeightKind:
    """Shared by all heads of queries, or of keys: every tensor-parallel rank has it, for its own heads."""
    return WeightKind(
        name=name,
        shape=_channels,
        in_layers=True,
        is_held=_has_qk_norm,
        initialization=Initialization.ONE,
        is_decayed=False,
        exported={exported: lambda shape: (slice(0, shape.kv_channels),)},
    )


EMBEDDING = WeightKind(
    name="embedding.word_embeddings.weight",
    shape=_tokens,
    is_held=_embeds,
    split=ROWS,
    exported={"model.embed_tokens": _table_rows},
)
OUTPUT = WeightKind(
    name="output_layer.weight",
    shape=_tokens,
    is_held=_makes_logits,
    split=ROWS,
    exported={"lm_head": _table_rows},
)
DOWN_PROJECTION = WeightKind(
    name="mlp.linear_fc2.weight",
    shape=lambda shape: (shape.hidden_size, shape.ffn_hidden_size),
    in_layers=True,
    split=COLUMNS,
    initialization=Initialization.RESIDUAL,
    exported={"mlp.down_proj": _hidden_rows},
)

TABLE = (
    EMBEDDING,
    _norm("input_layernorm.weight", "input_layernorm"),
    WeightKind(
        # interleaved by query group, [queries, key, value] for each: a contiguous split gives whole groups
        name="self_attention.linear_qkv.weight",
        shape=lambda shape: (
            (shape.num_attention_heads + 2 * shape.num_query_groups) * shape.kv_channels,
            shape.hidden_size,
        ),
        in_layers=True,
        split=ROWS,
        exported={"self_attn.q_proj": _query_rows, "self_attn.k_proj": _key_rows, "self_attn.v_proj": _value_rows},
    ),
    _head_norm("self_attention.q_layernorm.weight", "self_attn.q_norm"),
    _head_norm("self_attention.k_layernorm.weight", "self_attn.k_norm"),
    WeightKind(
        name="self_attention.linear_proj.weight",
        shape=lambda shape: (shape.hidden_size, shape.num_attention_heads * shape.kv_channels),
        in_layers=True,
        split=COLUMNS,
        initialization=Initialization.RESIDUAL,
        exported={"self_attn.o_proj": _hidden_rows},
    ),
    _norm("pre_mlp_layernorm.weight", "post_attention_layernorm"),
    WeightKind(
        name="mlp.linear_fc1.weight",
        shape=lambda shape: (2 * shape.ffn_hidden_size, shape.hidden_size),
        in_layers=True,
        split=HALVES,
        exported={"mlp.gate_proj": _gate_rows, "mlp.up_proj": _up_rows},
    ),
    DOWN_PROJECTION,
    _norm("decoder.final_layernorm.weight", "model.norm", in_layers=False, is_held=_on_last),
    OUTPUT,
)
"""All weights that a decoder can have, in the order of the computation."""
_BY_NAME = {kind.name: kind for kind in TABLE}


# ---- which layers a pipeline stage holds -----------------------------------------------------------------------------


def chunk_layers(*, num_layers: int, pipeline: int, virtual: int = 1) -> tuple[int, ...]:
    """Return the layers of every model chunk, in the order of the computation; stage i has chunks i, i + pipeline, ...

    Chunks are equal where their number divides the layers. Otherwise as many as needed have one layer less than the
    others: first the last, which makes the logits, then the first, which embeds, then the last but one, the second, and
    so on.

    Args:
        num_layers: Layers of the decoder.
        pipeline: pipeline_model_parallel_size.
        virtual: Model chunks per stage; `budget.layout.rules` says which there can be.

    Source: Llama 3 (arXiv:2407.21783), section 3.3.2: 126 layers on 16 stages, the first and the last of which have one
    layer less.
    """
    chunks = pipeline * virtual
    most = -(-num_layers // chunks)
    fewer = chunks * most - num_layers
    at_start = fewer // 2
    full = range(at_start, chunks - (fewer - at_start))
    return tuple(most - (chunk not in full) for chunk in range(chunks))


def stage_layers(*, num_layers: int, pipeline: int) -> tuple[int, ...]:
    """Return the layers of every pipeline stage, first to last, in however many chunks each has them.

    Args:
        num_layers: Layers of the decoder.
        pipeline: pipeline_model_parallel_size.
    """
    return chunk_layers(num_layers=num_layers, pipeline=pipeline)


# ---- reading it ------------------------------------------------------------------------------------------------------


def kind_of(name: str, /) -> WeightKind | None:
    """Return the row of the weight with this name in an undivided GPTModel; None: the decoder has no such weight."""
    if name.startswith(_LAYER):
        _, _, suffix = name.removeprefix(_LAYER).partition(".")
        kind = _BY_NAME.get(suffix)
        return kind if kind is not None and kind.in_layers else None
    kind = _BY_NAME.get(name)
    return None if kind is None or kind.in_layers else kind


def held_kinds(shape: ModelShape, *, is_first: bool = True, is_last: bool = True) -> list[WeightKind]:
    """Return the rows of the weights that a pipeline stage holds; by default those of a single stage, which holds all.

    Args:
        shape: The decoder.
        is_first: Whether the stage embeds the tokens.
        is_last: Whether it computes the logits.
    """
    return [kind for kind in TABLE if kind.is_held is None or kind.is_held(shape, is_first, is_last)]


def named_kinds(shape: ModelShape, /) -> Iterator[tuple[str, WeightKind, int]]:
    """Yield name, row and layer number (0 outside the layers) of each weight, in the order of the computation."""
    for in_layers, group in itertools.groupby(held_kinds(shape), key=lambda kind: kind.in_layers):
        kinds = tuple(group)
        for layer in range(shape.num_layers if in_layers else 1):
            yield from ((kind.full_name(layer), kind, layer) for kind in kinds)
