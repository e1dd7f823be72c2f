"""The same command again, through the real launcher: the run goes on as if nothing had happened."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from chinchilla_ds.checkpoint.folder import iteration_of, list_checkpoints, problems_of
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.errors import EXIT_CODE_STOPPED, EXIT_CODE_USER_ERROR
from tests.launching import Ended, finish, interrupt, launch, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FLOPS = "3e10"
BATCH = ("--seq-length", "128", "--global-batch-size", "12", "--micro-batch-size", "2", "--precision", "fp32")
FLAGS = ("--flops", FLOPS, *BATCH, "--save-every", "4-steps", "--keep", "100")
BEFORE_THE_FAULT = "| held-out loss"
"""The first evaluation, a tenth into the run."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The folder of a run that nothing happens to, on two ranks."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = run_to_its_end(corpus, folder)
    assert "continuing" not in ended.text
    return run_of(folder)


def run_to_its_end(corpus: Path, folder: Path, *more: object, ds: str = "zero1", ranks: int = 2) -> Ended:
    ended = finish(launch(*FLAGS, "--data", corpus, *more, folder=folder, ranks=ranks, ds=ds))
    assert ended.exit_code == 0, ended.text
    return ended


def run_of(folder: Path) -> Path:
    """Return the only run below a folder."""
    [run] = (path.parent for path in folder.glob("runs/*/request.json"))
    return run


