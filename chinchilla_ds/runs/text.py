"""Where the prepared text of a run is: for its resume, and for whoever evaluates or exports what it trained."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.checkpoint.folder import run_folder_of
from chinchilla_ds.data.prepared import MANIFEST_NAME, PreparedData, is_prepared
from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import build, read_json

if TYPE_CHECKING:
    from chinchilla_ds.checkpoint.reader import CheckpointReader

DATA_NAME = "data.json"


@dataclass(frozen=True, kw_only=True)
class PlaceOfText:
    """Where a run's prepared text stood when the run was started last."""

    prepared: Path
    """From the root of that machine."""
    prepared_from_here: Path
    """From the run's folder."""


def place_of_text(prepared: PreparedData, *, run_folder: Path) -> str:
    """Return the content of `data.json`: the place seen from the root of this machine, and from the run's folder."""
    place = prepared.folder.resolve()
    places = {"prepared": str(place), "prepared_from_here": os.path.relpath(place, run_folder.resolve())}
    return json.dumps(places, indent=2, ensure_ascii=False) + "\n"


def find_text(run_folder: Path, /) -> Path | None:
    """Return the folder of a run's prepared text, where it still stands or has moved along with the run; else None.

    Raises:
        DataError: the run's `data.json` is damaged.
    """
    file = run_folder / DATA_NAME
    if not file.is_file():
        return None
    data = read_json(file, what="the place of a run's text", error=DataError)
    places: PlaceOfText = build(PlaceOfText, data, where=f"{file}", error=DataError)
    found = (places.prepared, run_folder / places.prepared_from_here)
    return next((place for place in found if is_prepared(place)), None)


def folder_of_texts(run_folder: Path, /) -> Path:
    """Return the folder that holds a run's prepared text under the name of its content, or would hold it.

    Raises:
        DataError: the run's `data.json` is damaged.
    """
    place = find_text(run_folder)
    return run_folder.parent / "data" if place is None else place.parent


def text_of_checkpoint(reader: "CheckpointReader", /, *, named: Path | None = None) -> PreparedData | None:
    """Return the prepared text that a checkpoint was trained on, or None where nobody knows where that is.

    It is the folder that the run's `data.json` names, if the checkpoint's tokenizer made it. A run that has none, as
    those of the first version, and one whose text has moved, are looked for below `data` beside the run, where training
    puts what it prepares: there the text must be the very one that the checkpoint notes, by the hash of its content.

    Args:
        reader: The checkpoint.
        named: A prepared folder to take instead, for its held-out part: other text of the same tokenizer.

    Raises:
        DataError: the named folder is no prepared text or of another tokenizer, or the run's `data.json` is damaged.
    """
    tokenizer = _tokenizer_of(reader)
    if named is not None:
        prepared = PreparedData.load(named)
        if prepared.tokenizer_sha256 != tokenizer:
            raise DataError(
                f"{named} was prepared with another tokenizer than the model's, so that its tokens mean other text; "
                "name text of the model's tokenizer by `data`, or prepare it with that (`prepare.tokenizer`)"
            )
        return prepared
    run_folder = run_folder_of(reader.folder)
    place = find_text(run_folder)
    if place is not None and (prepared := PreparedData.load(place)).tokenizer_sha256 == tokenizer:
        return prepared
    return next((text for text in _texts_beside(run_folder) if _is_text_of(reader, text, tokenizer=tokenizer)), None)


def _texts_beside(run_folder: Path) -> Iterator[PreparedData]:
    """Yield the prepared texts below `data` beside a run."""
    for manifest in sorted((run_folder.parent / "data").glob(f"*/{MANIFEST_NAME}")):
        yield PreparedData.load(manifest.parent)


def _is_text_of(reader: "CheckpointReader", text: PreparedData, *, tokenizer: str | None) -> bool:
    """Return whether a checkpoint was trained on this text; where it does not say on which, whether on its tokens."""
    key = reader.state.data_key
    return text.tokenizer_sha256 == tokenizer if key is None else text.content_key == key


def _tokenizer_of(reader: "CheckpointReader") -> str | None:
    """Return the SHA-256 of the tokenizer in a checkpoint; of one that holds none, what it notes of its training."""
    if reader.tokenizer_path is None:
        return reader.state.tokenizer_sha256
    from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer

    return Tokenizer.load(reader.tokenizer_path, home=reader.folder).sha256
