"""A run's folder: begun whole, gone on with, and left alone by what is refused."""

from datetime import datetime
from pathlib import Path

import pytest

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.config import RunConfig
from chinchilla_ds.data.prepared import PreparedData, PreparedSource
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.runs.earlier import Continued, continued
from chinchilla_ds.runs.folder import make_run_folder, open_run_folder
from chinchilla_ds.runs.request import RunRequest
from chinchilla_ds.testing import tiny_plan


def text(folder: Path, *, tokens: int = 1000) -> PreparedData:
    source = PreparedSource(name="all", weight=None, num_documents=3, num_bytes=4000, num_tokens=tokens)
    return PreparedData(
        folder=folder,
        source="here",
        sources=(source,),
        tokenizer_sha256="a",
        vocab_size=256,
        eod_id=1,
        train_tokens=tokens,
        held_out_tokens=100,
        train_bytes=4000,
        held_out_bytes=400,
        num_documents=3,
        held_out_documents=1,
        skipped_files=0,
        unigram_loss=5.0,
    )


def saved_run(output: Path, prepared: PreparedData) -> Continued:
    folder, _ = make_run_folder(
        output=output,
        plan=tiny_plan(),
        ds_config={"a": 1},
        prepared=prepared,
        request=RunRequest(config=RunConfig(output=output)),
        now=datetime(2030, 1, 2, 3, 4, 5),
    )
    checkpoint = folder / "checkpoints/step_0000002"
    aside = folders.begin(checkpoint)
    state = CheckpointState(
        iteration=2, data_step=2, attempts=2, elapsed_s=1.0, tokenizer_sha256="a", data_key=prepared.content_key
    )
    names = {folders.STATE_NAME: state.to_json(), folders.PLAN_NAME: tiny_plan().to_json()}
    for name, written in names.items():
        (aside / name).write_text(written)
    folders.commit(checkpoint, records={name: folders.record_file(aside / name) for name in names})
    return continued(folder)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_a_run_that_goes_on_gets_the_plan_and_ds_config_of_its_new_layout(tmp_path: Path) -> None:
    prepared = text(tmp_path / "data")
    run = saved_run(tmp_path / "runs", prepared)
    before = content(run.folder)
    plan = tiny_plan(data_parallel_size=2, micro_batch_size=1, zero_stage=1)
    folder, artifacts = open_run_folder(run, plan=plan, ds_config={"b": 2}, prepared=prepared)
    after = content(folder)
    assert folder == run.folder
    assert (after["plan.json"], after["ds_config.json"]) == (plan.to_json(), '{\n  "b": 2\n}\n')
    assert (after["request.json"], after.keys()) == (before["request.json"], before.keys())
    assert artifacts["plan"] == str(folder / "plan.json")


def test_other_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    prepared = text(tmp_path / "data")
    run = saved_run(tmp_path / "runs", prepared)
    before, other = content(run.folder), text(tmp_path / "other", tokens=999)
    with pytest.raises(CheckpointError) as error:
        open_run_folder(run, plan=tiny_plan(seed=2), ds_config={}, prepared=other)
    [problem] = error.value.problems
    assert prepared.content_key in problem
    assert other.content_key in problem
    assert content(run.folder) == before
