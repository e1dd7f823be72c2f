"""With `overlap_comm` ZeRO reduces gradients while the backward pass goes on: the same losses, norms and weights.

On the CPU a stream is none (DeepSpeed's CPU accelerator synchronises each operation), so nothing runs at the same
time; but the reductions are issued by the hooks of the backward pass, in its order, and buckets take turns. What is
compared here is that order and those buckets, not the streams.
"""

import pytest
import torch

from tests.parity import harness
from tests.parity.layouts import Case

CASES = [
    Case(zero=1, dp=2, accumulation=4),
    Case(zero=1, pp=2, dp=2, accumulation=4),
    Case(zero=1, tp=2, dp=2, accumulation=1, recompute="full"),
    Case(zero=2, dp=2, accumulation=4),
    Case(zero=2, pp=2, dp=2, accumulation=4),
    Case(zero=2, pp=2, dp=2, virtual=2, accumulation=4),
    Case(zero=3, dp=2, accumulation=4),
    Case(zero=3, pp=2, dp=2, accumulation=4, virtual=2),
]
QUICK = (CASES[0], CASES[3])


def with_overlap(monkeypatch, overlaps):
    emit = harness.deepspeed_json

    def deepspeed_json(plan, **extra):
        ds = emit(plan, **extra)
        ds["zero_optimization"]["overlap_comm"] = overlaps
        return ds

    monkeypatch.setattr(harness, "deepspeed_json", deepspeed_json)


def train_and_look(engine):
    """A body for `on_engine`: also how many reduction buckets were used in turn."""
    result = harness.train(engine)
    optimizer = engine.engine.optimizer
    zero3 = engine.plan.layout.zero_stage == 3
    buckets = [] if zero3 else [len(bucket.buffer) for bucket in optimizer.ipg_buckets.values()]
    return result, buckets


def run(case, monkeypatch, overlaps):
    with monkeypatch.context() as patch:
        with_overlap(patch, overlaps)
        ranks = harness.on_engine(case.plan(), train_and_look)
    return harness.trajectory([result for result, _ in ranks]), ranks[0][1]


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES], ids=str
)
def test_overlap_changes_no_bit(case, monkeypatch):
    (plain, one), (overlapped, two) = (run(case, monkeypatch, overlaps) for overlaps in (False, True))
    assert case.zero == 3 or (max(one), max(two)) == (1, 2), "control: the buckets did not take turns"
    assert overlapped.losses == plain.losses
    assert overlapped.grad_norms == plain.grad_norms
    assert overlapped.evaluation == plain.evaluation
    assert all(torch.equal(overlapped.weights[name], value) for name, value in plain.weights.items())
