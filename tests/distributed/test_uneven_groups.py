"""Pipeline stages with unequal numbers of sub-groups or parameter groups: one step, one sum over the stages.

Without the correction in `distributed.zero_step` each group's norm is summed over the stages by itself. The numbers of
those sums then differ from stage to stage, and the first step would hang: the control counts them instead.
"""

import pytest
import torch

from chinchilla_ds.engine import optimizer as engine_optimizer
from tests.parity import harness
from tests.parity.layouts import Case

TOLERANCE = 1e-6
SUB_GROUP_VALUES = 15_000
"""Of ZeRO-3: the first stage of the tiny plan then has 6 sub-groups and the last one 5."""


def counted_sums(monkeypatch) -> dict[str, int]:
    """Count this rank's all-reduces over the model-parallel ranks."""
    from deepspeed import comm
    from megatron.core import parallel_state

    counts, all_reduce = {"sums": 0}, comm.all_reduce

    def counting(tensor, *args, group=None, **more):
        counts["sums"] += group is not None and group is parallel_state.get_model_parallel_group()
        return all_reduce(tensor, *args, group=group, **more)

    monkeypatch.setattr(comm, "all_reduce", counting)
    return counts


def train_and_count(engine):
    """A body for `on_engine`: returns groups too, sums over stages, and those that DeepSpeed would take."""
    with pytest.MonkeyPatch.context() as patch:
        counts = counted_sums(patch)
        uncorrected = watched(engine.engine.optimizer)
        result = harness.train(engine)
    optimizer = engine.engine.optimizer
    groups = len(optimizer.fp16_groups if hasattr(optimizer, "fp16_groups") else optimizer.bit16_groups)
    return result, groups, counts["sums"], uncorrected["sums"]


def watched(optimizer) -> dict[str, int]:
    """Count how often the optimizer would sum over the stages, by the groups whose norms it takes."""
    counts, name = {"sums": 0}, "get_grad_norm_direct"
    if optimizer.cpu_offload if hasattr(optimizer, "cpu_offload") else optimizer.offload_optimizer:
        name = "complete_grad_norm_calculation_for_cpu_offload"
    real = getattr(optimizer, name)

    def counting(*args):
        counts["sums"] += 1
        return real(*args)

    setattr(optimizer, name, counting)
    return counts


def with_sub_groups(monkeypatch, values):
    emit = harness.deepspeed_json

    def deepspeed_json(plan, **extra):
        ds = emit(plan, **extra)
        ds["zero_optimization"]["sub_group_size"] = values
        return ds

    monkeypatch.setattr(harness, "deepspeed_json", deepspeed_json)


def with_a_group_more_on_the_first_stage():
    """Cut the first stage's matrices into two parameter groups; for `on_engine`'s `prepare`."""
    from megatron.core import parallel_state

    usual = engine_optimizer.parameter_groups

    def parameter_groups(stage, **settings):
        matrices, norms = usual(stage, **settings)
        if not parallel_state.is_pipeline_first_stage():
            return [matrices, norms]
        first, *rest = matrices["params"]
        return [{**matrices, "params": [first]}, {**matrices, "params": rest}, norms]

    engine_optimizer.parameter_groups = parameter_groups


def check(case, *, prepare=None, per_stage, monkeypatch=None):
    plan, steps = case.plan(), case.plan().batch.train_iters
    ranks = harness.on_engine(plan, train_and_count, prepare=prepare)
    assert sorted({groups for _, groups, *_ in ranks}) == sorted(per_stage)
    assert {sums for *_, sums, _ in ranks} == {steps}, "every rank sums once in a step"
    assert {taken // steps for *_, taken in ranks} == set(per_stage), "control: DeepSpeed's own sums do not match"
    uneven = harness.trajectory([result for result, *_ in ranks])
    if monkeypatch is not None:
        monkeypatch.undo()
    even = harness.trained(plan)
    apart = harness.difference(uneven, even, plan)
    assert max(apart.loss, apart.grad_norm, apart.weights) < TOLERANCE


@pytest.mark.parametrize(
    "case",
    [
        Case(zero=3, pp=2, accumulation=4),
        pytest.param(Case(zero=3, pp=2, accumulation=4, offload="optimizer"), marks=pytest.mark.slow),
        pytest.param(Case(zero=3, tp=2, pp=2, accumulation=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_stages_with_unequal_sub_groups_train_as_with_equal_ones(case, monkeypatch):
    values = SUB_GROUP_VALUES // case.tp
    with_sub_groups(monkeypatch, values)
    check(case, per_stage={6, 5}, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    "case",
    [
        Case(zero=1, pp=2, accumulation=4),
        pytest.param(Case(zero=2, pp=2, dp=2, accumulation=4), marks=pytest.mark.slow),
        pytest.param(Case(zero=3, pp=2, accumulation=4), marks=pytest.mark.slow),
        pytest.param(Case(zero=2, pp=2, accumulation=4, offload="optimizer"), marks=pytest.mark.slow),
        pytest.param(Case(zero=1, tp=2, pp=2, accumulation=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_stage_with_a_parameter_group_more_trains_as_the_others(case):
    check(case, prepare=with_a_group_more_on_the_first_stage, per_stage={3, 2})


def test_a_gradient_that_is_not_finite_on_one_stage_skips_the_step_on_all():
    def train(engine):
        from megatron.core import parallel_state

        batches = harness.own_micro_batches(engine.plan, 0)
        if parallel_state.is_pipeline_first_stage():
            weight = engine.stage.decoders[0].decoder.layers[0].mlp.linear_fc2.weight
            weight.register_hook(lambda gradient: gradient * torch.inf)
        return engine.train_step(batches, learning_rate=1e-3).skipped

    assert harness.on_engine(Case(zero=1, pp=2, accumulation=4).plan(), train) == [True, True]
