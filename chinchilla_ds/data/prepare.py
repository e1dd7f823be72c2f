"""A training run's text: prepared already, or prepared now from files; checked before anything slow starts."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from chinchilla_ds.config import DataConfig, held_out_problem, source_name
from chinchilla_ds.data.blend import blend_of
from chinchilla_ds.data.feeding.blend_file import epoch_problems, read_blend, with_blend
from chinchilla_ds.data.prepared import INPUTS_NAME, PreparedData, is_prepared
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe, find_sources, vocab_size_of_corpus
from chinchilla_ds.data.reading.sources import Corpus, Progress, inputs_of
from chinchilla_ds.data.tokenizing.sentencepiece_json import check_exportable
from chinchilla_ds.data.tokenizing.tokenizer import MIN_VOCAB_SIZE, Tokenizer
from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import read_json
from chinchilla_ds.units import format_bytes, format_count

_log = logging.getLogger(__name__)


def prepare(
    data: DataConfig,
    *,
    vocab_size: int,
    seq_length: int,
    num_tokens: int,
    seed: int | None = None,
    folder: Path,
    earlier: Path | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Return the tokenised corpus that `data` describes, from `folder` if it already exists there.

    A prepared folder in `data.paths` is used unchanged, with the weights of `data.blend` if that is given. Existing
    prepared text is checked against its digests. If it is read-only, the order of the sequences is kept in
    `folder`.

    Args:
        data: The text and how it is split.
        vocab_size: Pieces requested from the tokenizer, which is trained only on the training documents.
        seq_length: Tokens per sequence; the held-out part must give at least one.
        num_tokens: Tokens the run trains on.
        seed: Chooses the tokenizer's sample; None: the same for every run, so that runs can be compared.
        folder: Receives one sub-folder per corpus and settings.
        earlier: The prepared text of a run that is resumed. If an earlier version made it from the same files, it is
            used unchanged: this version would clean and split them differently.
        progress: Receives the progress of each stage.

    Raises:
        DataError: the text is missing, unreadable, or too small, or has changed since it was prepared; lists every
            problem.
        OutputError: `folder` cannot be written.
    """
    from chinchilla_ds.data.preparing.pipeline import content_key, prepare_recipe

    prepared = _check(data, vocab_size=vocab_size)
    if prepared is not None:
        prepared.check_content()
        if not os.access(prepared.folder, os.W_OK):
            prepared = dataclasses.replace(prepared, index_folder=folder / f"index-{prepared.content_key}")
    else:
        recipe = _recipe(data, vocab_size=vocab_size, seed=seed)
        corpora = find_sources(recipe)
        prepared = _of_an_earlier_version(earlier, corpora=corpora)
        if prepared is None:
            place = folder / content_key(corpora, recipe)
            is_new = not is_prepared(place)
            prepared = prepare_recipe(recipe, folder=place, corpora=corpora, progress=progress)
            if not is_new:
                prepared.check_content()
    check_enough_tokens(prepared, data=data, num_tokens=num_tokens, seq_length=seq_length)
    return prepared


def _of_an_earlier_version(earlier: Path | None, *, corpora: Sequence[Corpus]) -> PreparedData | None:
    """Return an earlier version's preparation of the same files, by name and size; None for anything else."""
    if earlier is None or not (earlier / INPUTS_NAME).is_file():
        return None
    prepared = PreparedData.load(earlier)
    inputs = read_json(earlier / INPUTS_NAME, what="the list of inputs", error=DataError)
    same = isinstance(inputs, dict) and inputs.get("files") == inputs_of(corpora)
    return prepared if same and prepared.files is None else None


def _recipe(data: DataConfig, *, vocab_size: int | None, seed: int | None = None) -> Recipe:
    source = SourceRecipe(paths=tuple(source_name(path) for path in data.paths), text_field=data.text_field)
    return Recipe(
        sources=(source,),
        held_out_fraction=data.held_out_fraction,
        vocab_size=vocab_size,
        seed=Recipe.seed if seed is None else seed,
    )


def prepared_folder(data: DataConfig) -> PreparedData | None:
    """Return the prepared folder that `data.paths` names, blended as requested, or None if it names text.

    Raises:
        DataError: a prepared folder together with other paths, or a broken one; a blend that does not match it,
            or one given for text.
    """
    folders = [path for path in data.paths if is_prepared(path)]
    if not folders:
        if data.blend is not None:
            raise DataError(
                f"`data.blend={data.blend}` weighs the named sources of a prepared corpus, and there is none: make one "
                "(`prepare.source=NAME=PATH`) and name its folder by `data.paths`"
            )
        return None
    if len(data.paths) > 1:
        raise DataError(
            f"{folders[0]} is prepared already and cannot be joined with other paths; prepare all of them together "
            "with `chinchilla-ds prepare`, as named sources"
        )
    prepared = PreparedData.load(folders[0])
    if data.blend is None:
        return prepared
    return with_blend(prepared, read_blend(data.blend), where=f"blend {data.blend}")


def check_source(data: DataConfig, *, vocab_size: int) -> None:
    """Run the checks that need no text and no heavy module.

    Raises:
        DataError: invalid settings, or files that are missing, empty or of an unknown type.
    """
    if _check(data, vocab_size=vocab_size) is None:
        find_sources(_recipe(data, vocab_size=vocab_size))


