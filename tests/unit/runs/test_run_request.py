"""What a run was asked for: its key, its file, its lock."""

import copy
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.config import (
    CheckpointConfig,
    DataConfig,
    GuardConfig,
    LayoutConfig,
    OnSpike,
    RunConfig,
    SaveInterval,
    source_name,
)
from chinchilla_ds.data.reading.sources import FileKind, find_source
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.run_plan import Decay, Precision
from chinchilla_ds.runs.request import FREE_FIELDS, RunLock, RunRequest, SavedRequest, known_problems
from chinchilla_ds.testing import tiny_plan

ROOT = Path(__file__).parents[3]


@pytest.fixture
def request_(tmp_path: Path) -> RunRequest:
    return RunRequest(config=RunConfig(compute_budget_flops=1e11, output=tmp_path / "runs"))


# ---- the key ---------------------------------------------------------------------------------------------------------

KEYS_OF_0_1_0 = {
    "4a2c0e05719fdd4a18d9": RunConfig(compute_budget_flops=1e11),
    "de0e26c3a72a3408c584": RunConfig(compute_budget_flops=1e11, tied_embeddings=True, seed=3, micro_batch_size=4),
}
"""Made by version 0.1.0: a command finds the unfinished runs of earlier versions by them."""


@pytest.mark.parametrize(("key", "config"), KEYS_OF_0_1_0.items())
def test_commands_of_earlier_versions_keep_their_keys(key: str, config: RunConfig) -> None:
    assert RunRequest(config=config).key == key


FREE: dict[str, Any] = {
    "layout": LayoutConfig(zero_stage=3, tensor_model_parallel_size=2),
    "micro_batch_size": 7,
    "output": Path("elsewhere"),
    "guards": GuardConfig(on_spike=OnSpike.REWIND),
    "checkpoint": CheckpointConfig(save_every=SaveInterval(iters=1), keep=9),
    "sample_interval_tokens": 1000,
    "run_name": "first",
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
    "qk_norm": True,
    "global_batch_size": 12,
    "learning_rate": 1e-4,
    "optimizer": PluginSpec(name="my_module:sgd", arguments={"momentum": 0.9}),
    "weight_decay": 0.2,
    "beta1": 0.8,
    "beta2": 0.99,
    "epsilon": 1e-6,
    "warmup_iters": 0,
    "gradient_clipping": 0.5,
    "objective": PluginSpec(name="my.module:Loss", arguments={"weight": 0.5}),
    "decay": Decay.WSD,
    "precision": Precision.BF16,
    "document_mask": True,
    "seed": 5,
    "eval_interval_tokens": 1000,
    "callbacks": (PluginSpec(name="a.b:C", arguments={"x": 1}),),
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


def test_the_key_of_an_earlier_version_is_found_again() -> None:
    """As version eee8a9d wrote them, before the optimizer and its settings were among the fields."""
    assert RunRequest(config=RunConfig(compute_budget_flops=1e11)).key == "4a2c0e05719fdd4a18d9"
    assert RunRequest(config=RunConfig(learning_rate=1e-3, law="kaplan2020")).key == "371faa912b618b9dc8c3"


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
    saved = SavedRequest.load(tmp_path)
    assert (saved.request, saved.key) == (request, request.key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("", "is not JSON: Expecting value"),
        ("{", "is not JSON"),
        ("{}", "request.key is missing"),
        ("null", "must be an object of named fields, not null"),
        ("[" * 5000, "nested more than 100 deep"),
        ("\0" * 300, "is not JSON"),
        ('{"config": {"flops": 1}, "plan": null, "key": "a"}', "request.config.flops is not a field"),
        ('{"config": {}, "plan": null, "key": null}', "request.key is None; it must be text"),
    ],
)
def test_what_is_no_request_says_so(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "request.json").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        SavedRequest.load(tmp_path)
    assert all(str(tmp_path / "request.json") in problem for problem in error.value.problems)


NUMBERS = {
    "compute_budget_flops": 1e11,
    "num_params": 1e5,
    "num_tokens": 1e6,
    "unique_tokens": 1e6,
    "inference_tokens": 1e6,
    "seq_length": 64,
    "vocab_size": 512,
    "global_batch_size": 4,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
    "eval_interval_tokens": 100,
    "sample_interval_tokens": 100,
}
CHECKPOINT = CheckpointConfig(save_every=SaveInterval(iters=5), milestone_every=7)


def test_every_number_of_a_request_has_a_range(tmp_path: Path) -> None:
    config = RunConfig(**NUMBERS, checkpoint=CHECKPOINT)
    whole = json.loads(RunRequest(config=config).to_json())
    places = [
        (*path, name)
        for path in ((), ("data",), ("layout",), ("guards",), ("checkpoint",), ("checkpoint", "save_every"))
        for name, value in _at(whole["config"], path).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    assert len(places) == len(NUMBERS) + 2 + 2 + 4 + 2 + 2 + 1
    for place in places:
        for value in (-1, 1e300, 10**40, True, "1", [1]):
            tree = copy.deepcopy(whole)
            _at(tree["config"], place[:-1])[place[-1]] = value
            (tmp_path / "request.json").write_text(json.dumps(tree))
            with pytest.raises(CheckpointError, match=place[-1]):
                SavedRequest.load(tmp_path)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


@pytest.mark.parametrize("intervals", [{}, {"iters": 1, "tokens": 1}])
def test_one_interval_between_saves_is_set(intervals: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="one of seconds, tokens and iters must be set"):
        SaveInterval(**intervals)


def test_flags_that_nothing_could_read_back_are_refused_at_once() -> None:
    config = RunConfig(checkpoint=CheckpointConfig(keep=10**40), guards=GuardConfig(hang_timeout_s=1e300))
    guards, keep = known_problems(config)
    assert guards.startswith("`guards.hang_timeout_s` is 1e+300; it must be at most")
    assert keep.startswith("`checkpoint.keep` is 1000")


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
            [
                "`checkpoint.init_from=b` starts a new run and `checkpoint.resume=runs/a` resumes an old one; "
                "give one of them"
            ],
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
from chinchilla_ds.runs.request import RunLock
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


def test_a_data_set_of_the_hub_keeps_its_name(tmp_path: Path) -> None:
    """pathlib takes the two slashes of hf:// for one, and resolves what is left below the working directory."""
    config = RunConfig(
        compute_budget_flops=1e11, output=tmp_path / "runs", data=DataConfig(paths=(Path("hf://org/name:en@train"),))
    )
    saved = json.loads(RunRequest(config=config).to_json())
    assert saved["config"]["data"]["paths"] == ["hf://org/name:en@train"]
    again = dataclasses.replace(config.data, paths=tuple(map(Path, saved["config"]["data"]["paths"])))
    (file,) = find_source([source_name(path) for path in again.paths], text_field=again.text_field).files
    assert (file.kind, file.place) == (FileKind.HUB, "hf://org/name:en@train")
