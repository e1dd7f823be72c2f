"""The memory model against the ZeRO paper, Korthikanti et al. and closed forms; the engine is in tests/distributed."""

import dataclasses
import itertools
from typing import Any

import pytest

from chinchilla_ds.budget.memory.activations import activation_bytes, chunks_in_flight, layers_in_flight
from chinchilla_ds.budget.memory.peak import (
    estimate_memory,
    estimate_stages,
    gradients_before,
    margin_bytes,
    peak_bytes,
    stage_params,
)
from chinchilla_ds.budget.memory.states import StateBytes, state_bytes
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.run_plan import BatchPlan, MemoryBytes, ModelShape, Offload, ParallelLayout, Precision, Recompute

SHAPE = ModelShape(  # Llama 2 7B's
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=11008,
    num_attention_heads=32,
    num_query_groups=32,
    kv_channels=128,
    vocab_size=32000,
    padded_vocab_size=32000,
    seq_length=4096,
)
PARAMS = count_parameters(shape=SHAPE).total
GB = 1e9


def _state(*, shape: ModelShape = SHAPE, **changes: Any) -> StateBytes:
    values: dict[str, Any] = {
        "tensor": 1,
        "pipeline": 1,
        "data": 64,
        "zero_stage": 1,
        "offload_optimizer": Offload.NONE,
        "offload_param": Offload.NONE,
        "precision": Precision.BF16,
        "stage": 0,
    }
    return state_bytes(shape=shape, **{**values, **changes})


def _activations(*, shape: ModelShape = SHAPE, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "tensor": 1,
        "pipeline": 1,
        "virtual": 1,
        "sequence_parallel": False,
        "recompute": Recompute.NONE,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 64,
        "precision": Precision.BF16,
        "on_cpu": False,
        "stage": 0,
    }
    return activation_bytes(shape=shape, **{**values, **changes})


def _stages(*, micro_batch_size: int = 1, accumulation: int = 16, **layout: Any) -> tuple[MemoryBytes, ...]:
    parallel = ParallelLayout(**{"zero_stage": 1, **layout})
    batch = BatchPlan(
        global_batch_size=micro_batch_size * accumulation * parallel.data_parallel_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        train_iters=1,
    )
    return estimate_stages(shape=SHAPE, layout=parallel, batch=batch, precision=Precision.BF16, device="h100")