def vocab_size_of_text(data: DataConfig) -> int | None:
    """Return the vocabulary for text that is not prepared, by the bytes of its files; None if they are unknown.

    It is that of the budget which a corpus of that size serves, as in `chinchilla-ds prepare`: the same for every
    budget, so that runs on one text can be compared.

    Raises:
        DataError: as `check_source`.
    """
    corpora = find_sources(_recipe(data, vocab_size=None))
    files = [file for corpus in corpora for file in corpus.files]
    if any(file.hub_name for file in files):
        return None
    return vocab_size_of_corpus(num_bytes=sum(file.num_bytes for file in files))


def describe_text(data: DataConfig, *, vocab_size: int, seq_length: int, num_tokens: int) -> str:
    """Return what text a run would read, without preparing it.

    Args:
        data: The text.
        vocab_size: Pieces of the plan's tokenizer.
        seq_length: Tokens per sequence.
        num_tokens: Tokens the run trains on.

    Raises:
        DataError: as `check_source`; a prepared corpus has changed, or is too small for the run.
    """
    prepared = _check(data, vocab_size=vocab_size)
    if prepared is None:
        corpora = find_sources(_recipe(data, vocab_size=vocab_size))
        size = format_bytes(sum(file.num_bytes for corpus in corpora for file in corpus.files))
        text = "; ".join(corpus.description for corpus in corpora)
        return f"{text}: {size}, not prepared yet, so that its tokens are not known"
    prepared.check_content()
    check_enough_tokens(prepared, data=data, num_tokens=num_tokens, seq_length=seq_length)
    return (
        f"{prepared.source}: {format_count(prepared.train_tokens)} tokens to train on, of which {num_tokens} are read"
    )


def _check(data: DataConfig, *, vocab_size: int) -> PreparedData | None:
    """Check the settings, and return the prepared folder if one is named."""
    problems: list[str] = []
    if problem := held_out_problem(data.held_out_fraction, name="data.held_out_fraction"):
        problems.append(problem)
    if not data.max_epochs > 0:
        problems.append(f"`data.max_epochs` is {data.max_epochs:g}; it must be above 0")
    if vocab_size < MIN_VOCAB_SIZE:
        problems.append(f"`vocab_size` is {vocab_size} pieces; byte fallback needs at least {MIN_VOCAB_SIZE}")
    if problems:
        raise DataError(problems)
    prepared = prepared_folder(data)
    if prepared is not None and prepared.vocab_size > vocab_size:
        raise DataError(
            f"{prepared.folder} was prepared with {prepared.vocab_size} tokenizer pieces and the plan has room for "
            f"{vocab_size}; leave `vocab_size` out, or give {prepared.vocab_size}"
        )
    if prepared is not None:
        _check_tokenizer(prepared)
    return prepared


def _check_tokenizer(prepared: PreparedData) -> None:
    """Check that the tokenizer can be read, and warn if no export can hold it: earlier versions accepted such ones.

    Raises:
        DataError: it cannot be read.
    """
    tokenizer = Tokenizer.load(prepared.tokenizer_path, home=prepared.folder)
    try:
        check_exportable(tokenizer)
    except DataError as error:
        _log.warning("%s; training continues, but `chinchilla-ds export` will refuse the model", error)


def check_enough_tokens(prepared: PreparedData, *, data: DataConfig, num_tokens: int, seq_length: int) -> None:
    """Check that the corpus, or each source of `data.blend`, feeds the plan within `data.max_epochs` passes.

    If every source has its own cap, the caps replace `data.max_epochs`.

    Args:
        prepared: the corpus.
        data: gives the limit on passes.
        num_tokens: tokens that the run trains on.
        seq_length: tokens per sequence.

    Raises:
        DataError: it does not; names what is needed, what is available, and the remedies.
    """
    problems = _share_problems(prepared, num_tokens=num_tokens)
    has_caps = all(source.max_epochs is not None for source in prepared.sources)
    if data.blend is not None and not has_caps:
        problems += epoch_problems(prepared, num_tokens=num_tokens, max_epochs=data.max_epochs)
    needed = num_tokens + 1
    if not problems and not has_caps and prepared.train_tokens * data.max_epochs < needed:
        epochs = needed / prepared.train_tokens
        share = prepared.train_tokens * data.max_epochs / needed
        problems.append(
            f"the plan trains on {format_count(needed)} tokens ({needed}) and the corpus, {prepared.source}, has"
            f" {format_count(prepared.train_tokens)} ({prepared.train_tokens}); with at most {data.max_epochs:g}"
            f" epoch{'s' if data.max_epochs != 1 else ''} it serves {share:.1%} of the plan's tokens, about"
            f" {share**2:.1%} of its compute budget at the same tokens per parameter. The plan would read it"
            f" {epochs:.2f} times: allow that with `data.max_epochs={-(-needed // prepared.train_tokens)}`, give"
            " more text with `data.paths`, or lower the budget"
        )
    if prepared.held_out_tokens < seq_length + 1:
        problems.append(
            f"the held-out part has {prepared.held_out_tokens} tokens in {prepared.held_out_documents} documents and"
            f" one sequence needs {seq_length + 1}; raise `data.held_out_fraction` ({data.held_out_fraction:g}) or give"
            " more text"
        )
    if problems:
        raise DataError(problems)


def _share_problems(prepared: PreparedData, *, num_tokens: int) -> list[str]:
    """Return why the sources' weights and caps cannot feed a run of `num_tokens` tokens."""
    try:
        blend_of(prepared, num_tokens=num_tokens)
    except DataError as error:
        return list(error.problems)
    return []
