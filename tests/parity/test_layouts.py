"""Every layout trains the same model: loss, gradient norm and weights of a single plain-PyTorch process.

fp32 on the CPU, five steps of micro-batches of two sequences, clipping and weight decay on. The measured differences
stand in docs/verification.md.
"""

import itertools

import pytest
import torch

from chinchilla_ds.run_plan import Precision
from tests.parity.harness import (
    ACTIVE_CLIPPING,
    INACTIVE_CLIPPING,
    difference,
    initial_weights,
    on_engine,
    parity_plan,
    reference,
    trained,
)
from tests.parity.layouts import CHOICES, MAX_WORLD_SIZE, Case, all_cases, bf16_cases, core_cases, more_cases
from tests.parity.reference_llama import rotary_tables

FP32_TOLERANCE = 1e-5
BF16_TOLERANCE = 1e-2
WEIGHTS_TOLERANCE = 1e-3
"""Of the change that training made to a weight: Adam divides by the gradient's own size, rounding noise included."""


def check_parity(case: Case) -> None:
    plan = case.plan()
    truth = reference(plan)
    assert (min(truth.grad_norms) > ACTIVE_CLIPPING) or not case.clips, "clipping was to be active"
    assert (max(truth.grad_norms) < INACTIVE_CLIPPING) or case.clips, "clipping was to be inactive"
    found = difference(trained(plan), truth, plan)
    assert found.loss < FP32_TOLERANCE
    assert found.grad_norm < FP32_TOLERANCE
    assert found.weights < WEIGHTS_TOLERANCE


def _dearest_are_slow(case: Case) -> object:
    """Offload takes four to ten seconds a case; one over data-parallel ranks stays, and its pairs are slow tests."""
    dear = case.offload != "none" and (case.pp > 1 or case.tied or case.tp * case.pp * case.dp == MAX_WORLD_SIZE)
    return pytest.param(case, marks=pytest.mark.slow) if dear else case


@pytest.mark.parametrize("case", [_dearest_are_slow(case) for case in core_cases()], ids=str)
def test_layout_equals_single_process(case):
    check_parity(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", more_cases(), ids=str)
def test_layout_equals_single_process_in_every_combination(case):
    check_parity(case)


def test_core_holds_every_layout_and_every_pair_of_features():
    core, every = core_cases(), all_cases()
    assert {case.layout for case in core} == {case.layout for case in every}
    assert len({case.layout for case in core}) == 25, "4 ZeRO stages x 7 layouts, without ZeRO-0 over 3 pipelines"

    def pairs(cases: list[Case]) -> set[object]:
        return {
            ((a, getattr(case, a)), (b, getattr(case, b)))
            for case in cases
            for a, b in itertools.combinations(CHOICES, 2)
        }

    assert pairs(core) == pairs(every)
    assert (("zero", 3), ("virtual", 2)) in pairs(every)
    assert (("pp", 2), ("offload", "all")) in pairs(every)


# ---- controls: what the comparison can tell apart -------------------------------------------------------------------


CONTROLS = {
    "seed": {"seed": 4321},
    "learning rate": {"learning_rate": 0.98 * 4e-3},
    "no clipping": {"gradient_clipping": INACTIVE_CLIPPING},
    "no decay": {"weight_decay": 0.0},
}


CONTROL_CASE = Case(zero=2, dp=2, accumulation=4)


@pytest.fixture(scope="module")
def control():
    return trained(CONTROL_CASE.plan())


@pytest.mark.parametrize("change", CONTROLS.values(), ids=CONTROLS)
def test_layout_control_another_run_differs(control, change):
    found = difference(control, reference(CONTROL_CASE.plan(**change)), CONTROL_CASE.plan())
    assert found.loss > 2 * FP32_TOLERANCE
    assert found.grad_norm > 10 * FP32_TOLERANCE
    assert found.weights > 10 * WEIGHTS_TOLERANCE


def test_training_changes_the_loss():
    plan = Case(accumulation=4).plan()
    truth = reference(plan)
    assert truth.losses[-1] < truth.losses[0] - 0.1


# ---- BF16 -----------------------------------------------------------------------------------------------------------

BF16_CORE = [
    Case(zero=0, accumulation=4),
    Case(zero=1, pp=2, dp=2, accumulation=4),
    Case(zero=2, tp=2, dp=2, recompute="full"),
    Case(zero=3, tp=2, pp=2, accumulation=4, sequence_parallel=True),
]
BF16_MORE = [case for case in bf16_cases() if case not in BF16_CORE]


def check_bf16_parity(case: Case) -> None:
    plan, fp32_plan = case.bf16_plans()
    ours, truth = trained(plan), reference(fp32_plan)
    found = difference(ours, truth, plan)
    assert found.loss < BF16_TOLERANCE
    assert found.grad_norm < BF16_TOLERANCE
    assert found.grad_norm > FP32_TOLERANCE, "control: nothing was computed in bf16"
    assert any(not torch.equal(ours.weights[name], value) for name, value in initial_weights(plan).items())


@pytest.mark.parametrize("case", BF16_CORE, ids=str)
def test_bf16_layout_equals_single_fp32_process(case):
    check_bf16_parity(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", BF16_MORE, ids=str)
def test_bf16_layout_equals_single_fp32_process_in_every_combination(case):
    check_bf16_parity(case)


def rotary_of_rank(engine):
    """A body for `on_engine`: the frequencies and the angles that this rank's attention uses."""
    rotary = engine.stage.decoders[0].rotary_pos_emb
    return rotary.inv_freq.cpu(), rotary(engine.plan.shape.seq_length).cpu()


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_rotary_tables_are_fp32_in_every_precision(precision, zero_stage):
    plan = parity_plan(precision=precision, zero_stage=zero_stage)
    [(frequencies, angles)] = on_engine(plan, rotary_of_rank)
    shape = plan.shape
    cos, sin = rotary_tables(seq_length=shape.seq_length, kv_channels=shape.kv_channels, base=shape.rotary_base)
    assert frequencies.dtype == angles.dtype == torch.float32
    torch.testing.assert_close(angles.reshape(shape.seq_length, -1).cos(), cos, atol=1e-6, rtol=0)
    torch.testing.assert_close(angles.reshape(shape.seq_length, -1).sin(), sin, atol=1e-6, rtol=0)
    rounded = angles.bfloat16().float()
    assert (rounded.cos().reshape(shape.seq_length, -1) - cos).abs().max() > 1e-2, "control: bf16 would show"
