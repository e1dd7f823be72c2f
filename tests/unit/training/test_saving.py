"""When a run is saved, what it takes up again, and what it refuses to go on with. No engine: the carrier is a fake."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.checkpoint.folder import checkpoint_name
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.config import CheckpointConfig, SaveInterval
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.training import saving
from chinchilla_ds.training.callback import StepResult, TrainingState
from chinchilla_ds.training.saving import Saver
from chinchilla_ds.training.spikes import MAX_REWINDS, Rewind, Spike, rewind_of
from tests.unit.training.states import TOKENS_PER_STEP, evaluate, make_state, take_step


class FakeCheckpointer:
    """Keeps what it is told in memory, and makes an empty folder of it."""

    def __init__(self, _engine: object, *, folder: Path, retention: Any, **_: object) -> None:
        self.folder, self.retention = folder, retention
        self.saved: list[tuple[CheckpointState, bool]] = []
        self.rehearsed: list[CheckpointState] = []

    def rehearse(self, state: CheckpointState) -> None:
        self.rehearsed.append(state)

    def save(self, state: CheckpointState, *, in_background: bool = False) -> Path:
        self.saved.append((state, in_background))
        path = self.folder / checkpoint_name(state.iteration)
        path.mkdir(parents=True, exist_ok=True)
        (path / "state.json").write_text(state.to_json())
        return path

    def wait(self) -> None:
        pass


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Replace what needs ranks; return the loads that were asked for: checkpoint, and whether its weights alone."""
    asked: list[tuple[str, bool]] = []

    def newest_whole(path: Path, *, warn: object) -> Path:
        return path if (path / "state.json").is_file() else max(path.rglob("step_*"))

    def load(_engine: object, *, checkpoint: Path, weights_only: bool = False) -> CheckpointState:
        asked.append((checkpoint.name, weights_only))
        return CheckpointState.from_json((checkpoint / "state.json").read_text(), where=str(checkpoint))

    monkeypatch.setattr(saving.checkpoint, "Checkpointer", FakeCheckpointer)
    monkeypatch.setattr(saving.checkpoint, "newest_whole", newest_whole)
    monkeypatch.setattr(saving.checkpoint, "load", load)
    monkeypatch.setattr(saving, "run_on_rank_zero", lambda work: work())
    monkeypatch.setattr(saving.groups, "is_rank_zero", lambda: True)
    return asked


def text(*, key: str = "text-a", tokenizer: str = "tokenizer-a") -> Any:
    return SimpleNamespace(
        tokenizer_path=Path("tokenizer.model"),
        tokenizer_sha256=tokenizer,
        content_key=key,
        folder=Path("data"),
    )


def make_saver(folder: Path, config: CheckpointConfig | None = None, **prepared: str) -> tuple[Saver, TrainingState]:
    state: Any = make_state(folder)
    saver = Saver(
        SimpleNamespace(), state=state, saving=config or CheckpointConfig(), ds_config={}, prepared=text(**prepared)
    )
    return saver, state


def written(saver: Saver) -> list[tuple[CheckpointState, bool]]:
    fake: Any = saver._checkpointer
    return list(fake.saved)


def steps_saved(saver: Saver) -> list[int]:
    return [state.iteration for state, _ in written(saver)]


