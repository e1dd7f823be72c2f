"""Keys of the DeepSpeed JSON that are valid on their own, but not together, with the plan, or on this machine.

DeepSpeed 0.19.8 would refuse them, or get them wrong, only once the text is prepared and the engine is built.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.deepspeed_json.keys import find
from chinchilla_ds.budget.deepspeed_json.values import is_auto, is_number, show
from chinchilla_ds.run_plan import Offload, Precision, Recompute, RunPlan

ZERO = "zero_optimization"
CHECKPOINTING = "activation_checkpointing"
_SWAPPED_BESIDE_STATES = 2
"""Master weight and gradient, which need swap buffers in addition to the optimizer's states."""
_COMET_LEAST = (3, 41, 0)
_SHOWING = ("debug", "info")


def own_conflicts(ds: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems that do not depend on the plan."""
    yield from _monitor_problems(ds)
    yield from _report_problems(ds)
    for name in ("contiguous_memory_optimization", "cpu_checkpointing"):
        if find(ds, (CHECKPOINTING, name)) is True and find(ds, (CHECKPOINTING, "partition_activations")) is not True:
            yield (
                f"{CHECKPOINTING}.{name} is true, which DeepSpeed supports only with partition_activations; set it "
                f"true too, or leave {name} out"
            )


def plan_conflicts(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    """Yield what DeepSpeed does not support under the plan's layout, precision and device."""
    yield from _reduction_problems(ds, stage=plan.layout.zero_stage)
    yield from _overlap_problems(ds, plan)
    if plan.layout.recompute is Recompute.SELECTIVE_OP and find(ds, (CHECKPOINTING,)):
        yield (
            f"{CHECKPOINTING} has settings, and recompute selective_op does not go through DeepSpeed's checkpointing; "
            "leave the section out, or take recompute selective or full"
        )
    yield from _type_problems(ds, plan)
    yield from _bucket_problems(ds, plan)
    yield from _contiguous_problems(ds, plan)
    yield from _nvme_problems(ds, plan)


# ---- without a plan --------------------------------------------------------------------------------------------------


def _monitor_problems(ds: Mapping[str, Any]) -> Iterator[str]:
    """Yield problems of monitors that are switched on but cannot write, with which building the engine would fail."""
    for section, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("comet", "comet_ml")):
        if find(ds, (section, "enabled")) is True and (problem := _package_problem(package)):
            yield (
                f"{section}.enabled is true, but {problem}; install it, or remove the section: every run is tracked in "
                "its metrics.jsonl and in MLflow"
            )
    for section in ("tensorboard", "csv_monitor"):
        folder = find(ds, (section, "output_path"))
        if find(ds, (section, "enabled")) is True and isinstance(folder, str) and not can_be_made(Path(folder)):
            yield f"{section}.output_path is {show(folder)}, which cannot be created or written; name a folder that can"
    file = find(ds, ("flops_profiler", "output_file"))
    if find(ds, ("flops_profiler", "enabled")) is True and isinstance(file, str) and not can_be_made(Path(file).parent):
        yield f"flops_profiler.output_file is {show(file)}, in a folder that cannot be created; leave it out to print"


