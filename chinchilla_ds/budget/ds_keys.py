"""The keys that DeepSpeed reads, so that a misspelt one is an error and not a silent default.

Literal, because `budget` does not import DeepSpeed; tests/unit/budget/test_ds_keys.py compares them with the installed
one. DeepSpeed itself ignores unknown keys at the top level.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from chinchilla_ds.errors import did_you_mean

DEEPSPEED_VERSION = "0.19.8"
"""The version that these keys were read from."""

OWN_SECTION = "chinchilla_ds"
"""Our section of the JSON: what DeepSpeed has no words for. Removed before DeepSpeed sees it."""

OWN_KEYS = frozenset(
    {
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "sequence_parallel",
        "recompute",
    }
)

TOP_LEVEL_KEYS = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comet",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "data_efficiency",
        "data_parallel_size",
        "data_types",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "hybrid_engine",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "optimizer",
        "pipeline",
        "prescale_gradients",
        "scheduler",
        "seq_parallel_communication_data_type",
        "sequence_parallel_size",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)

ZERO_KEYS = frozenset(
    {
        "allgather_bucket_size",
        "allgather_partitions",
        "compute_grad_norm",
        "contiguous_gradients",
        "elastic_checkpoint",
        "enable_sanity_checks",
        "ignore_unused_parameters",
        "leaf_module",
        "legacy_stage1",
        "load_from_fp32_weights",
        "log_trace_cache_warnings",
        "memory_efficient_linear",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "override_module_apply",
        "parameter_alignment",
        "pipeline_loading_checkpoint",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "save_muon_momentum_buffer_in_memory",
        "stage",
        "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_multi_rank_bucket_allreduce",
        "zenflow",
        "zero_hpz_partition_size",
        "zero_quantized_gradients",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_weights",
    }
)

DEPRECATED_ZERO_KEYS = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_use_pin_memory": "offload_optimizer.pin_memory and offload_param.pin_memory",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
"""Old name: what DeepSpeed calls it now."""

SECTION_KEYS: Mapping[tuple[str, ...], frozenset[str]] = {
    (): TOP_LEVEL_KEYS | {OWN_SECTION},
    (OWN_SECTION,): OWN_KEYS,
    ("zero_optimization",): ZERO_KEYS,
    ("zero_optimization", "offload_param"): frozenset(
        {"buffer_count", "buffer_size", "device", "max_in_cpu", "nvme_path", "pin_memory"}
    ),
    ("zero_optimization", "offload_optimizer"): frozenset(
        {
            "buffer_count",
            "cpuadam_cores_perc",
            "device",
            "fast_init",
            "nvme_path",
            "pin_memory",
            "pipeline_read",
            "pipeline_write",
            "ratio",
            "super_offload",
        }
    ),
    ("bf16",): frozenset(
        {
            "bf16_master_weights_and_grads",
            "bf16_optimizer_states",
            "check_grad_overflow",
            "enabled",
            "immediate_grad_update",
        }
    ),
    ("fp16",): frozenset(
        {
            "auto_cast",
            "consecutive_hysteresis",
            "enabled",
            "fp16_master_weights_and_grads",
            "hysteresis",
            "initial_scale_power",
            "loss_scale",
            "loss_scale_window",
            "min_loss_scale",
        }
    ),
    ("activation_checkpointing",): frozenset(
        {
            "contiguous_memory_optimization",
            "cpu_checkpointing",
            "number_checkpoints",
            "partition_activations",
            "profile",
            "synchronize_checkpoint_boundary",
        }
    ),
    ("aio",): frozenset(
        {"block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit", "use_gds"}
    ),
    ("optimizer",): frozenset({"legacy_fusion", "params", "type"}),
    ("optimizer", "params"): frozenset(
        {"adam_w_mode", "amsgrad", "betas", "bias_correction", "eps", "fused", "lr", "torch_adam", "weight_decay"}
    ),
}
"""Sections whose keys are checked; all others pass through untouched."""


def key_problems(ds: Mapping[str, Any]) -> Iterator[str]:
    """Yield every section that is no object and every key that nobody reads."""
    for path, known in SECTION_KEYS.items():
        section = find(ds, path)
        if section is None:
            continue
        where = ".".join(path)
        if not isinstance(section, Mapping):
            yield f"{where} must be a JSON object, not {section!r}"
            continue
        for key in section:
            name = f"{where}.{key}" if where else key
            if path == ("zero_optimization",) and key in DEPRECATED_ZERO_KEYS:
                yield f"{name} is deprecated by DeepSpeed; use {DEPRECATED_ZERO_KEYS[key]}"
            elif key not in known:
                reader = OWN_SECTION if path == (OWN_SECTION,) else f"DeepSpeed {DEEPSPEED_VERSION}"
                yield f"{name} is not a key that {reader} reads{did_you_mean(key, known)}"


def find(ds: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at `path`, or None where any part of it is missing."""
    value: Any = ds
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
