"""The recipe of a prepared corpus: named sources with weights, and what is done to them; in Python or in YAML."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.shape.search import choose_vocab_size
from chinchilla_ds.config import DataConfig, HeldOutFraction, RunConfig, held_out_problem
from chinchilla_ds.data.blend import share_problems
from chinchilla_ds.data.cleaning.rules import CleaningConfig, Rule
from chinchilla_ds.data.dedup.bands import PRESETS, MinHashConfig
from chinchilla_ds.data.reading.sources import DEFAULT_NAME, Corpus, find_source, name_problem
from chinchilla_ds.data.tokenizing.tokenizer import MIN_VOCAB_SIZE
from chinchilla_ds.errors import ConfigError, DataError, did_you_mean
from chinchilla_ds.ranges import Ge, Gt, MinLen
from chinchilla_ds.structured import build, read_yaml

EXACT = "exact"
NO_DEDUP = "none"
DEDUP_NAMES = (*PRESETS, EXACT, NO_DEDUP)
DEFAULT_DEDUP = "slimpajama"
_BYTES_PER_TOKEN = 4
"""An estimate for choosing the vocabulary by the budget that the corpus serves."""


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """One named source."""

    name: str = DEFAULT_NAME
    paths: tuple[str, ...] = ()
    """Files, folders, patterns, hf:// names; none means the running Python's standard library source."""
    text_field: str = DataConfig().text_field
    weight: float | None = None
    """Share of the training samples."""
    max_epochs: float | None = None
    """Largest number of passes of a run over it. If all sources have one and no weights, UniMax chooses the shares."""
    where: str = ""
    """File and position in it, for messages."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines the bytes of a prepared corpus, apart from the text itself."""

    sources: tuple[SourceRecipe, ...] = (SourceRecipe(),)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    dedup: bool = True
    """Whether duplicates are removed."""
    minhash: MinHashConfig | None = PRESETS[DEFAULT_DEDUP]
    """How near duplicates are found; None finds exact ones only."""
    held_out_fraction: float = DataConfig().held_out_fraction
    """Share of the bytes kept out of training, by document."""
    vocab_size: int | None = None
    """Number of pieces of the tokenizer to train; None chooses by the size of the corpus."""
    tokenizer: Path | None = None
    """A tokenizer to use instead: a SentencePiece model or the folder of a Hugging Face tokenizer."""
    decontaminate: tuple[Path, ...] = ()
    """Benchmark files; documents that share text with them are dropped."""
    skip_problems: bool = False
    """Whether records that cannot be read are skipped and counted, instead of ending the preparation."""
    seed: int = RunConfig().seed
    """Chooses the tokenizer's sample."""


def find_sources(recipe: Recipe, /) -> tuple[Corpus, ...]:
    """Return the files of every source, sorted by the sources' names; nothing is read yet.

    Raises:
        DataError: invalid settings, and files that are missing, empty or of an unknown type; all are listed.
    """
    problems = list(_problems(recipe))
    corpora: list[Corpus] = []
    for source in sorted(recipe.sources, key=lambda source: source.name):
        try:
            corpus = find_source(
                source.paths, text_field=source.text_field, name=source.name, keep_empty=recipe.skip_problems
            )
            corpora.append(dataclasses.replace(corpus, weight=source.weight, max_epochs=source.max_epochs))
        except DataError as error:
            problems.extend(f"{source.where}: {problem}" if source.where else problem for problem in error.problems)
    if problems:
        raise DataError(problems)
    return tuple(corpora)


def vocab_size_of_corpus(*, num_bytes: int) -> int:
    """Return the vocabulary for a corpus of so many bytes: that of the budget which it serves at one epoch."""
    num_tokens = num_bytes / _BYTES_PER_TOKEN
    return choose_vocab_size(compute_budget_flops=get_law(DEFAULT_LAW).budget_for_tokens(num_tokens=num_tokens))


def _problems(recipe: Recipe) -> Iterator[str]:
    if not recipe.sources:
        yield "there is no source; give at least one"
    seen: dict[str, SourceRecipe] = {}
    for source in recipe.sources:
        where = f"{source.where}: " if source.where else ""
        if (problem := name_problem(source.name)) is not None:
            yield f"{where}{problem}"
        if source.name in seen:
            first = f", the first at {seen[source.name].where.rpartition(' ')[2]}" if source.where else ""
            yield f"{where}two sources are named {source.name!r}{first}; put their paths into one, or rename one"
        seen.setdefault(source.name, source)
    shares = share_problems(
        weights=[(source.name, source.weight) for source in recipe.sources],
        max_epochs=[(source.name, source.max_epochs) for source in recipe.sources],
    )
    for problem in shares:
        file, colon, _ = recipe.sources[0].where.rpartition(":")
        yield f"{file}{colon} {problem}".strip()
    if problem := held_out_problem(recipe.held_out_fraction, name="held_out_fraction"):
        yield problem
    if recipe.vocab_size is not None and recipe.tokenizer is not None:
        yield f"vocab_size ({recipe.vocab_size}) and tokenizer ({recipe.tokenizer}) both fix the vocabulary: drop one"
    if recipe.vocab_size is not None and recipe.vocab_size < MIN_VOCAB_SIZE:
        yield f"vocab_size is {recipe.vocab_size} pieces; byte fallback needs at least {MIN_VOCAB_SIZE}"


