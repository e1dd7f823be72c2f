"""Which values of the DeepSpeed JSON correspond to a field of the config, and which ones the plan decides."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chinchilla_ds.budget.deepspeed_json.keys import builds_another_optimizer, find
from chinchilla_ds.budget.deepspeed_json.table import OWN_SECTION
from chinchilla_ds.budget.deepspeed_json.values import is_auto, is_number, show
from chinchilla_ds.config import RunConfig, field_path
from chinchilla_ds.optimizers import optimizer_of
from chinchilla_ds.run_plan import Offload, Precision, Recompute, RunPlan

MIN_BUCKET_ELEMENTS = 2**19
ZERO = "zero_optimization"
_OTHER_JSON = 'set it to "auto", or use the JSON that `chinchilla-ds ds-config` writes for that plan'
"""For values that no field can change here: the JSON contradicts a plan that was supplied."""
_PRECISION_FIX = 'set it to "auto", or pass another `precision`'


@dataclass(frozen=True, kw_only=True)
class Named:
    """A field of the config that the JSON names."""

    field: str
    """A field of RunConfig (`precision`, `weight_decay`) or of its layout."""
    where: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Owned:
    """A value of the JSON that the plan decides."""

    path: tuple[str, ...]
    value: Any
    fix: str
    """How to resolve a contradiction; `{}` is replaced by the JSON's value."""


def _field_fix(field: str) -> str:
    return f'set it to "auto", or pass `{field_path(field)}={{}}`'


def current_value(config: RunConfig, *, field: str) -> Any:
    """Return a field's value, whether it belongs to the run or to its layout."""
    return getattr(config if is_of_run(field) else config.layout, field)


def is_of_run(field: str, /) -> bool:
    """Return whether a field belongs to RunConfig itself rather than to its layout."""
    return field in {known.name for known in dataclasses.fields(RunConfig)}


def named_fields(ds: Mapping[str, Any], /) -> Iterator[Named | str]:
    """Yield every config field that the JSON names, and a problem for every value of the wrong type."""
    yield from _stage(ds)
    for name in ("offload_optimizer", "offload_param"):
        yield from _choice(ds, (ZERO, name, "device"), field=name, choices=Offload)
    yield from _precision(ds)
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"):
        yield from _size(ds, (OWN_SECTION, name))
    yield from _sequence_parallel(ds)
    yield from _recompute(ds)
    yield from _optimizer_settings(ds)


def owned_values(plan: RunPlan, *, ds: Mapping[str, Any]) -> Iterator[Owned]:
    """Yield the values that the plan writes into the JSON; optimizer and offload only if either of the two has them."""
    batch, optimizer, layout = plan.batch, plan.optimizer, plan.layout
    yield Owned(path=("train_batch_size",), value=batch.global_batch_size, fix=_field_fix("global_batch_size"))
    micro_fix = _field_fix("micro_batch_size")
    yield Owned(path=("train_micro_batch_size_per_gpu",), value=batch.micro_batch_size, fix=micro_fix)
    steps = batch.gradient_accumulation_steps
    yield Owned(path=("gradient_accumulation_steps",), value=steps, fix=_accumulation_fix(plan, ds=ds))
    yield Owned(path=("gradient_clipping",), value=optimizer.gradient_clipping, fix=_field_fix("gradient_clipping"))
    for kind in (Precision.BF16, Precision.FP16):
        yield Owned(path=(kind.value, "enabled"), value=plan.precision is kind, fix=_PRECISION_FIX)
    yield Owned(path=(ZERO, "stage"), value=int(layout.zero_stage), fix=_OTHER_JSON)
    for name in ("offload_optimizer", "offload_param"):
        device = getattr(layout, name)
        if device is not Offload.NONE or find(ds, (ZERO, name)) is not None:
            yield Owned(path=(ZERO, name, "device"), value=device.value, fix=_OTHER_JSON)
    if "optimizer" in ds and not builds_another_optimizer(ds, optimizer_of(optimizer)):
        yield from _optimizer_values(plan, ds=ds)


def _accumulation_fix(plan: RunPlan, *, ds: Mapping[str, Any]) -> str:
    """Return the batch with the JSON's number of micro-batches, which follows from batch, micro-batch and ranks."""
    steps, total, micro = (
        find(ds, (name,))
        for name in ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    )
    if not is_number(steps):
        return ""
    parts = int(steps) * plan.layout.data_parallel_size
    if not is_number(micro):
        micro = total // parts if is_number(total) else plan.batch.micro_batch_size
    sizes = (
        f"{int(micro)} sequences x {int(steps)} micro-batches x {plan.layout.data_parallel_size} data-parallel ranks"
    )
    if is_number(total) and total != micro * parts:
        return f'set it or train_batch_size to "auto": {sizes} are not {total}'
    fitting = f"`global_batch_size={int(micro) * parts}` and `micro_batch_size={int(micro)}`"
    return f'set it to "auto", or pass {fitting}: {sizes}'


