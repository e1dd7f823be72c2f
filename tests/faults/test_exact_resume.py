"""A run that is killed again and again, at random moments, ends as one that never was: bit by bit."""

import json
import os
import random
import signal
import threading
import time

import pytest
import torch

from chinchilla_ds.checkpoint.folder import list_checkpoints, problems_of
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.run_plan import Precision
from chinchilla_ds.testing.run_on_ranks import RankError
from tests.parity import harness
from tests.parity.layouts import Case

STEPS = 40
SAVE_EVERY = 3
CASES = {
    "zero0": (Case(zero=0, dp=2), Precision.FP32),
    "zero1": (Case(zero=1, dp=2), Precision.FP32),
    "zero2": (Case(zero=2, dp=2), Precision.FP32),
    "zero3": (Case(zero=3, dp=2), Precision.FP32),
    "zero1-tp2": (Case(zero=1, tp=2), Precision.FP32),
    "zero3-pp2": (Case(zero=3, pp=2, accumulation=4), Precision.FP32),
    "zero2-offload": (Case(zero=2, dp=2, offload="optimizer"), Precision.FP32),
    "zero1-bf16": (Case(zero=1, dp=2), Precision.BF16),
    "zero3-bf16": (Case(zero=3, dp=2), Precision.BF16),
}
QUICK = ("zero1-tp2",)


def train_to_the_end(engine, folder, kill_after_s=None, victim=0):
    """A body for `on_engine`: goes on from the newest checkpoint; saves every few steps, mostly in the background.

    Returns:
        Steps that had been taken, loss and gradient norm of the steps after, seconds, and the weights at the end.
    """
    plan, begun_s = engine.plan, time.monotonic()
    if kill_after_s is not None and torch.distributed.get_rank() == victim:
        threading.Timer(kill_after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    saver, started = checkpoint.Checkpointer(engine, folder=folder, ds_config={}), 0
    if list_checkpoints(folder):
        newest = checkpoint.newest_whole(folder, warn=lambda problem: pytest.fail(problem))
        started = checkpoint.load(engine, checkpoint=newest).iteration
    results = []
    for step in range(started, STEPS):
        result = engine.train_step(harness.own_micro_batches(plan, step), learning_rate=plan.optimizer.learning_rate)
        results.append((result.loss, result.grad_norm))
        if (step + 1) % SAVE_EVERY == 0:
            state = CheckpointState(iteration=step + 1, data_step=step + 1, attempts=step + 1, elapsed_s=0.0)
            saver.save(state, in_background=step % 4 != 0)
    saver.wait()
    return started, results, time.monotonic() - begun_s, harness.shards_of(engine.stage)


def same_weights(ranks, others):
    return all(
        torch.equal(shard.value, other[name].value)
        for (*_, shards), (*_, other) in zip(ranks, others, strict=True)
        for name, shard in shards.items()
    )


def kill_until_done(case, precision, tmp_path, *, kills, seed):
    """Return how many kills hit a run; a run that ends in spite of its kill is compared and begun anew."""
    plan = case.plan(precision=precision)
    whole = harness.on_engine(plan, train_to_the_end, tmp_path / "whole")
    duration_s = whole[0][2]
    generator, hits, ended, place = random.Random(seed), 0, 0, tmp_path / "killed"

    def check(ranks):
        started = ranks[0][0]
        assert ranks[0][1] == whole[0][1][started:], f"the steps after {started} differ"
        assert same_weights(ranks, whole)
        control = harness.initial_weights(plan)
        assert any(not torch.equal(control[name], shard.value) for name, shard in ranks[0][3].items())

    for _ in range(kills):
        after_s, victim = generator.uniform(0.0, duration_s), generator.randrange(plan.layout.world_size)
        try:
            check(harness.on_engine(plan, train_to_the_end, place, after_s, victim))
            ended += 1
            place = tmp_path / f"killed-{ended}"
        except RankError:
            hits += 1
            assert [path for path in list_checkpoints(place) if problems_of(path)] == []
    check(harness.on_engine(plan, train_to_the_end, place))
    print(json.dumps({"kills": kills, "hits": hits, "seconds of a whole run": round(duration_s, 1)}))
    return hits


@pytest.mark.parametrize("name", QUICK)
def test_a_killed_run_ends_bit_by_bit_as_a_whole_one(name, tmp_path):
    case, precision = CASES[name]
    assert kill_until_done(case, precision, tmp_path, kills=2, seed=1) >= 1, "control: no kill hit a run"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", CASES)
def test_thirty_kills(name, tmp_path):
    case, precision = CASES[name]
    assert kill_until_done(case, precision, tmp_path, kills=30, seed=len(name)) >= 10


def test_training_draws_no_random_numbers(tmp_path):
    """Why a checkpoint holds no state of random generators: nothing in a step depends on one."""

    def train(engine):
        before = torch.get_rng_state(), random.getstate()
        engine.train_step(harness.own_micro_batches(engine.plan, 0), learning_rate=1e-3)
        return torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]

    assert harness.on_engine(Case(zero=1, dp=2).plan(), train) == [True, True]
