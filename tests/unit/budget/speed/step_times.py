"""The step time of one layout, from the parts that the search over layouts computes once for many."""

from chinchilla_ds.budget.deepspeed_json.fields import overlaps_reduction
from chinchilla_ds.budget.speed.devices import Device
from chinchilla_ds.budget.speed.rates import make_machine
from chinchilla_ds.budget.speed.step_time import (
    combine,
    data_parallel_time,
    micro_batch_time,
    optimizer_time,
    to_step_time,
)
from chinchilla_ds.run_plan import ADAM_STATES, BatchPlan, ModelShape, ParallelLayout, Precision, StepTime


def estimate_step_time(
    *,
    shape: ModelShape,
    layout: ParallelLayout,
    batch: BatchPlan,
    precision: Precision,
    device: Device,
    devices_per_node: int | None = None,
    optimizer_states: int = len(ADAM_STATES),
    may_overlap: bool = True,
) -> StepTime:
    """Return the expected time of one optimizer step under one layout.

    Args:
        shape: The decoder.
        layout: A layout that `budget.layout.rules.validate_layout` accepts for it.
        batch: Micro-batch size and gradient accumulation steps.
        precision: Of matmuls, activations and gradient traffic.
        device: One accelerator.
        devices_per_node: Devices that the fast link joins; None takes the device's own.
        optimizer_states: Values that the optimizer keeps for a parameter.
        may_overlap: False: without overlap_comm, which DeepSpeed's own default leaves off for ZeRO-1 and 2.

    Raises:
        ConfigError: a rate of the device is not known.
    """
    machine = make_machine(
        device=device, precision=precision, world_size=layout.world_size, devices_per_node=devices_per_node
    )
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    data, zero_stage = layout.data_parallel_size, layout.zero_stage
    micro = micro_batch_time(
        shape=shape,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        sequence_parallel=layout.sequence_parallel,
        recompute=layout.recompute,
        micro_batch_size=batch.micro_batch_size,
        precision=precision,
        machine=machine,
    )
    parts = combine(
        micro=micro,
        collectives=data_parallel_time(
            shape=shape,
            tensor=tensor,
            pipeline=pipeline,
            data=data,
            zero_stage=zero_stage,
            precision=precision,
            machine=machine,
            overlaps=may_overlap
            and overlaps_reduction(
                zero_stage=zero_stage,
                data=data,
                virtual=layout.virtual_pipeline_model_parallel_size,
                offload_optimizer=layout.offload_optimizer,
                device=device.kind,
            ),
        ),
        optimizer=optimizer_time(
            shape=shape,
            tensor=tensor,
            pipeline=pipeline,
            data=data,
            zero_stage=zero_stage,
            offload_optimizer=layout.offload_optimizer,
            offload_param=layout.offload_param,
            precision=precision,
            machine=machine,
            optimizer_states=optimizer_states,
        ),
        virtual=layout.virtual_pipeline_model_parallel_size,
        pipeline=pipeline,
        micro_batches=batch.gradient_accumulation_steps,
    )
    return to_step_time(
        parts, shape=shape, recompute=layout.recompute, batch=batch, world_size=layout.world_size, machine=machine
    )
