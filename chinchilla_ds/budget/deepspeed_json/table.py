"""Every key that DeepSpeed 0.19.8 reads, and how it is treated here.

| use | |
|---|---|
| `plan` | the plan decides it: "auto" is replaced by its value, another value is compared with it (`fields`) |
| `passed` | passed on to DeepSpeed, which acts on it |
| `idle` | accepted and without effect, whatever its value: it requests nothing that this engine fails to do |
| `refused` | its effect would be lost, or break what the plan or a checkpoint promises; the reason says what to do |

Literal, because `budget` does not import DeepSpeed: tests/unit/budget/deepspeed_json/test_ds_keys.py walks the classes
and constants of the installed version, so that no key of a new version is missed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from chinchilla_ds.budget.deepspeed_json.values import (
    ANYTHING,
    BETAS,
    BOOL,
    OBJECT,
    POSITIVE,
    TEXT,
    TEXTS,
    ValueKind,
    number,
    one_of,
    whole,
)

DEEPSPEED_VERSION = "0.19.8"
"""The version that these keys were read from."""

OWN_SECTION = "chinchilla_ds"
"""Our section of the JSON, for values without DeepSpeed keys; removed before DeepSpeed reads the JSON."""

Path = tuple[str, ...]


class Use(StrEnum):
    """How a key is treated."""

    PLAN = "plan"
    PASSED = "passed"
    IDLE = "idle"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of the DeepSpeed JSON."""

    use: Use
    kind: ValueKind
    why: str = ""
    """For a refused key: the reason, and what to do. For an idle one: why it has no effect."""
    same: tuple[Any, ...] = ()
    """For a refused key: values that request what happens anyway and are accepted."""
    switch: str | None = None
    """For a refused section: the key that switches it on; a section that is switched off is left out."""
    nullable: bool = False
    """Whether DeepSpeed treats null as a missing key."""


def _plan(kind: ValueKind = ANYTHING) -> Key:
    return Key(use=Use.PLAN, kind=kind)


def _passed(kind: ValueKind, *, nullable: bool = False) -> Key:
    return Key(use=Use.PASSED, kind=kind, nullable=nullable)


def _idle(kind: ValueKind, why: str) -> Key:
    return Key(use=Use.IDLE, kind=kind, why=why)


def _refused(
    why: str, *same: Any, kind: ValueKind = ANYTHING, switch: str | None = None, nullable: bool = False
) -> Key:
    return Key(use=Use.REFUSED, kind=kind, why=why, same=same, switch=switch, nullable=nullable)


_SECTION = _passed(OBJECT)

# ---- reasons that several keys share ---------------------------------------------------------------------------------

_DENSE = "it is for mixtures of experts, and the decoder is dense; remove it"
_OWN_CHECKPOINTS = (
    "checkpoints are chinchilla-ds's own, which every layout and ZeRO stage reads as they are; remove it, and see "
    "`checkpoint.save_every`, `checkpoint.keep` and `checkpoint.resume`"
)
_FP32_STATES = "master weights and AdamW's moments are FP32, and so are checkpoints; remove it"
_OWN_LOADER = "batches come from chinchilla-ds's own loader, and its order from the plan's seed; remove it"
_ONE_STEP = "the step, its gradient norm and the checkpoint are those of one whole AdamW step; remove it"
_ROUNDED = (
    "ZeRO++ rounds to INT8 in transit between ranks, and every layout is to give the same model; remove it, and see "
    "communication_data_type"
)
_REMOVED = f"DeepSpeed {DEEPSPEED_VERSION} no longer has it and refuses it; remove it"

# ---- the sections ----------------------------------------------------------------------------------------------------

