"""`chinchilla-ds prepare`: turn raw text into a tokenised corpus, with a ledger of what became of the text."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from chinchilla_ds.cli.arguments import flag, path, quantity, whole
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.data.cleaning.rules import DEFAULT_MIN_CHARACTERS, CleaningConfig, Rule
from chinchilla_ds.data.words import UNIT_CHARACTERS
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.units import format_bytes

COMMAND = Command(
    name="prepare",
    group="data",
    summary="clean, deduplicate, split and tokenise text",
    examples=(
        "chinchilla-ds prepare --source web=web/*.jsonl --source code=code/ --out corpus/",
        "chinchilla-ds prepare --verify corpus/",
    ),
)

_OF_PREPARATION = (
    *("recipe", "source", "out", "text_field", "held_out_fraction", "dedup", "clean", "decontaminate", "tokenizer"),
    *("vocab_size", "on_error", "workers", "seed", "json"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("recipe", nargs="?", type=path, metavar="RECIPE", help="YAML file with sources and settings")
    parser.add_argument(
        "--source",
        nargs="+",
        action="extend",
        metavar="[NAME=]PATH",
        help="text, JSON, JSONL, CSV (also .gz, .bz2, .xz, .zst), Parquet, folders, patterns, or "
        "hf://org/name[:config][@split]; repeatable",
    )
    flag(parser, "out", path, "folder for the prepared data", metavar="FOLDER")
    flag(parser, "text-field", str, f"column that holds the text (default {DataConfig().text_field})")
    fraction = DataConfig().held_out_fraction
    flag(parser, "held-out-fraction", quantity(None), f"share of the text kept out of training (default {fraction})")
    flag(parser, "dedup", str, "slimpajama (default), fineweb, exact or none")
    flag(parser, "clean", str, "cleaning rules to apply, by name, or none (default: see docs/data.md)", nargs="+")
    flag(
        parser,
        "min-length",
        _length,
        f"shortest document kept, in characters without punctuation (default {DEFAULT_MIN_CHARACTERS}); in scripts"
        f" without spaces between words, such as Chinese and Thai, each counts for {UNIT_CHARACTERS}",
        dest="min_characters",
    )
    flag(
        parser,
        "decontaminate",
        path,
        "benchmark files whose text is removed from the corpus",
        nargs="+",
        metavar="PATH",
    )
    flag(parser, "tokenizer", path, "SentencePiece model or Hugging Face tokenizer to use (default: train one)")
    flag(parser, "vocab-size", whole, "pieces of the tokenizer to train (default: by the size of the corpus)")
    flag(
        parser,
        "on-error",
        str,
        "strict (default), or skip: count unreadable records and continue",
        choices=("strict", "skip"),
    )
    flag(parser, "workers", whole, "processes (default: the cores of this machine)")
    flag(parser, "seed", whole, f"seed of the tokenizer's sample (default {RunConfig().seed})")
    parser.add_argument("--json", action="store_true", help="print the ledger as JSON")
    flag(parser, "verify", path, "check every byte of a prepared folder instead of preparing one", metavar="FOLDER")


def run(arguments: argparse.Namespace) -> str:
    """Prepare the text; return the ledger."""
    from chinchilla_ds.data.prepared import LEDGER_NAME
    from chinchilla_ds.data.preparing.ledger import Ledger, format_ledger
    from chinchilla_ds.data.preparing.pipeline import prepare_recipe
    from chinchilla_ds.data.preparing.recipe import Recipe, load_recipe
    from chinchilla_ds.runs.preparation import show_preparation

    if arguments.verify is not None:
        return _verify(arguments)
    if (arguments.recipe is None) == (arguments.source is None):
        raise ConfigError("give either a recipe, or --source PATH with --out FOLDER")
    recipe, out = Recipe(), arguments.out
    if arguments.recipe is not None:
        loaded = load_recipe(arguments.recipe)
        recipe, out = loaded.recipe, out or loaded.out
        if arguments.text_field is not None:
            raise ConfigError("--text-field cannot be combined with a recipe, whose sources name their own: drop it")
    if out is None:
        raise ConfigError("--out FOLDER is missing: name the folder for the prepared data")
    recipe = dataclasses.replace(recipe, **_changes(arguments, recipe.cleaning))
    with show_preparation(to_stderr=arguments.json) as progress:
        prepared = prepare_recipe(recipe, folder=out, num_workers=arguments.workers, progress=progress)
    text = (prepared.folder / LEDGER_NAME).read_text(encoding="utf-8")
    if arguments.json:
        return text
    return (
        f"{format_ledger(Ledger.from_json(text))}\n\n"
        f"text          {prepared.source}\n"
        f"prepared      {out}; train on it with --data {out}"
    )


def _verify(arguments: argparse.Namespace) -> str:
    """Check a prepared folder; return what was checked."""
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.runs.preparation import WITHOUT_DIGESTS

    others = [name for name, value in vars(arguments).items() if value and name in _OF_PREPARATION]
    if others:
        flags = ", ".join("a recipe" if name == "recipe" else f"--{name.replace('_', '-')}" for name in others)
        raise ConfigError(f"{flags} cannot be combined with --verify, which prepares nothing: drop it")
    prepared = PreparedData.load(arguments.verify)
    num_bytes = prepared.check_content(max_bytes=None)
    if prepared.files is None:
        return f"unchecked     {WITHOUT_DIGESTS}"
    return f"intact        {arguments.verify}: {len(prepared.files)} files, {format_bytes(num_bytes)}"


def _length(text: str) -> int:
    """Return a whole number of characters, which may be 0."""
    return 0 if text == "0" else whole(text)


def _changes(arguments: argparse.Namespace, cleaning: CleaningConfig) -> dict[str, Any]:
    """Return the fields of the recipe that the flags set."""
    from chinchilla_ds.data.preparing.recipe import dedup_of

    changes: dict[str, Any] = {}
    if arguments.source is not None:
        changes["sources"] = _sources(arguments.source, text_field=arguments.text_field or DataConfig().text_field)
    for name in ("held_out_fraction", "tokenizer", "vocab_size", "seed"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    if arguments.dedup is not None:
        changes["dedup"], changes["minhash"] = dedup_of(arguments.dedup)
    changes["cleaning"] = _cleaning(arguments, cleaning)
    if arguments.decontaminate is not None:
        changes["decontaminate"] = tuple(arguments.decontaminate)
    if arguments.on_error is not None:
        changes["skip_problems"] = arguments.on_error == "skip"
    return changes


def _cleaning(arguments: argparse.Namespace, cleaning: CleaningConfig) -> CleaningConfig:
    """Return the recipe's cleaning, changed as the flags say."""
    from chinchilla_ds.data.preparing.recipe import rules_of

    rules, length = cleaning.rules, cleaning.min_characters
    if arguments.clean is not None:
        rules = rules_of([] if arguments.clean == ["none"] else arguments.clean).rules
        length = length if Rule.MIN_LENGTH in rules else DEFAULT_MIN_CHARACTERS
    if arguments.min_characters is not None and Rule.MIN_LENGTH not in rules:
        raise ConfigError(
            f"--min-length {arguments.min_characters} has no effect without the cleaning rule {Rule.MIN_LENGTH}, which "
            f"drops short documents: add {Rule.MIN_LENGTH} to --clean, or leave --min-length out"
        )
    return CleaningConfig(
        rules=rules, min_characters=length if arguments.min_characters is None else arguments.min_characters
    )


def _sources(words: list[str], *, text_field: str) -> tuple[Any, ...]:
    """Return the sources; paths with the same name, or without one, belong together."""
    from chinchilla_ds.data.preparing.recipe import SourceRecipe
    from chinchilla_ds.data.reading.sources import DEFAULT_NAME

    paths: dict[str, list[str]] = {}
    for word in words:
        name, equals, place = word.partition("=")
        if Path(word).exists() or not equals or "/" in name or not name:
            name, place = DEFAULT_NAME, word
        paths.setdefault(name, []).append(place)
    return tuple(
        SourceRecipe(name=name, paths=tuple(of_source), text_field=text_field)
        for name, of_source in sorted(paths.items())
    )
