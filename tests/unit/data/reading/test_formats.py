"""Every form that text comes in: what is read, what one bad record costs, and what is said of other encodings."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from chinchilla_ds.data.preparing.read_stage import messages
from chinchilla_ds.data.reading import parts
from chinchilla_ds.data.reading.parts import Mended, Problem
from chinchilla_ds.data.reading.readers import parts_of, read_part
from chinchilla_ds.data.reading.sources import find_source
from chinchilla_ds.errors import DataError


def read(*paths: Path, text_field: str = "text", part_bytes: int = 2**20) -> list[bytes | Problem]:
    found: list[bytes | Problem] = []
    for file in find_source([str(path) for path in paths], text_field=text_field).files:
        for part in parts_of(file, text_field=text_field, part_bytes=part_bytes):
            found += read_part(part)
    return found


def texts(*paths: Path, part_bytes: int = 2**20) -> list[str]:
    return [one.decode() for one in read(*paths, part_bytes=part_bytes) if isinstance(one, bytes)]


def problems(*paths: Path) -> list[str]:
    return messages(one for one in read(*paths) if isinstance(one, Problem))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


RECORDS = [
    {"id": 1, "text": 'one, "quoted"'},
    {"text": "two\nlines {[", "meta": [{"a": 1}, {"b": [2]}]},
    {"text": "世界"},
]
TEXTS = [str(record["text"]) for record in RECORDS]


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(json.dumps(record) for record in RECORDS),
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "".join(json.dumps(record, indent=2) for record in RECORDS),
        "\ufeff" + json.dumps(RECORDS),
        "\ufeff" + "\r\n".join(json.dumps(record) for record in RECORDS) + "\r\n",
        "\n\n [\n" + ",\n".join(json.dumps(record) for record in RECORDS) + "\n]\n",
    ],
    ids=["lines", "array", "pretty array", "pretty objects", "array with BOM", "lines with BOM", "array of lines"],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst", "wiki_00", "c4-train.00000-of-01024"])
def test_json_of_every_form(tmp_path: Path, content: str, name: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, lambda data: data)
    path = write(tmp_path / name, pack(content.encode()))
    assert texts(path) == TEXTS
    assert problems(path) == []


def test_one_object_is_one_document(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.json", json.dumps(RECORDS[1], indent=1).encode())) == TEXTS[1:2]


def test_an_array_longer_than_what_is_read_at_a_time(tmp_path: Path) -> None:
    records = [{"text": f'{number} \\ "{"x" * (number * 37 % 5000)}" é'} for number in range(400)]
    path = write(tmp_path / "a.json", json.dumps(records).encode())
    assert path.stat().st_size > 3 * 2**18
    assert texts(path) == [record["text"] for record in records]


def test_lines_in_a_json_file_are_shared_in_ranges(tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(500))
    path = write(tmp_path / "a.json", content.encode())
    (file,) = find_source([str(path)], text_field="text").files
    assert len(list(parts_of(file, text_field="text", part_bytes=1000))) > 10
    assert texts(path, part_bytes=1000) == [f"text {number}" for number in range(500)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"text": "a "bad" quote"}', "is not JSON: "),
        ('{"text": "5" tall"}', "is not JSON: "),
        ('{"text": "never closed}', "is not JSON: "),
        ('{"text": "a", "text": "b"}', "is not JSON: key 'text' occurs twice in one object"),
        ('{"txt": "a"}', "has no field 'text'; did you mean 'txt'?"),
        ('"a, text"', "is a JSON str, not an object"),
        ("17", "is a JSON int, not an object"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "is not JSON: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_bad_record_of_an_array_costs_that_record_alone(tmp_path: Path, bad: str, message: str) -> None:
    good = [json.dumps({"text": f"good {number}", "id": number}) for number in range(6)]
    path = write(tmp_path / "a.json", ("[\n" + ",\n".join([*good[:3], bad, *good[3:]]) + "\n]").encode())
    assert texts(path) == [f"good {number}" for number in range(6)]
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:5")
    assert message in problem


def test_deep_nesting_in_an_array_and_in_a_line(tmp_path: Path) -> None:
    deep = '{"text": "a", "n": ' + "[" * 50_000 + "]" * 50_000 + "}"
    for name, content in (("a.json", f"[{deep}]"), ("a.jsonl", deep)):
        (problem,) = problems(write(tmp_path / name, content.encode()))
        assert problem == f"{tmp_path / name}:1 is not JSON: lists and objects are nested too deep"


def test_an_array_that_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(RECORDS).encode()[:-10])
    assert texts(path) == TEXTS[:2]
    assert problems(path)[-1] == f"{path} is not JSON: its array does not end; it may be truncated"


def test_an_overlong_record_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_RECORD_BYTES", 2**19)
    long = {"text": 'x\\"{[' * 2**19, "id": 3}
    path = write(tmp_path / "a.json", json.dumps([RECORDS[0], long, RECORDS[2]]).encode())
    assert texts(path) == [TEXTS[0], TEXTS[2]]
    assert problems(path) == [f"{path}:1 is a record of more than 512.00 KiB; split it into documents"]


def test_what_python_writes_is_read_and_half_surrogates_become_one_sign(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", b'{"text": "a\\ud83d b \\ud83d\\ude00", "score": NaN}\n{"text": "c", "n": Infinity}\n'
    )
    first, second = read(path)
    assert (first, second) == ("a\ufffd b \U0001f600".encode(), b"c")
    assert isinstance(first, Mended)
    assert not isinstance(second, Mended)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_with_a_byte_order_mark_and_a_quoted_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeff"text","id"\r\n"one, two",1\r\n\r\n"three\r\nfour",2\r\n'.encode())
    assert texts(path) == ["one, two", "three\r\nfour"]


@pytest.mark.parametrize(
    ("bad", "costs"),
    [
        ('"a "bad" quote",3\n', 1),
        ('"never closed,3\n', 1),
        ('"two lines\nand a "bad" quote",3\n', 2),
        ("one,two,3\n", 1),
        ("a\xff,3\n", 1),
    ],
)
def test_a_bad_row_of_csv_costs_that_row_alone(tmp_path: Path, bad: str, costs: int) -> None:
    good = [f'"good, {number}",{number}\n' for number in range(40)]
    content = "text,id\n" + "".join(good[:20]) + bad + "".join(good[20:30]) + bad + "".join(good[30:])
    path = write(tmp_path / "a.csv", content.encode("latin-1"))
    assert texts(path) == [f"good, {number}" for number in range(40)]
    found = problems(path)
    assert len(found) == 2 * costs
    assert found[0].startswith(f"{path}:22 ")
    assert found[costs].startswith(f"{path}:{32 + bad.count(chr(10))} ")


def test_a_quote_that_is_not_closed_within_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_RECORD_BYTES", 1000)
    rows = [f"row {number},{number}\n" for number in range(200)]
    path = write(tmp_path / "a.csv", ("text,id\n" + '"open,0\n' + "".join(rows)).encode())
    assert texts(path) == [f"row {number}" for number in range(200)]
    assert problems(path) == [f"{path}:2 is not CSV: a quote is not closed within 1000 B"]


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path / "a.csv", b"text,text\na,b\n"))
    assert problem == f"{tmp_path}/a.csv:1 names 2 columns 'text'; only one can be read"


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_parquet_with_a_damaged_footer_or_page(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"row {n}" * 50 for n in range(3000)]}), path, row_group_size=500
    )
    whole = path.read_bytes()
    for damaged in (whole[:-20] + b"\xff" * 12 + whole[-8:], whole[:-8], whole[:100], b"PAR1" + b"\0" * 50 + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:5000] + b"\xff" * 3000 + whole[8000:])
    found = problems(path)
    assert found
    assert all("is not a readable Parquet file beyond row" in problem for problem in found)


def test_a_column_of_numbers(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert (
        problems(tmp_path / "a.parquet")[0] == f"{tmp_path}/a.parquet row 1: field 'text' is of type int, not a string"
    )


def test_an_arrow_folder_that_names_files_elsewhere(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(folder))
    assert texts(folder) == ["a", "b"]
    outside = tmp_path / "outside.arrow"
    (folder / "data-00000-of-00001.arrow").rename(outside)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "../outside.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    from chinchilla_ds.data.reading import hub

    hub._saved.cache_clear()
    with pytest.raises(DataError, match=r"names the data file '\.\./outside\.arrow', which is not in its folder"):
        read(folder)
    os.mkfifo(folder / "data-00000-of-00001.arrow")
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow in it is not a regular file"):
        read(folder)


# ---- encodings -------------------------------------------------------------------------------------------------------

CHINESE = "第一回,甄士隐梦幻识通灵,贾雨村风尘怀闺秀。此开卷第一回也。作者自云曾历过一番梦幻之后,故将真事隐去。\n"
TRADITIONAL = "第一回,甄士隱夢幻識通靈,賈雨村風塵懷閨秀。此開卷第一回也。作者自云曾歷過一番夢幻之後,故將真事隱去。\n"
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。\n"
)
RUSSIAN = "Известно, что все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"


@pytest.mark.parametrize(
    ("text", "codec", "named"),
    [
        (CHINESE, "gbk", "it may be GB18030 (a guess)"),
        (TRADITIONAL, "big5", "it may be BIG5 (a guess)"),
        (JAPANESE, "shift_jis", "it may be CP932 (a guess)"),
        (JAPANESE, "euc_jp", "it may be EUC-JP (a guess)"),
        (RUSSIAN, "koi8_r", "it may be KOI8-R (a guess)"),
        (RUSSIAN, "utf_16", "it starts like UTF-16"),
        (RUSSIAN, "utf_32", "it starts like UTF-32"),
        ("Plain English text.\n", "utf_16_le", "it starts like UTF-16LE"),
        ("Plain English text.\n", "utf_16_be", "it starts like UTF-16BE"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "plain"])
def test_another_encoding_is_one_line_with_a_guess(
    tmp_path: Path, text: str, codec: str, named: str, name: str
) -> None:
    if name == "plain" and codec in ("utf_16_le", "utf_16_be"):
        pytest.skip("without suffix or byte-order mark it is taken for a binary file")
    lines = {"a.jsonl": json.dumps({"text": text}, ensure_ascii=False) + "\n", "a.csv": f'"{text}"\n'}
    line = lines.get(name, text)
    content = ("text\n" * (name == "a.csv") + line * 1500).encode(codec)
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    (message,) = problems(path)
    assert message.startswith(f"{path}")
    assert " is not UTF-8: " in message
    assert named in message
    assert "iconv -f " in message


def test_a_few_stray_bytes_in_utf8_are_each_told_and_nothing_is_guessed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": CHINESE}, ensure_ascii=False).encode() for _ in range(50)]
    lines[10] = lines[20] = b'{"text": "stray \xff byte"}'
    found = problems(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [message.split(" is not UTF-8")[0] for message in found] == [f"{tmp_path}/a.jsonl:{n}" for n in (11, 21)]
    assert "guess" not in "".join(found)


def test_a_byte_order_mark_is_no_text_and_nul_bytes_are_told(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n")) == ["one\n"]
    (message,) = problems(write(tmp_path / "b.txt", b"\0" * 100_000))
    assert message == f"{tmp_path}/b.txt holds no text: 4096 of its first 4096 bytes are NUL"


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_what_a_folder_holds_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    plain = json.dumps({"text": "from json"}).encode()
    for name, content in {
        "a.json": plain,
        "b.ndjson": plain,
        "c.json.gz": gzip.compress(plain),
        "README": b"text without suffix\n",
        "part-00000": plain,
        "deep/part-00001": gzip.compress(plain),
        "x.tar.gz": gzip.compress(b"x"),
        "y.zip": b"PK",
        "core": b"\x7fELF\0\0\0\1",
        "empty.txt": b"",
        ".hidden": b"x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, content)
    (tmp_path / "nowhere.txt").symlink_to("missing")
    (tmp_path / "linked.txt").symlink_to("README")
    (tmp_path / "linked folder").symlink_to("deep")
    os.mkfifo(tmp_path / "pipe.txt")
    assert sorted(set(texts(tmp_path))) == ["from json", "text without suffix\n"]
    corpus = find_source([str(tmp_path)], text_field="text")
    assert len(corpus.files) == 6, "a file and a link to it are one"
    told = corpus.description.partition("left out: ")[2].rstrip(")").split(", ")
    reasons = {
        "not a regular file",
        ".tar",
        ".zip",
        "not text",
        "empty",
        "hidden",
        "broken link",
        "link to a folder",
    }
    assert {one.split(" x ")[-1] for one in told[:-1]} < reasons
    assert told[-1] == "2 more"


def test_a_pattern_leaves_out_what_a_folder_does(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"text")
    write(tmp_path / "b.png", b"\x89PNG")
    corpus = find_source([str(tmp_path / "*")], text_field="text")
    assert corpus.description.endswith("(1 file; left out: 1 x .png)")
    with pytest.raises(DataError, match=r"matches no file of a known type with content \(found: 1 x \.png\)"):
        find_source([str(tmp_path / "*.png")], text_field="text")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.jsonl", "is not a regular file: a pipe or a device cannot be read twice"),
        ("core", "is not text: it has no suffix, and its first bytes are neither text nor JSON nor Parquet"),
        ("x.tar.gz", "is of unknown type '.tar'"),
        ("", "is a folder|holds no file|names no file"),
    ],
)
def test_what_is_named_and_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    write(tmp_path / "core", b"\x7fELF\0\0\0\1")
    write(tmp_path / "x.tar.gz", gzip.compress(b"x"))
    with pytest.raises(DataError, match=message):
        find_source([str(tmp_path / name) if name else ""], text_field="text", keep_empty=True)


def test_a_hub_name_that_was_a_path_is_a_hub_name_still() -> None:
    for name in ("hf://org/name:en@train", str(Path("hf://org/name:en@train"))):
        (file,) = find_source([name], text_field="text").files
        assert file.place == "hf://org/name:en@train"
