"""Where the prepared text of a run is: for resuming, evaluating and exporting."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from chinchilla_ds.checkpoint.folder import run_folder_of
from chinchilla_ds.config import DataConfig, source_name
from chinchilla_ds.data.prepared import INPUTS_NAME, MANIFEST_NAME, PreparedData, is_prepared
from chinchilla_ds.errors import DataError
from chinchilla_ds.ranges import Ge, Le
from chinchilla_ds.run_plan import MAX_SEED
from chinchilla_ds.structured import build, read_json

if TYPE_CHECKING:
    from chinchilla_ds.checkpoint.reader import CheckpointReader

DATA_NAME = "data.json"


@dataclass(frozen=True, kw_only=True)
class PlaceOfText:
    """Where a run's prepared text was when the run was last started."""

    prepared: Path
    """Absolute path on that machine."""
    prepared_from_here: Path
    """Path relative to the run's folder."""
    tokenizer_seed: Annotated[int, Ge(0), Le(MAX_SEED)] | None = None
    """Chooses the tokenizer's sample of text that is prepared for the run; None in earlier versions, where it was the
    run's own seed."""


def place_of_text(prepared: PreparedData, *, run_folder: Path, tokenizer_seed: int | None = None) -> str:
    """Return the content of `data.json`.

    Args:
        prepared: The run's text: its absolute path, and its path relative to the run's folder, are stored.
        run_folder: The run's folder.
        tokenizer_seed: As in `PlaceOfText`.
    """
    place = prepared.folder.resolve()
    values: dict[str, Any] = {
        "prepared": str(place),
        "prepared_from_here": os.path.relpath(place, run_folder.resolve()),
    }
    if tokenizer_seed is not None:
        values["tokenizer_seed"] = tokenizer_seed
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def tokenizer_seed_of(run_folder: Path, /) -> int | None:
    """Return what chooses the tokenizer's sample of a run's text; None if it is the run's seed, as it once was.

    Raises:
        DataError: the run's `data.json` is damaged.
    """
    places = _places(run_folder)
    return None if places is None else places.tokenizer_seed


def text_params(prepared: PreparedData, /, *, data: DataConfig) -> dict[str, object]:
    """Return what tells a run's text and tokenizer from others, under the names that a tracker stores.

    Args:
        prepared: The tokenised corpus.
        data: Where the run was told to read it.
    """
    names = [source_name(path) for path in data.paths]
    places = [name if name.startswith("hf://") else str(Path(name).resolve()) for name in names]
    params: dict[str, object] = {
        "tokenizer_hash": prepared.tokenizer_sha256,
        "held_out_hash": prepared.held_out_identity,
        "data_path": ", ".join(places) or "the standard library's source",
        "bytes_per_token": prepared.bytes_per_token,
        "train_bytes_per_token": prepared.train_bytes_per_token,
    }
    if fields := _text_fields(prepared.folder):
        params["text_key"] = fields
    return params


def _text_fields(folder: Path) -> str:
    """Return which fields of records a prepared corpus holds; empty if that is not recorded."""
    path = folder / INPUTS_NAME
    inputs = read_json(path, what="the list of inputs", error=DataError) if path.is_file() else None
    fields = inputs.get("text_fields") if isinstance(inputs, dict) else None
    return ", ".join(sorted({str(field) for field in fields.values()})) if isinstance(fields, dict) else ""


def find_text(run_folder: Path, /) -> Path | None:
    """Return the folder of a run's prepared text, if it is still there or has moved with the run; otherwise None.

    Raises:
        DataError: the run's `data.json` is damaged.
    """
    places = _places(run_folder)
    candidates = () if places is None else (places.prepared, run_folder / places.prepared_from_here)
    return next((place for place in candidates if is_prepared(place)), None)


def _places(run_folder: Path) -> PlaceOfText | None:
    """Return the content of a run's `data.json`; None if there is none, as in the first version."""
    file = run_folder / DATA_NAME
    if not file.is_file():
        return None
    data = read_json(file, what="the place of a run's text", error=DataError)
    places: PlaceOfText = build(PlaceOfText, data, where=f"{file}", error=DataError)
    return places


def folder_of_texts(run_folder: Path, /) -> Path:
    """Return the folder that holds a run's prepared text under the name of its content, or would hold it.

    Raises:
        DataError: the run's `data.json` is damaged.
    """
    place = find_text(run_folder)
    return run_folder.parent / "data" if place is None else place.parent


def text_of_checkpoint(reader: "CheckpointReader", /, *, named: Path | None = None) -> PreparedData | None:
    """Return the prepared text that a checkpoint was trained on, or None if its place is unknown.

    It is the folder that the run's `data.json` names, if it was made with the checkpoint's tokenizer. The text of a run
    without that file, as in the first version, or whose text has moved, is searched for in `data` next to the run,
    where training puts prepared text: there it must match the hash of the content recorded in the checkpoint.

    Args:
        reader: The checkpoint.
        named: A prepared folder to use instead, for its held-out part: different text with the same tokenizer.

    Raises:
        DataError: the named folder is not prepared or has a different tokenizer, or the run's `data.json` is damaged.
    """
    tokenizer = _tokenizer_of(reader)
    if named is not None:
        prepared = PreparedData.load(named)
        if prepared.tokenizer_sha256 != tokenizer:
            raise DataError(
                f"{named} was prepared with a different tokenizer from the model's, so that its tokens stand "
                "for different text; name text of the model's tokenizer by `data`, or prepare it with that "
                "(`prepare.tokenizer`)"
            )
        return prepared
    run_folder = run_folder_of(reader.folder)
    place = find_text(run_folder)
    if place is not None and (prepared := PreparedData.load(place)).tokenizer_sha256 == tokenizer:
        return prepared
    return next((text for text in _texts_beside(run_folder) if _is_text_of(reader, text, tokenizer=tokenizer)), None)


def _texts_beside(run_folder: Path) -> Iterator[PreparedData]:
    """Yield the prepared texts in `data` next to a run."""
    for manifest in sorted((run_folder.parent / "data").glob(f"*/{MANIFEST_NAME}")):
        yield PreparedData.load(manifest.parent)


def _is_text_of(reader: "CheckpointReader", text: PreparedData, *, tokenizer: str | None) -> bool:
    """Return whether a checkpoint was trained on this text, or, if that is not recorded, with its tokenizer."""
    key = reader.state.data_key
    return text.tokenizer_sha256 == tokenizer if key is None else text.content_key == key


def _tokenizer_of(reader: "CheckpointReader") -> str | None:
    """Return the SHA-256 of the tokenizer in a checkpoint; without one, the hash recorded in training."""
    if reader.tokenizer_path is None:
        return reader.state.tokenizer_sha256
    from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer

    return Tokenizer.load(reader.tokenizer_path, home=reader.folder).sha256
