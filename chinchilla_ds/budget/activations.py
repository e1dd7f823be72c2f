"""Activations of our decoder: what autograd keeps for the backward pass, in bytes of one rank.

T tokens of a micro-batch (s x b); h hidden, n heads, g query groups, d kv_channels, f ffn, v padded vocabulary.
"""

from functools import lru_cache

from chinchilla_ds.plan import ModelShape, Precision, Recompute


@lru_cache(maxsize=65536)
def activation_bytes(
    *,
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    virtual: int,
    sequence_parallel: bool,
    recompute: Recompute,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    precision: Precision,
    on_cpu: bool,
    stage: int,
) -> tuple[int, int]:
    """Return the peak bytes of saved activations, and those of the logits, of a rank of `stage`."""
    width = 4 if precision is Precision.FP32 else 2
    tokens = micro_batch_size * shape.seq_length
    layer = layer_bytes(
        shape=shape,
        tensor=tensor,
        sequence_parallel=sequence_parallel,
        recompute=recompute,
        tokens=tokens,
        width=width,
        on_cpu=on_cpu,
    )
    layers_per_chunk = shape.num_layers // (pipeline * virtual)
    in_flight = chunks_in_flight(
        pipeline=pipeline, virtual=virtual, micro_batches=gradient_accumulation_steps, stage=stage
    )
    total = in_flight * layers_per_chunk * layer
    logits = 0
    if stage == pipeline - 1:
        split = tensor if sequence_parallel else 1
        total += 2 * width * tokens * shape.hidden_size // split
        logits = (width + 4 + 4) * tokens * shape.padded_vocab_size // tensor
    return total, logits


def chunks_in_flight(*, pipeline: int, virtual: int, micro_batches: int, stage: int) -> int:
    """Return how many forward passes of one model chunk wait for their backward pass at the peak.

    Source: megatron-core 0.16, schedules.get_pp_rank_microbatches; Narayanan et al. 2021 (arXiv:2104.04473), section 2.
    """
    if pipeline == 1:
        return 1
    warm_up = pipeline - stage - 1 if virtual == 1 else 2 * (pipeline - stage - 1) + (virtual - 1) * pipeline
    return min(warm_up + 1, micro_batches * virtual)


def layer_bytes(
    *,
    shape: ModelShape,
    tensor: int,
    sequence_parallel: bool,
    recompute: Recompute,
    tokens: int,
    width: int,
    on_cpu: bool,
) -> int:
    """Return what one transformer layer keeps of one micro-batch."""
    split = tensor if sequence_parallel else 1
    hidden = width * tokens * shape.hidden_size // split
    if recompute is Recompute.FULL:
        return hidden
    query = width * tokens * shape.num_attention_heads * shape.kv_channels // tensor
    key = width * tokens * shape.num_query_groups * shape.kv_channels // tensor
    attention = query + 2 * key + query
    if recompute is Recompute.NONE:
        attention += query + 4 * tokens * shape.num_attention_heads // tensor
    feed_forward = 4 * width * tokens * shape.ffn_hidden_size // tensor
    return 4 * hidden + attention + feed_forward
