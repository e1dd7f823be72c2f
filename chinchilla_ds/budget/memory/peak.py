"""Peak memory of one rank during a step. Pure integers, no framework.

`estimate_memory` joins two parts, each cached on its own so that a search over layouts pays for it once:
`states.state_bytes` (TP, PP, DP, ZeRO, offload) and `activations.activation_bytes` (TP, PP, virtual stages,
sequence parallelism, recomputation, micro-batch). `peak_bytes` is the sum of theirs that such a search
compares.
docs/memory.md derives the formulas and compares them with the tensors of the live engine.
"""

from typing import NamedTuple

from chinchilla_ds.budget.deepspeed_json.fields import overlaps_reduction
from chinchilla_ds.budget.memory.activations import ActivationBytes, activation_bytes, chunks_in_flight, compute_bytes
from chinchilla_ds.budget.memory.states import StateBytes, notable_stages, stage_params, state_bytes
from chinchilla_ds.run_plan import ADAM_STATES, BatchPlan, MemoryBytes, ModelShape, ParallelLayout, Precision

__all__ = [
    "CPU",
    "compute_bytes",
    "estimate_memory",
    "estimate_stages",
    "gradients_before",
    "margin_bytes",
    "peak_bytes",
    "stage_params",
]

CPU = "cpu"
CONTEXT_BYTES = 2 * 2**30
"""CUDA context, cuBLAS and NCCL: a rule of thumb, not measured here. A context takes 0.3 to 0.6 GiB, cuBLAS's workspace
32 MiB on Hopper, NCCL some hundred MiB for each of the communicators of TP, PP and DP."""
FRAGMENTATION_SHARE = 0.05
"""Share of the tensors' bytes that is reserved by the allocator and unusable: a rule of thumb, not measured here."""


class Moment(NamedTuple):
    """Bytes of one rank at one moment of a step, besides weights and optimizer states."""

    gradients: int
    activations: int
    logits: int
    buffers: int


def moments(*, state: StateBytes, activations: ActivationBytes, gradients_before: int) -> tuple[Moment, ...]:
    """Return the moments of a step, one of which is the peak.

    Args:
        state: The rank's states.
        activations: The rank's activations.
        gradients_before: Bytes of gradients that exist when the most micro-batches are in flight.

    Returns:
        The loss, the output projection's backward pass, a layer's, the reduction of that layer's gradients, the end of
        the backward passes, the optimizer's step.
    """
    standing = activations.standing
    early, late = state.loss_buffers + standing, state.backward_buffers + standing
    saved, with_head = activations.saved, activations.saved - activations.not_at_loss + activations.head
    return (
        Moment(gradients_before, with_head, activations.logits, early),
        Moment(gradients_before, with_head, activations.logits_gradient, early + activations.output_gradient),
        Moment(gradients_before, saved + activations.recomputed, 0, late + activations.working),
        Moment(gradients_before, saved + activations.recomputed, 0, late + activations.flowing + state.reduced),
        Moment(state.gradients, 0, 0, late),
        Moment(0, 0, 0, state.step_buffers + standing),
    )


def peak_bytes(*, state: StateBytes, activations: ActivationBytes, gradients_before: int) -> int:
    """Return the bytes of all tensors at the largest of `moments`, with the same arguments.

    Args:
        state: bytes of weights, gradients, optimizer states and buffers of one rank.
        activations: bytes of its activations.
        gradients_before: bytes of gradients when the most micro-batches are in flight.
    """
    output = max(activations.logits, activations.logits_gradient + activations.output_gradient)
    fullest = max(
        gradients_before
        + activations.saved
        + max(
            activations.head - activations.not_at_loss + output + state.loss_buffers,
            activations.recomputed
            + state.backward_buffers
            + max(activations.working, activations.flowing + state.reduced),
        ),
        state.gradients + state.backward_buffers,
        state.step_buffers,
    )
    return state.weights + state.optimizer + fullest + activations.standing