@pytest.mark.parametrize(("zero_stage", "expected_gb"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_the_zero_paper(zero_stage: int, expected_gb: float) -> None:
    # Rajbhandari et al. 2020 (arXiv:1910.02054), figure 1: 7.5B parameters, 64 data-parallel ranks, K = 12
    state = _state(zero_stage=zero_stage)
    per_param = (state.weights + state.gradients + state.optimizer) / PARAMS
    assert round(per_param * 7.5e9 / GB, 1) == pytest.approx(expected_gb, abs=0.051)


def test_full_recomputation_keeps_two_bytes_per_hidden_channel_and_layer() -> None:
    # Korthikanti et al. 2022 (arXiv:2205.05198), table 2: full activation recomputation, 2 s b h per layer
    saved = _activations(recompute=Recompute.FULL, micro_batch_size=3).saved
    assert saved == 2 * 4096 * 3 * 4096 * SHAPE.num_layers


def test_sequence_parallelism_splits_everything_but_the_rotations() -> None:
    # Korthikanti et al. 2022, equation 4: with tensor and sequence parallelism every term is divided by t
    rotations = SHAPE.num_layers * 4 * 2 * SHAPE.seq_length * SHAPE.kv_channels
    whole = _activations().saved - rotations
    assert _activations(tensor=8, sequence_parallel=True).saved - rotations == whole // 8
    norms = (
        SHAPE.num_layers * 2 * 4096 * (2 * 2 * 4096 + 4)
    )  # equation 2: what is outside the split regions stays whole
    assert _activations(tensor=8).saved - rotations == norms + (whole - norms) // 8


@pytest.mark.parametrize(("pipeline", "virtual"), [(2, 1), (8, 1), (4, 2), (8, 4)])
def test_first_stage_keeps_what_korthikanti_says(pipeline: int, virtual: int) -> None:
    # Section 4.2.3: the first stage keeps L layers' worth, interleaved L (1 + (p - 1) / (p m)), m chunks per stage
    saved = _activations(pipeline=pipeline, virtual=virtual).saved
    share = 1 + (pipeline - 1) / (pipeline * virtual) if virtual > 1 else 1
    assert saved == pytest.approx(_activations().saved * share, rel=1e-12)


def test_last_stage_of_1f1b_keeps_one_micro_batch() -> None:
    assert [chunks_in_flight(pipeline=4, virtual=1, micro_batches=16, stage=stage) for stage in range(4)] == [
        4,
        3,
        2,
        1,
    ]
    assert chunks_in_flight(pipeline=4, virtual=1, micro_batches=2, stage=0) == 2


def test_layers_in_flight_of_unequal_chunks():
    """Seven layers in four chunks of two stages, 2, 2 | 2, 1: the last stage has three passes in flight.

    When it makes the loss, two are of its first chunk and one of its second; later on all three are of the first.
    """
    sizes = {"num_layers": 7, "pipeline": 2, "virtual": 2, "micro_batches": 4}
    assert layers_in_flight(**sizes, stage=1) == (3 * 2, 2 * 2 + 1)
    assert layers_in_flight(**sizes, stage=0) == (5 * 2, 5 * 2)
    assert chunks_in_flight(pipeline=2, virtual=2, micro_batches=4, stage=1) == 3


def test_selective_op_recomputation_keeps_three_outputs_and_the_input() -> None:
    """Of a layer: its input, QKV, attention's output with its log-sum-exp, and [gate; up]. Llama 3 8B's shape."""
    shape = dataclasses.replace(
        SHAPE,
        num_layers=32,
        hidden_size=4096,
        ffn_hidden_size=14336,
        num_attention_heads=32,
        num_query_groups=8,
        kv_channels=128,
        seq_length=8192,
        vocab_size=128256,
        padded_vocab_size=128256,
    )
    none, by_operation, full = (
        _activations(shape=shape, recompute=kind, micro_batch_size=1)
        for kind in (Recompute.NONE, Recompute.SELECTIVE_OP, Recompute.FULL)
    )
    layer = 8192 * (2 * (4096 + 6144 + 4096 + 2 * 14336) + 4 * 32)
    assert by_operation.saved == 32 * layer
    assert full.saved < by_operation.saved < 0.5 * none.saved
    assert none.recomputed < 0 < by_operation.recomputed < full.recomputed


def test_selective_recomputation_keeps_all_but_the_log_sum_exp() -> None:
    # with a fused attention the score matrix is never kept, and selective recomputation gains next to nothing
    log_sum_exp = SHAPE.num_layers * 4 * SHAPE.seq_length * SHAPE.num_attention_heads
    assert _activations().saved - _activations(recompute=Recompute.SELECTIVE).saved == log_sum_exp


@pytest.mark.parametrize("tied", [False, True])
def test_stages_hold_all_parameters(tied: bool) -> None:
    shape = dataclasses.replace(SHAPE, tied_embeddings=tied)
    total = count_parameters(shape=shape).total
    assert stage_params(shape=shape, tensor=1, pipeline=1, stage=0)[0] == total
    stages = [stage_params(shape=SHAPE, tensor=4, pipeline=8, stage=stage) for stage in range(8)]
    norms = sum(norm for _, norm in stages)
    assert norms == (2 * 32 + 1) * 4096
    assert 4 * sum(params - norm for params, norm in stages) + norms == PARAMS


def test_offload_moves_bytes_and_loses_none() -> None:
    plain, moved = _state(zero_stage=3), _state(zero_stage=3, offload_optimizer=Offload.CPU)
    shard = plain.optimizer // 12
    assert moved.optimizer == moved.gradients == 0
    assert moved.host == plain.optimizer + plain.gradients + 4 * shard  # and fp32 gradients for the CPU's step
    both = _state(zero_stage=3, offload_optimizer=Offload.CPU, offload_param=Offload.CPU)
    assert both.host - moved.host == moved.weights - both.weights == 2 * shard
    swapped = _state(zero_stage=3, offload_optimizer=Offload.NVME, offload_param=Offload.NVME)
    assert swapped.nvme == 14 * shard


def test_gradients_wait_for_the_first_backward_pass() -> None:
    def before(micro_batches: int, **layout: int) -> int:
        sizes = {"zero_stage": 1, "pipeline": 1, "virtual": 1, "stage": 0, **layout}
        return gradients_before(1000, micro_batches=micro_batches, **sizes)

    assert (before(1), before(2)) == (0, 1000)
    assert (before(4, pipeline=4), before(5, pipeline=4), before(4, pipeline=4, stage=1)) == (0, 1000, 1000)
    assert before(4, pipeline=2, virtual=4, stage=1) == 1000
    assert before(2, pipeline=2, virtual=4, stage=1) == 250  # 8 chunk passes, 7 in flight: one backward, of one chunk
    assert before(1, zero_stage=3) == 1000


LAYOUTS: list[dict[str, Any]] = [
    {"tensor_model_parallel_size": t, "pipeline_model_parallel_size": p, "data_parallel_size": 4, "zero_stage": z}
    | more
    for t, p, z, more in itertools.product(
        (1, 4), (1, 4), (1, 2, 3), ({}, {"recompute": Recompute.FULL}, {"recompute": Recompute.SELECTIVE})
    )
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_fullest_stage_is_found_and_its_parts_add_up(layout: dict[str, Any]) -> None:
    stages = _stages(**layout)
    parallel, batch = (
        ParallelLayout(**layout),
        BatchPlan(global_batch_size=64, micro_batch_size=1, gradient_accumulation_steps=16, train_iters=1),
    )
    fullest = estimate_memory(shape=SHAPE, layout=parallel, batch=batch, precision=Precision.BF16, device="h100")
    assert fullest == max(stages, key=lambda stage: stage.total)
    for stage in stages:
        parts = (stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.logits, stage.buffers)
        assert min(parts) >= 0
        assert stage.total == sum(parts) + stage.margin
        assert stage.margin == margin_bytes(sum(parts), device="h100")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_peak_of_the_cached_parts_is_the_estimate(layout: dict[str, Any]) -> None:
    tensor, pipeline = layout["tensor_model_parallel_size"], layout["pipeline_model_parallel_size"]
    for index, stage in enumerate(_stages(**layout)):
        state = _state(
            tensor=tensor,
            pipeline=pipeline,
            data=4,
            zero_stage=layout["zero_stage"],
            stage=index,
            overlaps=layout["zero_stage"] in (1, 2),
        )
        activations = _activations(
            tensor=tensor,
            pipeline=pipeline,
            recompute=layout.get("recompute", Recompute.NONE),
            gradient_accumulation_steps=16,
            stage=index,
        )
        before = gradients_before(
            state.gradients,
            zero_stage=layout["zero_stage"],
            pipeline=pipeline,
            virtual=1,
            micro_batches=16,
            stage=index,
        )
        peak = peak_bytes(state=state, activations=activations, gradients_before=before)
        assert peak == stage.total - stage.margin


def test_a_cpu_has_no_margin() -> None:
    assert margin_bytes(10**9, device="cpu") == 0
    assert margin_bytes(10**9, device="h100") > 2 * 2**30


def test_full_recomputation_and_parallelism_save_memory() -> None:
    (plain,) = _stages()
    for layout in (
        {"recompute": Recompute.FULL},
        {"tensor_model_parallel_size": 2},
        {"data_parallel_size": 2},
        {"zero_stage": 2, "data_parallel_size": 2},
        {"pipeline_model_parallel_size": 2},
    ):
        assert max(stage.total for stage in _stages(**layout)) < plain.total
