"""Core attention on torch's fused scaled_dot_product_attention.

Shapes, TP-local: s sequence, b micro-batch, n heads / tp, g query groups / tp, d kv_channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from chinchilla_ds.distributed.recompute import checkpoint


class SdpaCoreAttention(nn.Module):
    """Causal attention within a sequence; grouped queries share keys and values.

    Megatron-core's own DotProductAttention materialises the [b, n, s, s] scores and needs a CUDA RNG tracker.
    """

    def __init__(self, config: TransformerConfig, recompute: bool = False, **_: Any) -> None:
        """Take what megatron's SelfAttention passes; `recompute` keeps q, k, v alone for the backward pass."""
        super().__init__()
        self.recompute = recompute
        self.softmax_scale = config.softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any) -> Tensor:
        """Attend causally.

        Args:
            query: [s, b, n, d]
            key: [s, b, g, d]
            value: [s, b, g, d]
            attention_mask: must be None; the mask is causal.

        Returns:
            [s, b, n * d]

        Raises:
            ValueError: a mask was given.
        """
        if attention_mask is not None:
            raise ValueError("SdpaCoreAttention is causal and takes no attention_mask")
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._attend, query, key, value)
        return self._attend(query, key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        s, b, n, d = query.shape
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))  # [b, heads, s, d]
        grouped = k.size(1) != n
        if grouped and q.device.type == "cpu":
            # torch's CPU flash kernel has no grouped queries and would fall back to the unfused one
            k, v, grouped = (*(t.repeat_interleave(n // t.size(1), dim=1) for t in (k, v)), False)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3).reshape(s, b, n * d)
