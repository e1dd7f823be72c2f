"""The mapping between rows of Megatron's weights and weights of an exported model: `weights.TABLE` for a shape.

An exported model's weights are rows of the decoder's, so that nothing is computed and both directions are exact. The
decoder's embedding tables are padded; exported ones end with the vocabulary. Both sides rotate channel i with channel
i + d/2, so query and key rows keep their order within a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.weights import EMBEDDING, OUTPUT, WeightKind, named_kinds

TABLES = (EMBEDDING.name, OUTPUT.name)
"""Weights with one row per token."""


@dataclass(frozen=True, kw_only=True)
class LlamaWeight:
    """A weight of Llama, and the rows of the Megatron weight that form it."""

    name: str
    """Llama's."""
    rows: tuple[slice, ...]
    """In Llama's order; each slice has a start and a stop."""

    @property
    def num_rows(self) -> int:
        """Number of rows of Llama's weight."""
        return sum(part.stop - part.start for part in self.rows)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight of the undivided GPTModel."""

    name: str
    """Megatron's."""
    shape: tuple[int, ...]
    pieces: tuple[LlamaWeight, ...]
    """Llama's weights that together are all of it except rows of padding."""


def weights(shape: ModelShape, /, *, vocab_size: int) -> Iterator[Weight]:
    """Yield each weight of a decoder, in the order of the computation.

    Args:
        shape: The decoder.
        vocab_size: Rows of the exported embedding table, at most `padded_vocab_size`.
    """
    for name, kind, layer in named_kinds(shape):
        prefix = f"model.layers.{layer}." if kind.in_layers else ""
        pieces = tuple(
            LlamaWeight(name=f"{prefix}{module}.weight", rows=_rows(kind, rows(shape), vocab_size=vocab_size))
            for module, rows in kind.exported.items()
        )
        yield Weight(name=name, shape=kind.shape(shape), pieces=pieces)


def _rows(kind: WeightKind, rows: tuple[slice, ...], *, vocab_size: int) -> tuple[slice, ...]:
    return (slice(0, vocab_size),) if kind.name in TABLES else rows
