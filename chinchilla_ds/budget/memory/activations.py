"""Activations of our decoder: the bytes that autograd saves for the backward pass on one rank.

docs/memory.md derives them tensor by tensor from `model.decoder` and megatron-core's layers, following
Korthikanti et al. 2022 (arXiv:2205.05198), section 4, whose GPT block (GELU, biases, dropout, unfused attention:
34 sbh + 5 a s^2 b bytes) is not ours. Leaves out token ids, labels and masks (about 30 bytes per token).

Symbols: T tokens of a micro-batch (b x s), h hidden size, n heads, g query groups, d kv_channels, f FFN, v padded
vocabulary.
"""

from functools import lru_cache
from typing import NamedTuple

from chinchilla_ds.run_plan import ModelShape, Precision, Recompute
from chinchilla_ds.weights import chunk_layers

FP32_BYTES = 4


class ActivationBytes(NamedTuple):
    """Activations of one rank for all micro-batches in flight, at the two moments that can be the peak."""

    saved: int
    """Saved by the layers of this stage, of every micro-batch in flight."""
    head: int
    """Saved by the final norm and the output projection on the last stage, until the loss is differentiated."""
    logits: int
    """Logits and the loss's copies of them, when the loss is differentiated."""
    recomputed: int
    """What recomputing one layer adds in its backward pass, less what that pass has freed; may be negative."""
    working: int
    """Gradients of activations and of a weight, in the backward pass of one layer."""
    flowing: int = 0
    """The part of `working` that exists when the first gradients of weights are reduced."""
    logits_gradient: int = 0
    """The gradient of the logits, in the backward pass of the output projection, while `head` still exists."""
    output_gradient: int = 0
    """The gradients of the output projection's weight and input, at the same moment."""
    standing: int = 0
    """Held throughout: Megatron-core's buffer for gathering a split sequence, and tensors passed between stages."""
    not_at_loss: int = 0
    """The part of `saved` that is not there when the loss is differentiated; of unequal chunks of a stage only."""


def compute_bytes(precision: Precision, /) -> int:
    """Return the bytes of one weight or activation in compute precision."""
    return FP32_BYTES if precision is Precision.FP32 else 2


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
) -> ActivationBytes:
    """Return the activations of a rank of pipeline stage `stage`, whatever the ZeRO stage and the offload.

    Args:
        shape: The decoder.
        tensor: tensor_model_parallel_size.
        pipeline: pipeline_model_parallel_size.
        virtual: virtual_pipeline_model_parallel_size.
        sequence_parallel: Whether norms and residuals are split over the tensor-parallel group.
        recompute: What the backward pass computes again.
        micro_batch_size: Sequences per micro-batch.
        gradient_accumulation_steps: Micro-batches per step and data-parallel rank.
        precision: Precision of the activations.
        on_cpu: Whether torch's CPU kernels run, which keep more (see `_norm_bytes` and `_attention_bytes`).
        stage: Index of the pipeline stage.
    """
    width, tokens = compute_bytes(precision), micro_batch_size * shape.seq_length
    split = tensor if sequence_parallel else 1
    hidden = width * tokens * shape.hidden_size // split
    whole = _layer_bytes(
        shape=shape,
        tensor=tensor,
        split=split,
        recompute=recompute if recompute is Recompute.SELECTIVE else Recompute.NONE,
        tokens=tokens,
        width=width,
        on_cpu=on_cpu,
    )
    working, released = _working_bytes(shape, tokens, tensor, split, width)
    layer, recomputed = whole, -released
    if recompute in (Recompute.FULL, Recompute.SELECTIVE_OP):
        shares_input = width == FP32_BYTES or not on_cpu
        outputs = _saved_outputs(shape, tokens, tensor, width) if recompute is Recompute.SELECTIVE_OP else 0
        layer, working = hidden + outputs, working + hidden
        recomputed += whole - shares_input * hidden - outputs
    in_flight = chunks_in_flight(
        pipeline=pipeline, virtual=virtual, micro_batches=gradient_accumulation_steps, stage=stage
    )
    most, at_loss = layers_in_flight(
        num_layers=shape.num_layers,
        pipeline=pipeline,
        virtual=virtual,
        micro_batches=gradient_accumulation_steps,
        stage=stage,
    )
    is_last = stage == pipeline - 1
    vocabulary = shape.padded_vocab_size // tensor * is_last
    received = in_flight if on_cpu and width < FP32_BYTES and stage > 0 else 0  # the norm keeps an fp32 copy of it
    return ActivationBytes(
        saved=most * layer,
        head=_norm_bytes(shape, tokens, split, width, on_cpu) * is_last,
        logits=_loss_copies(tensor, width) * tokens * vocabulary,
        recomputed=recomputed,
        working=working,
        flowing=hidden + width * tokens * shape.ffn_hidden_size // tensor,
        logits_gradient=width * tokens * vocabulary,
        output_gradient=width * shape.hidden_size * (vocabulary + tokens * is_last),
        standing=(hidden * split if split > 1 else 0) + (hidden * (1 + received) if pipeline > 1 else 0),
        not_at_loss=(most - at_loss) * layer,
    )