def _optimizer_values(plan: RunPlan, *, ds: Mapping[str, Any]) -> Iterator[Owned]:
    """Yield the optimizer's name, if DeepSpeed has one, and the settings that it reads."""
    optimizer, spec = plan.optimizer, optimizer_of(plan.optimizer)
    if spec.deepspeed_type is not None:
        yield Owned(
            path=("optimizer", "type"), value=spec.deepspeed_type, fix='set it to "auto", or name another `optimizer`'
        )
    params = ("optimizer", "params")
    yield Owned(path=(*params, "lr"), value=optimizer.learning_rate, fix=_field_fix("learning_rate"))
    if {"beta1", "beta2"} <= set(spec.settings):
        given = find(ds, (*params, "betas"))
        values = given if isinstance(given, list) and len(given) == 2 else (optimizer.beta1, optimizer.beta2)
        fix = f'set it to "auto", or pass `beta1={show(values[0])}` and `beta2={show(values[1])}`'
        yield Owned(path=(*params, "betas"), value=[optimizer.beta1, optimizer.beta2], fix=fix)
    if "epsilon" in spec.settings:
        yield Owned(path=(*params, "eps"), value=optimizer.epsilon, fix=_field_fix("epsilon"))
    if "weight_decay" in spec.settings:
        yield Owned(path=(*params, "weight_decay"), value=optimizer.weight_decay, fix=_field_fix("weight_decay"))


