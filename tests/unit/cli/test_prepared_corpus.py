"""A prepared corpus's distinct tokens and vocabulary reach the planner, and nothing else changes a plan."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.cli import pretrain
from chinchilla_ds.cli.arguments import parse
from chinchilla_ds.cli.main import run_command
from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.errors import DataError
from chinchilla_ds.runs.corpus import with_prepared_corpus
from chinchilla_ds.runs.request import RunRequest
from tests.unit.cli.test_mix import write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", tokens={"code": 1_000_000_000, "web": 1_500_000_000})


def planned(*words: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(run_command(["plan", *map(str, words), "--json"]))
    return found


def test_a_corpus_that_is_too_small_for_one_epoch_is_planned_with_repetitions(corpus: Path) -> None:
    budget = ("--flops", "1e19", "--vocab-size", 32000)
    plain, repeated = planned(*budget), planned(*budget, "--data", corpus)
    assert repeated == planned(*budget, "--unique-tokens", 2.5e9)
    assert plain["unique_tokens"] is None
    assert plain["num_tokens"] > 5e9  # type: ignore[operator]
    assert repeated["unique_tokens"] == 2_500_000_000
    text = run_command(["plan", *map(str, budget), "--data", str(corpus)])
    assert "2.5B unique tokens are fewer than the 5.4B that the run would take" in " ".join(text.split())
    assert "Each is read 2.16 times; the 5.4B tokens are worth 5.29B distinct ones." in " ".join(text.split())


def test_a_corpus_that_is_large_enough_changes_the_vocabulary_alone(corpus: Path) -> None:
    small = planned("--flops", "1e17", "--data", corpus)
    assert small == planned("--flops", "1e17", "--vocab-size", 320)
    assert small["unique_tokens"] is None


def test_what_is_asked_for_stands(corpus: Path) -> None:
    own = ("--flops", "1e19", "--vocab-size", 400, "--unique-tokens", "1e9")
    assert planned(*own, "--data", corpus) == planned(*own)
    # no law joins repetition with serving; the guard before training remains
    serving = ("--flops", "1e19", "--vocab-size", 400, "--inference-tokens", "1e12")
    assert planned(*serving, "--data", corpus) == planned(*serving)


def test_text_that_is_not_prepared_leaves_the_plan_alone(tmp_path: Path) -> None:
    for config in (RunConfig(), RunConfig(data=DataConfig(paths=(tmp_path,)))):
        assert with_prepared_corpus(config) is config
    with pytest.raises(DataError, match="is not a prepared corpus, so that its tokens are unknown"):
        run_command(["plan", "--data", str(tmp_path)])


def test_sources_that_a_blend_leaves_out_are_not_counted(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("weights: {code: 1, web: 0}")
    data = DataConfig(paths=(corpus,), blend=tmp_path / "b.yaml")
    assert with_prepared_corpus(RunConfig(data=data)).unique_tokens == 1e9
    assert with_prepared_corpus(RunConfig(data=dataclasses.replace(data, blend=None))).unique_tokens == 2.5e9


def test_training_plans_so_too(
    rank_zero_of: Callable[[int], None], ds_configs: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank_zero_of(1)
    plans = []

    def keep(config: RunConfig, **more: object) -> None:
        plans.append(config.unique_tokens)
        raise DataError("enough")

    monkeypatch.setattr("chinchilla_ds.runs.train.make_plan", keep)
    argv = ["--ds_config", str(ds_configs / "zero1.json"), "--flops", "1e19", "--resume", "none"]
    assert pretrain.main([*argv, "--data", str(corpus)]) == 2
    assert pretrain.main(argv) == 2
    assert plans == [2.5e9, None]
    config = parse(argv).config
    assert make_plan(with_prepared_corpus(config), world_size=1, device="cpu") == make_plan(
        config, world_size=1, device="cpu"
    )


def test_a_corpus_of_a_few_tokens_is_named_in_the_refusal(tmp_path: Path) -> None:
    tiny = write_corpus(tmp_path / "tiny", tokens={"code": 50, "web": 50})
    with pytest.raises(Exception, match="with 100 unique tokens"):
        run_command(["plan", "--flops", "5e12", "--vocab-size", "1024", "--data", str(tiny)])


def test_another_blend_in_the_same_file_is_another_run(corpus: Path, tmp_path: Path) -> None:
    blend = tmp_path / "b.yaml"
    request = RunRequest(config=RunConfig(data=DataConfig(paths=(corpus,), blend=blend)))
    keys = []
    for text in ("weights: {code: 1, web: 0}", "weights: {web: 0, code: 1}", "weights: {code: 0.5, web: 0.5}"):
        blend.write_text(text)
        keys.append(request.key)
    assert keys[0] == keys[1] != keys[2]