def chunks_in_flight(*, pipeline: int, virtual: int, micro_batches: int, stage: int) -> int:
    """Return how many forward passes of a model chunk wait for their backward pass at the peak of 1F1B.

    Args:
        pipeline: pipeline-parallel size.
        virtual: model chunks per stage.
        micro_batches: micro-batches per optimizer step.
        stage: the pipeline stage, counted from 0.

    Source: megatron-core 0.16, pipeline_parallel/schedules.py, get_pp_rank_microbatches: its warm-up, and one more.
    """
    if pipeline == 1:
        return 1
    later = pipeline - stage - 1
    warm_up = later if virtual == 1 else 2 * later + (virtual - 1) * pipeline
    return min(warm_up + 1, micro_batches * virtual)


def layers_in_flight(
    *, num_layers: int, pipeline: int, virtual: int, micro_batches: int, stage: int
) -> tuple[int, int]:
    """Return of how many layers 1F1B keeps activations: at its fullest moment, and after a pass of the last chunk.

    Where a stage's chunks are unequal, which of them are in flight changes from one pass to the next: forward passes
    take `pipeline` micro-batches through each chunk, first to last, and backward passes last to first.

    Args:
        num_layers: layers of the decoder.
        pipeline: pipeline-parallel size.
        virtual: model chunks per stage.
        micro_batches: micro-batches per optimizer step.
        stage: the pipeline stage, counted from 0.

    Source: megatron-core 0.16, pipeline_parallel/schedules.py, get_schedule_table.
    """
    in_flight = chunks_in_flight(pipeline=pipeline, virtual=virtual, micro_batches=micro_batches, stage=stage)
    layers = chunk_layers(num_layers=num_layers, pipeline=pipeline, virtual=virtual)[stage::pipeline]
    if len(set(layers)) == 1:
        return in_flight * layers[0], in_flight * layers[0]
    forward = [number // pipeline % virtual for number in range(micro_batches * virtual)]
    held, history = 0, []
    for number, chunk in enumerate(forward):
        held += layers[chunk]
        if number >= in_flight:  # a backward pass has ended before this forward pass
            held -= layers[virtual - 1 - forward[number - in_flight]]
        history.append((held, held if chunk == virtual - 1 else 0))
    most, at_loss = zip(*history, strict=True)
    return max(most), max(at_loss)


def _layer_bytes(
    *, shape: ModelShape, tensor: int, split: int, recompute: Recompute, tokens: int, width: int, on_cpu: bool
) -> int:
    """Return what one layer saves for one micro-batch, its input included."""
    norms = 2 * _norm_bytes(shape, tokens, split, width, on_cpu)
    attention = _attention_bytes(shape, tokens, tensor, recompute, width, on_cpu)
    feed_forward = 5 * width * tokens * shape.ffn_hidden_size // tensor  # [gate; up], up + 0, silu(gate), their product
    return norms + attention + feed_forward


def _saved_outputs(shape: ModelShape, tokens: int, tensor: int, width: int) -> int:
    """Return the outputs that selective-op recomputation saves: QKV, attention and its log-sum-exp, [gate; up]."""
    heads, groups = shape.num_attention_heads, shape.num_query_groups
    elements = (2 * heads + 2 * groups) * shape.kv_channels + 2 * shape.ffn_hidden_size
    return tokens * (width * elements + FP32_BYTES * heads) // tensor


def _norm_bytes(shape: ModelShape, tokens: int, split: int, width: int, on_cpu: bool) -> int:
    """Return what an RMSNorm and the projection after it keep: the norm's input, 1 / rms in fp32, its output.

    On the CPU torch composes the norm from simpler operations, which keep input and normalised input in fp32.
    """
    inside = 2 * FP32_BYTES if on_cpu else width
    return tokens * (shape.hidden_size * (inside + width) + FP32_BYTES) // split


def _attention_bytes(
    shape: ModelShape, tokens: int, tensor: int, recompute: Recompute, width: int, on_cpu: bool
) -> int:
    """Return what attention saves: rotated query and key, value, output, log-sum-exp, and both rotations' cos and sin.

    The value is a view of the projection's [q, k, v], which is therefore kept whole. On the CPU keys and values of
    grouped queries are repeated, and the projection is freed.
    """
    heads, groups = shape.num_attention_heads, shape.num_query_groups
    repeats = recompute is Recompute.NONE and on_cpu and groups != heads
    channels = 4 * heads if repeats else 2 * heads + groups + (heads + 2 * groups)
    log_sum_exp = FP32_BYTES * tokens * heads // tensor if recompute is Recompute.NONE else 0
    rotations = 4 * width * shape.seq_length * shape.kv_channels
    norms = _head_norm_bytes(shape, tokens, tensor, width, on_cpu, keeps_projection=not repeats) * shape.qk_norm
    return width * tokens * channels * shape.kv_channels // tensor + log_sum_exp + rotations + norms


def _head_norm_bytes(
    shape: ModelShape, tokens: int, tensor: int, width: int, on_cpu: bool, *, keeps_projection: bool
) -> int:
    """Return what norming queries and keys keeps: their inputs, and 1 / rms of every head in fp32.

    Keys are a view of the projection; so are queries, unless a rank has several groups of several heads, which are
    copied into one dimension. On the CPU torch keeps the normalised inputs in fp32 too, and below fp32 a copy of the
    inputs in fp32 in place of the inputs.
    """
    heads, groups = shape.num_attention_heads, shape.num_query_groups
    copied = heads if groups != heads and groups > tensor else 0
    if not on_cpu:
        per_channel = width * copied
    elif width < FP32_BYTES:
        per_channel = 2 * FP32_BYTES * (heads + groups)
    else:
        projection = 0 if keeps_projection else heads + 2 * groups
        per_channel = FP32_BYTES * (heads + groups + copied + projection)
    return tokens * (per_channel * shape.kv_channels + FP32_BYTES * (heads + groups)) // tensor


def _working_bytes(shape: ModelShape, tokens: int, tensor: int, split: int, width: int) -> tuple[int, int]:
    """Return the gradients in the backward pass of a feed-forward block, the layer's peak, and what it has freed.

    The gradient of the output exists throughout. The peak is either when the down projection computes the gradients of
    its input and weight from that of its output, gathered along a split sequence; or, once its input is freed, when
    there are three gradients of half the size of [gate; up].
    """
    ffn = shape.ffn_hidden_size // tensor
    outgoing = tokens * shape.hidden_size // split
    gathered = tokens * shape.hidden_size if split > 1 else 0
    projection = gathered + (tokens + shape.hidden_size) * ffn
    if projection > 2 * tokens * ffn:
        return width * (outgoing + projection), 0
    return width * (outgoing + 3 * tokens * ffn), width * tokens * ffn


def _loss_copies(tensor: int, width: int) -> int:
    """Return the bytes per logit of the logits and the loss's copies at their peak.

    With one tensor-parallel rank, torch's cross entropy keeps fp32 log-probabilities, and its backward pass makes two
    fp32 gradients of that size. With several, megatron-core's vocab_parallel_cross_entropy works in place on an fp32
    copy, which in fp32 is the logits themselves.
    """
    if tensor == 1:
        return 3 * FP32_BYTES
    return FP32_BYTES + (width if width < FP32_BYTES else 0)
