from pathlib import Path

import pytest

from chinchilla_ds.data.cleaning.rules import Rule
from chinchilla_ds.data.dedup.bands import PRESETS, Unit
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe, find_sources, load_recipe
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
    return [problem.removeprefix(f"recipe {tmp_path}/corpus.yaml: ") for problem in caught.value.problems]


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


def test_every_problem_with_its_place(tmp_path: Path) -> None:
    text = (
        "sorces: []\nseed: one\ndedup: fineweeb\nvocab_size: 2\nheld_out_fraction: 2\non_error: ski\n"
        "cleaning: {rules: [nfd]}\nsources:\n  - weight: 1\n    path: x\n  - {name: b, paths: []}\n"
    )
    found = problems(tmp_path, text)
    expected = (
        "dedup 'fineweeb' is not one of slimpajama, fineweb, exact, none; did you mean 'fineweb'?",
        "cleaning.rules[0] is 'nfd'; it must be one of ",
        "held_out_fraction is 2; it must be below 1",
        "on_error is 'ski'; ",
        "seed is 'one'; it must be a whole number",
        "sorces is not a field; did you mean 'sources'?",
        "sources[0].name is missing",
        "sources[0].path is not a field; did you mean 'paths'?",
        "sources[1]: paths is empty; name files, or leave it out for the standard library's source",
        "vocab_size is 2; it must be at least 320",
    )
    assert [one.startswith(start) for one, start in zip(found, expected, strict=True)] == [True] * len(expected), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [", "line 1"),
        ("", "recipe must be an object of named fields, not null"),
        ("sources: []", "there is no source"),
        ("sources: 3", "sources is 3; it must be a list"),
        ("vocab_size: 400\nvocab_size: 500", "key 'vocab_size' occurs twice in one mapping at line 2"),
        ("sources:\n  - name: !!python/object/apply:os.system [id]", "the tag 'tag:yaml.org,2002:python/object"),
        ("sources: [{name: a, weight: .nan}]", ".nan is not a finite number, line 1"),
        ("sources: [{name: a, weight: .inf}]", ".inf is not a finite number, line 1"),
        ("sources: [{name: a, paths:}]", "sources[0]: paths is empty"),
        ("sources: [{name: a, paths: ''}]", "sources[0].paths[0] is empty"),
        ("dedup: {unit: word, shingle_size: 0, num_permutations: 64, bands: 8, rows: 8}", "shingle_size is 0; it must"),
        ("dedup: {unit: word}", "dedup.bands is missing"),
        ("dedup: 3", "dedup must be an object of named fields"),
        ("sources: " + "[" * 5000, "nested"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "corpus.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, DataError)) as caught:
        find_sources(load_recipe(path).recipe)
    assert message in " ".join(caught.value.problems)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
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
        (
            Recipe(vocab_size=400, tokenizer=Path("t")),
            r"vocab_size \(400\) and tokenizer \(t\) both fix the vocabulary",
        ),
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


def test_two_sources_of_one_name_name_both_places(tmp_path: Path) -> None:
    recipe = load(tmp_path, "sources:\n  - name: a\n  - name: a\n")
    with pytest.raises(
        DataError, match=r"corpus.yaml: sources\[1\]: two sources are named 'a', the first at sources\[0\]; "
    ):
        find_sources(recipe)
