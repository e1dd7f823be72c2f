import dataclasses
import math

import pytest

from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.speed.devices import Device, get_device
from chinchilla_ds.budget.speed.rates import make_machine
from chinchilla_ds.budget.speed.step_time import (
    DataParallelTime,
    MicroBatchTime,
    OptimizerTime,
    combine,
    data_parallel_time,
    micro_batch_time,
    optimizer_time,
)
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import BatchPlan, ModelShape, Offload, ParallelLayout, Precision, Recompute, StepTime
from tests.unit.budget.speed.step_times import estimate_step_time

GIGA = Device(
    name="Giga",
    bf16_flops_per_s=1e12,
    fp16_flops_per_s=1e12,
    fp32_flops_per_s=1e11,
    matmul_efficiency=0.5,
    memory_bytes=2**40,
    memory_bytes_per_s=1e12,
    intra_node_bytes_per_s=1e9,
    inter_node_bytes_per_s=1e8,
    host_bytes_per_s=2e9,
    source="made up: round numbers",
)
LINK = 0.8
"""Share of a link that collectives reach, typed again."""
RUN = 0.97
"""Share of their isolated rate that kernels reach in a run, likewise."""


def gpt(num_layers: int, hidden_size: int, heads: int, *, vocab: int, seq_length: int, **changes: int) -> ModelShape:
    """Return our decoder with the matmul weights of a GPT block: SwiGLU at 8/3 h has as many as GELU at 4 h."""
    values = {"ffn_hidden_size": round(8 * hidden_size / 3), "num_query_groups": heads, **changes}
    return ModelShape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        kv_channels=hidden_size // heads,
        vocab_size=vocab,
        padded_vocab_size=vocab,
        seq_length=seq_length,
        **values,
    )


def step(shape: ModelShape, device: Device, *, micro: int, batch: int, data: int = 1, **layout) -> StepTime:
    sizes = {"tensor_model_parallel_size": layout.pop("tensor", 1), "zero_stage": layout.pop("zero", 1)}
    sizes |= {"pipeline_model_parallel_size": layout.pop("pipeline", 1)}
    sizes |= {"virtual_pipeline_model_parallel_size": layout.pop("virtual", 1), "data_parallel_size": data}
    plan = BatchPlan(
        global_batch_size=batch,
        micro_batch_size=micro,
        gradient_accumulation_steps=batch // micro // data,
        train_iters=1,
    )
    precision, may_overlap = layout.pop("precision", Precision.BF16), layout.pop("may_overlap", True)
    return estimate_step_time(
        shape=shape,
        layout=ParallelLayout(**sizes, **layout),
        batch=plan,
        precision=precision,
        device=device,
        may_overlap=may_overlap,
    )


SMALL = gpt(8, 1024, 8, vocab=1024, seq_length=1024)


def machine(world_size: int, per_node: int = 8, device: Device = GIGA):
    return make_machine(device=device, precision=Precision.BF16, world_size=world_size, devices_per_node=per_node)


def test_terms_add_up_and_utilisations_follow():
    time = step(SMALL, GIGA, micro=2, batch=64, data=2, tensor=2, pipeline=2, recompute=Recompute.FULL)
    terms = time.compute_s + time.tensor_parallel_s + time.pipeline_s + time.data_parallel_s + time.optimizer_s
    assert time.total_s == pytest.approx(terms, rel=1e-12)
    assert min(dataclasses.astuple(time)) > 0
    model = decoder_flops_per_token(shape=SMALL) * 64 * 1024
    assert time.mfu == pytest.approx(model / (time.total_s * 8 * 1e12), rel=1e-12)
    logits = 2 * 1024 * 1024
    forward = decoder_flops_per_token(shape=SMALL) / 3
    assert time.hfu / time.mfu == pytest.approx(1 + (forward - logits) / (3 * forward), rel=1e-12)


