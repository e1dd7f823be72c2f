"""The memory model against the tensors of the live engine, on every rank.

The truth is `memory_accounting`: distinct storages by role, and what autograd has saved, at the fullest moment of a
real train step on CPU. Over 20 layouts; a component that is more than 5 % of the total, and the total, must be
within 5 %.
"""

from typing import Any

import pytest

from chinchilla_ds.run_plan import Offload, Recompute
from tests.distributed.memory_cases import (
    BY_OPERATION,
    QUICK,
    SLOW,
    TOLERANCE,
    expected_in_step,
    measured,
    misses,
    plan_of,
    predicted,
)


@pytest.mark.parametrize("values", QUICK.values(), ids=QUICK.keys())
def test_every_rank_holds_what_is_expected(values: dict[str, Any]) -> None:
    _compare(values)


@pytest.mark.slow
@pytest.mark.parametrize("values", SLOW.values(), ids=SLOW.keys())
def test_every_rank_holds_what_is_expected_in_more_layouts(values: dict[str, Any]) -> None:
    _compare(values)


def _compare(values: dict[str, Any]) -> None:
    plan = plan_of(values)
    stages, ranks = predicted(plan), measured(plan)
    assert {held.stage for held in ranks} == set(range(len(stages)))
    assert [problem for held in ranks for problem in misses(stages[held.stage], held)] == []
    for held in ranks if plan.layout.offload_optimizer is Offload.NONE else ():
        assert held.step.total == pytest.approx(expected_in_step(plan, held.stage), rel=TOLERANCE)


@pytest.mark.parametrize(
    "name", [name if name == "zero0" else pytest.param(name, marks=pytest.mark.slow) for name in BY_OPERATION]
)
def test_what_selective_op_recomputation_keeps_is_expected(name: str) -> None:
    """The total, and activations with buffers: what an operation saved counts as a buffer, as no hook tells of it."""
    plan = plan_of(BY_OPERATION[name])
    stages = predicted(plan)
    for held in measured(plan):
        stage, peak = stages[held.stage], held.peak
        assert peak.total == pytest.approx(stage.total, rel=TOLERANCE)
        moving = stage.activations + stage.logits + stage.buffers
        assert peak.activations + peak.logits + peak.buffers == pytest.approx(moving, rel=TOLERANCE)
    for other in (Recompute.NONE, Recompute.FULL):
        (first, *_) = predicted(plan_of({**BY_OPERATION[name], "recompute": other}))
        assert abs(first.total - stages[0].total) > TOLERANCE * stages[0].total, f"control: {other}"


@pytest.mark.slow
def test_unequal_chunks_hold_the_activations_and_the_total_that_are_expected() -> None:
    """Chunks of 2, 2 | 2, 1 layers; the tensors received ahead of time on the last stage are not in the model."""
    names = {"zero_stage": 1, "pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    plan = plan_of({**names, "num_layers": 7})
    stages = predicted(plan)
    for held in measured(plan):
        stage = stages[held.stage]
        assert held.peak.activations == pytest.approx(stage.activations, rel=0.001)
        assert held.peak.total == pytest.approx(stage.total, rel=TOLERANCE)
    equal = predicted(plan_of({**names, "num_layers": 8}))[-1]
    assert equal.total > (1 + 2 * TOLERANCE) * stages[-1].total, "control: equal chunks hold more"


def test_the_allocator_of_torch_hands_out_what_is_expected() -> None:
    plan = plan_of({"recompute": Recompute.SELECTIVE})
    (held,), (stage,) = measured(plan, allocator=True), predicted(plan)
    assert held.allocated is not None
    assert held.allocated == pytest.approx(stage.total, rel=TOLERANCE)


def test_estimates_of_other_layouts_miss() -> None:
    truth = {"zero_stage": 2, "data_parallel_size": 2}
    (held, _) = measured(plan_of(truth))
    assert misses(predicted(plan_of(truth))[0], held) == []
    for wrong in (
        {"zero_stage": 1},
        {"zero_stage": 3},
        {"data_parallel_size": 1},
        {"recompute": Recompute.FULL},
        {"micro_batch_size": 1},
        {"tensor_model_parallel_size": 2},
    ):
        (first, *_) = predicted(plan_of({**truth, **wrong}))
        assert misses(first, held), f"the estimate for {wrong} fits a run without it"


def test_no_single_component_carries_the_total() -> None:
    (stage,) = predicted(plan_of({"zero_stage": 1}))
    parts = (stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.logits, stage.buffers)
    assert max(parts) < 0.5 * stage.total
    assert min(parts) > 0.04 * stage.total
