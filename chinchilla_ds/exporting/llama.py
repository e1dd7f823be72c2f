"""Which rows of a Megatron weight are which weight of `transformers.LlamaForCausalLM`: one table, read both ways.

Llama's weights are those of the decoder cut by rows, so that nothing is computed and both directions are exact:

- `linear_qkv` is interleaved by query group, [queries of the group, one key, one value] for each.
- `linear_fc1` is [gate; up].
- The embedding tables are padded; Llama's end with the vocabulary.

Both rotate channel i with channel i + d/2, so query and key rows keep their order within a head.

Shapes: h hidden_size, n attention heads, g query groups, d kv_channels, f ffn_hidden_size, v padded_vocab_size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla_ds.run_plan import ModelShape

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
TABLES = (EMBEDDING, OUTPUT)
"""Weights with a row per token."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A weight of Llama, and the rows of the Megatron weight that it is made of."""

    name: str
    """Llama's."""
    rows: tuple[slice, ...]
    """In the order that Llama has them; each has a start and a stop."""

    @property
    def num_rows(self) -> int:
        """Rows of Llama's weight."""
        return sum(part.stop - part.start for part in self.rows)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight of the undivided GPTModel."""

    name: str
    """Megatron's."""
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    """All of it, but for rows of padding."""


def weights(shape: ModelShape, /, *, vocab_size: int) -> Iterator[Weight]:
    """Yield every weight of a decoder, in the order of the computation.

    Args:
        shape: The decoder.
        vocab_size: Rows of Llama's embedding table, at most `padded_vocab_size`.
    """
    h, table = shape.hidden_size, (shape.padded_vocab_size, shape.hidden_size)
    yield _cut(EMBEDDING, table, **{"model.embed_tokens": [slice(0, vocab_size)]})
    for number in range(shape.num_layers):
        yield from _layer(f"decoder.layers.{number}", f"model.layers.{number}", shape)
    yield _cut("decoder.final_layernorm.weight", (h,), **{"model.norm": [slice(0, h)]})
    if not shape.tied_embeddings:
        yield _cut(OUTPUT, table, lm_head=[slice(0, vocab_size)])


def _layer(ours: str, theirs: str, shape: ModelShape) -> Iterator[Weight]:
    h, f = shape.hidden_size, shape.ffn_hidden_size
    query_width = shape.num_attention_heads * shape.kv_channels
    yield _cut(f"{ours}.input_layernorm.weight", (h,), **{f"{theirs}.input_layernorm": [slice(0, h)]})
    yield _qkv(ours, theirs, shape)
    projection = {f"{theirs}.self_attn.o_proj": [slice(0, h)]}
    yield _cut(f"{ours}.self_attention.linear_proj.weight", (h, query_width), **projection)
    yield _cut(f"{ours}.pre_mlp_layernorm.weight", (h,), **{f"{theirs}.post_attention_layernorm": [slice(0, h)]})
    gate_up = {f"{theirs}.mlp.gate_proj": [slice(0, f)], f"{theirs}.mlp.up_proj": [slice(f, 2 * f)]}
    yield _cut(f"{ours}.mlp.linear_fc1.weight", (2 * f, h), **gate_up)
    yield _cut(f"{ours}.mlp.linear_fc2.weight", (h, f), **{f"{theirs}.mlp.down_proj": [slice(0, h)]})


def _qkv(ours: str, theirs: str, shape: ModelShape) -> Weight:
    d, groups = shape.kv_channels, shape.num_query_groups
    queries = shape.num_attention_heads // groups * d
    stride = queries + 2 * d
    starts = [group * stride for group in range(groups)]
    return _cut(
        f"{ours}.self_attention.linear_qkv.weight",
        (groups * stride, shape.hidden_size),
        **{
            f"{theirs}.self_attn.q_proj": [slice(start, start + queries) for start in starts],
            f"{theirs}.self_attn.k_proj": [slice(start + queries, start + queries + d) for start in starts],
            f"{theirs}.self_attn.v_proj": [slice(start + queries + d, start + stride) for start in starts],
        },
    )


def _cut(name: str, shape: tuple[int, ...], **pieces: list[slice]) -> Weight:
    parts = tuple(Piece(name=f"{module}.weight", rows=tuple(rows)) for module, rows in pieces.items())
    return Weight(name=name, shape=shape, pieces=parts)
