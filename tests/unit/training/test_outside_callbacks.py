"""Callbacks from outside: made by name, kept from writing, saved as JSON, and part of what a run is."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.plugins import PluginSpec, parse_spec
from chinchilla_ds.run_plan import Decay, RunPlan
from chinchilla_ds.runs.earlier import continued, find_run, take_over
from chinchilla_ds.runs.request import RunRequest, SavedRequest
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.training.callback import Callback, TrainingState
from chinchilla_ds.training.callbacks.outside import load_states, make_callbacks, states_of, with_state
from tests.unit.cli.earlier_runs import begin
from tests.unit.training.states import evaluate, make_state, take_step

MODULE = """
from chinchilla_ds import Callback

class Counter(Callback):
    def __init__(self, start=0):
        self.count = start
    def state_dict(self):
        return {"count": self.count}
    def load_state_dict(self, state):
        self.count = state["count"]

class NoCallback:
    pass
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "outside_counter.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("outside_counter", None)


COUNTER = parse_spec("outside_counter:Counter,start=3")


# ---- made by name ----------------------------------------------------------------------------------------------------


def test_a_callback_is_made_with_its_arguments(outside: None) -> None:
    made = make_callbacks([COUNTER, parse_spec("outside_counter:Counter")])
    assert states_of(made) == {"outside_counter:Counter,start=3": {"count": 3}, "outside_counter:Counter": {"count": 0}}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["outside_counter:NoCallback"], "must be a subclass of chinchilla_ds.Callback"),
        (["outside_counter:Counter", "outside_counter:Counter"], "is given twice"),
        (["outside_counter:Counter,stop=3"], r"it takes \(start=0\)"),
        (["outside_counter:Countre"], "did you mean 'Counter'"),
    ],
)
def test_what_cannot_be_made_is_refused(outside: None, specs: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_callbacks([parse_spec(spec) for spec in specs])


# ---- kept from writing -----------------------------------------------------------------------------------------------


def _set_loss(state: Any) -> None:
    state.step.loss = 0.0


def _replace_step(state: Any) -> None:
    state.step = dataclasses.replace(state.step, loss=0.0)


def _set_evaluation(state: Any) -> None:
    state.evaluation.loss = 0.0


def _skip(state: Any) -> None:
    state.data_step += 1


def _set_scalar(state: Any) -> None:
    state.step.scalars["z_loss"] = 0.0


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (_set_loss, "cannot assign to field 'loss'"),
        (_replace_step, "would set state.step"),
        (_set_evaluation, "cannot assign to field 'loss'"),
        (_skip, "would set state.data_step"),
        (_set_scalar, "has changed state.step.scalars"),
    ],
)
def test_a_callback_that_alters_what_it_reads_is_refused(
    alter: Callable[[TrainingState], None], message: str, tmp_path: Path
) -> None:
    state = make_state(tmp_path)
    take_step(state)
    evaluate(state, loss=4.0, bits_per_byte=1.0)
    before = dataclasses.replace(state)
    said = rf"training.callback:Callback.*{message}.*only the loop writes"
    with pytest.raises(ConfigError, match=said), state.read_by(Callback()):
        alter(state)
    if alter is not _set_scalar:
        assert state == before
    with state.read_by(Callback()):
        state.artifacts["mine"] = "a.txt"
    take_step(state)
    assert state.iteration == before.iteration + 1, "the loop writes on"


def test_nothing_that_a_callback_gets_can_be_changed_in_place(tmp_path: Path) -> None:
    state = make_state(tmp_path)
    take_step(state)
    mutable = {name for name, value in vars(state).items() if isinstance(value, list | dict | set)}
    assert mutable == {"artifacts"}


# ---- saved -----------------------------------------------------------------------------------------------------------


class _With(Callback):
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.mark.parametrize("state", [3, None, {"a": {1, 2}}, {"a": float("nan")}, {"a": Path()}])
def test_a_state_that_json_cannot_hold_is_refused(state: Any) -> None:
    with pytest.raises(ConfigError, match="callback mine: state_dict"):
        states_of({"mine": _With(state)})


def test_what_is_saved_is_a_copy_and_comes_back(tmp_path: Path) -> None:
    callback = _With({"losses": [1.5]})
    saved = CheckpointState(iteration=1, data_step=1, attempts=1, elapsed_s=1.0, callbacks=states_of({"a": callback}))
    callback.state["losses"].append(2.5)
    read = CheckpointState.from_json(saved.to_json(), where="state")
    load_states({"a": callback}, read.callbacks, where=tmp_path)
    assert callback.state == {"losses": [1.5]}


