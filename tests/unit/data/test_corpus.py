from pathlib import Path

import pytest

from chinchilla_ds.data.cleaning import Rule
from chinchilla_ds.data.corpus import Recipe, SourceRecipe, find_sources, load_recipe
from chinchilla_ds.data.dedup.bands import PRESETS, Unit
from chinchilla_ds.errors import ConfigError, DataError

WHOLE = """
out: prepared
held_out_fraction: 0.05
vocab_size: 1024
dedup: fineweb
on_error: skip
cleaning:
  rules: [nfc, min_length]
  min_characters: 50
sources:
  - name: web
    paths: ["data/*.jsonl", hf://org/name]
    text_field: content
    weight: 0.75
    max_epochs: 2
  - name: code
    weight: 0.25
"""


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "corpus.yaml"
    path.write_text(text)
    return load_recipe(path).recipe


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path}/corpus.yaml") for problem in caught.value.problems]


def test_a_whole_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, WHOLE)
    assert (recipe.held_out_fraction, recipe.vocab_size, recipe.skip_problems) == (0.05, 1024, True)
    assert recipe.minhash == PRESETS["fineweb"]
    assert recipe.cleaning.rules == {Rule.NFC, Rule.MIN_LENGTH}
    assert recipe.cleaning.min_characters == 50
    web, code = recipe.sources
    assert (web.name, web.paths, web.text_field, web.weight, web.max_epochs) == (
        "web",
        ("data/*.jsonl", "hf://org/name"),
        "content",
        0.75,
        2.0,
    )
    assert code.max_epochs is None
    assert (code.name, code.paths, code.text_field, code.weight) == ("code", (), "text", 0.25)
    assert load_recipe(tmp_path / "corpus.yaml").out == Path("prepared")


def test_bands_of_ones_own(tmp_path: Path) -> None:
    dedup = "dedup: {unit: word, shingle_size: 3, num_permutations: 64, bands: 8, rows: 8}\n"
    recipe = load(tmp_path, dedup + "sources: [{name: a}]")
    assert recipe.minhash is not None
    assert (recipe.minhash.unit, recipe.minhash.shingle_size, recipe.minhash.bands) == (Unit.WORD, 3, 8)


def test_every_problem_with_its_line(tmp_path: Path) -> None:
    text = (
        "sorces: []\nseed: one\ndedup: fineweeb\nvocab_size: 1\nvocab_size: 2\nsources:\n  - weight: 1\n    path: x\n"
    )
    found = problems(tmp_path, text)
    assert found[0].startswith(":1: 'sorces' is none of sources, ")
    assert found[1] == ":5: 'vocab_size' stands here twice"
    assert found[2] == ":2: seed is 'one'; it must be a whole number"
    assert found[3].startswith(
        ":3: dedup 'fineweeb' is none of slimpajama, fineweb, exact, none; did you mean 'fineweb'?"
    )
    assert found[4].startswith(
        ":8: 'path' is none of name, paths, text_field, weight, max_epochs; did you mean 'paths'?"
    )
    assert found[5] == ":7: a source needs a name"


def test_what_is_no_recipe(tmp_path: Path) -> None:
    (message,) = problems(tmp_path, "sources: [")
    assert "is not YAML" in message
    assert "line 1" in message
    assert problems(tmp_path, "")[0].startswith(": this must be a mapping")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def sources(*named: tuple[str, float | None]) -> Recipe:
    return Recipe(sources=tuple(SourceRecipe(name=name, weight=weight) for name, weight in named))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (sources(("a", 0.5), ("b", 0.75)), r"sum to 1.25; they must sum to 1, nearest: a 0.4, b 0.6"),
        (
            sources(("a", 0.5), ("b", None)),
            r"weight is given for some sources and not for b; give it for all or for none",
        ),
        (sources(("a", -0.5), ("b", 1.5)), r"weight of source 'a' is -0.5; it must be above 0"),
        (
            Recipe(sources=(SourceRecipe(name="a", max_epochs=4), SourceRecipe(name="b"))),
            r"max_epochs is given for some sources and not for b; give it for all or for none",
        ),
        (Recipe(sources=(SourceRecipe(max_epochs=0),)), r"max_epochs of source 'corpus' is 0; it must be above 0"),
        (sources(("a", None), ("a", None)), r"two sources are named 'a'; put their paths into one, or rename one"),
        (sources(("a/b", None)), r"source name 'a/b' must be letters"),
        (Recipe(sources=()), r"there is no source"),
        (Recipe(vocab_size=400, tokenizer=Path("t")), r"vocab_size \(400\) beside tokenizer \(t\)"),
    ],
)
def test_recipes_that_cannot_be(recipe: Recipe, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_sources(recipe)


def test_weights_that_do_not_sum_to_1_name_the_file(tmp_path: Path) -> None:
    recipe = load(tmp_path, "sources:\n  - {name: a, weight: 0.5}\n  - {name: b, weight: 0.6}\n")
    with pytest.raises(
        DataError, match=r"corpus\.yaml: the weights of the sources sum to 1\.1; .* a 0\.454545, b 0\.54"
    ):
        find_sources(recipe)


def test_two_sources_of_one_name_name_both_lines(tmp_path: Path) -> None:
    recipe = load(tmp_path, "sources:\n  - name: a\n  - name: a\n")
    with pytest.raises(DataError, match=r"corpus.yaml:3: two sources are named 'a', the first at .*corpus.yaml:2; "):
        find_sources(recipe)
