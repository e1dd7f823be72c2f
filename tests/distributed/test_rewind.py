"""Back to before a loss spike: weights, moments and step count of the checkpoint, and the data beyond the spike.

Truth: a run that trains the same batches without ever having seen those of the spike, bit for bit.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chinchilla_ds.checkpoint.folder import iteration_of, list_checkpoints
from chinchilla_ds.run_plan import Precision
from tests.parity import harness
from tests.parity.layouts import Case

CASES = [
    (Case(zero=1, dp=2), Precision.FP32),
    pytest.param(Case(zero=3, dp=2), Precision.BF16, marks=pytest.mark.slow),
    pytest.param(Case(zero=3, tp=2, pp=2, accumulation=2), Precision.FP32, marks=pytest.mark.slow),
]


def _step(engine: Any, state: Any) -> None:
    """Train the batch at the state's place in the data."""
    plan = engine.plan
    rate = harness.learning_rate(plan, state.iteration)
    state.step = engine.train_step(harness.own_micro_batches(plan, state.data_step), learning_rate=rate)
    state.iteration, state.data_step, state.attempts = state.iteration + 1, state.data_step + 1, state.attempts + 1


def _saver(engine: Any, folder: Any) -> tuple[Any, Any]:
    from chinchilla_ds.config import CheckpointConfig
    from chinchilla_ds.training.callback import TrainingState
    from chinchilla_ds.training.saving import Saver

    state = TrainingState(plan=engine.plan, run_folder=folder, owns_loss=False, peak_flops_per_s=None)
    prepared: Any = SimpleNamespace(
        tokenizer_path=folder / "tokenizer.model", tokenizer_sha256="a", content_key="b", folder=folder
    )
    return Saver(engine, state=state, saving=CheckpointConfig(), ds_config={}, prepared=prepared), state


def rewound(engine: Any, folder: Any) -> tuple[Any, ...]:
    """Save after 2 steps, meet a spike in the third and fourth, save within it, go back, take two more."""
    from chinchilla_ds.training.spikes import Rewind

    saver, state = _saver(engine, folder)
    assert not saver.rewind(Rewind(before=2, data_step=0)), "there is nothing to go back to"
    for _ in range(2):
        _step(engine, state)
    saver.save()
    for _ in range(2):
        _step(engine, state)
    saver.save()
    assert saver.rewind(Rewind(before=2, data_step=state.data_step))
    at = (state.iteration, state.data_step, state.attempts, state.rewinds)
    saved = [iteration_of(path) for path in list_checkpoints(folder / "checkpoints")]
    for _ in range(2):
        _step(engine, state)
    return at, saved, harness.shards_of(engine.stage), state.step.loss


def resumed(engine: Any, folder: Any) -> tuple[int, int, int]:
    saver, state = _saver(engine, folder)
    saver.resume(folder)
    return state.iteration, state.data_step, state.rewinds


def spared(engine: Any, folder: Any) -> tuple[Any, ...]:
    _, state = _saver(engine, folder)
    for place in (0, 1, 4, 5):
        state.data_step = place
        _step(engine, state)
    return harness.shards_of(engine.stage), state.step.loss


@pytest.mark.parametrize(("case", "precision"), CASES, ids=str)
def test_a_rewind_is_as_if_the_batches_had_never_been(case: Case, precision: Precision, tmp_path: Any) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"t")
    plan = case.plan(precision=precision)
    back = harness.on_engine(plan, rewound, tmp_path)
    plain = harness.on_engine(plan, spared, tmp_path)
    for (at, saved, shards, loss), (wanted, wanted_loss) in zip(back, plain, strict=True):
        assert at == (2, 4, 4, 1)
        assert saved == [2], "what was saved within the spike is gone"
        assert loss == wanted_loss
        for name, shard in shards.items():
            assert torch.equal(shard.value, wanted[name].value), name
    assert harness.on_engine(plan, resumed, tmp_path) == [(2, 4, 1)] * plan.layout.world_size, "also after a restart"
