"""Keys that are handed on train as before, and what they save goes on bit by bit; what is refused does not.

On two ranks, against the same layout without the key.
"""

import copy

import pytest

from chinchilla_ds.budget.deepspeed_json.conflicts import plan_conflicts
from chinchilla_ds.budget.deepspeed_json.keys import checked
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.run_plan import Precision
from tests.distributed.test_checkpoint import SAVED_AT, save_in, train_steps
from tests.parity import harness
from tests.parity.layouts import Case

pytestmark = pytest.mark.slow

ZERO = "zero_optimization"
EVERY_STAGE = {
    "overlap": {ZERO: {"overlap_comm": True}},
    "no overlap": {ZERO: {"overlap_comm": False}},
    "not contiguous": {ZERO: {"contiguous_gradients": False}},
    "reduce": {ZERO: {"reduce_scatter": False}},
    "prescale": {ZERO: {"reduce_scatter": False}, "prescale_gradients": True},
    "diagnostics": {"wall_clock_breakdown": True, "memory_breakdown": True, "disable_python_gc": True},
    "profiler": {"flops_profiler": {"enabled": True, "profile_step": 1, "output_file": "/dev/null"}},
}
STAGES_1_AND_2 = {
    "aligned": {ZERO: {"parameter_alignment": True}},
    "round robin": {ZERO: {"round_robin_gradients": True}},
    "broadcast": {ZERO: {"allgather_partitions": False, "allgather_bucket_size": 0}},
    "one by one": {ZERO: {"use_multi_rank_bucket_allreduce": False}},
    "predivide": {ZERO: {"reduce_scatter": False}, "gradient_predivide_factor": 2.0},
}
STAGE_3 = {
    "sub-groups": {ZERO: {"sub_group_size": 0}},
    "all-reduced weights": {ZERO: {"stage3_use_all_reduce_for_fetch_params": True}},
    "one after another": {ZERO: {"stage3_allgather_sequential": True}},
    "nothing stays": {ZERO: {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}},
    "plain linear": {ZERO: {"memory_efficient_linear": False, "override_module_apply": False}},
}
HANDED_ON = [
    *((stage, name, extra) for stage in (1, 2, 3) for name, extra in EVERY_STAGE.items()),
    *((stage, name, extra) for stage in (1, 2) for name, extra in STAGES_1_AND_2.items()),
    *((3, name, extra) for name, extra in STAGE_3.items()),
]


def with_keys(plan, extra):
    """Return the top-level sections of the harness's JSON with `extra` in them."""
    ds = copy.deepcopy(harness.deepspeed_json(plan))
    for name, value in extra.items():
        ds[name] = ds.get(name, {}) | value if isinstance(value, dict) else value
    return {name: ds[name] for name in extra}


def train_and_save(engine, folder):
    train_steps(engine, range(SAVED_AT))
    saver, _ = save_in(engine, folder)
    steps = train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))
    saver.wait()
    return steps


def load_and_train(engine, folder):
    checkpoint.load(engine, checkpoint=checkpoint.newest_whole(folder, warn=lambda problem: pytest.fail(problem)))
    return train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))


def run(plan, folder, extra):
    """Return losses and norms of the steps after the save: of the run itself, and of one that goes on from it."""
    keys = with_keys(plan, extra)
    return [harness.on_engine(plan, body, folder, **keys)[0] for body in (train_and_save, load_and_train)]


def largest_difference(steps, others):
    return max(abs(a - b) for one, other in zip(steps, others, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("stage", "name", "extra"), HANDED_ON, ids=lambda value: str(value).replace(" ", "_")[:24])
def test_keys_that_are_handed_on_change_nothing_that_is_learned(stage, name, extra, tmp_path):
    plan = Case(zero=stage, dp=2, accumulation=2).plan()
    plain, problems = checked(extra)
    assert not [*problems, *plan_conflicts(plain, plan)], "control: the keys are accepted"
    wanted, _ = run(plan, tmp_path / "plain", {})
    steps, resumed = run(plan, tmp_path / "keys", extra)
    assert largest_difference(steps, wanted) < 1e-6
    assert resumed == steps


@pytest.mark.parametrize(("stage", "precision"), [(1, Precision.BF16), (2, Precision.BF16), (3, Precision.FP16)])
def test_gradients_may_be_accumulated_in_fp32(stage, precision, tmp_path):
    plan = Case(zero=stage, dp=2, accumulation=2).plan(precision=precision)
    steps, resumed = run(plan, tmp_path, {"data_types": {"grad_accum_dtype": "fp32"}})
    assert resumed == steps


def test_why_predividing_is_refused_under_zero3(tmp_path):
    plan = Case(zero=3, dp=2, accumulation=2).plan()
    extra = {ZERO: {"reduce_scatter": False}, "gradient_predivide_factor": 2.0}
    assert list(plan_conflicts(extra, plan))
    (wanted, _), (steps, _) = run(plan, tmp_path / "plain", {}), run(plan, tmp_path / "keys", extra)
    assert steps[0][1] == pytest.approx(wanted[0][1] / 2, rel=0.05)


def test_why_a_secondary_partition_is_refused(tmp_path):
    plan = Case(zero=3, dp=2, accumulation=2).plan()
    extra = {ZERO: {"zero_hpz_partition_size": 2}}
    assert checked(extra)[1]
    steps, resumed = run(plan, tmp_path, extra)
    assert largest_difference(steps, resumed) > 0.1
