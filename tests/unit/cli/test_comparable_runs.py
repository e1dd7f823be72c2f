"""Runs on one text can be compared: neither seed nor budget changes tokenizer, vocabulary or held-out text."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.shape.search import choose_vocab_size
from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.data.prepare import vocab_size_of_text
from chinchilla_ds.data.preparing.recipe import Recipe, vocab_size_of_corpus
from chinchilla_ds.errors import ConfigError, DataError, PlanError
from chinchilla_ds.processes.stopping import StopRequest
from chinchilla_ds.runs import train
from chinchilla_ds.runs.command import TrainCommand
from chinchilla_ds.runs.folder import open_run_folder
from chinchilla_ds.runs.text import text_params, tokenizer_seed_of
from chinchilla_ds.testing import tiny_plan
from tests.unit.runs.test_run_folder import saved_run, text

BUDGETS = (4e10, 1e12, 2e14, 3e15)


def vocabularies(data: DataConfig, ds_configs: Path, capsys: pytest.CaptureFixture[str], **more: Any) -> list[str]:
    """Return the vocabulary of the plan of a run on this text, for several budgets."""
    lines = []
    for budget in BUDGETS:
        config = RunConfig(compute_budget_flops=budget, data=data, **more)
        train.dry_run(TrainCommand(config=config, ds_config=ds_configs / "zero1.json", dry_run=True))
        shown = capsys.readouterr().out.splitlines()
        lines += [line.split()[1] for line in shown if line.startswith("vocabulary ")]
    return lines


@pytest.mark.parametrize(("num_bytes", "wanted"), [(2**20, "512"), (20 * 2**20, "1024"), (100 * 2**20, "2048")])
def test_the_vocabulary_follows_from_the_text_and_not_from_the_budget(
    tmp_path: Path,
    ds_configs: Path,
    capsys: pytest.CaptureFixture[str],
    rank_zero_of: Callable[[int], None],
    num_bytes: int,
    wanted: str,
) -> None:
    with (tmp_path / "text.txt").open("wb") as file:
        file.truncate(num_bytes)
    data = DataConfig(paths=(tmp_path / "text.txt",))
    assert vocabularies(data, ds_configs, capsys) == [wanted] * 4
    assert vocabularies(data, ds_configs, capsys, vocab_size=640) == ["640"] * 4


def test_the_plan_of_such_a_run_stands_beside_the_flags_that_made_it(
    tmp_path: Path, ds_configs: Path, rank_zero_of: Callable[[int], None]
) -> None:
    with (tmp_path / "text.txt").open("wb") as file:
        file.truncate(2**20)
    config = RunConfig(compute_budget_flops=1e13, data=DataConfig(paths=(tmp_path / "text.txt",)))
    command = TrainCommand(config=config, ds_config={}, explicit=frozenset({"compute_budget_flops"}))
    made = train._plan(command, world_size=1, vocab_size=lambda: 512)
    assert made.reasons[-1] == (
        "Vocabulary 512: by the size of the text, so that runs of other budgets on it can be compared."
    )
    assert train._plan(dataclasses.replace(command, plan=made), world_size=1, vocab_size=lambda: 512) == made
    other = dataclasses.replace(command, plan=made, config=dataclasses.replace(config, compute_budget_flops=2e13))
    with pytest.raises(ConfigError, match="`compute_budget_flops` cannot be combined with `plan`"):
        train._plan(other, world_size=1, vocab_size=lambda: 512)


def test_a_text_too_large_for_a_budget_is_said_to_be(
    tmp_path: Path, ds_configs: Path, rank_zero_of: Callable[[int], None]
) -> None:
    with (tmp_path / "text.txt").open("wb") as file:
        file.truncate(2**30)
    config = RunConfig(compute_budget_flops=1e10, data=DataConfig(paths=(tmp_path / "text.txt",)))
    with pytest.raises(PlanError, match="is that of a text of this size: a smaller `vocab_size` leaves more"):
        train.dry_run(TrainCommand(config=config, ds_config=ds_configs / "zero1.json", dry_run=True))


def test_the_standard_library_keeps_the_vocabulary_of_the_default_run() -> None:
    assert vocab_size_of_text(DataConfig()) == choose_vocab_size(compute_budget_flops=5e12) == 1024


def test_the_vocabulary_of_a_corpus_is_that_of_the_budget_which_it_serves() -> None:
    for budget in (1e11, 1e13, 5e15, 1e18, 1e21):
        num_tokens = get_law(DEFAULT_LAW).optimal(compute_budget_flops=budget).num_tokens
        assert vocab_size_of_corpus(num_bytes=round(4 * num_tokens)) == choose_vocab_size(compute_budget_flops=budget)


def test_a_data_set_whose_size_is_unknown_leaves_it_to_the_budget() -> None:
    assert vocab_size_of_text(DataConfig(paths=(Path("hf://org/name"),))) is None


def prepared_with(monkeypatch: pytest.MonkeyPatch, *, run: Any, seed: int) -> dict[str, Any]:
    """Return how a run with this seed prepares its text."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("chinchilla_ds.runs.preparation.show_preparation", contextlib.nullcontext)
    monkeypatch.setattr(train, "prepare", lambda data, **settings: asked.update(settings))
    launch = train._Launch(
        command=TrainCommand(config=RunConfig(seed=seed), ds_config={}),
        run=run,
        plan=dataclasses.replace(tiny_plan(), seed=seed),
        resolved={},
        callbacks=(),
        saved_callbacks={},
        objective=None,
        started_s=0.0,
        stop=StopRequest(),
    )
    launch._text()
    return asked


