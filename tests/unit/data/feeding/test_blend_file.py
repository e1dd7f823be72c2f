"""Weights in a file, in place of a corpus's own: what they leave in, what is read, and what is refused."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data.feeding.blend_file import read_blend
from chinchilla_ds.data.feeding.loader import TokenLoader
from chinchilla_ds.data.mixture.screen import blend_text
from chinchilla_ds.data.prepare import prepare
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe
from chinchilla_ds.errors import DataError
from chinchilla_ds.run_plan import RunPlan
from tests.unit.data.conftest import SEQ_LENGTH, VOCAB_SIZE, make_documents

MakePlan = Callable[..., RunPlan]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("named")
    sources = []
    for name, seed in (("code", 1), ("web", 2), ("wiki", 3)):
        (folder / name).mkdir()
        for index, text in enumerate(make_documents(number=60, seed=seed)):
            (folder / name / f"{index:03d}.txt").write_text(f"{text}{name} " * 2, encoding="utf-8")
        sources.append(SourceRecipe(name=name, paths=(str(folder / name),)))
    recipe = Recipe(sources=tuple(sources), held_out_fraction=0.1, vocab_size=VOCAB_SIZE)
    return prepare_recipe(recipe, folder=folder / "corpus", num_workers=1)


def blended(corpus: PreparedData, path: Path, weights: dict[str, float], **more: float) -> PreparedData:
    path.write_text(blend_text(weights, note="by hand"), encoding="utf-8")
    data = DataConfig(paths=(corpus.folder,), blend=path, **more)
    num_tokens = 8 * 10 * SEQ_LENGTH
    return prepare(
        data, vocab_size=VOCAB_SIZE, seq_length=SEQ_LENGTH, num_tokens=num_tokens, seed=1, folder=corpus.folder
    )


def test_the_weights_are_those_of_the_samples_and_zero_leaves_a_source_out(
    corpus: PreparedData, make_plan: MakePlan, tmp_path: Path
) -> None:
    found = blended(corpus, tmp_path / "b.yaml", {"code": 0.25, "web": 0, "wiki": 0.75})
    assert [(source.name, source.weight) for source in found.sources] == [("code", 0.25), ("wiki", 0.75)]
    kept = [source for source in corpus.sources if source.name != "web"]
    assert found.train_tokens == sum(source.num_tokens for source in kept) < corpus.train_tokens
    assert found.held_out_tokens == corpus.held_out_tokens
    plan = make_plan()
    loader = TokenLoader(prepared=found, plan=plan)
    # every sequence is found in the documents of one source, by its beginning
    datasets = {source.name: IndexedDataset(f"{corpus.folder}/train-{source.name}") for source in corpus.sources}
    texts = {name: np.concatenate([one[i] for i in range(len(one))]) for name, one in datasets.items()}
    counts: Counter[str] = Counter()
    for iteration in range(plan.batch.train_iters):
        for batch in loader.micro_batches(iteration, 0):
            for row in batch.tokens.numpy():
                document = row[: int(np.argmax(row == found.eod_id)) or None][:24].astype(texts["web"].dtype)
                names = [name for name, text in texts.items() if document.tobytes() in text.tobytes()]
                counts.update(names if len(names) == 1 else ["unclear"])
    assert counts["web"] == 0
    assert counts["wiki"] / (counts["wiki"] + counts["code"]) == pytest.approx(0.75, abs=0.05)
    assert counts["unclear"] < 0.3 * counts.total()
    control = TokenLoader(prepared=corpus, plan=plan)
    assert [share.name for share in control.shares] == ["code", "web", "wiki"]


def test_one_source_alone(corpus: PreparedData, make_plan: MakePlan, tmp_path: Path) -> None:
    found = blended(corpus, tmp_path / "b.yaml", {"code": 0, "web": 1, "wiki": 0})
    shares = TokenLoader(prepared=found, plan=make_plan()).shares
    assert [(share.name, share.weight) for share in shares] == [("web", 1.0)]


def test_a_source_is_read_no_more_often_than_max_epochs(corpus: PreparedData, tmp_path: Path) -> None:
    tokens = {source.name: source.num_tokens for source in corpus.sources}
    run = 8 * 10 * SEQ_LENGTH
    weights = {"code": 1.0, "web": 0.0, "wiki": 0.0}
    allowed = run / tokens["code"]
    if allowed <= 1:
        assert blended(corpus, tmp_path / "b.yaml", weights).sources[0].weight == 1
    with pytest.raises(DataError) as caught:
        blended(corpus, tmp_path / "b.yaml", weights, max_epochs=0.9 * allowed)
    (problem,) = caught.value.problems
    assert "weight 1 of source 'code'" in problem
    assert f"reads it {allowed:.2f} times" in problem
    assert "a weight of at most 0.9" in problem
    assert blended(corpus, tmp_path / "b.yaml", weights, max_epochs=1.01 * allowed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: {code: 0.5, web: 0.4, wiki: 0}", "sum to 0.9; they must sum to 1, nearest: code 0.555556, web 0.4"),
        ("weights: {code: 0, web: 0, wiki: 0}", "sum to 0; they must sum to 1"),
        ("weights: {code: 1.5, web: -0.5, wiki: 0}", "the weight of web is -0.5"),
        ("weights: {code: yes, web: 1, wiki: 0}", "the weight of code is True"),
        ("weights: {code: .nan, web: 1, wiki: 0}", ".nan is not a finite number, line 1"),
        ("weights: {code: 0.5, code: 0.5, web: 0.5, wiki: 0}", "key 'code' occurs twice in one mapping at line 1"),
        ("weights: {code: !!float x, web: 1, wiki: 0}", "the tag 'tag:yaml.org,2002:float' is not read"),
        ("weights: {code: 1e999, web: 1, wiki: 0}", "is not a finite number, line 1"),
        ("weights: {coed: 0.5, web: 0.5, wiki: 0}", "'coed' is not a source of"),
        ("weights: {web: 1, wiki: 0}", "source 'code' of"),
        ("weights: [1, 2]", "must hold one mapping, `weights:`"),
        ("code: 1", "must hold one mapping, `weights:`"),
        ("weights: {code", "is not YAML that can be read"),
    ],
)
def test_what_is_refused(corpus: PreparedData, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(text, encoding="utf-8")
    data = DataConfig(paths=(corpus.folder,), blend=path)
    with pytest.raises(DataError) as caught:
        prepare(data, vocab_size=VOCAB_SIZE, seq_length=SEQ_LENGTH, num_tokens=100, seed=1, folder=tmp_path)
    assert all(problem.startswith(f"blend {path}") for problem in caught.value.problems)
    assert message in " ".join(caught.value.problems)


def test_a_blend_of_nothing_prepared_is_refused(corpus: PreparedData, tmp_path: Path) -> None:
    data = DataConfig(paths=(corpus.folder.parent / "web",), blend=tmp_path / "b.yaml")
    for changed in (data, dataclasses.replace(data, paths=())):
        with pytest.raises(DataError, match="weighs the named sources of a prepared corpus, and there is none"):
            prepare(changed, vocab_size=VOCAB_SIZE, seq_length=SEQ_LENGTH, num_tokens=100, seed=1, folder=tmp_path)
    with pytest.raises(DataError, match=r"b\.yaml cannot be read"):
        read_blend(tmp_path / "b.yaml")
