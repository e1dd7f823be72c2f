"""The loss of docs/add-a-loss.md, of which no file of the package knows: what the page says to do is done."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.checkpoint.folder import list_checkpoints
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.config import RunConfig
from chinchilla_ds.engine.checkpoint import Checkpointer, load
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.objective import make_objective, spec_of
from chinchilla_ds.plugins import parse_spec
from tests.documented import code_blocks
from tests.launching import finish, launch, write_corpus
from tests.parity import harness, objective_reference
from tests.parity.layouts import Case
from tests.parity.test_objectives import apart, joined, train

COEFFICIENT = 0.05
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Write the page's module into a folder of its own, and return that."""
    [text] = code_blocks("add-a-loss.md")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_losses.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("my_losses", None)


def z_loss_plan(case, *, coefficient=COEFFICIENT):
    objective = parse_spec(f"my_losses:ZLoss,coefficient={coefficient}")
    return dataclasses.replace(case.plan(train_iters=3), objective=objective)


def train_and_save(engine, folder):
    told = train(engine)
    state = CheckpointState(iteration=3, data_step=3, attempts=3, elapsed_s=1.0)
    Checkpointer(engine, folder=folder, ds_config={}).save(state)
    return told


def refused(engine, folder):
    [checkpoint] = list_checkpoints(folder)
    with pytest.raises(CheckpointError) as error:
        load(engine, checkpoint=checkpoint)
    load(engine, checkpoint=checkpoint, weights_only=True)  # a new run may begin with the weights
    return str(error.value)


def test_a_plan_that_names_it_trains_with_it(tmp_path):
    plan = z_loss_plan(Case(zero=1, tp=2, accumulation=4))
    ours = joined(harness.on_engine(plan, train_and_save, tmp_path / "run"))
    alone = dataclasses.replace(plan, layout=Case(zero=0).plan().layout)
    truth = objective_reference.ZLossTruth(alone)
    found = apart(ours, objective_reference.train(alone, truth), objective_reference.initial(alone, truth))
    assert max(found.numbers, found.weights) < TOLERANCE
    assert all(loss != both for loss, both in zip(ours.losses, ours.objective_losses, strict=True))
    [checkpoint] = list_checkpoints(tmp_path / "run")
    assert CheckpointReader(checkpoint).plan.objective == plan.objective
    for other in (z_loss_plan(Case(zero=0), coefficient=0.5), Case(zero=0).plan()):
        [message] = harness.on_engine(other, refused, tmp_path / "run")
        assert "was trained with the objective my_losses:ZLoss,coefficient=0.05" in message
        assert f"the plan's is {other.objective}" in message


def test_an_objective_that_cannot_be_made_is_refused_by_name():
    for text, said in (
        ("my_losses:ZLos", "my_losses has no ZLos"),
        ("my_losses:ZLoss,strength=1", "strength"),
        ("my_losses:LossValue", "is not a subclass of chinchilla_ds.objective.Objective"),
        ("os:system,command=true", "is not a subclass of chinchilla_ds.objective.Objective"),
        ("z_loss", "objective 'z_loss' is unknown"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_plan(RunConfig(objective=parse_spec(text)), world_size=1, device="cpu")


def test_its_name_and_arguments_come_back():
    spec = parse_spec("my_losses:ZLoss,coefficient=0.5")
    made = make_objective(spec)
    assert spec_of(made) == spec
    by_hand = type(made)(coefficient=0.5)
    assert spec_of(by_hand) == spec
    plan = make_plan(RunConfig(objective=spec), world_size=1, device="cpu")
    assert type(plan).from_json(plan.to_json()).objective == spec


# ---- under the launcher ---------------------------------------------------------------------------------------------

FLAGS = ("--flops", "2e10", "--seq-length", "64", "--vocab-size", "512", "--global-batch-size", "8")


@pytest.mark.slow
def test_the_launcher_takes_it_by_its_flag(tmp_path, elsewhere):
    corpus, path = write_corpus(tmp_path / "text.txt"), f"{Path(__file__).parents[2]}:{elsewhere}"
    asked = ("--objective", f"my_losses:ZLoss,coefficient={COEFFICIENT}")
    run = launch(*FLAGS, *asked, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1", PYTHONPATH=path)
    ended = finish(run)
    assert ended.exit_code == 0, ended.text
    [metrics] = tmp_path.glob("runs/*/metrics.jsonl")
    points = [json.loads(line) for line in metrics.read_text().splitlines()]
    named = {name for point in points for name in point}
    assert {"train/loss", "train/objective_loss", "objective/z_loss", "held_out/loss"} <= named, named
    folder = metrics.parent
    other = launch(
        "--resume", folder, "--objective", "cross_entropy", folder=tmp_path, ranks=2, ds="zero1", PYTHONPATH=path
    )
    ended = finish(other)
    assert ended.exit_code == 2, ended.text
    assert "--objective is cross_entropy here and my_losses:ZLoss,coefficient=0.05 in the run" in ended.text
