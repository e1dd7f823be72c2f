"""A run that was saved, and loaded into a fresh engine, goes on as if it had never stopped."""

import pytest
import torch

from chinchilla_ds.engine import checkpoint
from chinchilla_ds.errors import DataError, OutputError
from chinchilla_ds.plan import Precision
from tests.parity import harness
from tests.parity.layouts import Case

CASES = {
    "zero0": (Case(zero=0, dp=2), Precision.FP32),
    "zero1": (Case(zero=1, dp=2), Precision.FP32),
    "zero1-tp2-pp2": (Case(zero=1, tp=2, pp=2, accumulation=4), Precision.FP32),
    "zero2-pp2-dp2-bf16": (Case(zero=2, pp=2, dp=2, accumulation=4), Precision.BF16),
    "zero3-tp2-pp2": (Case(zero=3, tp=2, pp=2, accumulation=4), Precision.FP32),
    "zero3-pp2-vpp2": (Case(zero=3, pp=2, virtual=2, accumulation=4), Precision.FP32),
    "zero3-dp2-offload": (Case(zero=3, dp=2, offload="all"), Precision.FP32),
}
SAVED_AT = 2


def train_steps(engine, steps):
    plan = engine.plan
    results = [
        engine.train_step(harness.own_micro_batches(plan, step), learning_rate=harness.learning_rate(plan, step))
        for step in steps
    ]
    return [(result.loss, result.grad_norm) for result in results]


def held_out_loss(engine):
    return engine.evaluate(harness.own_micro_batches(engine.plan, harness.HELD_OUT_STEP))


def train_and_save(engine, folder):
    """A body for `on_engine`: saves on the way; returns what it had then, and what came after."""
    train_steps(engine, range(SAVED_AT))
    assert checkpoint.save(engine, folder=folder, iteration=SAVED_AT) == folder
    saved = held_out_loss(engine)
    steps = train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))
    return saved, steps, harness.shards_of(engine.stage)


def load_and_train(engine, folder):
    """A body for `on_engine`: as `train_and_save`, and the loss before loading in front."""
    fresh = held_out_loss(engine)
    iteration = checkpoint.load(engine, folder=folder, iteration=SAVED_AT)
    assert iteration == SAVED_AT
    loaded = held_out_loss(engine)
    steps = train_steps(engine, range(iteration, engine.plan.batch.train_iters))
    return fresh, loaded, steps, harness.shards_of(engine.stage)


@pytest.mark.parametrize(("case", "precision"), CASES.values(), ids=CASES)
def test_loaded_run_goes_on_as_the_saved_one(case, precision, tmp_path):
    plan = case.plan(precision=precision)
    uninterrupted = harness.on_engine(plan, train_and_save, tmp_path)
    resumed = harness.on_engine(plan, load_and_train, tmp_path)
    for (saved, wanted_steps, wanted), (fresh, loaded, steps, shards) in zip(uninterrupted, resumed, strict=True):
        assert loaded == saved
        assert steps == wanted_steps
        assert shards.keys() == wanted.keys()
        assert all(torch.equal(shards[name].value, shard.value) for name, shard in wanted.items())
        assert abs(fresh - saved) > 1e-3 * saved, "control: what was loaded does not show"


def test_control_weights_without_moments_do_not_go_on_in_the_same_way(tmp_path):

    def load_weights_alone(engine, folder):
        checkpoint.load(engine, folder=folder, iteration=SAVED_AT)
        for state in engine.engine.optimizer.optimizer.state.values():
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                moment.zero_()
        return train_steps(engine, range(SAVED_AT, engine.plan.batch.train_iters))

    plan = Case(zero=1).plan()
    [(_, wanted, _)] = harness.on_engine(plan, train_and_save, tmp_path)
    [steps] = harness.on_engine(plan, load_weights_alone, tmp_path)
    assert steps[0] == wanted[0], "the first gradient knows the weights alone"
    assert harness.largest_relative([norm for _, norm in steps], [norm for _, norm in wanted]) > 1e-3


def test_loading_what_was_never_saved_is_an_error(tmp_path):
    def load(engine):
        with pytest.raises(OutputError, match="is no checkpoint"):
            checkpoint.load(engine, folder=tmp_path, iteration=7)
        return True

    assert harness.on_engine(Case(zero=1, dp=2).plan(), load) == [True, True]


def test_another_tokenizer_is_refused_with_both_hashes(tmp_path):
    def save_and_load(engine):
        checkpoint.save(engine, folder=tmp_path, iteration=0, tokenizer_sha256="aa11")
        assert checkpoint.load(engine, folder=tmp_path, iteration=0, tokenizer_sha256="aa11") == 0
        assert checkpoint.load(engine, folder=tmp_path, iteration=0) == 0
        with pytest.raises(DataError, match="trained with tokenizer aa11 and the data was made with bb22"):
            checkpoint.load(engine, folder=tmp_path, iteration=0, tokenizer_sha256="bb22")
        return True

    assert harness.on_engine(Case(zero=1, dp=2).plan(), save_and_load) == [True, True]
