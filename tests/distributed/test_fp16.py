"""FP16 with dynamic loss scaling: a step that overflows is skipped, the scale drops, and training goes on.

On the CPU, where torch computes FP16 slowly and the losses and gradients still follow those of fp32.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_ds.config import GuardConfig
from chinchilla_ds.errors import LayoutError
from chinchilla_ds.run_plan import Precision, RunPlan
from chinchilla_ds.training.loop import _Run
from chinchilla_ds.training.lr_schedule import learning_rate
from tests.parity import harness
from tests.parity.layouts import Case

TOLERANCE = 1e-2
OVERFLOWING_SCALE_POWER = 24
"""dloss/dlogit is about 1/(b s) = 2^-6 and FP16 ends below 2^16: a scale of 2^22 or more overflows."""
SAFE_SCALE_POWER = 10

CASES = [
    Case(zero=1, dp=2, accumulation=4),
    Case(zero=1, pp=2, accumulation=4),
    Case(zero=3, tp=2, pp=2, accumulation=4),
]
MORE_CASES = [
    Case(zero=2, tp=2, dp=2, accumulation=4),
    Case(zero=2, pp=2, dp=2, accumulation=4),
    Case(zero=3, dp=2, accumulation=4),
]
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One call of the loop's step."""

    asked_for: int
    """Step whose batches were read."""
    skipped: bool
    loss: float
    grad_norm: float
    loss_scale: float
    learning_rate: float
    iteration: int
    consumed_tokens: int
    changed: bool
    """Whether any weight of this rank changed."""


class RecordingLoader:
    """Stands in for TokenLoader."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan, self.asked_for = plan, -1

    def micro_batches(self, iteration: int, data_parallel_rank: int) -> Any:
        self.asked_for = iteration
        return harness.micro_batches_of_rank(self.plan, iteration, data_parallel_rank)


class NeverSaves:
    """Stands in for Saver."""

    def time_is_up(self) -> bool:
        return False


def run_loop(engine, *, max_attempts=20):
    """A body for `on_engine`: the training loop's own steps until the plan's are taken."""
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.processes.stopping import StopRequest
    from chinchilla_ds.training.callback import TrainingState
    from chinchilla_ds.training.guards import Guards
    from chinchilla_ds.training.watchdog import Watchdog

    plan = engine.plan
    run = object.__new__(_Run)
    run.stop, run.watchdog = StopRequest(), Watchdog(timeout_s=60.0, run_folder=Path(), rank=0)
    run.guards = Guards(GuardConfig(), plan=plan, stage=engine.stage, run_folder=Path(), writes=False)
    run.saver = NeverSaves()
    run.plan, run.callbacks, run.engine = plan, (), engine
    run.loader, run.data_parallel_rank = RecordingLoader(plan), groups.data_parallel_rank()
    run.state = state = TrainingState(plan=plan, run_folder=Path(), owns_loss=False, peak_flops_per_s=None)
    attempts, before = [], harness.shards_of(engine.stage)
    while state.iteration < plan.batch.train_iters and state.attempts < max_attempts:
        run._step()
        after = harness.shards_of(engine.stage)
        result = state.step
        attempts.append(
            Attempt(
                asked_for=run.loader.asked_for,
                skipped=result.skipped,
                loss=result.loss,
                grad_norm=result.grad_norm,
                loss_scale=result.loss_scale,
                learning_rate=result.learning_rate,
                iteration=state.iteration,
                consumed_tokens=state.consumed_tokens,
                changed=any(not torch.equal(after[name].value, shard.value) for name, shard in before.items()),
            )
        )
        before = after
    return attempts


def fp16_attempts(case: Case, *, scale_power: int) -> tuple[RunPlan, list[Attempt]]:
    plan = case.plan(precision=Precision.FP16, warmup_iters=2)
    section = {"enabled": True, "initial_scale_power": scale_power, "hysteresis": 1, "loss_scale_window": 1000}
    ranks = harness.on_engine(plan, run_loop, fp16=section)
    # NaN is not equal to itself
    assert all(str(attempts) == str(ranks[0]) for attempts in ranks), "ranks took different steps"
    return plan, ranks[0]


@pytest.mark.parametrize("case", [*CASES[:2], pytest.param(CASES[2], marks=pytest.mark.slow), *SLOW], ids=str)
def test_overflow_skips_the_step_lowers_the_scale_and_goes_on(case):
    plan, attempts = fp16_attempts(case, scale_power=OVERFLOWING_SCALE_POWER)
    skipped = [attempt for attempt in attempts if attempt.skipped]
    taken = [attempt for attempt in attempts if not attempt.skipped]

    assert attempts[0].skipped
    assert len(taken) == plan.batch.train_iters, "training went on"
    assert attempts[-1].loss < attempts[0].loss - 0.05
    assert not any(attempt.changed for attempt in skipped)
    assert all(attempt.changed for attempt in taken)
    assert all(math.isnan(attempt.grad_norm) for attempt in skipped)
    halved = [2.0 ** (OVERFLOWING_SCALE_POWER - number) for number in range(1, len(skipped) + 1)]
    assert [attempt.loss_scale for attempt in skipped] == halved
    assert attempts[-1].loss_scale == halved[-1]
    check_trained_like_fp32(plan, taken)


@pytest.mark.parametrize("case", [CASES[1], pytest.param(CASES[2], marks=pytest.mark.slow), *SLOW], ids=str)
def test_overflow_control_a_small_scale_skips_nothing(case):
    plan, attempts = fp16_attempts(case, scale_power=SAFE_SCALE_POWER)
    assert [attempt.skipped for attempt in attempts] == [False] * plan.batch.train_iters
    assert {attempt.loss_scale for attempt in attempts} == {2.0**SAFE_SCALE_POWER}
    check_trained_like_fp32(plan, attempts)


def check_trained_like_fp32(plan: RunPlan, taken: list[Attempt]) -> None:
    """Skipped steps count neither in the schedule nor in the data: what was trained is what fp32 trains."""
    steps, peak = plan.batch.train_iters, plan.optimizer.learning_rate
    rates = [learning_rate(step, schedule=plan.schedule, peak=peak, train_iters=steps) for step in range(steps)]
    assert len(set(rates)) > 3, "the schedule is too flat to tell steps apart"
    assert [attempt.learning_rate for attempt in taken] == rates
    assert [attempt.asked_for for attempt in taken] == list(range(steps))
    assert [attempt.iteration for attempt in taken] == list(range(1, steps + 1))
    assert taken[-1].consumed_tokens == plan.num_tokens

    truth = harness.reference(dataclasses.replace(plan, precision=Precision.FP32), learning_rates=tuple(rates))
    assert harness.largest_relative([attempt.loss for attempt in taken], truth.losses) < TOLERANCE
    assert harness.largest_relative([attempt.grad_norm for attempt in taken], truth.grad_norms) < TOLERANCE


def test_zero_0_is_refused():
    with pytest.raises(LayoutError, match="zero_stage 1"):
        Case(zero=0).plan(precision=Precision.FP16)