def test_selective_op_recomputation_repeats_what_is_cheap():
    """The output and the down projection, and what only moves memory: 10 h + 8 (a + 2 g) d + 5 f elements."""
    none, by_operation, full = (
        step(SMALL, GIGA, micro=2, batch=64, recompute=kind)
        for kind in (Recompute.NONE, Recompute.SELECTIVE_OP, Recompute.FULL)
    )
    projections = sum(machine(8).matmul_s(m=2 * 1024, k=k, n=1024, width=2) for k in (1024, 2731))
    moved = 2 * 2 * 1024 * (10 * 1024 + 8 * 3 * 1024 + 5 * 2731) / (1e12 * 0.8 * RUN)
    assert by_operation.compute_s - none.compute_s == pytest.approx(32 * 8 * (projections + moved), rel=1e-9)
    assert none.total_s < by_operation.total_s < full.total_s
    assert by_operation.hfu / by_operation.mfu == pytest.approx(
        1 + 2 * 8 * 1024 * (1024 + 2731) / decoder_flops_per_token(shape=SMALL), rel=1e-12
    )


def test_selective_recomputation_repeats_attention_alone():
    none = step(SMALL, GIGA, micro=2, batch=64)
    selective = step(SMALL, GIGA, micro=2, batch=64, recompute=Recompute.SELECTIVE)
    full = step(SMALL, GIGA, micro=2, batch=64, recompute=Recompute.FULL)
    assert none.total_s < selective.total_s < full.total_s
    assert none.hfu == none.mfu
    attention = 4 * 8 * 1024 * 1024
    assert selective.hfu / selective.mfu == pytest.approx(
        1 + attention / decoder_flops_per_token(shape=SMALL), rel=1e-12
    )


@pytest.mark.parametrize(("pipeline", "virtual", "micro_batches"), [(4, 1, 8), (4, 2, 8), (8, 5, 16)])
def test_bubble_of_equal_stages(pipeline, virtual, micro_batches):
    # Narayanan et al. 2021 (arXiv:2104.04473), sections 2.2.1 and 2.2.2
    micro = MicroBatchTime(compute_s=3.0, tensor_parallel_s=1.0, other_stages_s=4.0 * (pipeline - 1), send_s=0.0)
    parts = combine(
        micro=micro,
        collectives=DataParallelTime(0.0, 0.0, 0.0),
        optimizer=OptimizerTime(0.0, 0.0),
        virtual=virtual,
        pipeline=pipeline,
        micro_batches=micro_batches,
    )
    busy = parts.compute_s + parts.tensor_parallel_s
    assert parts.pipeline_s / busy == pytest.approx((pipeline - 1) / (virtual * micro_batches), rel=1e-12)


@pytest.mark.parametrize(("vocab", "slowest"), [(1024, "full"), (64 * 1024, "last")])
def test_the_slowest_of_uneven_stages_counts(vocab, slowest):
    """Ten layers on four stages, 2, 3, 3, 2: a small head is faster than a layer, a large one slower."""
    shape = gpt(10, 1024, 8, vocab=vocab, seq_length=1024)
    one, two, piped = (
        micro_time(shape=dataclasses.replace(shape, num_layers=layers), pipeline=pipeline)
        for layers, pipeline in ((1, 1), (2, 1), (10, 4))
    )
    layer = two.compute_s - one.compute_s
    head = one.compute_s - layer
    assert (head < layer) == (slowest == "full")
    assert piped.compute_s == pytest.approx(3 * layer if slowest == "full" else 2 * layer + head, rel=1e-9)
    assert piped.compute_s + piped.other_stages_s == pytest.approx(10 * layer + head, rel=1e-9)


def micro_time(**changes) -> MicroBatchTime:
    values = {
        "shape": SMALL,
        "tensor": 1,
        "pipeline": 1,
        "data": 1,
        "sequence_parallel": False,
        "recompute": Recompute.NONE,
        "micro_batch_size": 4,
        "precision": Precision.BF16,
        "machine": machine(8),
    }
    return micro_batch_time(**{**values, **changes})