def gradients_before(
    gradients: int, *, zero_stage: int, pipeline: int, virtual: int, micro_batches: int, stage: int
) -> int:
    """Return the bytes of `gradients` that exist when the most micro-batches are in flight.

    The backward passes of an interleaved stage visit its chunks in groups of `pipeline` micro-batches. ZeRO-3 allocates
    its partition once.

    Args:
        gradients: bytes of the gradients of one rank.
        zero_stage: ZeRO stage, 0 to 3.
        pipeline: pipeline-parallel size.
        virtual: model chunks per stage.
        micro_batches: micro-batches per optimizer step.
        stage: the pipeline stage, counted from 0.
    """
    if zero_stage == 3:
        return gradients
    in_flight = chunks_in_flight(pipeline=pipeline, virtual=virtual, micro_batches=micro_batches, stage=stage)
    backwards = micro_batches * virtual - in_flight
    chunks = -(-backwards // pipeline) if virtual > 1 else backwards
    return gradients * min(chunks, virtual) // virtual


def margin_bytes(tensors: int, *, device: str) -> int:
    """Return the bytes that allocator, context and libraries need in addition to `tensors` bytes; 0 on "cpu"."""
    return 0 if device == CPU else CONTEXT_BYTES + int(FRAGMENTATION_SHARE * tensors)


def estimate_stages(
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    batch: BatchPlan,
    precision: Precision,
    device: str,
    optimizer_states: int = len(ADAM_STATES),
) -> tuple[MemoryBytes, ...]:
    """Return the expected peak of a rank of every pipeline stage, first to last, in bytes.

    Components are those of the peak: if the optimizer's step is the peak, there are no activations.

    Args:
        shape: The decoder.
        layout: A layout that `budget.layout.rules.validate_layout` accepts for it.
        batch: Micro-batch size and gradient accumulation steps.
        precision: Precision of weights, gradients and activations.
        device: "cpu": torch's CPU kernels and no margin; any other name: CUDA kernels.
        optimizer_states: Values that the optimizer keeps for a parameter, in FP32, beside the master weight.
    """
    return tuple(
        _stage_memory(
            stage,
            shape=shape,
            layout=layout,
            batch=batch,
            precision=precision,
            device=device,
            optimizer_states=optimizer_states,
        )
        for stage in range(layout.pipeline_model_parallel_size)
    )


def estimate_memory(
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    batch: BatchPlan,
    precision: Precision,
    device: str,
    optimizer_states: int = len(ADAM_STATES),
) -> MemoryBytes:
    """Return the expected peak of the rank that needs most, in bytes; arguments as for `estimate_stages`.

    The stage that needs most is the first, the first with the most layers, or the last: any other has no embedding
    table, no logits, no more layers, and no more micro-batches in flight.

    Args:
        shape: the decoder.
        layout: the parallel layout.
        batch: micro-batch size and gradient accumulation steps.
        precision: compute precision.
        device: kind of device, "cpu" or "cuda".
        optimizer_states: values of optimizer state per parameter.
    """
    ends = (
        _stage_memory(
            stage,
            shape=shape,
            layout=layout,
            batch=batch,
            precision=precision,
            device=device,
            optimizer_states=optimizer_states,
        )
        for stage in notable_stages(num_layers=shape.num_layers, pipeline=layout.pipeline_model_parallel_size)
    )
    return max(ends, key=lambda memory: memory.total)


def _stage_memory(
    stage: int,
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    batch: BatchPlan,
    precision: Precision,
    device: str,
    optimizer_states: int,
) -> MemoryBytes:
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    virtual, micro_batches = layout.virtual_pipeline_model_parallel_size, batch.gradient_accumulation_steps
    state = state_bytes(
        shape=shape,
        tensor=tensor,
        pipeline=pipeline,
        data=layout.data_parallel_size,
        zero_stage=layout.zero_stage,
        offload_optimizer=layout.offload_optimizer,
        offload_param=layout.offload_param,
        precision=precision,
        stage=stage,
        optimizer_states=optimizer_states,
        overlaps=overlaps_reduction(
            zero_stage=layout.zero_stage,
            data=layout.data_parallel_size,
            virtual=virtual,
            offload_optimizer=layout.offload_optimizer,
            device=device,
        ),
    )
    activations = activation_bytes(
        shape=shape,
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual,
        sequence_parallel=layout.sequence_parallel,
        recompute=layout.recompute,
        micro_batch_size=batch.micro_batch_size,
        gradient_accumulation_steps=micro_batches,
        precision=precision,
        on_cpu=device == CPU,
        stage=stage,
    )
    before = gradients_before(
        state.gradients,
        zero_stage=layout.zero_stage,
        pipeline=pipeline,
        virtual=virtual,
        micro_batches=micro_batches,
        stage=stage,
    )
    return _join(
        state, max(moments(state=state, activations=activations, gradients_before=before), key=sum), stage, device
    )


def _join(state: StateBytes, fullest: Moment, stage: int, device: str) -> MemoryBytes:
    tensors = state.weights + state.optimizer + sum(fullest)
    margin = margin_bytes(tensors, device=device)
    return MemoryBytes(
        weights=state.weights,
        optimizer=state.optimizer,
        margin=margin,
        total=tensors + margin,
        host=state.host,
        nvme=state.nvme,
        pipeline_stage=stage,
        **fullest._asdict(),
    )
