"""`initialize`: a script of your own takes the same steps as the training loop, and is refused what the plan lacks.

Truth: `TrainingEngine` itself under the plan's schedule. Control: another learning rate gives other losses.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.errors import ConfigError, DsConfigError, LayoutError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.own_loop import initialize
from chinchilla_ds.testing import run_on_ranks
from chinchilla_ds.training.lr_schedule import learning_rate
from tests.parity import harness
from tests.parity.layouts import Case

STEPS = 4
CASE = Case(zero=1, pp=2, accumulation=2)
TIMEOUT_S = 120.0


def plan_of(case: Case) -> RunPlan:
    return case.plan(train_iters=STEPS, warmup_iters=2)


def own_loop(plan: RunPlan, folder: Path, scale: float | None = None) -> tuple[list[float], float, int]:
    """Train, saving on the way, go back, and train the rest again."""
    engine = initialize(plan, ds_config=harness.deepspeed_json(plan), eod_id=harness.EOD_ID)
    losses = []
    for step in range(STEPS):
        rate = None if scale is None else scale * plan.optimizer.learning_rate
        batches = harness.own_micro_batches(plan, step)
        losses.append(engine.train_step(batches, learning_rate=rate).loss)
        if engine.iteration == 2:
            engine.save(folder)
    engine.load(folder)
    assert engine.iteration == 2
    again = [engine.train_step(harness.own_micro_batches(plan, step)).loss for step in (2, 3)]
    assert scale is not None or again == losses[2:], "what is loaded goes on as before"
    evaluation = engine.evaluate(harness.own_micro_batches(plan, harness.HELD_OUT_STEP))
    engine.close()
    return losses, evaluation, engine.iteration


def of_the_training_loop(engine: Any) -> tuple[list[float], float, int]:
    plan = engine.plan
    losses = []
    for step in range(STEPS):
        rate = learning_rate(step, schedule=plan.schedule, peak=plan.optimizer.learning_rate, train_iters=STEPS)
        losses.append(engine.train_step(harness.own_micro_batches(plan, step), learning_rate=rate).loss)
    return losses, engine.evaluate(harness.own_micro_batches(plan, harness.HELD_OUT_STEP)), STEPS


def test_a_loop_of_ones_own_takes_the_same_steps(tmp_path: Path) -> None:
    plan = plan_of(CASE)
    own = run_on_ranks(lambda: own_loop(plan, tmp_path / "a"), 2, timeout_s=TIMEOUT_S)
    assert own == harness.on_engine(plan, of_the_training_loop)
    control = run_on_ranks(lambda: own_loop(plan, tmp_path / "b", scale=0.5), 2, timeout_s=TIMEOUT_S)
    assert control[0][0] != own[0][0]


def refusals(plan: RunPlan) -> list[str]:
    """Start the process group as a DeepSpeed script may, and give what the plan does not have."""
    import deepspeed

    cpu_backend.install()  # or DeepSpeed compiles an all-reduce of its own, for most of a minute

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    engine = initialize(plan, ds_config=harness.deepspeed_json(plan))
    [batch] = harness.own_micro_batches(plan, 0)
    short = dataclasses.replace(batch, labels=batch.labels[:, :-1])
    said = []
    for act in (
        lambda: engine.train_step([batch, batch]),
        lambda: engine.train_step([short]),
        lambda: engine.evaluate([]),
    ):
        with pytest.raises(ConfigError) as error:
            act()
        said.append(str(error.value))
    assert torch.isfinite(torch.tensor(engine.train_step([batch]).loss)), "nothing of it remains"
    return said


def test_what_the_plan_does_not_have_is_refused() -> None:
    plan = plan_of(Case(zero=3, dp=2))
    for said in run_on_ranks(lambda: refusals(plan), 2, timeout_s=TIMEOUT_S):
        assert "2 micro-batches were given, and the plan's step has 1" in said[0]
        assert "labels of micro-batch 1 have shape (" in said[1]
        assert "there is no micro-batch to evaluate" in said[2]


def test_what_cannot_be_built_is_refused_before_anything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    plan = plan_of(Case(zero=1))
    with pytest.raises(LayoutError, match="the plan is for 2 ranks, and 1 were started"):
        initialize(plan_of(Case(zero=1, dp=2)), ds_config={})
    with pytest.raises(DsConfigError, match=r"zero_optimization.stage is 3, but the plan says 1"):
        initialize(plan, ds_config={"zero_optimization": {"stage": 3}})
    with pytest.raises(ConfigError, match="document_mask needs eod_id"):
        initialize(dataclasses.replace(plan, document_mask=True), ds_config={"zero_optimization": {"stage": 1}})