@pytest.mark.parametrize(("tensor", "rate"), [(2, 1e9), (8, 1e9), (16, 8e8)])
def test_tensor_parallel_volume(tensor, rate):
    """Four all-reduces per layer, each 2 (t - 1) / t of T h; 16 ranks leave the node through its eight cards."""
    time = micro_time(tensor=tensor, machine=machine(16))
    message = 2 * 4 * 1024 * 1024
    layer = 4 * 2 * (tensor - 1) / tensor * message / (rate * LINK)
    assert time.tensor_parallel_s == pytest.approx((8 + 0.5) * layer, rel=0.01)  # latencies are the rest


def test_full_recomputation_repeats_the_forward_collectives():
    none, full = (micro_time(tensor=8, recompute=kind).tensor_parallel_s for kind in (Recompute.NONE, Recompute.FULL))
    assert full / none == pytest.approx((8 * 6 + 2) / (8 * 4 + 2), rel=1e-12)


def test_sequence_parallelism_splits_what_tensor_parallelism_leaves_whole():
    whole, split = (micro_time(tensor=8, sequence_parallel=flag) for flag in (False, True))
    assert split.tensor_parallel_s == whole.tensor_parallel_s
    moved = 3 * 8 * 2 * 4096 * 10 * 1024 * (1 - 1 / 8)  # forward and twice backward, 8 layers, 2 bytes, 4096 tokens
    assert whole.compute_s - split.compute_s == pytest.approx(moved / (1e12 * 0.8 * RUN), rel=1e-9)


def test_attention_counts_the_causal_half_and_five_matmuls_backward():
    fast, slow = (dataclasses.replace(GIGA, attention_efficiency=share) for share in (0.8, 0.4))
    times = [micro_time(machine=machine(8, device=device)).compute_s for device in (slow, fast)]
    flops = 8 * 4096 * 4 * (1025 / 2) * 1024 * 3.5
    short = (1024 + 512) / 1024  # FlashAttention-2, figure 4: 160 TFLOP/s at 2k, 190 at 16k
    assert times[0] - times[1] == pytest.approx(short * flops / 1e12 / RUN * (1 / 0.4 - 1 / 0.8), rel=1e-9)


def attention_rate(seq_length: int, head_size: int = 128) -> float:
    """Return FLOP/s of the causal half on an A100, without RUN."""
    rates = make_machine(device=get_device("a100"), precision=Precision.BF16, world_size=1)
    time = rates.attention_s(tokens=16384, channels=2048, seq_length=seq_length, head_size=head_size)
    return 4 * 16384 * (seq_length + 1) / 2 * 2048 / time / RUN


def test_attention_is_slower_over_short_sequences_and_small_heads():
    """FlashAttention-2 (arXiv:2307.08691), figure 4, A100, causal: 160 TFLOP/s at 2k, 190 at 16k; 0.9 with 64."""
    assert attention_rate(2048) == pytest.approx(160e12, rel=0.05)
    assert attention_rate(16384) == pytest.approx(190e12, rel=0.05)
    assert attention_rate(16384, 64) / attention_rate(16384) == pytest.approx(0.9, rel=0.01)
    assert attention_rate(512) < 0.55 * attention_rate(65536)


def reduced(
    zero: int, *, tensor: int = 1, pipeline: int = 1, data: int = 8, world: int = 8, overlaps: bool = False
) -> DataParallelTime:
    return data_parallel_time(
        shape=SMALL,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        zero_stage=zero,
        precision=Precision.BF16,
        machine=machine(world),
        overlaps=overlaps,
    )


LAYER_PARAMS = 4 * 1024**2 + 3 * 1024 * 2731 + 2 * 1024
PARAMS = 8 * LAYER_PARAMS + 2 * 1024 * 1024 + 1024


def test_zero_volumes():
    """Rajbhandari et al. 2020 (arXiv:1910.02054), section 7: 2 P per reduction, P per gather, 3 P for ZeRO-3."""
    one = 7 / 8 * 2 * PARAMS / (1e9 * LINK)
    assert reduced(0) == pytest.approx((2 * one, 0, 0, 0), rel=0.02)
    assert reduced(1) == pytest.approx((3 * one, 0, 0, 0), rel=0.02)
    assert reduced(2) == pytest.approx((one, 2 * one, 0, 0), rel=0.02)
    assert reduced(3)[:2] == pytest.approx((0, 3 * one), rel=0.02)
    assert reduced(3).hidden_share > 0
    assert reduced(1, data=1) == (0, 0, 0, 0)