def train(saver: Saver, state: TrainingState, steps: int, *, skipped: tuple[int, ...] = ()) -> None:
    """Take steps and save as the loop does; the batches of some are passed over."""
    for _ in range(steps):
        take_step(state, skipped=state.data_step in skipped)
        state.data_step += 1
        saver.save_if_due()


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "saved"),
    [
        (CheckpointConfig(save_every=SaveInterval(iters=4)), [4, 8]),
        (CheckpointConfig(save_every=SaveInterval(iters=20)), []),
        (CheckpointConfig(save_every=SaveInterval(tokens=3 * TOKENS_PER_STEP)), [3, 6, 9]),
        (CheckpointConfig(save_every=SaveInterval(tokens=5 * TOKENS_PER_STEP // 2)), [3, 6, 9]),
        (CheckpointConfig(save_every=SaveInterval(iters=4), milestone_every=3), [3, 4, 6, 8, 9]),
        (CheckpointConfig(milestone_every=5), [5, 10]),
        (CheckpointConfig(), []),
    ],
    ids=str,
)
def test_steps_tokens_and_milestones(config: CheckpointConfig, saved: list[int], tmp_path: Path) -> None:
    saver, state = make_saver(tmp_path, config)
    train(saver, state, 10)
    assert steps_saved(saver) == saved


def test_a_skipped_step_saves_nothing_again(tmp_path: Path) -> None:
    saver, state = make_saver(tmp_path, CheckpointConfig(save_every=SaveInterval(iters=4)))
    train(saver, state, 7, skipped=(4, 5))
    assert (state.iteration, steps_saved(saver)) == (5, [4])


def test_the_clock_of_rank_0_asks_and_all_ranks_save_after_the_step_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    saver, state = make_saver(tmp_path, CheckpointConfig(save_every=SaveInterval(seconds=60.0)))
    now_s += 59.0
    assert not saver.time_is_up()
    now_s += 2.0
    assert saver.time_is_up()
    monkeypatch.setattr(saving.groups, "is_rank_zero", lambda: False)
    assert not saver.time_is_up(), "another rank's clock decides nothing"
    monkeypatch.setattr(saving.groups, "is_rank_zero", lambda: True)
    take_step(state)
    state.data_step += 1
    state.step = StepResult(loss=4.0, grad_norm=1.0, learning_rate=1e-3, skipped=False, loss_scale=1.0, save=True)
    saver.save_if_due()
    assert steps_saved(saver) == [1]
    assert not saver.time_is_up(), "the clock starts anew with every checkpoint"


@pytest.mark.parametrize("in_background", [True, False])
def test_only_saves_on_the_way_are_in_the_background(in_background: bool, tmp_path: Path) -> None:
    config = CheckpointConfig(save_every=SaveInterval(iters=2), save_in_background=in_background)
    saver, state = make_saver(tmp_path, config)
    train(saver, state, 3)
    saver.save_last_step()
    saver.save(complete=True)
    assert [background for _, background in written(saver)] == [in_background, False, False]
    assert [saved.complete for saved, _ in written(saver)] == [False, False, True]


def test_the_last_step_is_saved_once(tmp_path: Path) -> None:
    saver, state = make_saver(tmp_path, CheckpointConfig(save_every=SaveInterval(iters=4)))
    train(saver, state, 6)
    saver.save_last_step()
    assert steps_saved(saver) == [4, 6]
    saver.save_last_step()
    assert steps_saved(saver) == [4, 6]
    again, _ = make_saver(tmp_path)
    again.resume(tmp_path)  # a kill in the evaluation: what is there needs no second save
    again.save_last_step()
    assert steps_saved(again) == []


def test_a_last_batch_that_was_passed_over_is_kept_in_mind(tmp_path: Path) -> None:
    saver, state = make_saver(tmp_path, CheckpointConfig(save_every=SaveInterval(iters=4)))
    train(saver, state, 5, skipped=(4,))
    saver.save_last_step()
    assert [(saved.iteration, saved.data_step) for saved, _ in written(saver)] == [(4, 4), (4, 5)]


def test_what_stays_is_handed_on(tmp_path: Path) -> None:
    saver, _ = make_saver(tmp_path, CheckpointConfig(keep=7, milestone_every=1000))
    fake: Any = saver._checkpointer
    assert (fake.retention.keep, fake.retention.milestone_iters) == (7, 1000)
    assert fake.folder == tmp_path / "checkpoints"


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_stands_where_it_stood(tmp_path: Path, loads: list[tuple[str, bool]]) -> None:
    config = CheckpointConfig(save_every=SaveInterval(tokens=4 * TOKENS_PER_STEP))
    saver, state = make_saver(tmp_path, config)
    train(saver, state, 6, skipped=(2,))
    state.bad_batches, state.rewinds = 1, 2
    saver.save()
    resumed, there = make_saver(tmp_path, config)
    resumed.resume(tmp_path)
    names = ("iteration", "data_step", "attempts", "bad_batches", "rewinds", "elapsed_s", "consumed_tokens")
    assert {name: getattr(there, name) for name in names} == {name: getattr(state, name) for name in names}
    assert (there.iteration, there.data_step, there.attempts) == (5, 6, 6)
    assert there.resumed_at == 5
    assert there.flops_spent == 6 * TOKENS_PER_STEP * there.plan.flops_per_token
    assert there.artifacts["checkpoint"].endswith("step_0000005")
    assert loads == [("step_0000005", False)]
    train(resumed, there, 5)
    assert steps_saved(resumed) == [9], "tokens are counted from the checkpoint"


def test_a_checkpoint_from_before_rewinds_were_counted_has_had_none() -> None:
    old = '{"iteration": 1, "data_step": 1, "attempts": 1, "elapsed_s": 0.5}'
    assert CheckpointState.from_json(old, where="here").rewinds == 0


def test_rewinds_are_counted_over_restarts(tmp_path: Path) -> None:
    """Every time the run goes back and is killed then; the checkpoint that it goes back to knows of no rewind."""
    saver, state = make_saver(tmp_path)
    train(saver, state, 2)
    saver.save()
    spike = Spike(began=3, level=3.0, peak=9.0)
    for count in range(1, MAX_REWINDS + 1):
        saver, state = make_saver(tmp_path)
        saver.resume(tmp_path)
        assert state.rewinds == count - 1
        train(saver, state, 5)
        asked = rewind_of(spike, data_step=state.data_step, rewinds=state.rewinds)
        assert asked is not None
        assert saver.rewind(asked)
        assert (state.iteration, state.rewinds, state.data_step) == (2, count, 2 + 5 * count)
    saver, state = make_saver(tmp_path)
    saver.resume(tmp_path)
    assert rewind_of(spike, data_step=state.data_step, rewinds=state.rewinds) is None


def test_without_an_older_checkpoint_nothing_is_gone_back_to(tmp_path: Path, loads: list[tuple[str, bool]]) -> None:
    saver, state = make_saver(tmp_path)
    train(saver, state, 4)
    saver.save()
    assert not saver.rewind(Rewind(before=3, data_step=4))
    assert (state.iteration, state.rewinds, loads) == (4, 0, [])
    assert state.notes == ("no checkpoint of at most 3 steps to go back to: training continues",)
    assert steps_saved(saver) == [4]


# ---- other text ------------------------------------------------------------------------------------------------------


def saved_run(folder: Path) -> None:
    saver, state = make_saver(folder)
    train(saver, state, 3)
    saver.save()
    (folder / "checkpoints/step_0000003/tokenizer.model").touch()


def test_other_text_is_refused_and_both_keys_are_named(tmp_path: Path) -> None:
    saved_run(tmp_path)
    saver, state = make_saver(tmp_path, key="text-b")
    with pytest.raises(CheckpointError) as error:
        saver.resume(tmp_path)
    place = tmp_path / "checkpoints/step_0000003"
    assert error.value.problems == (
        f"the checkpoint {place} was trained on text with key text-a, and data has key text-b: text or preparation "
        "have changed, so the remaining samples are not known; give the same text, or start a new run with "
        f"`checkpoint.resume=none` and `checkpoint.init_from={place}`",
    )
    assert state.iteration == 0


def test_another_tokenizer_is_refused_beside_the_text_that_it_made(tmp_path: Path) -> None:
    saved_run(tmp_path)
    saver, _ = make_saver(tmp_path, key="text-b", tokenizer="tokenizer-b")
    with pytest.raises(CheckpointError) as error:
        saver.resume(tmp_path)
    place = tmp_path / "checkpoints/step_0000003"
    assert [problem.split(" and ")[0] for problem in error.value.problems] == [
        f"the checkpoint {place} was trained on text with key text-a,",
        f"the checkpoint {place} was trained with tokenizer tokenizer-a,",
    ]
    assert "data was made with tokenizer-b" in error.value.problems[1]
    assert error.value.problems[1].endswith(f"`prepare.tokenizer={place / 'tokenizer.model'}`")


def test_a_new_run_takes_weights_alone_and_may_have_other_text(tmp_path: Path, loads: list[tuple[str, bool]]) -> None:
    saved_run(tmp_path / "old")
    saver, state = make_saver(tmp_path / "new", key="text-b")
    saver.take_weights(tmp_path / "old")
    assert loads == [("step_0000003", True)]
    fresh = make_state(tmp_path / "new")
    assert state == fresh, "neither steps nor place in the data are taken over"


def test_weights_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    saved_run(tmp_path / "old")
    saver, _ = make_saver(tmp_path / "new", key="text-b", tokenizer="tokenizer-b")
    with pytest.raises(CheckpointError, match="trained with tokenizer tokenizer-a, and data was made with tokenizer-b"):
        saver.take_weights(tmp_path / "old")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_the_state_readable(value: float, tmp_path: Path) -> None:
    """The last batch before a stop was a bad one: JSON has no such number, and the reader would refuse the state."""
    saver, state = make_saver(tmp_path)
    train(saver, state, 2)
    take_step(state, loss=value, skipped=True)
    evaluate(state, loss=value, bits_per_byte=value)
    saver.save()
    [(saved, _)] = written(saver)
    assert (saved.loss, saved.held_out_loss, saved.held_out_bits_per_byte) == (None, None, None)
    assert CheckpointState.load(tmp_path / "checkpoints/step_0000002/state.json") == saved


def test_a_save_is_tried_with_the_state_that_the_run_begins_with(tmp_path: Path) -> None:
    saver, _ = make_saver(tmp_path)
    saver.rehearse()
    fake: Any = saver._checkpointer
    assert [(state.iteration, state.tokenizer_sha256) for state in fake.rehearsed] == [(0, "tokenizer-a")]
    assert written(saver) == []
