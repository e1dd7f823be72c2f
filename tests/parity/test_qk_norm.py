"""QK-norm: every layout trains what the plain-PyTorch reference trains, and the sum over heads of all ranks is needed.

Each tensor-parallel rank has the norms' weights whole and sees its own heads. What is left out of their gradients shows
in the gradient norm, and as replicas that drift apart.
"""

import itertools

import pytest

from tests.parity import harness
from tests.parity.harness import difference, full_weights, largest_relative, on_engine, reference, trained
from tests.parity.layouts import Case

FP32_TOLERANCE = 1e-5
WEIGHTS_TOLERANCE = 1e-3

CASES = [
    Case(zero=zero, tp=tp, pp=pp, accumulation=2 * pp, qk_norm=True)
    for zero, tp, pp in itertools.product((0, 1, 3), (1, 2), (1, 2))
    if zero > 0 or pp == 1
]
MORE = [
    Case(zero=2, tp=2, dp=2, sequence_parallel=True, recompute="full", qk_norm=True),
    Case(zero=1, tp=2, pp=2, virtual=2, accumulation=4, sequence_parallel=True, recompute="selective", qk_norm=True),
    # not both: unclipped and tied, one rank of any stage differs from the reference by 2e-5 in its fifth step already,
    # as the gradient's norm has jumped to ten
    Case(zero=3, dp=2, tied=True, qk_norm=True),
    Case(zero=3, dp=2, clips=False, qk_norm=True),
]
QUICK = [Case(zero=0, tp=2, accumulation=2, qk_norm=True), Case(zero=3, tp=2, pp=2, accumulation=4, qk_norm=True)]


def check(case):
    plan = case.plan()
    truth = reference(plan)
    found = difference(trained(plan), truth, plan)
    assert found.loss < FP32_TOLERANCE
    assert found.grad_norm < FP32_TOLERANCE
    assert found.weights < WEIGHTS_TOLERANCE


def test_the_cases_are_those_of_zero_tensor_and_pipeline_that_the_planner_accepts():
    assert len(CASES) == 10
    assert all(case in CASES for case in QUICK)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_layout_equals_single_process(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in [*CASES, *MORE] if case not in QUICK], ids=str)
def test_more_layouts_equal_single_process(case):
    check(case)


# ---- controls --------------------------------------------------------------------------------------------------------


def leave_the_sum_out():
    from chinchilla_ds.model.layer_spec import HeadNorm

    HeadNorm.sees_a_part = lambda self, config: False


@pytest.mark.parametrize("sequence_parallel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_control_without_the_sum_over_heads_ranks_drift_apart(sequence_parallel):
    plan = Case(zero=1, tp=2, sequence_parallel=sequence_parallel, qk_norm=True).plan()
    truth = reference(plan)
    ranks = on_engine(plan, harness.train, prepare=leave_the_sum_out)
    assert largest_relative(ranks[0].grad_norms, truth.grad_norms) > 5 * FP32_TOLERANCE, "norms are a small part of it"
    with pytest.raises(AssertionError, match=r"replicas of decoder\.layers\..*\.[qk]_layernorm\.weight differ"):
        full_weights([(result.tensor_rank, result.shards) for result in ranks])


def test_control_a_decoder_without_the_norms_differs():
    plan = Case(qk_norm=True).plan()
    truth, other = reference(plan), reference(Case().plan())
    assert largest_relative(other.losses, truth.losses) > 10 * FP32_TOLERANCE
    assert largest_relative(other.grad_norms, truth.grad_norms) > 10 * FP32_TOLERANCE


def test_the_norms_begin_at_one_and_are_trained():
    plan = Case(qk_norm=True).plan()
    start, truth = harness.initial_weights(plan), reference(plan)
    names = [name for name in start if name.endswith(("q_layernorm.weight", "k_layernorm.weight"))]
    assert len(names) == 2 * plan.shape.num_layers
    for name in names:
        assert (start[name] == 1).all()
        assert (truth.weights[name] - 1).abs().max() > 1e-5