def dedup_of(name: str, /) -> tuple[bool, MinHashConfig | None]:
    """Return whether duplicates are removed, and how near ones are found, for a preset's name, `exact` or `none`.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in DEDUP_NAMES:
        raise ConfigError(f"dedup {name!r} is not one of {', '.join(DEDUP_NAMES)}{did_you_mean(name, DEDUP_NAMES)}")
    return name != NO_DEDUP, PRESETS.get(name)


def rules_of(names: Sequence[str], /) -> CleaningConfig:
    """Return the cleaning configuration with these rules on.

    Raises:
        ConfigError: lists the names that are not rules.
    """
    known = [rule.value for rule in Rule]
    problems = [
        f"cleaning rule {name!r} is not one of {', '.join(known)}{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    return CleaningConfig(rules=frozenset(Rule(name) for name in names))


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """The content of a recipe's file."""

    recipe: Recipe
    out: Path | None


Text: TypeAlias = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class _SourceEntry:
    """One source of a recipe's file."""

    name: Text
    paths: tuple[Text, ...] | None = None
    text_field: Text = SourceRecipe.text_field
    weight: Annotated[float, Gt(0)] | None = None
    max_epochs: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.paths == ():
            raise ValueError("paths is empty; name files, or leave it out for the standard library's source")


@dataclass(frozen=True, kw_only=True)
class _RecipeEntry:
    """A recipe's file, without `dedup`, which is a name or a mapping."""

    sources: tuple[_SourceEntry, ...]
    out: Path | None = None
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    held_out_fraction: HeldOutFraction = Recipe.held_out_fraction
    vocab_size: Annotated[int, Ge(MIN_VOCAB_SIZE)] | None = None
    tokenizer: Path | None = None
    decontaminate: tuple[Path, ...] = ()
    on_error: Literal["strict", "skip"] = "strict"
    seed: int = Recipe.seed
    dedup: None = None
    """Read separately; declared here so that a misspelt key is reported."""


def load_recipe(path: Path, /) -> RecipeFile:
    """Read a recipe; relative paths in it are relative to the working directory.

    Raises:
        ConfigError: unreadable, not YAML, or unknown, repeated or mistyped fields; all are listed.
    """
    where = f"recipe {path}"
    tree = read_yaml(path, what="recipe")
    problems: list[str] = []
    dedup: tuple[bool, MinHashConfig | None] = (Recipe.dedup, Recipe.minhash)
    entry = None
    try:
        if isinstance(tree, dict) and tree.get("dedup") is not None:
            dedup = _dedup(tree["dedup"], where=f"{where}: dedup")
    except ConfigError as error:
        problems += error.problems
    try:
        entry = build(_RecipeEntry, _listed(tree), where=f"{where}: recipe")
    except ConfigError as error:
        problems += error.problems
    if problems or entry is None:
        raise ConfigError([problem.replace(f"{where}: recipe.", f"{where}: ") for problem in problems])
    return RecipeFile(recipe=_recipe(entry, dedup=dedup, path=path), out=entry.out)


def _recipe(entry: _RecipeEntry, *, dedup: tuple[bool, MinHashConfig | None], path: Path) -> Recipe:
    sources = tuple(
        SourceRecipe(
            name=source.name,
            paths=source.paths or (),
            text_field=source.text_field,
            weight=source.weight,
            max_epochs=source.max_epochs,
            where=f"{path}: sources[{place}]",
        )
        for place, source in enumerate(entry.sources)
    )
    return Recipe(
        sources=sources,
        cleaning=entry.cleaning,
        dedup=dedup[0],
        minhash=dedup[1],
        held_out_fraction=entry.held_out_fraction,
        vocab_size=entry.vocab_size,
        tokenizer=entry.tokenizer,
        decontaminate=entry.decontaminate,
        skip_problems=entry.on_error == "skip",
        seed=entry.seed,
    )


def _dedup(value: Any, *, where: str) -> tuple[bool, MinHashConfig | None]:
    """Return the deduplication that a preset's name or a mapping of MinHash settings selects."""
    try:
        return dedup_of(value) if isinstance(value, str) else (True, build(MinHashConfig, value, where="dedup"))
    except ConfigError as error:
        raise ConfigError([f"{where.removesuffix('dedup')}{problem}" for problem in error.problems]) from None


def _listed(tree: Any) -> Any:
    """Return the tree without `dedup`, and with a list wherever a single string is accepted in place of a list."""
    if not isinstance(tree, dict):
        return tree
    listed = {name: value for name, value in tree.items() if name != "dedup"}
    if isinstance(sources := listed.get("sources"), list):
        listed["sources"] = [_as_list(source, "paths") if isinstance(source, dict) else source for source in sources]
    if isinstance(cleaning := listed.get("cleaning"), dict):
        listed["cleaning"] = _as_list(cleaning, "rules")
    return _as_list(listed, "decontaminate")


def _as_list(entry: dict[str, Any], name: str) -> dict[str, Any]:
    value = entry.get(name, ())
    return entry | {name: [value]} if isinstance(value, str) else entry | {name: []} if value is None else entry
