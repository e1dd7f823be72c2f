"""The key/value cache: keys and values of the tokens so far, in memory that is allocated once.

Shapes, TP-local: b prompts, g query groups / tp, l max_length, s new tokens, d kv_channels.
"""

import torch
from torch import Tensor


class KvCache:
    """One row per prompt. Shorter prompts are padded on the left, so that all rows end at the same place."""

    def __init__(
        self,
        *,
        num_layers: int,
        padding: Tensor,
        num_query_groups: int,
        max_length: int,
        kv_channels: int,
        dtype: torch.dtype,
    ) -> None:
        """Allocate the cache.

        Args:
            num_layers: Layers of this pipeline stage.
            padding: Number of padding tokens in front of each row, int64 [b]; its device is the cache's.
            num_query_groups: Query groups of this tensor-parallel rank.
            max_length: Places per row: padding, prompt and new tokens together.
            kv_channels: Width of a head.
            dtype: Type of keys and values.
        """
        shape = (len(padding), num_query_groups, max_length, kv_channels)
        self.keys = [torch.zeros(shape, dtype=dtype, device=padding.device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=padding.device) for _ in range(num_layers)]
        self.tokens = torch.zeros((len(padding), max_length), dtype=torch.int64, device=padding.device)
        """The tokens themselves, [b, l], from which document masks are made."""
        self.padding = padding
        self.is_padded = bool(padding.any())
        self.max_length = max_length
        self.length = 0
        """Number of places filled in each row."""

    def rewind(self, length: int) -> None:
        """Discard all places from `length` onwards."""
        self.length = min(self.length, length)

    def put(self, layer: int, key: Tensor, value: Tensor, *, at: "slice | Tensor") -> tuple[Tensor, Tensor]:
        """Store keys and values [b, g, s, d] of new tokens; return those of all tokens, [b, g, places, d].

        Args:
            layer: Index within this stage.
            key: Keys of the new tokens.
            value: Values of the new tokens.
            at: Where the new tokens go. With a slice, the places up to its end are returned; with a tensor of places
                [s], which compiled code needs because a slice would be a constant, all l.
        """
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(at, slice):
            keys[:, :, at], values[:, :, at] = key, value
            return keys[:, :, : at.stop], values[:, :, : at.stop]
        keys.index_copy_(2, at, key)
        values.index_copy_(2, at, value)
        return keys, values
