"""FP16 with a loss scale that grows: the same gradients, norms and weights as under a scale that stays.

Scales are powers of two, so what is left between the runs are the smallest gradients, which FP16 rounds otherwise.
"""

import dataclasses

import pytest
import torch

from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.run_plan import Precision
from tests.parity import harness
from tests.parity.layouts import Case

SCALE_POWER = 11
TOLERANCE = 2e-3
STATIC = {"enabled": True, "loss_scale": 2**SCALE_POWER}
GROWING = {
    "enabled": True,
    "loss_scale": 0,
    "initial_scale_power": SCALE_POWER,
    "loss_scale_window": 1,
    "hysteresis": 1,
}
"""Doubles after every second step and those after it."""
CASES = [
    Case(zero=1, dp=2, clips=False),
    Case(zero=2, dp=2),
    Case(zero=3, pp=2, accumulation=4),
]
MORE_CASES = [
    Case(zero=1, tp=2, pp=2, accumulation=4),
    Case(zero=2, dp=2, offload="optimizer"),
    Case(zero=3, dp=2, clips=False),
    Case(zero=3, dp=2, offload="all"),
    Case(zero=1, dp=2, offload="optimizer"),
]
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """A run, as one rank sees it."""

    losses: list[float]
    norms: list[float]
    scales: list[float]
    shards: dict[str, harness.Shard]
    tensor_rank: int


def take_steps(engine, steps):
    plan = engine.plan
    return [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in steps
    ]


def steps_of(engine, results):
    from megatron.core import parallel_state

    return Steps(
        losses=[result.loss for result in results],
        norms=[result.grad_norm for result in results],
        scales=[result.loss_scale for result in results],
        shards=harness.shards_of(engine.stage),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
    )


def train(engine):
    """A body for `on_engine`."""
    return steps_of(engine, take_steps(engine, range(engine.plan.batch.train_iters)))


def without_the_correction():
    """Let DeepSpeed step as it comes."""
    from chinchilla_ds.distributed import zero_step

    for optimizer in zero_step._EXPECTED:
        optimizer.step = getattr(optimizer.step, "__wrapped__", optimizer.step)
    zero_step._step_then_grow = lambda optimizer: optimizer.step


def apart(ours: list[Steps], theirs: list[Steps], plan) -> float:
    """Return the largest relative difference of two runs, of losses, norms, and weights against what training moved."""
    start = harness.initial_weights(plan)
    mine, other = (harness.full_weights([(rank.tensor_rank, rank.shards) for rank in run]) for run in (ours, theirs))
    return max(
        harness.largest_relative(ours[0].losses, theirs[0].losses),
        harness.largest_relative(ours[0].norms, theirs[0].norms),
        *(float((mine[name] - value).norm() / (value - start[name]).norm()) for name, value in other.items()),
    )


@pytest.mark.parametrize("case", [*CASES, *SLOW], ids=str)
def test_a_growing_scale_trains_as_one_that_stays(case):
    plan = case.plan(precision=Precision.FP16)
    static = harness.on_engine(plan, train, fp16=STATIC)
    growing = harness.on_engine(plan, train, fp16=GROWING)
    assert static[0].scales == [2.0**SCALE_POWER] * plan.batch.train_iters
    grown = [2.0 ** (SCALE_POWER + times) for times in range(plan.batch.train_iters)]
    assert growing[0].scales == grown, "the scale must grow for the test to show anything"
    assert apart(growing, static, plan) < TOLERANCE


@pytest.mark.parametrize(("case", "halves_norm"), [(CASES[0], False), (CASES[2], True)], ids=["zero1", "zero3"])
def test_control_without_the_correction_gradients_are_halved(case, halves_norm):
    plan = case.plan(precision=Precision.FP16)
    static = harness.on_engine(plan, train, fp16=STATIC)
    halved = harness.on_engine(plan, train, fp16=GROWING, prepare=without_the_correction)
    assert halved[0].scales[1] == 2.0 ** (SCALE_POWER + 1)
    assert apart(halved, static, plan) > 20 * TOLERANCE
    assert halved[0].norms[1] == pytest.approx(static[0].norms[1] / (2 if halves_norm else 1), rel=TOLERANCE)


def test_a_run_that_is_resumed_around_the_growth_goes_on_bit_by_bit(tmp_path):
    def train_and_save(engine):
        saver, results = checkpoint.Checkpointer(engine, folder=tmp_path, ds_config={}), []
        for step in range(engine.plan.batch.train_iters):
            results += take_steps(engine, [step])
            done = step + 1
            state = CheckpointState(iteration=done, data_step=done, attempts=done, elapsed_s=0.0)
            saver.save(state)
        return steps_of(engine, results)

    def resume(engine, done):
        checkpoint.load(engine, checkpoint=tmp_path / f"step_{done:07d}")
        return steps_of(engine, take_steps(engine, range(done, engine.plan.batch.train_iters)))

    plan = Case(zero=3).plan(precision=Precision.FP16, train_iters=3)
    growing = {**GROWING, "loss_scale_window": 2}
    [whole] = harness.on_engine(plan, train_and_save, fp16=growing)
    assert whole.scales == [2.0**SCALE_POWER, 2.0**SCALE_POWER, 2.0 ** (SCALE_POWER + 1)]
    for done in (1, 2):
        [resumed] = harness.on_engine(plan, resume, done, fp16=growing)
        assert resumed.scales == whole.scales[done:]
        assert (resumed.losses, resumed.norms) == (whole.losses[done:], whole.norms[done:])
        assert all(torch.equal(resumed.shards[name].value, shard.value) for name, shard in whole.shards.items())


def test_an_overflow_still_lowers_the_scale_at_once():
    def train_one(engine):
        results = take_steps(engine, [0, 1])
        return [(result.skipped, result.loss_scale) for result in results]

    plan = Case(zero=1).plan(precision=Precision.FP16)
    [[first, second]] = harness.on_engine(plan, train_one, fp16={**GROWING, "initial_scale_power": 24})
    assert first == (True, 2.0**23)
    assert second[1] in (2.0**22, 2.0**23)