def losses(run: Path) -> dict[tuple[int, str], float]:
    """Return every loss in metrics.jsonl by step and name; no step may be there twice."""
    found: dict[tuple[int, str], float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        moment = json.loads(line)
        for name in ("train/loss", "held_out/loss"):
            if name in moment:
                assert (moment["step"], name) not in found, line
                found[moment["step"], name] = moment[name]
    return found


def largest_difference(run: Path, other: Path) -> float:
    """Return the largest relative difference between the losses of two runs, which must have taken the same steps."""
    ours, theirs = losses(run), losses(other)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    return max(abs(ours[place] - loss) / loss for place, loss in theirs.items())


def has_the_same_weights(run: Path, other: Path) -> bool:
    ours, theirs = CheckpointReader.open(run), CheckpointReader.open(other)
    assert ours.state.complete
    assert (ours.state.iteration, ours.names()) == (theirs.state.iteration, theirs.names())
    return all(
        torch.equal(ours.read(name, state=moment), theirs.read(name, state=moment))
        for name in ours.names()
        for moment in (None, "exp_avg", "exp_avg_sq")
    )


def check_mlflow(folder: Path, *, again: bool) -> None:
    """There is one finished run with every step; those taken `again` after a kill stand there twice, and agree."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    [experiment] = [found for found in client.search_experiments() if found.name == "chinchilla-ds"]
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    wanted = {step: loss for (step, name), loss in losses(run_of(folder)).items() if name == "train/loss"}
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert set(history) == set(wanted.items())
    assert again or len(history) == len(wanted), "a step was logged twice"


FAULTS = [
    pytest.param(signal.SIGTERM, None, id="sigterm-to-the-launcher"),
    pytest.param(signal.SIGTERM, 1, id="sigterm-to-a-rank"),
    pytest.param(signal.SIGKILL, 1, id="sigkill-of-a-rank"),
]


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
@pytest.mark.parametrize(("number", "rank"), FAULTS)
def test_an_interrupted_run_ends_as_one_that_never_was(
    number: signal.Signals, rank: int | None, corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = launch(*FLAGS, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1")
    ended = interrupt(run, number, after=BEFORE_THE_FAULT, rank=rank)
    assert ended.exit_code != 0
    if (number, rank) == (signal.SIGTERM, 1):
        assert ended.exit_code == EXIT_CODE_STOPPED
    stopped = run_of(tmp_path)
    checkpoints = list_checkpoints(stopped / "checkpoints")
    assert [path for path in checkpoints if problems_of(path)] == []
    at, last = iteration_of(checkpoints[0]), max(step for step, _ in losses(uninterrupted))
    assert 0 < at < last, "control: it was interrupted on its way"
    again = run_to_its_end(corpus, tmp_path)
    assert f"continuing    runs/{stopped.name} from {checkpoints[0].name}\n" in again.text
    assert largest_difference(run_of(tmp_path), uninterrupted) == 0.0
    assert has_the_same_weights(stopped, uninterrupted)
    check_mlflow(tmp_path, again=number is signal.SIGKILL)


@pytest.mark.parametrize(("ds", "ranks"), [("zero1", 1), ("zero3_tp2_pp2", 4)])
def test_fewer_or_more_ranks_go_on_with_the_same_batches(
    ds: str, ranks: int, corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = launch(*FLAGS, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1")
    interrupt(run, signal.SIGTERM, after=BEFORE_THE_FAULT, rank=0)
    begun = json.loads((run_of(tmp_path) / "plan.json").read_text())
    again = run_to_its_end(corpus, tmp_path, ds=ds, ranks=ranks)
    assert f"continuing    runs/{run_of(tmp_path).name} from step_" in again.text
    plan = json.loads((run_of(tmp_path) / "plan.json").read_text())
    assert plan["layout"] != begun["layout"]
    assert plan["batch"]["global_batch_size"] == begun["batch"]["global_batch_size"] == 12
    assert plan["reasons"][-1].startswith(f"Continued on {ranks} ranks after 2: the global batch of 12 sequences stays")
    difference = largest_difference(run_of(tmp_path), uninterrupted)
    print({"ranks": ranks, "largest relative difference of a loss": difference})
    assert 0.0 < difference < 1e-5, "0.0 would mean that the layout did not change"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_text_that_has_changed_is_refused_and_given_back_it_goes_on(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "text.txt")
    run = launch(*FLAGS, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1")
    interrupt(run, signal.SIGTERM, after="| loss", rank=0)
    folder, text = run_of(tmp_path), corpus.read_bytes()
    before, key = content(folder), CheckpointReader.open(folder).state.data_key
    corpus.write_bytes(text[: len(text) // 2])
    refused = finish(launch(*FLAGS, "--data", corpus, folder=tmp_path, ranks=2, ds="zero1"))
    assert refused.exit_code == EXIT_CODE_USER_ERROR, refused.text
    message = [line for line in refused.text.splitlines() if line.startswith("error: ")]
    assert f"was trained on text with key {key}, and runs/data/" in message[0], refused.text
    assert "has key " in message[0]
    assert "Traceback" not in refused.text
    assert content(folder) == before, "the run's folder is as it was"
    corpus.write_bytes(text)
    assert "continuing" in run_to_its_end(corpus, tmp_path).text


def test_the_same_command_after_the_end_trains_nothing_again(corpus: Path, uninterrupted: Path) -> None:
    """A chain of jobs of one command: those after the last step say that nothing is left to do."""
    folder = uninterrupted.parents[1]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for more in ((), ("--resume", uninterrupted.relative_to(folder))):
        again = run_to_its_end(corpus, folder, *more)
        assert f"{uninterrupted.name}: the run of this command has reached its plan's end" in again.text
        assert "held-out loss" in again.text
        assert "step " not in again.text
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_a_run_that_is_named_goes_on_in_its_own_place(corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    own = {"MLFLOW_TRACKING_URI": ""}
    run = launch(*FLAGS, "--data", corpus, "--keep", "7", folder=home, ranks=2, ds="zero1", **own)
    assert interrupt(run, signal.SIGTERM, after=BEFORE_THE_FAULT).exit_code != 0
    folder = run_of(home)
    names = ("request.json", "plan.json", "ds_config.json", "data.json", "mlflow_run_id")
    before, texts = [(folder / name).read_text() for name in names], sorted((home / "runs/data").iterdir())
    ended = finish(launch("--resume", folder, folder=elsewhere, ranks=2, ds="zero1", **own))
    assert ended.exit_code == 0, ended.text
    assert list(elsewhere.iterdir()) == [], "no text is prepared there, and no database made"
    assert [(folder / name).read_text() for name in names] == before
    assert sorted((home / "runs/data").iterdir()) == texts
    assert len(list_checkpoints(folder / "checkpoints")) == 7, "--keep is the run's own"
    assert has_the_same_weights(folder, uninterrupted)
    (home / "runs/mlflow.db").rename(home / "mlflow.db")
    check_mlflow(home, again=True)


def test_init_from_begins_another_run_with_the_weights_of_one(
    corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run_to_its_end(corpus, tmp_path, "--init-from", os.path.relpath(uninterrupted, tmp_path), "--seed", "1234")
    run, old = losses(run_of(tmp_path)), losses(uninterrupted)
    first, last = run[1, "train/loss"], max(step for step, _ in old)
    assert max(run) == max(old), "it takes all steps of its plan"
    fresh, trained = old[1, "train/loss"], old[last, "held_out/loss"]
    assert fresh - trained > 1.0, "control: training shows"
    assert abs(first - trained) < 0.25 * (fresh - trained), (first, trained, fresh)