_TOP: dict[str, Key] = {
    "activation_checkpointing": _SECTION,
    "aio": _SECTION,
    "autotuning": _refused(
        "DeepSpeed's autotuner ends the process after a few steps, without a checkpoint; remove it, and see "
        "`plan.gpu`, which searches the layout and the micro-batch before the run",
        switch="enabled",
    ),
    "bf16": _SECTION,
    "checkpoint": _SECTION,
    "comet": _SECTION,
    "comms_logger": _SECTION,
    "communication_data_type": _passed(one_of("fp32", "fp16", "bf16"), nullable=True),
    "compile": _refused(
        "nothing calls DeepSpeed's engine.compile(), so neither torch.compile nor DeepCompile would run; remove it",
        switch="deepcompile",
    ),
    "csv_monitor": _SECTION,
    "data_efficiency": _refused(
        f"curriculum, sampling and token dropping would have no effect: {_OWN_LOADER}", switch="enabled"
    ),
    "data_parallel_size": _refused("it follows from the ranks and the layout; remove it"),
    "data_types": _SECTION,
    "dataloader_drop_last": _idle(BOOL, "every batch of the loader is full"),
    "datastates_ckpt": _refused(_OWN_CHECKPOINTS, False),
    "disable_allgather": _refused("DeepSpeed reads it and does nothing with it; remove it", False),
    "disable_python_gc": _passed(BOOL),
    "dump_state": _passed(BOOL),
    "expert_parallel": _refused(_DENSE, switch="enabled"),
    "flops_profiler": _SECTION,
    "fp16": _SECTION,
    "gradient_accumulation_steps": _plan(whole(1)),
    "gradient_allreduce_op": _refused(
        'learning rate and clipping are planned for the mean over the data-parallel ranks; remove it, or say "mean"',
        "mean",
    ),
    "gradient_clipping": _plan(number(0)),
    "gradient_predivide_factor": _passed(POSITIVE),
    "hybrid_engine": _refused(
        "it generates text between the steps of reinforcement learning, which is not supported; remove it",
        switch="enabled",
    ),
    "log_level": _passed(one_of("debug", "info", "warning", "error", "critical"), nullable=True),
    "managed_gradient_accumulation": _refused(
        "the schedule tells DeepSpeed where a step ends, and needs it to keep count; remove it", True
    ),
    "memory_breakdown": _passed(BOOL),
    "optimizer": _SECTION,
    "pipeline": _refused(
        "it is for DeepSpeed's own pipeline engine, which stops at ZeRO-1; use "
        f"{OWN_SECTION}.pipeline_model_parallel_size"
    ),
    "prescale_gradients": _passed(BOOL),
    "scheduler": _refused(
        "the plan owns the learning-rate schedule; remove the section and pass `decay`, `learning_rate` and "
        "`warmup_iters`"
    ),
    "seq_parallel_communication_data_type": _refused(
        f"it is for DeepSpeed's Ulysses, which is not used here; see {OWN_SECTION}.sequence_parallel", "fp32"
    ),
    "sequence_parallel_size": _refused(f"DeepSpeed's Ulysses is not used here; use {OWN_SECTION}.sequence_parallel", 1),
    "steps_per_print": _passed(whole(1), nullable=True),
    "tensor_parallel": _refused(
        f"DeepSpeed's AutoTP is for other models; use {OWN_SECTION}.tensor_model_parallel_size", switch="autotp_size"
    ),
    "tensorboard": _SECTION,
    "timers": _SECTION,
    "torch_autocast": _refused(
        "weights, gradients and activations of a run have one precision; use bf16.enabled, fp16.enabled or `precision`",
        switch="enabled",
    ),
    "train_batch_size": _plan(whole(1)),
    "train_micro_batch_size_per_gpu": _plan(whole(1)),
    "use_data_before_expert_parallelism": _refused(_DENSE, False),
    "vocabulary_size": _plan(whole(1)),
    "wall_clock_breakdown": _passed(BOOL),
    "wandb": _SECTION,
    "weight_quantization": _refused(
        "it is for DeepSpeed's inference; remove it, and see `export.quantize`", switch="enabled"
    ),
    "zero_allow_untested_optimizer": _idle(BOOL, "it is set where an optimizer needs it"),
    "zero_force_ds_cpu_optimizer": _idle(BOOL, "it is set where an optimizer needs it"),
    "zero_optimization": _SECTION,
    OWN_SECTION: _SECTION,
}

