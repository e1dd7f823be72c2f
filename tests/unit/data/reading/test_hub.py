import json
from pathlib import Path

import pytest

from chinchilla_ds.data.reading.hub import HubName, parse_hub_name
from chinchilla_ds.data.reading.readers import Problem, parts_of, read_part
from chinchilla_ds.data.reading.sources import find_source
from chinchilla_ds.errors import DataError


def read(name: str, *, text_field: str = "text") -> list[bytes | Problem]:
    (file,) = find_source([name], text_field=text_field).files
    parts = parts_of(file, text_field=text_field, part_bytes=1000)
    return [document for part in parts for document in read_part(part)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two data files: two shards of a streamed data set."""
    for number in range(2):
        rows = [{"text": f"{number} {row}"} for row in range(5)]
        path = tmp_path / "local" / f"train-{number}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "local"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://org/name", HubName("org/name", None, "train")),
        ("hf://org/name:en@validation", HubName("org/name", "en", "validation")),
        ("hf://name@test", HubName("name", None, "test")),
    ],
)
def test_names(text: str, name: HubName) -> None:
    assert parse_hub_name(text) == name


@pytest.mark.parametrize("text", ["hf://", "hf://a@b@c", "hf://a b"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(DataError, match=r"names no data set; the form is hf://org/name"):
        parse_hub_name(text)


def test_a_streamed_data_set_is_read_shard_by_shard(folder: Path) -> None:
    (file,) = find_source([f"hf://{folder}"], text_field="text").files
    assert len(list(parts_of(file, text_field="text", part_bytes=1))) == 2
    assert read(f"hf://{folder}") == [f"{number} {row}".encode() for number in range(2) for row in range(5)]


def test_a_column_that_is_not_there(folder: Path) -> None:
    first, *_ = read(f"hf://{folder}", text_field="txt")
    assert isinstance(first, Problem)
    assert "has no field 'txt'; did you mean 'text'?" in first.message


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot read hf://nobody/nothing \(HF_HUB_OFFLINE is set: only"):
        read("hf://nobody/nothing")
