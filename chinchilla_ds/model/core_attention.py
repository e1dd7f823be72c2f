"""Core attention on torch's fused scaled_dot_product_attention.

Shapes, TP-local: s sequence, b micro-batch, n heads / tp, g query groups / tp, d kv_channels.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from chinchilla_ds.distributed.recompute import recomputed


def document_mask(tokens: Tensor, *, eod_id: int, dtype: torch.dtype) -> Tensor:
    """Return the term added to attention scores so that each token attends only to its own document up to itself.

    An end-of-document token belongs to the document that it ends. Positions are not reset: rotary attention depends
    only on distances, so within a document nothing changes.

    Args:
        tokens: [b, s]
        eod_id: The end-of-document token.
        dtype: Type of queries and keys.

    Returns:
        [b, 1, s, s], 0 where attention is allowed and minus infinity elsewhere. Every token attends to itself.
    """
    ends = (tokens == eod_id).int()
    documents = ends.cumsum(dim=1) - ends  # [b, s]: how many documents ended before
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    mask = torch.zeros_like(same, dtype=dtype).masked_fill_(~same.tril(), float("-inf"))
    return mask.unsqueeze(1)


class SdpaCoreAttention(nn.Module):
    """Causal attention within a sequence, or within its documents; grouped queries share keys and values.

    Megatron-core's own DotProductAttention materialises the [b, n, s, s] scores and needs a CUDA RNG tracker.
    """

    def __init__(self, config: TransformerConfig, recompute: bool = False, **_: Any) -> None:
        """Take the arguments of megatron's SelfAttention; `recompute` saves only q, k, v for the backward pass."""
        super().__init__()
        self.recompute = recompute
        self.softmax_scale = config.softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any) -> Tensor:
        """Attend causally, within documents if there is a mask.

        Args:
            query: [s, b, n, d]
            key: [s, b, g, d]
            value: [s, b, g, d]
            attention_mask: The result of `document_mask`, [b, 1, s, s]; None for causal attention over the sequence.

        Returns:
            [s, b, n * d]
        """
        attend = partial(self._attend, mask=attention_mask)  # not an input of the recomputation: not split over ranks
        if self.recompute and torch.is_grad_enabled():
            return recomputed(attend, query, key, value)
        return attend(query, key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        s, b, n, d = query.shape
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))  # [b, heads, s, d]
        grouped = k.size(1) != n
        if grouped and (q.device.type == "cpu" or mask is not None):
            # torch's CPU flash kernel, and CUDA's fused kernel with a mask, have no grouped queries: both would fall
            # back to the unfused one
            k, v, grouped = (*(t.repeat_interleave(n // t.size(1), dim=1) for t in (k, v)), False)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.softmax_scale, enable_gqa=grouped
        )
        return out.permute(2, 0, 1, 3).reshape(s, b, n * d)