_REMOVED_TOP = (
    "amp",
    "compression_training",
    "curriculum_learning",
    "eigenvalue",
    "elasticity",
    "graph_harvesting",
    "nebula",
    "progressive_layer_drop",
    "quantize_training",
    "sparse_attention",
    "sparse_gradients",
)
_REMOVED_ZERO = ("mics_hierarchical_params_gather", "mics_shard_size", "zeropp_loco_param")

_ZERO: dict[str, Key] = {
    "allgather_bucket_size": _passed(whole(0)),
    "allgather_partitions": _passed(BOOL),
    "compute_grad_norm": _refused("a step is skipped, and a bad batch found, by its gradient norm; remove it", True),
    "contiguous_gradients": _passed(BOOL),
    "elastic_checkpoint": _refused(_OWN_CHECKPOINTS, False),
    "enable_sanity_checks": _passed(BOOL),
    "ignore_unused_parameters": _passed(BOOL),
    "leaf_module": _refused(_DENSE, {}, switch="enabled"),
    "legacy_stage1": _refused("DeepSpeed no longer has the old stage 1; remove it", False),
    "load_from_fp32_weights": _refused(_OWN_CHECKPOINTS, True),
    "log_trace_cache_warnings": _passed(BOOL),
    "memory_efficient_linear": _passed(BOOL),
    "offload_optimizer": Key(use=Use.PASSED, kind=OBJECT, nullable=True),
    "offload_param": Key(use=Use.PASSED, kind=OBJECT, nullable=True),
    "overlap_comm": _passed(BOOL, nullable=True),
    "override_module_apply": _passed(BOOL),
    "parameter_alignment": _passed(BOOL),
    "pipeline_loading_checkpoint": _refused(_OWN_CHECKPOINTS, False),
    "reduce_bucket_size": _passed(whole(1)),
    "reduce_scatter": _passed(BOOL),
    "round_robin_gradients": _passed(BOOL),
    "save_muon_momentum_buffer_in_memory": _refused("the optimizer is AdamW, not Muon; remove it", False),
    "stage": _plan(),
    "stage3_allgather_sequential": _passed(BOOL),
    "stage3_gather_16bit_weights_on_model_save": _idle(BOOL, "checkpoints and exports hold whole weights anyway"),
    "stage3_max_live_parameters": _passed(whole(0)),
    "stage3_max_reuse_distance": _passed(whole(0)),
    "stage3_model_persistence_threshold": _passed(whole(0)),
    "stage3_module_granularity_threshold": _refused(
        f"modules would be gathered whole, up to the decoder, whose backward pass then fails: {_DENSE}", 0
    ),
    "stage3_param_persistence_threshold": _passed(whole(0)),
    "stage3_prefetch_bucket_size": _passed(whole(0)),
    "stage3_use_all_reduce_for_fetch_params": _passed(BOOL),
    "sub_group_size": _passed(whole(0)),
    "use_multi_rank_bucket_allreduce": _passed(BOOL),
    "zenflow": _refused(f"ZenFlow updates some weights late and keeps its own states, and {_ONE_STEP}", nullable=True),
    "zero_hpz_partition_size": _refused(
        "a resumed run would continue with its initial weights, kept in the secondary partition; remove it",
        0,
        1,
    ),
    "zero_quantized_gradients": _refused(_ROUNDED, False),
    "zero_quantized_nontrainable_weights": _refused("every weight is trained; remove it", False),
    "zero_quantized_weights": _refused(_ROUNDED, False),
}

_BUFFERS: Mapping[str, Key] = {
    "buffer_count": _passed(whole(0)),
    "device": _plan(),
    "nvme_path": _passed(TEXT, nullable=True),
    "pin_memory": _passed(BOOL),
}

_MONITOR: Mapping[str, Key] = {"enabled": _passed(BOOL), "output_path": _passed(TEXT), "job_name": _passed(TEXT)}
_NAME = _passed(TEXT, nullable=True)
_AS_BUILT = "the engine builds the optimizer itself"
_KERNEL = "it names a kernel with the same arithmetic"