def test_overlap_moves_the_reduction_beside_the_backward_pass():
    """ZeRO-1 reduces in the step's last micro-batch, ZeRO-2 in each; the volume stays. The gather hides nowhere."""
    one = 7 / 8 * 2 * PARAMS / (1e9 * LINK)
    first, second = reduced(1, overlaps=True), reduced(2, overlaps=True)
    assert (first.per_step_s, first.last_micro_batch_s) == pytest.approx((one, 2 * one), rel=0.02)
    assert (second.per_step_s, second.per_micro_batch_s) == pytest.approx((one, 2 * one), rel=0.02)
    assert 0 < first.hidden_share == second.hidden_share < 1
    for zero in (1, 2):
        slow, fast = (joined(reduced(zero, overlaps=overlaps)) for overlaps in (False, True))
        hidden = (1, 3)[zero - 1] * first.hidden_share * 0.85 * 2 * one
        assert fast.data_parallel_s == pytest.approx(slow.data_parallel_s - hidden, rel=0.02)


def joined(collectives: DataParallelTime):
    """Return the terms of three micro-batches whose computation takes a second, longer than any traffic."""
    return combine(
        micro=MicroBatchTime(compute_s=1.0, tensor_parallel_s=0.0, other_stages_s=0.0, send_s=0.0),
        collectives=collectives,
        optimizer=OptimizerTime(0.0, 0.0),
        virtual=1,
        pipeline=1,
        micro_batches=3,
    )


@pytest.mark.parametrize(("traffic", "costs"), [(2.0, 0.6 + 1.4 * 0.15), (20.0, 20 - 7 * 0.85)])
def test_hidden_traffic_costs_a_little(traffic, costs):
    """Seven tenths overlap, of no more than the computation; that costs 15 % (Calculon's processor_usage)."""
    parts = combine(
        micro=MicroBatchTime(compute_s=10.0, tensor_parallel_s=0.0, other_stages_s=0.0, send_s=0.0),
        collectives=DataParallelTime(per_step_s=1.0, per_micro_batch_s=traffic, hidden_share=0.7),
        optimizer=OptimizerTime(0.0, 0.0),
        virtual=1,
        pipeline=1,
        micro_batches=3,
    )
    assert parts.data_parallel_s == pytest.approx(1 + 3 * costs, rel=1e-12)


def test_zero3_hides_nothing_under_a_pipeline():
    assert reduced(3, pipeline=2, data=4).hidden_share == 0


def test_zero3_gathers_for_every_micro_batch():
    few, many = (step(SMALL, GIGA, micro=1, batch=16 * count, data=16, zero=3) for count in (1, 8))
    assert many.data_parallel_s == pytest.approx(8 * few.data_parallel_s, rel=1e-9)
    few, many = (step(SMALL, GIGA, micro=1, batch=16 * count, data=16, zero=1) for count in (1, 8))
    assert many.data_parallel_s == few.data_parallel_s > 0


def test_groups_that_cross_nodes():
    """Megatron's order tp-cp-ep-dp-pp: with TP 8 a node holds one member of each data-parallel group: one card."""
    inside, outside = reduced(1, tensor=1, data=8), reduced(1, tensor=8, data=8, world=64)
    bytes_inside, bytes_outside = 7 / 8 * 2 * PARAMS, 7 / 8 * 2 * PARAMS / 8
    assert inside.per_step_s == pytest.approx(3 * bytes_inside / (1e9 * LINK), rel=0.02)
    assert outside.per_step_s == pytest.approx(3 * bytes_outside / (1e8 * LINK), rel=0.02)
    four = reduced(1, tensor=2, data=32, world=64)
    assert four.per_step_s == pytest.approx(3 * 31 / 32 * 2 * PARAMS / 2 / (4e8 * LINK), rel=0.02)


