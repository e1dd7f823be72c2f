"""The same command finds its run again, and no other run."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.cli.run_request import (
    FREE_FIELDS,
    RunLock,
    RunRequest,
    check_same,
    continued,
    find_run,
    known_problems,
    state_of,
)
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
from chinchilla_ds.plan import Decay, Precision
from chinchilla_ds.testing import tiny_plan

ROOT = Path(__file__).parents[3]


def state_json(iteration: int, *, complete: bool = False) -> str:
    return CheckpointState(
        iteration=iteration, data_step=iteration, attempts=iteration, elapsed_s=1.0, complete=complete
    ).to_json()


def save(run: Path, iteration: int, *, complete: bool = False) -> Path:
    """Write a checkpoint that holds no tensors."""
    checkpoint = run / folders.CHECKPOINTS_NAME / folders.checkpoint_name(iteration)
    aside = folders.begin(checkpoint)
    files = {
        folders.STATE_NAME: state_json(iteration, complete=complete),
        folders.PLAN_NAME: tiny_plan(train_iters=9).to_json(),
    }
    for name, text in files.items():
        (aside / name).write_text(text)
    folders.commit(checkpoint, records={name: folders.record_file(aside / name) for name in files})
    return checkpoint


def begin(request: RunRequest, name: str, *, at_s: int, saved: tuple[int, ...] = (4,), complete: bool = False) -> Path:
    """Make the folder of a run that was touched last at a given time."""
    folder = request.config.output / name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(request.to_json())
    for iteration in saved:
        save(folder, iteration, complete=complete)
    os.utime(folder, (at_s, at_s))
    return folder


@pytest.fixture
def request_(tmp_path: Path) -> RunRequest:
    return RunRequest(config=RunConfig(compute_budget_flops=1e11, output=tmp_path / "runs"))


# ---- the key ---------------------------------------------------------------------------------------------------------

FREE: dict[str, Any] = {
    "layout": LayoutConfig(zero_stage=3, tensor_model_parallel_size=2),
    "micro_batch_size": 7,
    "output": Path("elsewhere"),
    "guards": GuardConfig(on_spike=OnSpike.REWIND),
    "checkpoint": CheckpointConfig(save_every=SaveInterval(iters=1), keep=9),
    "sample_interval_tokens": 1000,
}
DECIDES: dict[str, Any] = {
    "compute_budget_flops": 2e11,
    "num_params": 1e6,
    "num_tokens": 1e6,
    "shape": "llama-3-8b",
    "law": "kaplan2020",
    "unique_tokens": 1e5,
    "inference_tokens": 1e12,
    "seq_length": 64,
    "vocab_size": 500,
    "tied_embeddings": True,
    "global_batch_size": 12,
    "learning_rate": 1e-4,
    "gradient_clipping": 0.5,
    "decay": Decay.WSD,
    "precision": Precision.BF16,
    "document_mask": True,
    "seed": 5,
    "eval_interval_tokens": 1000,
}
DECIDES_DATA: dict[str, Any] = {
    "paths": (Path("text.txt"),),
    "text_field": "content",
    "held_out_fraction": 0.1,
    "max_epochs": 2.0,
}


def test_every_field_is_free_or_decides() -> None:
    assert FREE.keys() == set(FREE_FIELDS)
    assert FREE.keys() | DECIDES.keys() | {"data"} == {field.name for field in dataclasses.fields(RunConfig)}
    assert DECIDES_DATA.keys() | {"blend"} == {field.name for field in dataclasses.fields(DataConfig)}


def test_what_decides_nothing_leaves_the_key_alone() -> None:
    key = RunRequest(config=RunConfig()).key
    for name, value in FREE.items():
        assert RunRequest(config=dataclasses.replace(RunConfig(), **{name: value})).key == key, name


def test_whatever_decides_what_is_learned_changes_the_key(tmp_path: Path) -> None:
    blend = tmp_path / "blend.yaml"
    blend.write_text("weights: {a: 0.25, b: 0.75}")
    data = {**DECIDES_DATA, "blend": blend}
    configs = [RunConfig(**{name: value}) for name, value in DECIDES.items()]
    configs += [RunConfig(checkpoint=CheckpointConfig(init_from=tmp_path))]
    configs += [RunConfig(data=DataConfig(**{name: value})) for name, value in data.items()]
    keys = {RunRequest(config=config).key for config in (RunConfig(), *configs)}
    assert len(keys) == 1 + len(configs)


def test_the_place_of_text_counts_from_the_root_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {RunRequest(config=RunConfig(data=DataConfig(paths=(path,)))).key for path in (Path("a"), tmp_path / "a")}
    assert len(keys) == 1


def key_of_plan(path: Path, plan: Any) -> str:
    path.write_text(plan.to_json())
    return RunRequest(config=RunConfig(), plan=path).key


def test_a_plan_files_layout_and_estimates_are_free_and_its_learning_is_not(tmp_path: Path) -> None:
    plan, file = tiny_plan(micro_batch_size=8), tmp_path / "plan.json"
    key = key_of_plan(file, plan)
    elsewhere = tiny_plan(micro_batch_size=2, data_parallel_size=2, gradient_accumulation_steps=2, zero_stage=3)
    assert key_of_plan(file, dataclasses.replace(elsewhere, device="cuda", reasons=("of another machine",))) == key
    twice = {"num_tokens": 2 * plan.num_tokens, "true_flops": 2 * plan.true_flops}
    others = [
        dataclasses.replace(plan, seed=1),
        dataclasses.replace(plan, precision=Precision.BF16),
        dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, num_layers=5)),
        dataclasses.replace(plan, optimizer=dataclasses.replace(plan.optimizer, beta2=0.99)),
        dataclasses.replace(plan, batch=dataclasses.replace(plan.batch, global_batch_size=16), **twice),
    ]
    assert len({key, *(key_of_plan(file, other) for other in others)}) == 1 + len(others)
    assert RunRequest(config=RunConfig()).key != key


@pytest.mark.parametrize("text", ["{", "[]", '{"batch": 3}'])
def test_a_broken_plan_file_is_left_to_its_reader(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert RunRequest(config=RunConfig(), plan=tmp_path / "plan.json").key


def test_files_that_are_named_count_by_what_they_hold(tmp_path: Path) -> None:
    law, blend = tmp_path / "law.json", tmp_path / "blend.yaml"
    request = RunRequest(config=RunConfig(law=str(law), data=DataConfig(blend=blend)))
    keys = set()
    for law_text, weights in (("{}", "{a: 1}"), ("[]", "{a: 1}"), ("[]", "{b: 1}")):
        law.write_text(law_text)
        blend.write_text(f"weights: {weights}")
        keys.add(request.key)
    assert len(keys) == 3


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = {**FREE, **DECIDES, "data": DataConfig(**{**DECIDES_DATA, "paths": (tmp_path / "a",)})}
    request = RunRequest(config=RunConfig(**{**values, "output": tmp_path}), plan=tmp_path / "plan.json")
    (tmp_path / "request.json").write_text(request.to_json())
    assert RunRequest.load(tmp_path) == request


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no run that can be continued"),
        ("{", "was not written by this version"),
        ("{}", "was not written by this version"),
        ('{"config": {"flops": 1}, "plan": null}', "config.flops is not a field"),
    ],
)
def test_what_is_no_request_says_so(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "request.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        RunRequest.load(tmp_path)


# ---- find_run --------------------------------------------------------------------------------------------------------


def test_the_newest_unfinished_run_of_the_same_command_is_found(request_: RunRequest) -> None:
    assert find_run(request_) is None, "there is no folder yet"
    other = dataclasses.replace(request_, config=dataclasses.replace(request_.config, seed=2))
    begin(request_, "old", at_s=100)
    wanted = begin(request_, "newer", at_s=200, saved=(4, 8))
    begin(request_, "complete", at_s=300, complete=True)
    begin(request_, "never-saved", at_s=400, saved=())
    begin(other, "another", at_s=500)
    versions = begin(request_, "another-version", at_s=600)
    (versions / "request.json").write_text('{"format": 1}')
    found = find_run(request_)
    assert found is not None
    assert (found.folder, found.checkpoint.name) == (wanted, "step_0000008")
    assert (found.all_checkpoints, found.request, found.plan) == (True, request_, tiny_plan(train_iters=9))


def test_a_run_that_has_ended_is_not_begun_again_from_its_middle(request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    assert find_run(request_) is not None
    save(folder, 9, complete=True)
    assert find_run(request_) is None


@pytest.mark.parametrize("name", ["state.json", "plan.json", "manifest.json"])
def test_a_run_whose_newest_checkpoint_is_damaged_is_found_all_the_same(name: str, request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    (folder / "checkpoints/step_0000008" / name).write_text("{")
    found = find_run(request_)
    assert found is not None
    assert (found.checkpoint.name, found.all_checkpoints) == ("step_0000004", True)


def test_a_run_of_which_nothing_is_whole_is_not_passed_over(request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    for path in folder.glob("checkpoints/*/plan.json"):
        path.write_text("{")
    with pytest.raises(CheckpointError) as error:
        find_run(request_)
    newer, older, advice = error.value.problems
    assert f"{folder}/checkpoints/step_0000008/plan.json has 1 bytes" in newer
    assert f"{folder}/checkpoints/step_0000004/plan.json has 1 bytes" in older
    assert advice == f"no checkpoint of {folder} is whole; --resume none begins another run"


def test_a_plan_file_that_has_changed_since_begins_another_run(request_: RunRequest, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(tiny_plan(train_iters=9).to_json())
    request = dataclasses.replace(request_, plan=file)
    begin(request, "run", at_s=100)
    assert find_run(request) is not None
    file.write_text(tiny_plan(train_iters=10).to_json())
    assert find_run(request) is None


# ---- --resume FOLDER -------------------------------------------------------------------------------------------------


def test_a_folder_means_its_newest_and_a_checkpoint_itself(request_: RunRequest) -> None:
    folder = begin(request_, "run", at_s=100, saved=(4, 8))
    by_folder = continued(folder)
    assert (by_folder.checkpoint.name, by_folder.all_checkpoints) == ("step_0000008", True)
    older = folder / "checkpoints/step_0000004"
    by_checkpoint = continued(older)
    assert (by_checkpoint.folder, by_checkpoint.checkpoint, by_checkpoint.all_checkpoints) == (folder, older, False)
    assert state_of(older).iteration == 4


def test_what_is_no_run_cannot_be_continued(request_: RunRequest, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        continued(tmp_path / "nowhere")
    folder = begin(request_, "run", at_s=100)
    (folder / "request.json").unlink()
    with pytest.raises(CheckpointError, match="is no run that can be continued"):
        continued(folder)


def test_flags_that_say_something_else_are_named_with_both_values(request_: RunRequest) -> None:
    run = continued(begin(request_, "run", at_s=100))
    config = dataclasses.replace(
        request_.config, seed=7, compute_budget_flops=2e11, data=DataConfig(max_epochs=3.0), micro_batch_size=2
    )
    check_same(config, run, explicit=frozenset())
    check_same(config, run, explicit=frozenset({"micro_batch_size", "zero_stage", "output", "learning_rate"}))
    with pytest.raises(CheckpointError) as error:
        check_same(config, run, explicit=frozenset({"seed", "compute_budget_flops", "max_epochs", "vocab_size"}))
    end = f"in the run {run.folder}; leave it out to go on with that run, or begin another with --resume none"
    assert error.value.problems == (
        f"--flops is 2e+11 here and 1e+11 {end}",
        f"--max-epochs is 3 here and 1 {end}",
        f"--seed is 7 here and 1234 {end}",
    )


@pytest.mark.parametrize(
    ("resume", "init_from", "problems"),
    [
        ("latest", None, []),
        ("runs/a", None, []),
        ("latest", Path("b"), []),
        ("none", Path("b"), []),
        (
            "runs/a",
            Path("b"),
            ["--init-from b begins a new run and --resume runs/a goes on with an old one; give one of them"],
        ),
    ],
)
def test_an_old_run_cannot_begin_with_other_weights(resume: str, init_from: Path | None, problems: list[str]) -> None:
    config = RunConfig(checkpoint=CheckpointConfig(resume=resume, init_from=init_from))
    assert list(known_problems(config)) == problems


# ---- the lock --------------------------------------------------------------------------------------------------------

_HOLDER = """
import sys, time
from pathlib import Path
from chinchilla_ds.cli.run_request import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_trains_a_run_and_its_death_frees_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match=f"the run {tmp_path}, .* is being trained by another process"):
                RunLock(tmp_path)
        finally:
            holder.kill()
    RunLock(tmp_path)


def test_the_key_is_kept_in_the_file(request_: RunRequest) -> None:
    assert json.loads(request_.to_json())["key"] == request_.key
