"""The JSON that DeepSpeed gets from the resolved ds_config, and DeepSpeed's own check of it before anything slow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.deepspeed_json.conflicts import ZERO, can_be_made
from chinchilla_ds.budget.deepspeed_json.keys import find
from chinchilla_ds.budget.deepspeed_json.resolve import emit
from chinchilla_ds.budget.deepspeed_json.table import DEEPSPEED_VERSION
from chinchilla_ds.budget.deepspeed_json.values import show
from chinchilla_ds.errors import DsConfigError
from chinchilla_ds.run_plan import ADAMW, Offload, Precision, RunPlan


def for_deepspeed(ds_config: dict[str, Any], plan: RunPlan) -> dict[str, Any]:
    """Return the JSON for DeepSpeed, from the resolved ds_config that the user sees.

    * The optimizer is built here, with a group that is not decayed, so its section is left out.
    * Under a pipeline Megatron averages over micro-batches, so DeepSpeed is configured for 1 accumulation step; the
      plan carries the global batch, and `train_batch_size` is left for DeepSpeed to derive.
    * Optimizers that DeepSpeed has not tested are allowed: their OptimizerSpec says whether they step offloaded states.
    * ZeRO-0 in fp32 has no optimizer wrapper that reports the norm; `TrainingEngine` clips there itself.
    """
    engine_config = {key: value for key, value in ds_config.items() if key not in ("optimizer", "train_batch_size")}
    if plan.layout.pipeline_model_parallel_size > 1:
        engine_config["gradient_accumulation_steps"] = 1
    if plan.optimizer.plugin != ADAMW:
        engine_config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if clips_itself(plan):
        engine_config["gradient_clipping"] = 0.0
    return engine_config


def clips_itself(plan: RunPlan) -> bool:
    """Return whether `TrainingEngine` clips gradients instead of DeepSpeed."""
    return plan.layout.zero_stage == 0 and plan.precision is Precision.FP32


def check_with_deepspeed(ds_config: dict[str, Any], plan: RunPlan) -> None:
    """Let DeepSpeed parse the JSON and check the device, as `deepspeed.initialize` will once the text is prepared.

    Call it after `groups.initialize`, which declares the features of our CPU backend to DeepSpeed.

    Raises:
        DsConfigError: DeepSpeed refuses a value of the user's, the device does not support the precision, or a folder
            cannot be created. A refusal of the plan's own values is a bug in this package, and keeps its traceback.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    device = get_accelerator()
    supported = {Precision.FP16: device.is_fp16_supported, Precision.BF16: device.is_bf16_supported}
    if plan.precision in supported and not supported[plan.precision]():
        raise DsConfigError(
            f"precision is {plan.precision}, which DeepSpeed cannot compute with on this {device.device_name()}; "
            f"nearest: `precision={Precision.FP32}`"
        )
    if problems := list(_nvme_problems(ds_config)):
        raise DsConfigError(problems)
    try:
        DeepSpeedConfig(for_deepspeed(ds_config, plan))
    except (DeepSpeedConfigError, AssertionError, ValueError) as refusal:  # pydantic's are ValueErrors
        DeepSpeedConfig(for_deepspeed(emit(plan), plan))
        raise DsConfigError(
            [f"DeepSpeed {DEEPSPEED_VERSION} refuses the ds_config: {text}" for text in _texts(refusal)]
        ) from None


def _nvme_problems(ds_config: dict[str, Any]) -> Iterator[str]:
    """Yield folders on NVMe that this machine cannot create: a plan may come from another machine."""
    for name in ("offload_optimizer", "offload_param"):
        section = find(ds_config, (ZERO, name)) or {}
        if section.get("device") == Offload.NVME and not can_be_made(Path(section["nvme_path"])):
            yield f"{ZERO}.{name}.nvme_path is {show(section['nvme_path'])}, where this machine cannot create a folder"


def _texts(refusal: Exception) -> Iterator[str]:
    import pydantic

    if not isinstance(refusal, pydantic.ValidationError):
        yield " ".join(str(refusal).split())
        return
    for error in refusal.errors(include_url=False):
        where = ".".join(map(str, error["loc"]))
        yield f"{where + ': ' if where else ''}{error['msg']} ({refusal.title})"
