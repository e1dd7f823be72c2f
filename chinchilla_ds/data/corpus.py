"""The recipe of a prepared corpus: named sources with weights, and what is done to them; in Python or in YAML."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.data.blend import share_problems
from chinchilla_ds.data.cleaning import CleaningConfig, Rule
from chinchilla_ds.data.dedup.bands import PRESETS, MinHashConfig, Unit
from chinchilla_ds.data.sources import DEFAULT_NAME, Corpus, find_source
from chinchilla_ds.data.tokenizer import MIN_VOCAB_SIZE
from chinchilla_ds.errors import ChinchillaError, ConfigError, DataError, did_you_mean, reason

EXACT = "exact"
NO_DEDUP = "none"
DEDUP_NAMES = (*PRESETS, EXACT, NO_DEDUP)
DEFAULT_DEDUP = "slimpajama"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
    """How often a run may read it. Given for all sources, and no weights: UniMax chooses the shares."""
    where: str = ""
    """File and line it was read from, for messages."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the bytes of a prepared corpus, next to the text itself."""

    sources: tuple[SourceRecipe, ...] = (SourceRecipe(),)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    dedup: bool = True
    """Whether duplicates are removed."""
    minhash: MinHashConfig | None = PRESETS[DEFAULT_DEDUP]
    """How near duplicates are found; None finds exact ones only."""
    held_out_fraction: float = DataConfig().held_out_fraction
    """Share of the bytes kept out of training, by document."""
    vocab_size: int | None = None
    """Pieces of the tokenizer to train; None chooses by the size of the corpus."""
    tokenizer: Path | None = None
    """A tokenizer to take instead: a SentencePiece model or the folder of a Hugging Face tokenizer."""
    decontaminate: tuple[Path, ...] = ()
    """Benchmark files; documents that share text with them are dropped."""
    skip_problems: bool = False
    """Whether records that cannot be read are skipped and counted, instead of ending it all."""
    seed: int = RunConfig().seed
    """Chooses the tokenizer's sample."""


def find_sources(recipe: Recipe, /) -> tuple[Corpus, ...]:
    """Return the files of every source, in the order of their names; nothing is read yet.

    Raises:
        DataError: settings that cannot be, and files that are missing, empty or of an unknown type, all of them.
    """
    problems = list(_problems(recipe))
    found: list[Corpus] = []
    for source in sorted(recipe.sources, key=lambda source: source.name):
        try:
            corpus = find_source(
                source.paths, text_field=source.text_field, name=source.name, keep_empty=recipe.skip_problems
            )
            found.append(dataclasses.replace(corpus, weight=source.weight, max_epochs=source.max_epochs))
        except DataError as error:
            problems.extend(f"{source.where}: {problem}" if source.where else problem for problem in error.problems)
    if problems:
        raise DataError(problems)
    return tuple(found)


def _problems(recipe: Recipe) -> Iterator[str]:
    if not recipe.sources:
        yield "there is no source; give at least one"
    seen: dict[str, SourceRecipe] = {}
    for source in recipe.sources:
        where = f"{source.where}: " if source.where else ""
        if not _NAME.fullmatch(source.name):
            yield f"{where}source name {source.name!r} must be letters, digits, '_', '-' and '.' (it names files)"
        if source.name in seen:
            first = f", the first at {seen[source.name].where}" if source.where else ""
            yield f"{where}two sources are named {source.name!r}{first}; put their paths into one, or rename one"
        seen.setdefault(source.name, source)
    shares = share_problems(
        weights=[(source.name, source.weight) for source in recipe.sources],
        max_epochs=[(source.name, source.max_epochs) for source in recipe.sources],
    )
    for problem in shares:
        file, colon, _ = recipe.sources[0].where.rpartition(":")
        yield f"{file}{colon} {problem}".strip()
    if not 0 < recipe.held_out_fraction < 1:
        yield (f"held_out_fraction is {recipe.held_out_fraction:g}; it must lie between 0 and 1, 0.02 for example")
    if recipe.vocab_size is not None and recipe.tokenizer is not None:
        yield f"vocab_size ({recipe.vocab_size}) beside tokenizer ({recipe.tokenizer}), which fixes it: drop one"
    if recipe.vocab_size is not None and recipe.vocab_size < MIN_VOCAB_SIZE:
        yield f"vocab_size is {recipe.vocab_size} pieces; byte fallback needs at least {MIN_VOCAB_SIZE}"


def dedup_of(name: str, /) -> tuple[bool, MinHashConfig | None]:
    """Return whether duplicates are removed, and how near ones are found, of a preset's name, `exact` or `none`.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in DEDUP_NAMES:
        raise ConfigError(f"dedup {name!r} is none of {', '.join(DEDUP_NAMES)}{did_you_mean(name, DEDUP_NAMES)}")
    return name != NO_DEDUP, PRESETS.get(name)


def rules_of(names: Sequence[str], /) -> CleaningConfig:
    """Return the cleaning with these rules on.

    Raises:
        ConfigError: listing the names that are no rule.
    """
    known = [rule.value for rule in Rule]
    problems = [
        f"cleaning rule {name!r} is none of {', '.join(known)}{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    return CleaningConfig(rules=frozenset(Rule(name) for name in names))


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """What a YAML file says."""

    recipe: Recipe
    out: Path | None


def load_recipe(path: Path, /) -> RecipeFile:
    """Read a recipe; relative paths in it count from the working directory.

    Raises:
        ConfigError: unreadable, not YAML, or unknown, repeated or mistyped fields, all of them with file and line.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"recipe {path}: {reason(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    reader = _Reader(path)
    recipe = reader.recipe(node)
    if reader.problems:
        raise ConfigError(reader.problems)
    return recipe


