"""FLOP counts: the exact count of our decoder, and what recomputation adds.

A multiply-add is two FLOPs. All but `hardware_flops_per_token` are model FLOPs: what the mathematics requires, without
what the backward pass recomputes. docs/flops.md compares them.
"""

from chinchilla_ds.budget.shape.parameters import layer_params, table_params
from chinchilla_ds.run_plan import ModelShape, Recompute

BACKWARD_OVER_FORWARD = 2
"""The backward pass has two matmuls per forward matmul: the gradients of the input and of the weight."""


def decoder_flops_per_token(*, shape: ModelShape) -> float:
    """Return the model FLOPs per token of our decoder, forward and backward.

    Counts every matmul: QKV with grouped-query attention, scores and values, attention output, SwiGLU's three
    projections, and the output logits over the padded vocabulary. All S x S scores count, masked ones too. The input
    embedding is a lookup and free.

    Leaves out norms, softmax, rotary positions, the activation and the loss, which are not matmuls; and recomputation,
    which `hardware_flops_per_token` adds.

    Source: matmul of [m, k] and [k, n] is 2 m k n FLOPs; the backward pass is twice the forward pass.
    """
    return (1 + BACKWARD_OVER_FORWARD) * forward_flops_per_token(shape=shape)


def hardware_flops_per_token(*, shape: ModelShape, recompute: Recompute) -> float:
    """Return the FLOPs per token that the devices execute: the model FLOPs, and the repeated forward pass.

    SELECTIVE runs scores and values of every layer again, SELECTIVE_OP every second matmul (the output and the down
    projection), FULL every layer from its input to its output. The output logits and the input embedding lie outside
    the layers and are never run again.

    Leaves out, besides what `decoder_flops_per_token` leaves out, the scores that a fused attention kernel computes
    again in its backward pass: 7/6 of the attention term where torch's flop counter sees such a kernel.

    Args:
        shape: the decoder.
        recompute: which part of the forward pass is repeated.

    Source: FULL is Narayanan et al. 2021 (arXiv:2104.04473), appendix; the distinction of model and hardware FLOPs,
    Korthikanti et al. 2022 (arXiv:2205.05198), appendix A.
    """
    model = decoder_flops_per_token(shape=shape)
    if recompute is Recompute.NONE:
        return model
    if recompute is Recompute.SELECTIVE:
        return model + shape.num_layers * _core_attention(shape)
    if recompute is Recompute.SELECTIVE_OP:
        projections = 2 * shape.hidden_size * (shape.num_attention_heads * shape.kv_channels + shape.ffn_hidden_size)
        return model + shape.num_layers * projections
    return model + shape.num_layers * _layer(shape)


def forward_flops_per_token(*, shape: ModelShape) -> float:
    """Return the forward FLOPs per token of our decoder; conventions as in `decoder_flops_per_token`."""
    return float(shape.num_layers * _layer(shape) + 2 * table_params(shape))


def _layer(shape: ModelShape) -> float:
    """Return the forward FLOPs per token of one layer."""
    return 2 * layer_params(shape, matrices_only=True) + _core_attention(shape)


def _core_attention(shape: ModelShape) -> float:
    """Return the forward FLOPs per token of one layer's scores and weighted values."""
    return 2 * 2 * shape.seq_length * shape.num_attention_heads * shape.kv_channels