def _package_problem(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if package == "comet_ml":
        from importlib import metadata

        version = metadata.version(package)
        least = ".".join(map(str, _COMET_LEAST))
        if tuple(int(part) for part in version.split(".")[:3] if part.isdecimal()) < _COMET_LEAST:
            return f"{package} {version} is installed, and DeepSpeed needs {least}"
    return None


def can_be_made(folder: Path, /) -> bool:
    """Return whether a folder exists or can be created, and is writable."""
    folder = folder.absolute()
    try:
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # a name that no file system accepts, or a folder without search permission
        return False


def _report_problems(ds: Mapping[str, Any]) -> Iterator[str]:
    """Yield problems of reports that would not be shown: DeepSpeed logs them, but only its errors are shown."""
    level = find(ds, ("log_level",))
    is_shown = isinstance(level, str) and level.lower() in _SHOWING
    fix = 'DeepSpeed logs it at the level "info"; add "log_level": "info", or remove it'
    if ds.get("dump_state") is True and not is_shown:
        yield f"dump_state is true, but would not be shown: {fix}"
    if find(ds, ("comms_logger", "enabled")) is not True:
        return
    if find(ds, ("comms_logger", "verbose")) is not True:
        yield (
            "comms_logger.enabled is true without verbose, but the summary of all calls is printed by a function that "
            "is never called; set verbose to true, or remove the section"
        )
    elif not is_shown:
        yield f"comms_logger.enabled is true, but would not be shown: {fix}"


# ---- with the plan ---------------------------------------------------------------------------------------------------


def _reduction_problems(ds: Mapping[str, Any], *, stage: int) -> Iterator[str]:
    """Yield scalings of gradients before their reduction that the ZeRO stage does not support."""
    scatters = stage in (2, 3) and find(ds, (ZERO, "reduce_scatter")) is not False
    factor = find(ds, ("gradient_predivide_factor",))
    if ds.get("prescale_gradients") is True and scatters:
        yield (
            f"prescale_gradients is true; DeepSpeed does not support it under ZeRO-{stage} with reduce_scatter; remove "
            f"it, set {ZERO}.reduce_scatter to false, or take {ZERO}.stage 1"
        )
    if is_number(factor) and factor != 1 and (stage == 3 or scatters):
        near = f"remove it, or use {ZERO}.stage 1"
        why = (
            "would not undo: gradients would come out divided"
            if not scatters
            else "does not support with reduce_scatter"
        )
        yield f"gradient_predivide_factor is {show(factor)}, which DeepSpeed under ZeRO-{stage} {why}; {near}"


def _overlap_problems(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    """Yield why reductions in the backward pass would leave gradients out."""
    chunks = plan.layout.virtual_pipeline_model_parallel_size
    if find(ds, (ZERO, "overlap_comm")) is True and plan.layout.zero_stage == 1 and chunks > 1:
        yield (
            f"{ZERO}.overlap_comm is true, and ZeRO-1 then reduces gradients in the last backward pass of a stage, "
            f'which is that of one of its {chunks} chunks; set it to false or "auto", or take {ZERO}.stage 2'
        )


def _type_problems(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    where, given, precision = (
        "data_types.grad_accum_dtype",
        find(ds, ("data_types", "grad_accum_dtype")),
        plan.precision,
    )
    if isinstance(given, str) and given.lower() not in (Precision.FP32, precision):
        yield (
            f"{where} is {show(given)}, but gradients are accumulated in the run's precision, {precision}, or in fp32; "
            "leave it out, or set it to one of them"
        )
    elif isinstance(given, str) and given.lower() != precision and plan.layout.zero_stage == 0:
        yield (
            f"{where} is {show(given)} and the precision {precision}: without ZeRO, DeepSpeed accumulates gradients in "
            f"the run's own precision; leave it out, or take {ZERO}.stage 1"
        )


def _bucket_problems(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    size = find(ds, (ZERO, "allgather_bucket_size"))
    if is_number(size) and plan.layout.zero_stage in (1, 2) and size % 2:
        yield (
            f"{ZERO}.allgather_bucket_size is {show(size)} elements; it must be even; nearest: {int(size) - 1} and "
            f"{int(size) + 1}"
        )


def _contiguous_problems(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    """Yield why activation checkpoints cannot share a contiguous buffer, which holds those of one forward pass."""
    if find(ds, (CHECKPOINTING, "contiguous_memory_optimization")) is not True:
        return
    stages, layers = plan.layout.pipeline_model_parallel_size, plan.shape.num_layers
    count = find(ds, (CHECKPOINTING, "number_checkpoints"))
    if stages > 1:
        yield (
            f"{CHECKPOINTING}.contiguous_memory_optimization is true, but its buffer holds one micro-batch, of which a "
            f"pipeline of {stages} stages has several in flight; leave it out"
        )
    elif is_number(count) and count < layers:
        yield (
            f"{CHECKPOINTING}.number_checkpoints is {show(count)}, but the contiguous buffer must hold one for each of "
            f"the {layers} layers; leave it out, or set it to {layers}"
        )


def _nvme_problems(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    for name in ("offload_optimizer", "offload_param"):
        if getattr(plan.layout, name) is Offload.NVME and is_auto(find(ds, (ZERO, name, "nvme_path"))):
            yield f"{ZERO}.{name}.nvme_path is missing; name a folder on the NVMe drive, such as /local_nvme"
    count = find(ds, (ZERO, "offload_optimizer", "buffer_count"))
    least = _SWAPPED_BESIDE_STATES + len(plan.optimizer.states)
    if plan.layout.offload_optimizer is Offload.NVME and is_number(count) and count < least:
        yield (
            f"{ZERO}.offload_optimizer.buffer_count is {show(count)}; the optimizer's states need at least {least} "
            f"buffers; nearest: {least}"
        )
    if find(ds, ("aio", "use_gds")) is True and plan.device != "cuda":
        yield "aio.use_gds is true, but GPUDirect Storage needs a CUDA device; set it to false, or leave it out"