class _Reader:
    """Reads YAML nodes, which know their lines, and collects what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problems: list[str] = []

    def recipe(self, node: Any) -> RecipeFile:
        """Return the recipe of the whole file."""
        fields = self._mapping(node, known=_FIELDS)
        values: dict[str, Any] = {}
        for name in ("held_out_fraction", "vocab_size", "seed"):
            if name in fields:
                values[name] = self._value(fields[name], name, float if name == "held_out_fraction" else int)
        if "tokenizer" in fields:
            values["tokenizer"] = Path(self._value(fields["tokenizer"], "tokenizer", str))
        if "decontaminate" in fields:
            values["decontaminate"] = tuple(
                Path(text) for text in self._texts(fields["decontaminate"], "decontaminate")
            )
        if "on_error" in fields:
            values["skip_problems"] = self._choice(fields["on_error"], "on_error", ("strict", "skip")) == "skip"
        if "cleaning" in fields:
            values["cleaning"] = self._cleaning(fields["cleaning"])
        if "dedup" in fields:
            values["dedup"], values["minhash"] = self._dedup(fields["dedup"])
        values["sources"] = tuple(self._sources(fields.get("sources"), node))
        out = Path(self._value(fields["out"], "out", str)) if "out" in fields else None
        return RecipeFile(recipe=Recipe(**values) if not self.problems else Recipe(), out=out)

    def _sources(self, node: Any, root: Any) -> Iterator[SourceRecipe]:
        if node is None or node.id != "sequence":
            self._add(node or root, "sources must be a list of `- name: ...` entries")
            return
        for entry in node.value:
            fields = self._mapping(entry, known=("name", "paths", "text_field", "weight", "max_epochs"))
            values: dict[str, Any] = {"where": self._where(entry)}
            for name, kind in (("name", str), ("text_field", str), ("weight", float), ("max_epochs", float)):
                if name in fields:
                    values[name] = self._value(fields[name], name, kind)
            if "name" not in fields:
                self._add(entry, "a source needs a name")
            if "paths" in fields:
                values["paths"] = tuple(self._texts(fields["paths"], "paths"))
            yield SourceRecipe(**values)

    def _cleaning(self, node: Any) -> CleaningConfig:
        fields = self._mapping(node, known=("rules", "min_characters"))
        cleaning, place = CleaningConfig(), node
        try:
            if "rules" in fields:
                place = fields["rules"]
                cleaning = rules_of(self._texts(place, "rules"))
            if "min_characters" in fields:
                place = fields["min_characters"]
                length = self._value(place, "min_characters", int)
                cleaning = dataclasses.replace(cleaning, min_characters=length)
        except ConfigError as error:
            for problem in error.problems:
                self._add(place, problem)
        return cleaning

    def _dedup(self, node: Any) -> tuple[bool, MinHashConfig | None]:
        try:
            if node.id == "scalar":
                return dedup_of(str(node.value))
            fields = self._mapping(node, known=("unit", "shingle_size", "num_permutations", "bands", "rows", "seed"))
            values = {name: self._value(one, name, str if name == "unit" else int) for name, one in fields.items()}
            if missing := {"unit", "shingle_size", "num_permutations", "bands", "rows"} - values.keys():
                self._add(node, f"dedup needs {', '.join(sorted(missing))} too, or a name: {', '.join(DEDUP_NAMES)}")
            elif values["unit"] not in list(Unit):
                self._add(fields["unit"], f"unit {values['unit']!r} is none of {', '.join(Unit)}")
            else:
                return True, MinHashConfig(**{**values, "unit": Unit(values["unit"])})
        except ChinchillaError as error:
            for problem in error.problems:
                self._add(node, problem)
        return True, None

    def _mapping(self, node: Any, *, known: Sequence[str]) -> Mapping[str, Any]:
        if node is None or node.id != "mapping":
            self._add(node, f"this must be a mapping with {', '.join(known)}")
            return {}
        fields: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            if name not in known:
                self._add(key, f"{name!r} is none of {', '.join(known)}{did_you_mean(name, known)}")
            elif name in fields:
                self._add(key, f"{name!r} stands here twice")
            else:
                fields[name] = value
        return fields

    def _value(self, node: Any, name: str, kind: type) -> Any:
        import yaml

        value = yaml.safe_load(yaml.serialize(node))
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits or value == "":
            wanted = {str: "text", int: "a whole number", float: "a number"}[kind]
            self._add(node, f"{name} is {value!r}; it must be {wanted}")
            return kind(1)
        return kind(value)

    def _texts(self, node: Any, name: str) -> list[str]:
        if node.id == "scalar":
            return [self._value(node, name, str)]
        if node.id == "sequence":
            return [self._value(one, name, str) for one in node.value]
        self._add(node, f"{name} must be a list")
        return []

    def _choice(self, node: Any, name: str, known: Sequence[str]) -> str:
        value = self._value(node, name, str)
        if value not in known:
            self._add(node, f"{name} {value!r} is none of {', '.join(known)}{did_you_mean(value, known)}")
        return str(value)

    def _where(self, node: Any) -> str:
        return f"{self._path}:{node.start_mark.line + 1}" if node is not None else str(self._path)

    def _add(self, node: Any, problem: str) -> None:
        self.problems.append(f"{self._where(node)}: {problem}")


_FIELDS = (
    "sources", "out", "cleaning", "dedup", "held_out_fraction", "vocab_size", "tokenizer", "decontaminate", "on_error",
    "seed",
)  # fmt: skip
