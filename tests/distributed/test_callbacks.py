"""When callbacks are called: every hook in its order, the same on every rank, under a pipeline, and after a resume.

The second part follows docs/add-a-callback.md through the launcher, with modules outside this package.
"""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.processes.stopping import StopRequest
from chinchilla_ds.training.callback import Callback, TrainingState
from chinchilla_ds.training.loop import _Run
from tests.launching import ROOT, Ended, finish, launch, write_corpus
from tests.parity import harness
from tests.parity.layouts import Case

HOOKS = ("on_train_start", "on_step_end", "on_evaluation_end", "on_sample", "on_stop", "on_train_end")
TRAIN_ITERS = 5
STOP_AT = 3


class Recorder(Callback):
    """Notes every call with the step and the loss that it saw; its state is what it has noted of steps."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.losses: list[float] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in HOOKS:
            return super().__getattribute__(name)
        return lambda state: self.note(name, state)

    def note(self, hook: str, state: TrainingState) -> None:
        self.calls.append((hook, state.iteration))
        if hook == "on_step_end":
            assert state.step is not None
            self.losses.append(state.step.loss)

    def state_dict(self) -> dict[str, Any]:
        self.calls.append(("state_dict", len(self.losses)))
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls.append(("load_state_dict", len(state["losses"])))
        self.losses = state["losses"]


def run_of(engine: Any, folder: Path, recorder: Recorder, *, stop: StopRequest) -> Any:
    """A run of the real loop, engine and saver; batches are the harness's, and the text of samples is left out."""
    from chinchilla_ds.config import CheckpointConfig, GuardConfig, SaveInterval
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.training.guards import Guards
    from chinchilla_ds.training.saving import Saver
    from chinchilla_ds.training.watchdog import Watchdog

    plan = engine.plan
    run: Any = object.__new__(_Run)
    run.plan, run.engine, run.callbacks, run.stop = plan, engine, (recorder,), stop
    run.data_parallel_rank, run.sample_interval_tokens = groups.data_parallel_rank(), None
    run.loader = SimpleNamespace(
        micro_batches=lambda step, rank: harness.micro_batches_of_rank(plan, step, rank),
        held_out_batches=lambda data_parallel_rank, max_tokens: harness.micro_batches_of_rank(
            plan, 0, data_parallel_rank
        ),
        num_held_out_sequences=lambda max_tokens: plan.batch.global_batch_size,
    )
    run.state = TrainingState(plan=plan, run_folder=folder, owns_loss=groups.owns_loss(), peak_flops_per_s=None)
    run.prepared = prepared = SimpleNamespace(
        tokenizer_path=folder / "tokenizer.model", tokenizer_sha256="a", content_key="b", folder=folder,
        held_out_tokens=100, held_out_bytes=200,
    )  # fmt: skip
    run.watchdog = Watchdog(timeout_s=60.0, run_folder=folder, rank=groups.global_rank())
    run.guards = Guards(GuardConfig(), plan=plan, stage=engine.stage, run_folder=folder, writes=groups.owns_loss())
    saving = CheckpointConfig(save_every=SaveInterval(iters=2), save_in_background=False)
    run.saver = Saver(
        engine, state=run.state, saving=saving, ds_config={}, prepared=prepared, callbacks={"recorder": recorder}
    )
    run._sample = lambda path: run._call("on_sample")
    return run


def hooks(engine: Any, folder: Path, resumes: bool, stop_file: bool) -> Recorder:
    recorder, stop = Recorder(), StopRequest()
    run = run_of(engine, folder, recorder, stop=stop)
    stop.asked = lambda run_folder: stop_file and run.state.iteration == STOP_AT - 1  # type: ignore[method-assign]
    run.begin(folder if resumes else None, init_from=None)
    run.train()
    return recorder


def _steps(first: int, last: int) -> list[tuple[str, int]]:
    """The calls of these steps, with an evaluation and then a save after every second one."""
    calls = []
    for step in range(first, last + 1):
        calls.append(("on_step_end", step))
        if step % 2 == 0:
            calls += [("on_evaluation_end", step), ("state_dict", step)]
    return calls


ENDING = [
    ("state_dict", TRAIN_ITERS),
    ("on_evaluation_end", TRAIN_ITERS),
    ("on_sample", TRAIN_ITERS),
    ("state_dict", TRAIN_ITERS),
    ("on_train_end", TRAIN_ITERS),
]
REHEARSAL = ("state_dict", 0)


@pytest.mark.parametrize("case", [Case(zero=1, pp=2, accumulation=2), Case(zero=1, dp=2)], ids=str)
def test_hooks_come_in_their_order_on_every_rank(case: Case, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"t")
    plan = dataclasses.replace(case.plan(train_iters=TRAIN_ITERS), eval_interval_iters=2)
    whole = harness.on_engine(plan, hooks, tmp_path, False, False)
    for recorder in whole:
        assert recorder.calls == [REHEARSAL, ("on_train_start", 0), *_steps(1, TRAIN_ITERS), *ENDING]
        assert len(recorder.losses) == TRAIN_ITERS
        assert recorder.losses == whole[0].losses, "every rank sees the same losses"