def test_the_seed_of_a_run_does_not_change_its_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (prepared_with(monkeypatch, run=None, seed=seed) for seed in (7, 8))
    assert first == second
    assert first["seed"] is None


def test_a_run_that_resumes_keeps_the_tokenizer_that_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Earlier versions chose the tokenizer's sample by the run's seed, and wrote no other one."""
    prepared = text(tmp_path / "data")
    run = saved_run(tmp_path / "runs", prepared)
    assert prepared_with(monkeypatch, run=run, seed=7)["seed"] == tokenizer_seed_of(run.folder) == Recipe().seed
    places = json.loads((run.folder / "data.json").read_text())
    del places["tokenizer_seed"]
    (run.folder / "data.json").write_text(json.dumps(places))
    assert prepared_with(monkeypatch, run=run, seed=7)["seed"] == 7
    open_run_folder(run, plan=tiny_plan(), ds_config={}, prepared=prepared)
    assert prepared_with(monkeypatch, run=run, seed=7)["seed"] == 7, "and after the next start too"
    (run.folder / "data.json").unlink()
    assert prepared_with(monkeypatch, run=run, seed=7)["seed"] == 7


def test_a_run_that_resumes_keeps_its_vocabulary(tmp_path: Path) -> None:
    run = SimpleNamespace(plan=tiny_plan())
    config = RunConfig(data=DataConfig(paths=(tmp_path / "gone.txt",)))
    place = SimpleNamespace(rank=0, on_one_machine=True)
    vocab_size = train._vocab_size(config, run=run, place=place)  # type: ignore[arg-type]
    assert vocab_size == tiny_plan().shape.vocab_size


def test_what_tells_a_text_from_others(tmp_path: Path) -> None:
    prepared = text(tmp_path / "data")
    params = text_params(prepared, data=DataConfig(paths=(tmp_path / "a.jsonl", Path("hf://org/name"))))
    assert params == {
        "tokenizer_hash": "a",
        "held_out_hash": f"tokens:{prepared.content_key}",
        "data_path": f"{tmp_path}/a.jsonl, hf://org/name",
        "bytes_per_token": 4.0,
        "train_bytes_per_token": 4.0,
    }
    prepared.folder.mkdir()
    (prepared.folder / "inputs.json").write_text(json.dumps({"text_fields": {"web": "content", "code": "text"}}))
    recorded = dataclasses.replace(prepared, held_out_hash="abc")
    params = text_params(recorded, data=DataConfig())
    assert (params["held_out_hash"], params["text_key"]) == ("abc", "content, text")
    assert params["data_path"] == "the standard library's source"
    assert recorded.content_key == prepared.content_key


def test_a_rank_that_does_not_see_the_text_leaves_it_to_rank_zero_on_one_machine(tmp_path: Path) -> None:
    config = RunConfig(data=DataConfig(paths=(tmp_path / "gone.txt",)))
    beside, elsewhere = (SimpleNamespace(rank=1, on_one_machine=is_one) for is_one in (True, False))
    assert train._vocab_size(config, run=None, place=beside) is None  # type: ignore[arg-type]
    for place in (elsewhere, SimpleNamespace(rank=0, on_one_machine=True)):
        with pytest.raises(DataError, match=r"gone\.txt"):
            train._vocab_size(config, run=None, place=place)  # type: ignore[arg-type]
