"""With `overlap_comm` ZeRO reduces gradients while the backward pass goes on: the same losses, norms and weights.

On the CPU a stream is none (DeepSpeed's CPU accelerator synchronises each operation), so nothing runs at the same
time; but the reductions are issued by the hooks of the backward pass, in its order, and buckets take turns. What is
compared here is that order and those buckets, not the streams.
"""

import pytest
import torch

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.errors import DsConfigError
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
    """A body for `on_engine`: also whether the optimizer overlaps."""
    return harness.train(engine), engine.engine.zero_overlap_comm()


def run(case, monkeypatch, overlaps):
    with monkeypatch.context() as patch:
        with_overlap(patch, overlaps)
        ranks = harness.on_engine(case.plan(), train_and_look)
    assert {overlapped for _, overlapped in ranks} == {overlaps}
    return harness.trajectory([result for result, _ in ranks])


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES], ids=str
)
def test_overlap_changes_no_bit(case, monkeypatch):
    plain, overlapped = (run(case, monkeypatch, overlaps) for overlaps in (False, True))
    assert overlapped.losses == plain.losses
    assert overlapped.grad_norms == plain.grad_norms
    assert overlapped.evaluation == plain.evaluation
    assert all(torch.equal(overlapped.weights[name], value) for name, value in plain.weights.items())


def test_control_what_is_refused_leaves_gradients_out(monkeypatch):
    """ZeRO-1 with several chunks per stage: the last backward pass, in which it reduces, is that of one chunk."""
    case = Case(zero=1, pp=2, dp=2, virtual=2, accumulation=4)
    plain, overlapped = (run(case, monkeypatch, overlaps) for overlaps in (False, True))
    assert harness.largest_relative(overlapped.grad_norms, plain.grad_norms) > 0.01
    with pytest.raises(DsConfigError, match="overlap_comm is true, and ZeRO-1 then reduces"):
        ds_config.resolve({"zero_optimization": {"stage": 1, "overlap_comm": True}}, case.plan())