@pytest.mark.parametrize("case", [Case(zero=1, pp=2, accumulation=2)], ids=str)
def test_a_state_goes_into_the_checkpoint_and_comes_back(case: Case, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"t")
    plan = dataclasses.replace(case.plan(train_iters=TRAIN_ITERS), eval_interval_iters=2)
    stopped = harness.on_engine(plan, hooks, tmp_path, False, True)
    start = [REHEARSAL, ("on_train_start", 0)]
    for recorder in stopped:
        assert recorder.calls == [*start, *_steps(1, STOP_AT), ("state_dict", STOP_AT), ("on_stop", STOP_AT)]
    resumed = harness.on_engine(plan, hooks, tmp_path, True, False)
    for recorder in resumed:
        start = [REHEARSAL, ("load_state_dict", STOP_AT), ("on_train_start", STOP_AT)]
        assert recorder.calls == [*start, *_steps(STOP_AT + 1, TRAIN_ITERS), *ENDING]
        assert recorder.losses[:STOP_AT] == stopped[0].losses
        assert len(recorder.losses) == TRAIN_ITERS


# ---- docs/add-a-callback.md ------------------------------------------------------------------------------------------

RECORDER = '''
import json, os
import chinchilla_ds

class Hooks(chinchilla_ds.Callback):
    """Writes down every hook of this rank; asks for a stop after `stop_at` steps."""

    def __init__(self, stop_at):
        self.stop_at, self.seen = stop_at, 0
        self.file = open(f"hooks-{os.environ['RANK']}.txt", "a")

    def note(self, hook, step):
        print(hook, step, file=self.file, flush=True)

    def on_train_start(self, state):
        self.note("on_train_start", state.iteration)

    def on_step_end(self, state):
        self.seen += 1
        self.note("on_step_end", self.seen)
        if state.iteration == self.stop_at and state.owns_loss:
            (state.run_folder / "STOP").touch()

    def on_evaluation_end(self, state):
        self.note("on_evaluation_end", state.iteration)

    def on_sample(self, state):
        self.note("on_sample", state.iteration)

    def on_stop(self, state):
        self.note("on_stop", state.iteration)

    def on_train_end(self, state):
        self.note("on_train_end", state.iteration)

    def on_close(self):
        self.note("on_close", self.seen)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
'''
FLAGS = (
    *("--flops", "1e10", "--seq-length", "64", "--global-batch-size", "8", "--micro-batch-size", "2"),
    *("--pipeline-model-parallel-size", "2", "--precision", "fp32", "--save-every", "10-steps"),
)
MINE = ("--callback", "hooks:Hooks,stop_at=12", "--callback", "patience:StopWhenFlat,patience=99")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_callback_of_the_page_is_trained_stopped_and_resumed(tmp_path: Path) -> None:
    page = (ROOT / "docs/add-a-callback.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "patience.py").write_text(code)
    (tmp_path / "hooks.py").write_text(RECORDER)
    corpus = write_corpus(tmp_path / "text.txt")

    def run(*more: object) -> Ended:
        path = f"{tmp_path}:{ROOT}"
        return finish(launch(*FLAGS, "--data", corpus, *more, folder=tmp_path, ranks=2, ds="zero1", PYTHONPATH=path))

    ended = run(*MINE)
    assert "| stopped by" in ended.text, ended.text
    [folder] = (path.parent for path in tmp_path.glob("runs/*/request.json"))
    stopped_at = json.loads((folder / "status.json").read_text())["step"]
    first = [(tmp_path / f"hooks-{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert first[0] == first[1]
    assert first[0][-2:] == [f"on_stop {stopped_at}", f"on_close {stopped_at}"]

    refused = run("--resume", folder, "--callback", "hooks:Hooks,stop_at=99")
    assert "--callback is hooks:Hooks,stop_at=99 here and hooks:Hooks,stop_at=12 patience:StopWhenFlat" in refused.text

    ended = run(*MINE)
    assert ended.exit_code == 0, ended.text
    assert "continuing  " in ended.text
    plan = json.loads((folder / "plan.json").read_text())
    assert [spec["name"] for spec in plan["callbacks"]] == ["hooks:Hooks", "patience:StopWhenFlat"]
    last = plan["batch"]["train_iters"]
    assert 12 <= stopped_at < last, "control: there was something left to do"
    for rank in range(2):
        calls = (tmp_path / f"hooks-{rank}.txt").read_text().splitlines()[len(first[0]) :]
        assert calls[:2] == [f"on_train_start {stopped_at}", f"on_step_end {stopped_at + 1}"], "the count came back"
        ending = ["on_step_end", "on_evaluation_end", "on_sample", "on_train_end", "on_close"]
        assert calls[-5:] == [f"{hook} {last}" for hook in ending]
    newest = max(folder.glob("checkpoints/*/state.json"))
    saved = json.loads(newest.read_text())["callbacks"]
    held_out = [json.loads(line).get("held_out/loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert saved["hooks:Hooks,stop_at=12"] == {"seen": last}
    best = saved["patience:StopWhenFlat,patience=99"]["best"]
    assert best == pytest.approx(min(loss for loss in held_out if loss is not None), rel=1e-6)
