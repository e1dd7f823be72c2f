"""The same command finds its run again, and no other; a run that is named goes on as it was asked for."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.config import (
    CheckpointConfig,
    DataConfig,
    GuardConfig,
    LayoutConfig,
    OnSpike,
    RunConfig,
    SaveInterval,
)
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.run_plan import Recompute
from chinchilla_ds.runs.command import TrainCommand
from chinchilla_ds.runs.earlier import Continued, continued, find_run, named_run, take_over
from chinchilla_ds.runs.request import RunRequest
from chinchilla_ds.testing import tiny_plan
from tests.unit.cli.earlier_runs import TRAIN_ITERS, begin, save, state_at


@pytest.fixture
def request_(tmp_path: Path) -> RunRequest:
    return RunRequest(config=RunConfig(compute_budget_flops=1e11, output=tmp_path / "runs"))


# ---- the same command ------------------------------------------------------------------------------------------------


def test_the_newest_run_of_the_same_command_is_found(request_: RunRequest) -> None:
    assert find_run(request_) is None, "there is no folder yet"
    other = dataclasses.replace(request_, config=dataclasses.replace(request_.config, seed=2))
    begin(request_, "old", at_s=100)
    wanted = begin(request_, "newer", at_s=200, saved=(4, 8))
    begin(request_, "never-saved", at_s=400, saved=())
    begin(other, "another", at_s=500)
    found = find_run(request_)
    assert found is not None
    assert (found.folder, found.checkpoint.name, found.is_finished) == (wanted, "step_0000008", False)
    assert (found.all_checkpoints, found.request, found.state) == (True, request_, state_at(8))
    assert found.plan == tiny_plan(train_iters=TRAIN_ITERS)


def test_a_run_that_has_ended_is_found_as_such(request_: RunRequest) -> None:
    begin(request_, "given up", at_s=50)
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    assert (found := find_run(request_)) is not None
    assert not found.is_finished
    save(folder, 9, complete=True)
    assert (found := find_run(request_)) is not None
    assert (found.folder, found.is_finished) == (folder, True)
    begin(request_, "--resume none", at_s=int(folder.stat().st_mtime) + 100)
    (folder / "evaluation.json").touch()
    assert (found := find_run(request_)) is not None
    assert not found.is_finished, "another was begun since"


def test_a_name_finds_its_run_alone(request_: RunRequest) -> None:
    named = dataclasses.replace(request_, config=dataclasses.replace(request_.config, run_name="first"))
    begin(request_, "unnamed", at_s=500)
    assert find_run(named) is None, "the same command without the name is another run"
    first = begin(named, "first", at_s=100)
    begin(named, "first-or-not", at_s=300)
    assert (found := find_run(named)) is not None
    assert found.folder == first
    again = begin(named, "first-2", at_s=200)
    assert (found := find_run(named)) is not None
    assert found.folder == again
    assert (found := find_run(request_)) is not None
    assert found.folder.name == "unnamed"


def test_the_name_of_another_run_is_refused(request_: RunRequest) -> None:
    named = dataclasses.replace(request_, config=dataclasses.replace(request_.config, run_name="first"))
    other = dataclasses.replace(named, config=dataclasses.replace(named.config, seed=2))
    folder = begin(other, "first", at_s=100)
    with pytest.raises(CheckpointError, match=f"`run_name=first` is the name of {folder}, which was asked for some"):
        find_run(named)


def test_a_named_run_keeps_its_name(request_: RunRequest) -> None:
    found = continued(begin(request_, "first", at_s=100))
    command = parse(["--ds_config", "zero3", "--run-name", "second"])
    with pytest.raises(CheckpointError, match=r"`run_name` is second here, and the run .*first keeps its name"):
        take_over(command, found, config=command.config)
    command = parse(["--ds_config", "zero3", "--run-name", "first"])
    assert take_over(command, found, config=command.config).config.run_name == request_.config.run_name


@pytest.mark.parametrize("name", ["state.json", "plan.json", "manifest.json"])
def test_a_run_whose_newest_checkpoint_is_damaged_is_found_all_the_same(name: str, request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    (folder / "checkpoints/step_0000008" / name).write_text("{")
    found = find_run(request_)
    assert found is not None
    assert (found.checkpoint.name, found.all_checkpoints) == ("step_0000004", True)


@pytest.mark.parametrize("name", ["state.json", "plan.json"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_of_which_nothing_is_whole_is_not_passed_over(name: str, is_there: bool, request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    for path in folder.glob(f"checkpoints/*/{name}"):
        path.write_text("{") if is_there else path.unlink()
    with pytest.raises(CheckpointError) as error:
        find_run(request_)
    newer, older, advice = error.value.problems
    what = "has 1 bytes" if is_there else "cannot be read: No such file or directory"
    assert f"{folder}/checkpoints/step_0000008/{name} {what}" in newer
    assert f"{folder}/checkpoints/step_0000004/{name} {what}" in older
    assert advice == f"no checkpoint of {folder} is intact; `checkpoint.resume=none` starts another run"


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"iteration": -4}, "state.iteration is -4; it must be at least 0"),
        ({"iteration": "4"}, "iteration is '4'; it must be a whole number"),
        ({"elapsed_s": None}, "elapsed_s is None; it must be a number"),
        ({"complete": 1}, "complete is 1; it must be true or false"),
        ({"data_step": 3}, "data_step is 3, and 4 steps were taken (iteration)"),
        ({"data_step": 10}, "data_step is 10, and its plan has 9 batches (batch.train_iters)"),
        ({"attempts": 0}, "attempts is 0, and 4 steps were taken (iteration)"),
        ({"optimizer_step": 10**12}, "optimizer_step is 1000000000000, and 4 steps were tried (attempts)"),
        ({"loss_scaler": {"__class__": 1}}, "loss_scaler has __class__; it may have cur_scale"),
        ({"loss_scaler": []}, "loss_scaler"),
        ({"versions": {"torch": 2}}, "versions.torch is 2; it must be text"),
        ({"steps": 4}, "steps is not a field"),
    ],
)
def test_a_state_that_cannot_be_is_named(edits: dict[str, Any], said: str, request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=())
    save(folder, 4, edits=edits)
    with pytest.raises(CheckpointError) as error:
        continued(folder)
    assert said.removeprefix("state.") in str(error.value)
    assert "step_0000004" in error.value.problems[0]


def test_a_plan_whose_counts_are_not_those_of_its_model_is_named(request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=())
    save(folder, 4, plan=dataclasses.replace(tiny_plan(train_iters=TRAIN_ITERS), num_params=7))
    with pytest.raises(CheckpointError, match="num_params is 7, but its shape has 180800 parameters"):
        continued(folder)


def test_a_plan_file_that_has_changed_since_begins_another_run(request_: RunRequest, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(tiny_plan(train_iters=9).to_json())
    request = dataclasses.replace(request_, plan=file)
    begin(request, "run", at_s=100)
    assert find_run(request) is not None
    file.write_text(tiny_plan(train_iters=10).to_json())
    assert find_run(request) is None


# ---- a request that cannot be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", '{"config": {', "null", "{}", '{"format": 1}', "\0" * 64, None])
def test_a_damaged_request_is_named_and_no_run_is_begun(text: str | None, request_: RunRequest) -> None:
    """Half a file after a power cut: the run may be the one that is asked for, and its hours of training are there."""
    folder = begin(request_, "run", at_s=100)
    path = folder / "request.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CheckpointError) as error:
        find_run(request_)
    assert f"the run's request {path}" in error.value.problems[0]
    assert "`checkpoint.resume=none`" in error.value.problems[-1]


def test_damage_does_not_hide_behind_an_older_run(request_: RunRequest) -> None:
    begin(request_, "older", at_s=100)
    (begin(request_, "newer", at_s=200) / "request.json").write_text("{")
    with pytest.raises(CheckpointError, match="newer"):
        find_run(request_)


def test_nothing_is_lost_with_a_request_that_has_no_checkpoint(request_: RunRequest) -> None:
    (begin(request_, "run", at_s=100, saved=()) / "request.json").write_text("{")
    assert find_run(request_) is None


def test_an_import_beside_the_runs_is_none_of_them(request_: RunRequest) -> None:
    save(request_.config.output / "imported", 0)
    assert find_run(request_) is None


# ---- --resume FOLDER -------------------------------------------------------------------------------------------------


def test_a_folder_means_its_newest_and_a_checkpoint_itself(request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    by_folder = continued(folder)
    assert (by_folder.checkpoint.name, by_folder.all_checkpoints) == ("step_0000008", True)
    older = folder / "checkpoints/step_0000004"
    by_checkpoint = continued(older)
    assert (by_checkpoint.folder, by_checkpoint.checkpoint, by_checkpoint.all_checkpoints) == (folder, older, False)
    assert by_checkpoint.state == state_at(4)


def test_what_is_no_run_cannot_be_continued(request_: RunRequest, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        continued(tmp_path / "nowhere")
    folder = begin(request_, "run", at_s=100)
    (folder / "request.json").unlink()
    with pytest.raises(CheckpointError, match=f"`checkpoint.init_from={folder}` starts a new run with its weights"):
        continued(folder)


def command(*words: str) -> TrainCommand:
    return parse(["--ds_config", "x.json", *words])


def taken_over(run: Continued, *words: str) -> TrainCommand:
    given = command(*words)
    return take_over(given, run, config=given.config)


def test_flags_that_say_something_else_are_named_with_both_values(request_: RunRequest) -> None:
    run = continued(begin(request_, "run", at_s=100))
    taken_over(run, "--micro-batch-size", "2", "--sequence-parallel", "--keep", "5", "--flops", "1e11")
    with pytest.raises(CheckpointError) as error:
        taken_over(
            run, "--seed", "7", "--flops", "2e11", "--max-epochs", "3", "--precision", "bf16", "--data", "a", "b"
        )
    end = f"in the run {run.folder}; leave it out to resume that run, or start another with `checkpoint.resume=none`"
    assert error.value.problems == (
        f"`compute_budget_flops` is 2e+11 here and 1e+11 {end}",
        f"`data.max_epochs` is 3 here and 1 {end}",
        f"`data.paths` is {Path('a').resolve()} {Path('b').resolve()} here and not given {end}",
        f"`precision` is bf16 here and not given {end}",
        f"`seed` is 7 here and 1234 {end}",
    )
    assert "None" not in str(error.value)


def test_a_run_goes_on_in_its_own_place_with_what_it_was_asked_for(tmp_path: Path) -> None:
    before = RunConfig(
        compute_budget_flops=1e11,
        seed=5,
        output=tmp_path / "runs",
        data=DataConfig(paths=(tmp_path / "text",)),
        guards=GuardConfig(max_bad_batches=9, on_spike=OnSpike.REWIND),
        checkpoint=CheckpointConfig(save_every=SaveInterval(iters=7), keep=20, init_from=tmp_path / "weights"),
        sample_interval_tokens=1000,
        micro_batch_size=4,
    )
    run = continued(begin(RunRequest(config=before), "run", at_s=100))
    taken = taken_over(
        run, "--resume", str(run.folder), "--hang-timeout", "90", "--keep", "30", "--micro-batch-size", "2"
    )
    assert taken.plan is None
    assert taken.config == dataclasses.replace(
        before,
        layout=LayoutConfig(),
        micro_batch_size=2,
        guards=dataclasses.replace(before.guards, hang_timeout_s=90.0),
        checkpoint=dataclasses.replace(before.checkpoint, keep=30, resume=str(run.folder)),
    )
    assert RunRequest(config=taken.config).key == RunRequest(config=before).key


def test_the_layout_is_the_runs_own_where_nothing_else_is_said(tmp_path: Path) -> None:
    own = LayoutConfig(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, zero_stage=3, sequence_parallel=True
    )
    request = RunRequest(config=RunConfig(layout=own, output=tmp_path / "runs"))
    run = continued(begin(request, "run", at_s=100))
    assert taken_over(run).config.layout == dataclasses.replace(own, zero_stage=0), "ZeRO is the ds_config's"
    flags = ("--tensor-model-parallel-size", "1", "--no-sequence-parallel", "--recompute", "full")
    said = LayoutConfig(pipeline_model_parallel_size=2, recompute=Recompute.FULL)
    assert taken_over(run, *flags).config.layout == said


def test_a_run_that_was_moved_goes_on_where_it_is_now(request_: RunRequest, tmp_path: Path) -> None:
    folder = begin(request_, "run", at_s=100)
    (tmp_path / "archive").mkdir()
    moved = folder.rename(tmp_path / "archive/run")
    assert taken_over(continued(moved)).config.output == tmp_path / "archive"
    assert taken_over(continued(moved), "--output", str(tmp_path / "archive")).config.output == tmp_path / "archive"
    with pytest.raises(CheckpointError, match=f"`output` is elsewhere here, and the run {moved} keeps its place"):
        taken_over(continued(moved), "--output", "elsewhere")


def test_a_run_by_its_relative_name_goes_on_in_its_own_place(
    request_: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(request_, "run", at_s=100)
    monkeypatch.chdir(folder.parent)
    assert taken_over(named_run("run")).config.output == folder.parent
    monkeypatch.chdir(folder)
    assert taken_over(named_run(".")).config.output == folder.parent
    monkeypatch.chdir(folder / "checkpoints")
    assert taken_over(named_run("step_0000004")).config.output == folder.parent


def test_a_plan_that_the_run_was_not_trained_by_is_refused(request_: RunRequest, tmp_path: Path) -> None:
    run = continued(begin(request_, "run", at_s=100))
    file = tmp_path / "plan.json"
    plan = tiny_plan(train_iters=TRAIN_ITERS)
    elsewhere = tiny_plan(train_iters=TRAIN_ITERS, micro_batch_size=1, data_parallel_size=2, zero_stage=3)
    file.write_text(elsewhere.to_json())
    assert taken_over(run, "--plan", str(file)).plan == file, "its layout is free"
    file.write_text(dataclasses.replace(plan, seed=9, document_mask=True).to_json())
    with pytest.raises(
        CheckpointError, match=f"`plan={file}` differs from the plan of the run .* in seed, document_mask"
    ):
        taken_over(run, "--plan", str(file))


def test_a_run_by_a_plan_needs_that_file_no_more(request_: RunRequest, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(tiny_plan(train_iters=TRAIN_ITERS).to_json())
    run = continued(begin(dataclasses.replace(request_, plan=file), "run", at_s=100))
    os.unlink(file)
    assert taken_over(run).plan == run.folder / "plan.json"