def test_all_nodes_hold_as_many():
    assert make_machine(device=get_device("gb200"), precision=Precision.BF16, world_size=1024).devices_per_node == 64
    assert machine(12).devices_per_node == 6
    assert machine(4).devices_per_node == 4


def test_a_pipeline_that_leaves_the_node_sends_through_the_network():
    """Sixteen ranks, eight to a node: with four stages of four the second sends to the third over the network."""
    message = 2 * 4096 * 1024
    for data, pipeline, rate in ((4, 2, 1e9), (4, 4, 1e8)):
        time = micro_time(pipeline=pipeline, data=data, machine=machine(16))
        assert time.send_s == pytest.approx(2 * message / (rate * LINK), rel=0.01)


def adam(zero: int, **offload: Offload) -> OptimizerTime:
    values = {"offload_optimizer": Offload.NONE, "offload_param": Offload.NONE, **offload}
    return optimizer_time(
        shape=SMALL,
        tensor=1,
        pipeline=1,
        data=8,
        zero_stage=zero,
        precision=Precision.BF16,
        machine=machine(8),
        **values,
    )


def test_optimizer_step_is_partitioned_and_offload_costs():
    memory = 1e12 * 0.8 * RUN  # bytes/s
    later = [adam(zero).per_micro_batch_s * memory / PARAMS for zero in range(4)]
    assert later == pytest.approx([6, 6, 8 + 14 / 8, 24 - 2 / 8], rel=1e-9)
    one = [(adam(zero).per_step_s + adam(zero).per_micro_batch_s) * memory / PARAMS for zero in range(4)]
    assert one == pytest.approx([62 + 12, 74 / 8 + 10 + 6 / 8, 74 / 8 + 8 + 8 / 8, 70 / 8 + 24 - 4 / 8], rel=1e-9)
    cpu, nvme = (adam(3, offload_optimizer=place) for place in (Offload.CPU, Offload.NVME))
    assert adam(3).per_step_s < cpu.per_step_s < nvme.per_step_s
    gathered = adam(3, offload_param=Offload.CPU)
    fetched = gathered.per_micro_batch_s - adam(3).per_micro_batch_s
    assert fetched == pytest.approx(2 * 2 * PARAMS / 8 / (2e9 * LINK), rel=1e-9)


def test_cpu_adam_is_shared_by_the_devices_of_a_machine():
    """ZeRO-Offload (arXiv:2101.06840), table 4: 4 billion parameters in 1.03 s."""
    offloaded = adam(1, offload_optimizer=Offload.CPU)
    transfers = 2 * 2 * PARAMS / 8 / (2e9 * LINK)
    bucket = (10 + 6 / 8 - 6) * PARAMS / (1e12 * 0.8 * RUN)  # of the first micro-batch, which adds to nothing
    assert offloaded.per_step_s - transfers - bucket == pytest.approx(PARAMS / 4e9 * 1.03, rel=0.05)


def test_fp32_runs_at_its_own_rate_and_moves_twice_the_bytes():
    half, full = (
        step(SMALL, GIGA, micro=4, batch=32, data=8, precision=kind) for kind in (Precision.BF16, Precision.FP32)
    )
    assert full.compute_s > 5 * half.compute_s
    assert full.data_parallel_s == pytest.approx(2 * half.data_parallel_s, rel=0.02)


@pytest.mark.parametrize(
    "missing",
    [
        "bf16_flops_per_s",
        "memory_bytes_per_s",
        "intra_node_bytes_per_s",
        "inter_node_bytes_per_s",
        "host_bytes_per_s",
    ],
)
def test_a_rate_that_is_not_known_is_not_guessed(missing):
    device = dataclasses.replace(GIGA, **{missing: None})
    with pytest.raises(ConfigError, match=f"device Giga has no {missing}: a step's time cannot be estimated"):
        step(SMALL, device, micro=1, batch=16, data=16)


def test_one_node_needs_no_network():
    device = dataclasses.replace(GIGA, inter_node_bytes_per_s=None)
    assert math.isfinite(step(SMALL, device, micro=1, batch=8, data=8).total_s)
    with pytest.raises(ConfigError):
        step(SMALL, get_device("cpu"), micro=1, batch=1)
