"""A run that was saved, and loaded into a fresh engine, goes on as if it had never stopped."""

import pytest

from chinchilla_ds.engine import checkpoint
from chinchilla_ds.errors import OutputError
from chinchilla_ds.plan import Precision
from tests.parity import harness
from tests.parity.layouts import Case

CASES = {
    "zero0": (Case(zero=0, dp=2), Precision.FP32),
    "zero1": (Case(zero=1, dp=2), Precision.FP32),
    "zero3": (Case(zero=3, dp=2, accumulation=4), Precision.FP32),
    "zero1-tp2-pp2": (Case(zero=1, tp=2, pp=2, accumulation=4), Precision.FP32),
    "zero2-pp2-dp2-bf16": (Case(zero=2, pp=2, dp=2, accumulation=4), Precision.BF16),
    "zero3-tp2-pp2": (Case(zero=3, tp=2, pp=2, accumulation=4), Precision.FP32),
    "zero3-pp2-vpp2": (Case(zero=3, pp=2, virtual=2, accumulation=4), Precision.FP32),
    "zero3-offload": (Case(zero=3, dp=2, offload="all"), Precision.FP32),
}
SAVED_AT = 2


def train_steps(engine, steps):
    plan = engine.plan
    results = [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in steps
    ]
    return [(result.loss, result.grad_norm) for result in results], harness.shards_of(engine.stage)


def train_and_save(engine, folder):
    """A body: saves on the way; returns what came after that."""
    train_steps(engine, range(SAVED_AT))
    assert checkpoint.save(engine, folder=folder, iteration=SAVED_AT) == folder
    return train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))


def load_and_train(engine, folder):
    iteration = checkpoint.load(engine, folder=folder, iteration=SAVED_AT)
    assert iteration == SAVED_AT
    return train_steps(engine, range(iteration, engine.plan.batch.train_iters))


def train_from_the_start(engine):
    return train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))


@pytest.mark.parametrize(("case", "precision"), CASES.values(), ids=CASES)
def test_loaded_run_goes_on_as_the_saved_one(case, precision, tmp_path):
    plan = case.plan(precision=precision)
    uninterrupted = harness.on_engine(plan, train_and_save, tmp_path)
    resumed = harness.on_engine(plan, load_and_train, tmp_path)
    for (steps, shards), (wanted_steps, wanted_shards) in zip(resumed, uninterrupted, strict=True):
        assert steps == wanted_steps
        assert shards.keys() == wanted_shards.keys()
        assert all((shards[name].value == wanted.value).all() for name, wanted in wanted_shards.items())

    control = harness.on_engine(plan, train_from_the_start)
    for (steps, _), (wanted_steps, _) in zip(control, uninterrupted, strict=True):
        assert harness.largest_relative([loss for loss, _ in steps], [loss for loss, _ in wanted_steps]) > 1e-3


def test_loading_what_was_never_saved_is_an_error(tmp_path):
    def load(engine):
        with pytest.raises(OutputError, match="is no checkpoint"):
            checkpoint.load(engine, folder=tmp_path, iteration=7)
        return True

    assert harness.on_engine(Case(zero=1, dp=2).plan(), load) == [True, True]