SECTIONS: Mapping[Path, Mapping[str, Key]] = {
    (): _TOP | {name: _refused(_REMOVED) for name in _REMOVED_TOP},
    (OWN_SECTION,): {
        "pipeline_model_parallel_size": _plan(),
        "recompute": _plan(),
        "sequence_parallel": _plan(),
        "tensor_model_parallel_size": _plan(),
        "virtual_pipeline_model_parallel_size": _plan(),
    },
    ("zero_optimization",): _ZERO | {name: _refused(_REMOVED) for name in _REMOVED_ZERO},
    ("zero_optimization", "offload_param"): {
        **_BUFFERS,
        "buffer_size": _passed(whole(0)),
        "max_in_cpu": _passed(whole(0)),
    },
    ("zero_optimization", "offload_optimizer"): {
        **_BUFFERS,
        "cpuadam_cores_perc": _refused("it has an effect only under super_offload; remove it", 0.8),
        "fast_init": _passed(BOOL),
        "pipeline_read": _passed(BOOL),
        "pipeline_write": _passed(BOOL),
        "ratio": _refused(f"a part of the states would be stepped by a second optimizer, and {_ONE_STEP}", 1),
        "super_offload": _refused(f"SuperOffload keeps states in a separate process, and {_ONE_STEP}", False),
    },
    ("bf16",): {
        "bf16_master_weights_and_grads": _refused(_FP32_STATES, False),
        "bf16_optimizer_states": _refused(_FP32_STATES, False),
        "check_grad_overflow": _refused(
            "a step with non-finite gradients would be taken instead of skipped; remove it", True
        ),
        "enabled": _plan(),
        "immediate_grad_update": _passed(BOOL),
    },
    ("fp16",): {
        "auto_cast": _idle(BOOL, "it casts inputs that are not integers, and tokens are"),
        "consecutive_hysteresis": _passed(BOOL),
        "enabled": _plan(),
        "fp16_master_weights_and_grads": _refused(_FP32_STATES, False),
        "hysteresis": _passed(whole(1)),
        "initial_scale_power": _passed(whole(0, 127)),
        "loss_scale": _passed(number(0)),
        "loss_scale_window": _passed(whole(1)),
        "min_loss_scale": _passed(whole(1)),
    },
    ("activation_checkpointing",): {
        "contiguous_memory_optimization": _passed(BOOL),
        "cpu_checkpointing": _passed(BOOL),
        "number_checkpoints": _passed(whole(1), nullable=True),
        "partition_activations": _passed(BOOL),
        "profile": _passed(BOOL),
        "synchronize_checkpoint_boundary": _passed(BOOL),
    },
    ("aio",): {
        "block_size": _passed(whole(1)),
        "intra_op_parallelism": _passed(whole(1)),
        "overlap_events": _passed(BOOL),
        "queue_depth": _passed(whole(1)),
        "single_submit": _passed(BOOL),
        "use_gds": _passed(BOOL),
    },
    ("checkpoint",): {
        "checkpoint_serialization": _refused(_OWN_CHECKPOINTS),
        "load_universal": _refused(_OWN_CHECKPOINTS, False),
        "parallel_write": _refused(_OWN_CHECKPOINTS, {"pipeline_stage": False}),
        "tag_validation": _refused(_OWN_CHECKPOINTS),
        "use_node_local_storage": _refused(_OWN_CHECKPOINTS, False),
        "writer": _refused(_OWN_CHECKPOINTS, nullable=True),
    },
    ("comms_logger",): {
        "debug": _passed(BOOL),
        "enabled": _passed(BOOL),
        "prof_all": _passed(BOOL),
        "prof_ops": _passed(TEXTS),
        "verbose": _passed(BOOL),
    },
    ("data_types",): {
        "buffer_dtype": _refused(
            "buffers are FP32 in every precision, otherwise rotary positions lose precision; remove it",
            "fp32",
            nullable=True,
        ),
        "grad_accum_dtype": _passed(one_of("fp32", "fp16", "bf16"), nullable=True),
        "keep_in_fp32_modules": _refused("buffers are FP32 in every precision; remove it", "auto", []),
        "param_dtype": _plan(one_of("fp32", "fp16", "bf16")),
    },
    ("flops_profiler",): {
        "detailed": _passed(BOOL),
        "enabled": _passed(BOOL),
        "module_depth": _passed(whole(-1)),
        "output_file": _passed(TEXT, nullable=True),
        "profile_step": _passed(whole(1)),
        "recompute_fwd_factor": _passed(number(0)),
        "top_modules": _passed(whole(1)),
    },
    ("timers",): {"throughput": _SECTION},
    ("timers", "throughput"): {"enabled": _passed(BOOL), "synchronized": _passed(BOOL)},
    ("tensorboard",): _MONITOR,
    ("csv_monitor",): _MONITOR,
    ("wandb",): {"enabled": _passed(BOOL), "group": _NAME, "project": _passed(TEXT), "team": _NAME},
    ("comet",): {
        "api_key": _NAME,
        "enabled": _passed(BOOL),
        "experiment_key": _NAME,
        "experiment_name": _NAME,
        "mode": _passed(one_of("get", "create", "get_or_create"), nullable=True),
        "online": _passed(BOOL, nullable=True),
        "project": _NAME,
        "samples_log_interval": _passed(whole(1)),
        "workspace": _NAME,
    },
    ("optimizer",): {
        "legacy_fusion": _refused(f"{_AS_BUILT}; remove it", False),
        "params": _SECTION,
        "type": _plan(TEXT),
    },
    ("optimizer", "params"): {
        "adam_w_mode": _refused("weight decay is decoupled: AdamW's, not L2 regularisation; remove it", True),
        "amsgrad": _refused("AdamW keeps no maximum of its second moment; remove it", False),
        "betas": _plan(BETAS),
        "capturable": _idle(BOOL, _KERNEL),
        "differentiable": _refused("nothing differentiates through the optimizer's step; remove it", False),
        "bias_correction": _refused("AdamW corrects the bias of its moments; remove it", True),
        "eps": _plan(number(0)),
        "foreach": _idle(BOOL, _KERNEL),
        "fp32_optimizer_states": _refused(_FP32_STATES, True),
        "fused": _idle(BOOL, _KERNEL),
        "lr": _plan(number(0)),
        "maximize": _refused("the loss is minimised; remove it", False),
        "max_grad_norm": _refused("DeepSpeed does not accept it as an optimizer parameter; use gradient_clipping"),
        "set_grad_none": _idle(BOOL, "gradients are cleared by the engine"),
        "torch_adam": _idle(BOOL, _KERNEL),
        "weight_decay": _plan(number(0)),
    },
}
"""Keys by section; a key whose path is itself a section refers to it."""