def _optimizer_settings(ds: Mapping[str, Any]) -> Iterator[Named]:
    """Yield the settings of the optimizer that the JSON gives; `keys.checked` reports what is not a number."""
    params = find(ds, ("optimizer", "params"))
    if not isinstance(params, Mapping):
        return
    where = "optimizer.params"
    for field, key in (("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("epsilon", "eps")):
        if key in params and is_number(params[key]):
            yield Named(field=field, where=f"{where}.{key}", value=float(params[key]))
    betas = params.get("betas")
    if isinstance(betas, list) and len(betas) == 2 and all(map(is_number, betas)):
        for field, beta in zip(("beta1", "beta2"), betas, strict=True):
            yield Named(field=field, where=f"{where}.betas", value=float(beta))


def compared_values(plan: RunPlan, *, ds: Mapping[str, Any]) -> Iterator[Owned]:
    """Yield the plan's values for which DeepSpeed has no key, or whose key it ignores; checked, never written."""
    yield Owned(path=("data_types", "param_dtype"), value=plan.precision.value, fix=_PRECISION_FIX)
    yield Owned(path=("vocabulary_size",), value=plan.shape.vocab_size, fix=_field_fix("vocab_size"))
    for item in named_fields(ds):
        if not isinstance(item, Named) or not item.where.startswith((OWN_SECTION, "activation_checkpointing")):
            continue
        fix = _field_fix(item.field)
        if item.where == "activation_checkpointing":
            fix = f"leave the section out, or pass `{field_path(item.field)}={{}}`"
        yield Owned(path=tuple(item.where.split(".")), value=getattr(plan.layout, item.field), fix=fix)


def suggested_values(plan: RunPlan, /) -> Iterator[Owned]:
    """Yield the values that replace "auto" but are otherwise the user's: DeepSpeed's buffer sizes, in elements.

    Source: the rule of Hugging Face's integration (transformers, HfTrainerDeepSpeedConfig): hidden_size squared for the
    reduction bucket, 0.9 of it for prefetching, 10 x hidden_size for parameters that ZeRO-3 keeps whole; here a bucket
    is at least 2^19 elements, below which latency dominates a message.
    """
    bucket = max(plan.shape.hidden_size**2, MIN_BUCKET_ELEMENTS)
    yield Owned(path=(ZERO, "reduce_bucket_size"), value=bucket, fix="")
    if plan.layout.zero_stage in (1, 2):  # 3 overlaps by DeepSpeed's own default
        overlaps = overlaps_reduction(
            zero_stage=plan.layout.zero_stage,
            data=plan.layout.data_parallel_size,
            virtual=plan.layout.virtual_pipeline_model_parallel_size,
            offload_optimizer=plan.layout.offload_optimizer,
            device=plan.device,
        )
        yield Owned(path=(ZERO, "overlap_comm"), value=overlaps, fix="")
    yield Owned(path=(ZERO, "stage3_prefetch_bucket_size"), value=int(0.9 * bucket), fix="")
    yield Owned(path=(ZERO, "stage3_param_persistence_threshold"), value=10 * plan.shape.hidden_size, fix="")


def overlaps_reduction(*, zero_stage: int, data: int, virtual: int, offload_optimizer: Offload, device: str) -> bool:
    """Return whether ZeRO-1 and 2 reduce gradients beside the backward pass (`overlap_comm`) where the plan decides.

    Not on the CPU, where DeepSpeed has no streams, nor with one rank, which reduces nothing, nor with the optimizer on
    the host, whose copies order the buckets. ZeRO-1 reduces in the last backward pass of a stage, which is that of one
    chunk: with several per stage the others' gradients would be left out.

    Args:
        zero_stage: ZeRO stage, 0 to 3.
        data: data-parallel size.
        virtual: model chunks per pipeline stage.
        offload_optimizer: where optimizer states are kept.
        device: kind of device, "cpu" or "cuda".
    """
    applies = zero_stage == 2 or (zero_stage == 1 and virtual == 1)
    return applies and data > 1 and offload_optimizer is Offload.NONE and device != "cpu"


def _stage(ds: Mapping[str, Any]) -> Iterator[Named | str]:
    stage, where = find(ds, (ZERO, "stage")), f"{ZERO}.stage"
    if is_auto(stage):
        return
    if isinstance(stage, bool) or not isinstance(stage, int) or stage not in range(4):
        yield f'{where} is {show(stage)}; it must be 0, 1, 2, 3 or "auto"'
    else:
        yield Named(field="zero_stage", where=where, value=stage)


def _precision(ds: Mapping[str, Any]) -> Iterator[Named | str]:
    """Yield the precision that is switched on, or fp32 if bf16 is switched off and fp16 is off or absent."""
    flags = {name: find(ds, (name, "enabled")) for name in ("bf16", "fp16")}
    wrong = {name: value for name, value in flags.items() if not is_auto(value) and not isinstance(value, bool)}
    for name, value in wrong.items():
        yield f'{name}.enabled is {show(value)}; it must be true, false or "auto"'
    if wrong:
        return
    if flags["bf16"] is True and flags["fp16"] is True:
        yield 'bf16.enabled and fp16.enabled are both true; set one of them to false or "auto"'
    elif flags["bf16"] is True:
        yield Named(field="precision", where="bf16.enabled", value=Precision.BF16)
    elif flags["fp16"] is True:
        yield Named(field="precision", where="fp16.enabled", value=Precision.FP16)
    elif flags["bf16"] is False and flags["fp16"] in (False, None):
        yield Named(field="precision", where="bf16.enabled", value=Precision.FP32)


def _size(ds: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Named | str]:
    value, where = find(ds, path), ".".join(path)
    if is_auto(value):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        yield f'{where} is {show(value)}; it must be a whole number of at least 1 or "auto"'
    else:
        yield Named(field=path[-1], where=where, value=value)


def _sequence_parallel(ds: Mapping[str, Any]) -> Iterator[Named | str]:
    value, where = find(ds, (OWN_SECTION, "sequence_parallel")), f"{OWN_SECTION}.sequence_parallel"
    if is_auto(value):
        return
    if isinstance(value, bool):
        yield Named(field="sequence_parallel", where=where, value=value)
    else:
        yield f'{where} is {show(value)}; it must be true, false or "auto"'


def _recompute(ds: Mapping[str, Any]) -> Iterator[Named | str]:
    """Yield what to recompute; DeepSpeed has no key for it, so its section on its own means every layer."""
    if find(ds, (OWN_SECTION, "recompute")) is not None:
        yield from _choice(ds, (OWN_SECTION, "recompute"), field="recompute", choices=Recompute)
    elif "activation_checkpointing" in ds:
        yield Named(field="recompute", where="activation_checkpointing", value=Recompute.FULL)


def _choice(
    ds: Mapping[str, Any], path: tuple[str, ...], *, field: str, choices: type[StrEnum]
) -> Iterator[Named | str]:
    value, where = find(ds, path), ".".join(path)
    if is_auto(value):
        return
    if value in list(choices):
        yield Named(field=field, where=where, value=choices(value))
    else:
        yield f'{where} is {show(value)}; it must be one of {", ".join(choices)} or "auto"'
