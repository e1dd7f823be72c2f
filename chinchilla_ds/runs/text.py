"""Where the prepared text of a run is, kept in the run's folder: what `chinchilla-ds evaluate` reads by default."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.data.prepared import PreparedData, is_prepared
from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import build, read_json

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
