import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from chinchilla_ds.config import DataConfig, source_name
from chinchilla_ds.data.reading.kinds import FileKind
from chinchilla_ds.data.reading.readers import TEXT_DOCUMENT_BYTES, Problem, parts_of, read_part
from chinchilla_ds.data.reading.sources import MAX_PROBLEMS, Corpus, find_source, raise_problems
from chinchilla_ds.errors import DataError


def find_corpus(data: DataConfig) -> Corpus:
    return find_source([source_name(path) for path in data.paths], text_field=data.text_field)


def read(*paths: Path, text_field: str = "text") -> list[str]:
    corpus = find_corpus(DataConfig(paths=paths, text_field=text_field))
    found = list(read_all(corpus))
    raise_problems([one.message for one in found if isinstance(one, Problem)])
    return [document.decode() for document in found if isinstance(document, bytes) and document]


def read_all(corpus: Corpus, *, part_bytes: int = 2**20) -> Iterator[bytes | Problem]:
    for file in corpus.files:
        for part in parts_of(file, text_field=corpus.text_field, part_bytes=part_bytes):
            yield from read_part(part)


def problem(*paths: Path, text_field: str = "text") -> str:
    with pytest.raises(DataError) as caught:
        read(*paths, text_field=text_field)
    (message,) = caught.value.problems
    return message


def test_a_small_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\r\n\ttwo é 世界\n".encode())
    assert read(path) == ["one\r\n\r\n\ttwo é 世界\n"]


@pytest.mark.parametrize(
    ("unit", "ending"), [("word " * 40 + "\n\n", "\n\n"), ("word " * 40 + "\n", "\n"), ("世界", "界"), ("🙂", "🙂")]
)
def test_a_large_text_file_is_cut_into_bounded_documents(tmp_path: Path, unit: str, ending: str) -> None:
    text = unit * (3 * TEXT_DOCUMENT_BYTES // len(unit.encode()))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    documents = read(path)
    assert "".join(documents) == text
    assert 3 <= len(documents) <= 6
    assert max(len(document.encode()) for document in documents) <= TEXT_DOCUMENT_BYTES
    assert all(document.endswith(ending) or ending == "界" for document in documents)


def test_a_file_of_exactly_the_block_size_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (TEXT_DOCUMENT_BYTES - 1))
    assert len(read(path)) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_lines_are_documents(tmp_path: Path, name: str) -> None:
    texts = ["one\ntwo", "", "世界 🙂"]
    content = "\n\n".join(json.dumps({"text": text, "n": 1}) for text in texts).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(path) == ["one\ntwo", "世界 🙂"]


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"row {index}" for index in range(3000)]
    pyarrow.parquet.write_table(pyarrow.table({"content": texts, "n": range(3000)}), path, row_group_size=700)
    assert read(path, text_field="content") == texts


def test_a_folder_is_read_in_sorted_order_without_hidden_and_unknown_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.py", ".hidden.txt", ".git/d.txt", "image.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path) == ["a.md", "b.txt", "sub/c.py"]
    assert find_corpus(DataConfig(paths=(tmp_path,))).description.endswith(
        "(3 files; left out: 2 x hidden, 1 x empty, 1 x .png)"
    )


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once")
    assert read(tmp_path, tmp_path / "a.txt") == ["once"]


def test_the_default_corpus_is_the_standard_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    corpus = find_corpus(DataConfig())
    names = [file.path.name for file in corpus.files]
    assert {"argparse.py", "typing.py"} <= set(names)
    assert all(file.kind is FileKind.WHOLE_TEXT and "site-packages" not in file.path.parts for file in corpus.files)

    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_bytes(b"x = '\xe9'\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    bad, good = read_all(find_corpus(DataConfig()))
    assert good == b"x = 1\n"
    assert isinstance(bad, Problem)
    assert bad.is_skipped


def test_an_installation_without_source_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"holds no Python source; name a corpus by `data\.paths`"):
        find_corpus(DataConfig())


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    assert problem(tmp_path / "corpse.txt") == f"{tmp_path}/corpse.txt does not exist; did you mean 'corpus.txt'?"
    assert problem(tmp_path / "no" / "a.txt") == f"{tmp_path}/no/a.txt does not exist"


def test_empty_file_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert problem(tmp_path / "empty.txt") == f"{tmp_path}/empty.txt is empty"
    assert problem(tmp_path).endswith("holds no file of a known type with content (found: 1 x empty)")
    (tmp_path / "a.png").write_text("x")
    (tmp_path / "core").write_bytes(b"\x7fELF\0\0")
    assert problem(tmp_path).endswith("(found: 1 x .png, 1 x not text, 1 x empty)")


def test_unknown_type_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.josnl").write_text("{}")
    message = problem(tmp_path / "a.josnl")
    assert message.startswith(f"{tmp_path}/a.josnl is of unknown type '.josnl'; did you mean '.jsonl'?; known types: ")
    assert message.endswith(".ts .txt, optionally followed by .gz .bz2 .xz .zst")


def test_not_utf8_names_file_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (2 * TEXT_DOCUMENT_BYTES + 5) + b"\xff" + b"y" * 10)
    assert problem(path) == (
        f"{path} is not UTF-8: byte 0xff at offset {2 * TEXT_DOCUMENT_BYTES + 5} (invalid start byte)"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text" "a"}', "is not JSON: Expecting ':' delimiter at column 9"),
        (b'{"text": "a", "text": "b"}', "is not JSON: key 'text' occurs twice in one object"),
        (
            b'{"text": "a", "n": ' + b"1" * 5000 + b"}",
            "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
        (b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "lists and objects are nested too deep"),
        (b"[1]", "is a JSON list, not an object"),
        (b'{"txt": "a", "id": 1}', "has no field 'text'; did you mean 'txt'?; it has 'txt', 'id'"),
        (b"{}", "has no field 'text'; it has none"),
        (b'{"text": 3}', ": field 'text' is of type int, not a string"),
        (b'{"text": null}', ": field 'text' is of type NoneType, not a string"),
        (b'{"text": "\xff"}', "is not UTF-8: byte 0xff at offset 10 (invalid start byte)"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    found = problem(path)
    assert found.startswith(f"{path}:2")
    assert found.endswith(message)


def test_truncated_and_false_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "good"}\n' * 100)[:-9])
    assert problem(path) == f"{path}:101 cannot be read: it is truncated: the file ends before the archive does"
    path.write_bytes(b"not gzip")
    assert problem(path) == f"{path} cannot be read: it does not start like a .gz file"


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"not parquet at all")
    assert problem(path).startswith(f"{path} is not a readable Parquet file: ")
    pyarrow.parquet.write_table(pyarrow.table({"Text": ["a"], "n": [1]}), path)
    assert problem(path) == f"{path} has no field 'text'; did you mean 'Text'?; it has 'Text', 'n'"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    assert problem(path) == f"{path} row 2: field 'text' is of type NoneType, not a string"


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    for index in range(MAX_PROBLEMS + 3):
        (tmp_path / f"{index:02d}.jsonl").write_text("{")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1] == "... and 3 more problems of this kind"
    with pytest.raises(DataError) as caught:
        read(tmp_path / "missing", tmp_path / "also_missing")
    assert len(caught.value.problems) == 2
