"""Train and held-out share nothing: held against brute force over all pairs."""

import itertools
import json
import random
import re
import string
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chinchilla_ds.data.cleaning.rules import CleaningConfig
from chinchilla_ds.data.dedup.bands import PRESETS
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.preparing import held_out
from chinchilla_ds.data.preparing import read_stage as stages
from chinchilla_ds.data.preparing.ledger import Ledger
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from tests.unit.data.dedup.pairs import make_pair, real_texts

THRESHOLD = 0.8
"""What SlimPajama calls a duplicate."""


def shingles(text: str, *, preset: str) -> set[tuple[str, ...]]:
    """Normalise and cut a plain text the naive way."""
    if preset == "slimpajama":
        units = list(" ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split()))
        return {tuple(units[start : start + 13]) for start in range(max(1, len(units) - 12))}
    words = re.sub(rf"[{re.escape(string.punctuation)}]", " ", re.sub(r"\d+([.,]\d+)?", "0", text.lower())).split()
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


def highest_jaccard(train: list[str], held: list[str], *, preset: str) -> float:
    sets = [[shingles(text, preset=preset) for text in texts] for texts in (train, held)]
    return max(len(left & right) / len(left | right) for left, right in itertools.product(*sets))


def planted(*, preset: str) -> list[str]:
    """Real text, and pairs between J = 0.7 and 1 of which the bands alone miss many."""
    generator = random.Random(4)
    pairs = [
        make_pair(jaccard=0.7 + 0.3 * place / 150, config=PRESETS[preset], generator=generator) for place in range(150)
    ]
    texts = [*real_texts(number=100, characters=1000), *(text for pair in pairs for text in pair)]
    generator.shuffle(texts)
    return texts


def prepare(texts: list[str], folder: Path, *, preset: str) -> PreparedData:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = Recipe(
        sources=(SourceRecipe(paths=(str(path),)),),
        cleaning=CleaningConfig(rules=frozenset()),
        minhash=PRESETS[preset],
        vocab_size=400,
        held_out_fraction=0.3,
    )
    return prepare_recipe(recipe, folder=folder / "out", num_workers=1)


def sides(prepared: PreparedData) -> tuple[list[str], list[str]]:
    tokenizer = Tokenizer.load(prepared.tokenizer_path)
    datasets = [IndexedDataset(str(prefix)) for prefix in (prepared.train_prefix, prepared.held_out_prefix)]
    train, held = ([tokenizer.decode(one[index].tolist()) for index in range(len(one))] for one in datasets)
    return train, held


@pytest.mark.parametrize("preset", PRESETS)
def test_train_and_held_out_share_no_document_and_none_that_is_near(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_MIN_PART_BYTES", 100_000)
    texts = planted(preset=preset)
    train, held = sides(prepared := prepare(texts, tmp_path, preset=preset))
    assert min(len(train), len(held)) > 50
    assert not set(train) & set(held)
    assert highest_jaccard(train, held, preset=preset) < THRESHOLD
    (source,) = Ledger.from_json((prepared.folder / "ledger.json").read_text()).sources
    assert source.balances()
    assert source.train.documents == len(train)
    assert source.exact_duplicates.documents == len(texts) - len(set(texts))
    assert source.near_duplicates.documents == len(set(texts)) - len(train) - len(held)


def test_without_the_closer_look_they_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MIN_SIMILARITY", 2.0)
    train, held = sides(prepare(planted(preset="slimpajama"), tmp_path, preset="slimpajama"))
    assert highest_jaccard(train, held, preset="slimpajama") > THRESHOLD


def test_what_is_far_from_held_out_text_stays(tmp_path: Path) -> None:
    generator, config = random.Random(5), PRESETS["slimpajama"]
    pairs = [make_pair(jaccard=0.4, config=config, generator=generator) for _ in range(300)]
    texts = [text for pair in pairs for text in pair]
    train, held = sides(prepare(texts, tmp_path, preset="slimpajama"))
    assert len(train) + len(held) == len(texts)


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    whole = sides(prepare(planted(preset="fineweb"), tmp_path, preset="fineweb"))
    monkeypatch.setattr(held_out, "_PAIRS", 3)
    monkeypatch.setattr(held_out, "_BLOCK", 7)
    assert sides(prepare(planted(preset="fineweb"), tmp_path / "small", preset="fineweb")) == whole
