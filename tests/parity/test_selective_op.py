"""Selective-op recomputation: the gradients of a single plain-PyTorch process, and of the layer without it."""

import pytest
import torch

from chinchilla_ds.distributed import recompute
from tests.parity import harness
from tests.parity.layouts import Case
from tests.parity.test_layouts import BF16_TOLERANCE, FP32_TOLERANCE, check_parity

OP = "selective_op"
QUICK = [Case(zero=1, accumulation=4, recompute=OP), Case(zero=3, dp=2, accumulation=1, recompute=OP)]
SLOW = [
    Case(zero=0, tp=2, recompute=OP),
    Case(zero=2, dp=2, accumulation=4, recompute=OP, qk_norm=True),
    Case(zero=1, pp=2, virtual=2, accumulation=4, recompute=OP),
    Case(zero=3, tp=2, pp=2, accumulation=4, recompute=OP, sequence_parallel=True),
    Case(zero=3, pp=2, virtual=2, accumulation=4, recompute=OP),
    Case(zero=3, dp=2, accumulation=4, recompute=OP, offload="all"),
    Case(zero=1, pp=4, layers=6, accumulation=4, recompute=OP),
    Case(zero=1, tp=2, recompute=OP, tied=True),
]


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)
def test_selective_op_equals_a_single_process(case):
    check_parity(case)


@pytest.mark.slow
def test_selective_op_in_bf16_stays_near():
    plan, fp32_plan = Case(zero=3, dp=2, recompute=OP).bf16_plans()
    found = harness.difference(harness.trained(plan), harness.reference(fp32_plan), plan)
    assert found.loss < BF16_TOLERANCE
    assert found.grad_norm > FP32_TOLERANCE, "control: nothing was computed in bf16"


# ---- the recomputation by itself -------------------------------------------------------------------------------------


def gradients(run):
    """Return the gradients of a block of two matmuls, and how many matmuls its backward pass ran again."""
    torch.manual_seed(0)
    x, first, second = (torch.randn(8, 8, requires_grad=True) for _ in range(3))

    def block(states):
        return torch.nn.functional.silu(torch.mm(torch.nn.functional.silu(torch.mm(states, first)), second))

    out = run(block, x)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        out.sum().backward()
    return [tensor.grad for tensor in (x, first, second)], counter.get_total_flops() // (2 * 8**3) - 4


def test_the_second_matmul_runs_again_and_the_first_does_not():
    plain, none = gradients(lambda block, x: block(x))
    saved, again = gradients(recompute.recomputed_but_for_matmuls)
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))
    everything, both = gradients(
        lambda block, x: torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, everything, strict=True))
    assert (none, again, both) == (0, 1, 2)


def test_a_saved_output_that_is_overwritten_is_not_used():
    weight = torch.randn(4, 4, requires_grad=True)

    def block(states):
        product = torch.mm(states, weight)
        product.add_(1)
        return torch.nn.functional.silu(product)

    out = recompute.recomputed_but_for_matmuls(block, torch.randn(4, 4, requires_grad=True))
    with pytest.raises(AssertionError, match=r"a saved output of aten\.mm\.default was overwritten"):
        out.sum().backward()
