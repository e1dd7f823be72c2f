"""Where a run's prepared text is: found again, or said to be unknown."""

import json
from pathlib import Path

import pytest

from chinchilla_ds.errors import DataError
from chinchilla_ds.runs.text import find_text, folder_of_texts


def prepared_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def keep(run: Path, *, absolute: Path, relative: str) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "data.json").write_text(json.dumps({"prepared": str(absolute), "prepared_from_here": relative}))


def test_text_is_found_where_it_was_or_beside_a_run_that_moved(tmp_path: Path) -> None:
    text, run = prepared_in(tmp_path / "elsewhere/data/abc"), tmp_path / "runs/run"
    keep(run, absolute=text, relative="../../elsewhere/data/abc")
    assert find_text(run) == text
    assert folder_of_texts(run) == tmp_path / "elsewhere/data", "a run that goes on prepares nothing again"
    keep(run, absolute=tmp_path / "gone", relative="../../elsewhere/data/abc")
    assert find_text(run) == run / "../../elsewhere/data/abc"
    keep(run, absolute=tmp_path / "gone", relative="../gone")
    assert find_text(run) is None
    assert folder_of_texts(run) == tmp_path / "runs/data"
    (run / "data.json").unlink()
    assert folder_of_texts(run) == tmp_path / "runs/data"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[]", "must be an object of named fields, not a list"),
        ('{"prepared": "a"}', "prepared_from_here is missing"),
        ('{"prepared": 1, "prepared_from_here": null}', "prepared is 1; it must be text"),
    ],
)
def test_damage_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError, match=said) as error:
        find_text(tmp_path)
    assert all(str(tmp_path / "data.json") in problem for problem in error.value.problems)