def test_a_checkpoint_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    values = json.loads(CheckpointState(iteration=1, data_step=1, attempts=1, elapsed_s=1.0).to_json())
    del values["callbacks"]
    saved = CheckpointState.from_json(json.dumps(values), where="state")
    load_states({}, saved.callbacks, where=tmp_path)
    with pytest.raises(CheckpointError, match=f"`callbacks` are mine here and none in the checkpoint {tmp_path}"):
        load_states({"mine": _With({})}, saved.callbacks, where=tmp_path)


def test_objects_of_a_script_are_named_by_their_class() -> None:
    found = with_state([Callback(), _With({}), _With({})])
    name = f"{__name__}:_With"
    assert list(found) == [name, f"{name} (2)"]


# ---- part of what a run is -------------------------------------------------------------------------------------------


def test_a_flag_gives_a_callback_with_its_arguments() -> None:
    command = parse(["--ds_config", "x.json", "--callback", "a:B,x=1", "--callback", "c"])
    assert command.config.callbacks == (PluginSpec(name="a:B", arguments={"x": 1}), PluginSpec(name="c"))
    assert command.explicit == {"callbacks"}
    with pytest.raises(ConfigError, match="'a:b:c' is neither a name nor module:object"):
        parse(["--ds_config", "x.json", "--callback", "a:b:c"])


def test_plan_and_request_keep_name_and_arguments(tmp_path: Path) -> None:
    plan = dataclasses.replace(tiny_plan(), callbacks=(COUNTER, parse_spec("c,x=0.5,y=true,z=null")))
    assert RunPlan.from_json(plan.to_json()) == plan
    config = RunConfig(callbacks=plan.callbacks)
    (tmp_path / "request.json").write_text(RunRequest(config=config).to_json())
    assert SavedRequest.load(tmp_path).config.callbacks == config.callbacks
    old = json.loads(tiny_plan().to_json())
    del old["callbacks"]
    assert RunPlan.from_json(json.dumps(old)) == tiny_plan()


KEYS_OF_0_1_0 = {
    "7886b3317ab250d76b3e": RunConfig(),
    "debc45bed391fcec2955": RunConfig(
        compute_budget_flops=1e12, data=DataConfig(max_epochs=2.0), decay=Decay.WSD, seed=7
    ),
}


def test_requests_of_earlier_versions_keep_their_key() -> None:
    """Computed by the version before callbacks: another key, and the same command would not find its run."""
    for key, config in KEYS_OF_0_1_0.items():
        assert RunRequest(config=config).key == key
        assert RunRequest(config=dataclasses.replace(config, callbacks=(COUNTER,))).key != key


def test_a_plan_and_its_file_ask_for_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(tiny_plan().to_json())
    key = RunRequest(config=RunConfig(), plan=tmp_path / "plan.json").key
    assert RunRequest(config=RunConfig(), plan=tiny_plan()).key == key
    other = dataclasses.replace(tiny_plan(), callbacks=(COUNTER,))
    assert RunRequest(config=RunConfig(), plan=other).key != key


def test_another_callback_is_another_run_and_no_resume(tmp_path: Path) -> None:
    config = RunConfig(compute_budget_flops=1e11, output=tmp_path / "runs", callbacks=(COUNTER,))
    folder = begin(RunRequest(config=config), "run", at_s=100)
    assert find_run(RunRequest(config=config)) is not None
    assert find_run(RunRequest(config=dataclasses.replace(config, callbacks=()))) is None
    command = parse(["--ds_config", "x.json", "--callback", "outside_counter:Counter,start=4"])
    with pytest.raises(CheckpointError) as error:
        take_over(command, continued(folder), config=command.config)
    assert error.value.problems == (
        f"`callbacks` is outside_counter:Counter,start=4 here and outside_counter:Counter,start=3 in the run {folder}; "
        "leave it out to resume that run, or start another with `checkpoint.resume=none`",
    )
    without = parse(["--ds_config", "x.json"])
    assert take_over(without, continued(folder), config=without.config).config.callbacks == (COUNTER,)


def test_a_plan_with_another_callback_is_refused_with_both(tmp_path: Path) -> None:
    config = RunConfig(compute_budget_flops=1e11, output=tmp_path / "runs")
    run = continued(begin(RunRequest(config=config), "run", at_s=100))
    command = parse(["--ds_config", "x.json"])
    other = dataclasses.replace(run.plan, callbacks=(COUNTER,))
    with pytest.raises(
        CheckpointError, match=r"in callbacks \(outside_counter:Counter,start=3 here and not given in the run\)"
    ):
        take_over(dataclasses.replace(command, plan=other), run, config=command.config)
