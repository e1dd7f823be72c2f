"""Objectives over layouts: each equals one plain PyTorch process, and the default one is what it was, bit by bit."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from chinchilla_ds.objective import LossValue, Objective
from chinchilla_ds.run_plan import Recompute
from tests.parity import harness, objective_reference
from tests.parity.layouts import Case
from tests.parity.objectives import ZLoss

TOLERANCE = 2e-6
"""Of losses, norms, scalars, and of weights relative to the weight."""
CHANGE_TOLERANCE = 1e-3
"""Of weights, relative to the change that training made to them."""


def case(zero, tp=1, pp=1, dp=1, **more):
    return Case(zero=zero, tp=tp, pp=pp, dp=dp, accumulation=4 // dp, **more)


LAYOUTS = [
    case(zero, tp, pp, dp)
    for zero in (0, 1, 2, 3)
    for tp, pp, dp in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 1, 2), (2, 1, 2), (1, 2, 2))
    if not (zero == 0 and pp > 1)  # the planner refuses it
]
LAYOUTS += [
    case(3, 2, 2, sequence_parallel=True),
    case(1, 2, sequence_parallel=True),
    case(3, 1, 2, recompute="full"),
    case(1, 1, 2, virtual=2),
    case(3, 2, 2, virtual=2, recompute="full", sequence_parallel=True),
]
QUICK = [case(0, 2), case(1, 1, 2, 2), case(3, 2, 2)]


def over_layouts(quick=QUICK):
    marked = [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in LAYOUTS]
    return pytest.mark.parametrize("layout", marked, ids=str)


def plan_of(layout, **changes):
    """Return a plan of three steps whose vocabulary has rows of padding."""
    plan = layout.plan(train_iters=3, **changes)
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, vocab_size=250))


def teacher_of(plan):
    """Return a plan that is deeper and wider than the student's."""
    shape = dataclasses.replace(
        plan.shape, num_layers=8, hidden_size=96, ffn_hidden_size=160, num_attention_heads=8, num_query_groups=4,
        kv_channels=12, init_std=0.08,
    )  # fmt: skip
    layout = dataclasses.replace(plan.layout, recompute=Recompute.NONE)
    return dataclasses.replace(plan, shape=shape, seed=99, layout=layout)


def train(engine):
    """A body for `on_engine`: train, and evaluate."""
    from megatron.core import parallel_state

    plan = engine.plan
    results = [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in range(engine.attempts, plan.batch.train_iters)
    ]
    evaluation = engine.evaluate(harness.own_micro_batches(plan, harness.HELD_OUT_STEP))
    return results, evaluation, parallel_state.get_tensor_model_parallel_rank(), harness.shards_of(engine.stage)


def joined(ranks):
    """Join what ranks sent home; all must tell the same."""
    results, evaluation, _, _ = ranks[0]
    for others, measured, _, _ in ranks[1:]:
        assert [str(step) for step in others] == [str(step) for step in results], "ranks report different steps"
        assert measured == evaluation
    return objective_reference.Told(
        losses=[step.loss for step in results],
        objective_losses=[step.loss if step.objective_loss is None else step.objective_loss for step in results],
        scalars=[step.scalars for step in results],
        grad_norms=[step.grad_norm for step in results],
        evaluation=evaluation,
        weights=harness.full_weights([(rank, shards) for _, _, rank, shards in ranks]),
    )


def trained(plan, objective=None, **more):
    return joined(harness.on_engine(plan, train, objective=objective, **more))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apart:
    """Largest relative differences."""

    numbers: float
    """Of losses, norms, scalars and the evaluation."""
    weights: float
    of_change: float


def apart(ours, truth, start):
    assert ours.weights.keys() == truth.weights.keys() == start.keys()
    names = truth.scalars[0].keys()
    assert all(step.keys() == names for step in (*ours.scalars, *truth.scalars))

    def numbers(told):
        of_scalars = [step[name] for step in told.scalars for name in sorted(names)]
        return [*told.losses, *told.objective_losses, *told.grad_norms, *of_scalars, told.evaluation]

    pairs = {name: (ours.weights[name], value) for name, value in truth.weights.items()}
    return Apart(
        numbers=harness.largest_relative(numbers(ours), numbers(truth)),
        weights=max(float((a - b).norm() / b.norm()) for a, b in pairs.values()),
        of_change=max(float((a - b).norm() / (b - start[name]).norm()) for name, (a, b) in pairs.items()),
    )


def check(plan, objective, make_truth, **more):
    truth = make_truth(harness_plan := single(plan))
    start = objective_reference.initial(harness_plan, truth)
    found = apart(trained(plan, objective, **more), objective_reference.train(harness_plan, truth), start)
    print(f"numbers {found.numbers:.1e}, weights {found.weights:.1e}, of their change {found.of_change:.1e}")
    assert found.numbers < TOLERANCE
    assert found.weights < TOLERANCE
    assert found.of_change < CHANGE_TOLERANCE


def single(plan):
    """Return the plan on one rank: the same steps, on the same micro-batches."""
    return dataclasses.replace(plan, layout=Case(zero=0).plan().layout)


# ---- the default ----------------------------------------------------------------------------------------------------


class Directly(Objective):
    """Cross entropy computed here, and not by the package."""

    def loss(self, output, /):
        return LossValue(loss=self._cross_entropy(output))

    def evaluation_loss(self, output, /):
        return self._cross_entropy(output)

    is_evaluation_loss = True

    def _cross_entropy(self, output):
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        logits, labels = output.logits, output.batch.labels
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            return vocab_parallel_cross_entropy(logits.float(), labels.transpose(0, 1).contiguous()).t().mean()
        s, b, v = logits.shape
        losses = F.cross_entropy(logits.view(s * b, v).float(), labels.t().reshape(-1), reduction="none")
        return losses.view(s, b).t().mean()


@over_layouts()
def test_the_default_is_cross_entropy_bit_for_bit(layout):
    plan = plan_of(layout)
    ours, directly = trained(plan), trained(plan, Directly())
    assert (ours.losses, ours.grad_norms, ours.evaluation) == (
        directly.losses, directly.grad_norms, directly.evaluation,
    )  # fmt: skip
    assert all(torch.equal(ours.weights[name], value) for name, value in directly.weights.items())
    assert ours.scalars == [{}] * len(ours.losses)


def test_control_another_loss_is_not_the_default():
    plan = plan_of(QUICK[0])
    ours, other = trained(plan), trained(plan, ZLoss(coefficient=1e-4))
    assert other.losses[0] == ours.losses[0], "the measured loss of the same weights"
    assert other.losses[1:] != ours.losses[1:]
    assert other.objective_losses[0] != ours.losses[0]