AUTO_IS_DEFAULT: frozenset[Path] = frozenset(
    {
        ("bf16",),
        ("comet",),
        ("comms_logger",),
        ("csv_monitor",),
        ("fp16",),
        ("optimizer", "params"),
        ("tensorboard",),
        ("timers", "throughput"),
        ("wandb",),
        ("zero_optimization",),
        ("zero_optimization", "offload_optimizer"),
        ("zero_optimization", "offload_param"),
    }
)
"""Sections in which DeepSpeed itself reads "auto" as its default."""

OTHER_NAMES: Mapping[Path, str] = {
    ("bfloat16",): "bf16",
    **{("zero_optimization", name.removeprefix("stage3_")): name for name in _ZERO if name.startswith("stage3_")},
}
"""Alternative names under which DeepSpeed reads a key, and the name used here."""

OLD_NAMES: Mapping[Path, str] = {
    ("zero_optimization", "cpu_offload"): 'use offload_optimizer, {"device": "cpu"}',
    ("zero_optimization", "cpu_offload_param"): 'use offload_param, {"device": "cpu"}',
    ("zero_optimization", "cpu_offload_use_pin_memory"): (
        "use offload_optimizer.pin_memory and offload_param.pin_memory"
    ),
    ("zero_optimization", "stage3_gather_fp16_weights_on_model_save"): (
        "use stage3_gather_16bit_weights_on_model_save"
    ),
    ("allgather_size",): "use zero_optimization.allgather_bucket_size",
}
"""Names that DeepSpeed still reads but deprecates."""
