"""Where a run's prepared text is: found again, or said to be unknown."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import DataError
from chinchilla_ds.runs.text import find_text, folder_of_texts, text_of_checkpoint


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


# ---- the text of a checkpoint ----------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, tuple[str, str]]:
    """Return what tokenizer and content the prepared folder of a path has, to be filled in."""
    contents: dict[Path, tuple[str, str]] = {}

    def load(folder: Path) -> Any:
        tokenizer, content = contents[folder.resolve()]
        return SimpleNamespace(folder=folder, tokenizer_sha256=tokenizer, content_key=content)

    monkeypatch.setattr(PreparedData, "load", load)
    for name, content in {"runs/data/a": "other", "runs/data/b": "own", "elsewhere/c": "own"}.items():
        contents[prepared_in(tmp_path / name)] = ("tokenizer", content)
    return contents


def checkpoint_in(tmp_path: Path, *, data_key: str | None = "own", tokenizer: str | None = "tokenizer") -> Any:
    (folder := tmp_path / "runs/run/checkpoints/step_0000003").mkdir(parents=True)
    state = SimpleNamespace(data_key=data_key, tokenizer_sha256=tokenizer)
    return SimpleNamespace(folder=folder, state=state, tokenizer_path=None)


def found(reader: Any, *, named: Path | None = None) -> Path | None:
    text = text_of_checkpoint(reader, named=named)
    return None if text is None else text.folder.resolve()


def test_a_corpus_elsewhere_is_found_by_the_runs_own_note(tmp_path: Path, texts: dict[Path, tuple[str, str]]) -> None:
    reader = checkpoint_in(tmp_path)
    keep(tmp_path / "runs/run", absolute=tmp_path / "elsewhere/c", relative="../gone")
    assert found(reader) == tmp_path / "elsewhere/c"
    texts[tmp_path / "elsewhere/c"] = ("another", "new")  # prepared anew, with other settings
    assert found(reader) == tmp_path / "runs/data/b"


def test_a_run_without_a_note_has_the_very_text_that_its_checkpoint_names(
    tmp_path: Path, texts: dict[Path, tuple[str, str]]
) -> None:
    reader = checkpoint_in(tmp_path)
    assert found(reader) == tmp_path / "runs/data/b", "the first of the same tokenizer is other text"
    texts[tmp_path / "runs/data/b"] = ("tokenizer", "changed")
    assert found(reader) is None
    reader.state.data_key = None  # it does not say
    assert found(reader) == tmp_path / "runs/data/a"
    reader.state.tokenizer_sha256 = "another"
    assert found(reader) is None


def test_text_that_is_named_must_have_the_models_tokenizer(tmp_path: Path, texts: dict[Path, tuple[str, str]]) -> None:
    reader = checkpoint_in(tmp_path)
    assert found(reader, named=tmp_path / "runs/data/a") == tmp_path / "runs/data/a"
    texts[tmp_path / "runs/data/a"] = ("another", "own")
    with pytest.raises(DataError, match=r"runs/data/a was prepared with a different tokenizer .*`prepare\.tokenizer`"):
        found(reader, named=tmp_path / "runs/data/a")
