import math
import os
import random
import time
from pathlib import Path

import pytest

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.tracking.metrics_file import MetricsReader, describe_skipped, read_metrics

GOOD = '{"step": 1, "time": 5.5, "train/loss": 2.5}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\0" * 4096 + b"\n", "line 2 holds 4,096 NUL bytes"),
        (b'{"step": 2, "tra\n', "line 2 is not JSON"),
        (b"\xff\xfe\n", "line 2 is not UTF-8"),
        (b"[1, 2]\n", "line 2 is not an object"),
        (b"[" * 100_000 + b"\n", "nested more than 100 deep"),
        (b'{"time": 1}\n', "line 2 has the step None"),
        (b'{"step": 2.0, "time": 1}\n', "line 2 has the step 2.0"),
        (b'{"step": true, "time": 1}\n', "line 2 has the step True"),
        (b'{"step": -1, "time": 1}\n', "line 2 has the step -1"),
        (b'{"step": 1' + b"0" * 30 + b', "time": 1}\n', "which is not a number of steps"),
        (b'{"step": 2, "time": "now"}\n', "line 2 has the time 'now'"),
        (b'{"step": 2, "time": 1e300}\n', "line 2 has the time 1e+300"),
        (b'{"step": 2, "time": null}\n', "line 2 has the time None"),
        (b'{"step": 2, "time": -1}\n', "line 2 has the time -1"),
        (b'{"step": 2, "time": 1, "x": "high"}\n', "line 2 has the value 'high' for x"),
        (b'{"step": 2, "time": 1, "x": [1]}\n', "line 2 has the value [1] for x"),
        (b'{"step": 2, "time": 1, "x": false}\n', "line 2 has the value False for x"),
        (b'{"step": 2, "time": 1, "x": 1e999}\n', "1e999 is not a finite number"),
        (b'{"step": 2, "time": 1, "x": ' + b"9" * 5000 + b"}\n", "an integer has 5000 digits"),
        (b'{"step": 2, "time": 1, "x": 1, "x": 2}\n', "key 'x' occurs twice"),
        (b'{"step": 2, "time": 1, "x@y": 1}\n', "line 2 has a metric 'x@y'"),
        (b'{"step": 2, "time": 1, "../x": 1}\n', "line 2 has a metric '../x'"),
        (b'{"step": 2, "time": 1, "": 1}\n', "line 2 has a metric ''"),
        (b'{"a": "' + b"x" * (3 << 20) + b'"}\n', "line 2 is 3,145,738 bytes long"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_the_others_count(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD.encode() + line + b'{"step": 3, "time": 7.5, "train/loss": 1.5}\n')
    skipped: list[str] = []
    records = list(read_metrics(path, skipped=skipped))
    assert [(record.step, record.time_s, dict(record.metrics)) for record in records] == [
        (1, 5.5, {"train/loss": 2.5}),
        (3, 7.5, {"train/loss": 1.5}),
    ]
    assert len(skipped) == 1
    assert said in skipped[0]
    assert "\n" not in describe_skipped(path, skipped)


def test_nul_bytes_before_a_line_cost_nothing(tmp_path: Path) -> None:
    """The file grew and the block was not written; the next process appended."""
    (tmp_path / "m").write_bytes(b"\0" * 700 + GOOD.encode() + b"\n \n" + GOOD.encode())
    skipped: list[str] = []
    assert len(list(read_metrics(tmp_path / "m", skipped=skipped))) == 2
    assert skipped == []


def test_numbers_that_json_has_not_in_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text(
        '{"step": 1, "time": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": null}\n'
        '{"step": 2, "time": 1, "a": NaN, "b":Infinity , "c": -Infinity}\n'
    )
    first, second = (dict(record.metrics) for record in read_metrics(path))
    assert math.isnan(first.pop("d"))
    for metrics in (first, second):
        assert math.isnan(metrics.pop("a"))
        assert metrics == {"b": math.inf, "c": -math.inf}


def test_a_last_line_without_its_end_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text(GOOD + GOOD[:-1])
    reader = MetricsReader(path)
    assert len(list(reader.records(is_ended=False))) == 1
    assert reader.begins_anew
    assert list(reader.records(is_ended=False)) == []
    assert not reader.begins_anew
    with path.open("a") as stream:
        stream.write("\n" + GOOD)
    assert len(list(reader.records(is_ended=False))) == 2
    path.write_text(GOOD + GOOD[:-1])
    assert len(list(read_metrics(path))) == 2, "of a run that has ended it is whole"
    path.write_text(GOOD + GOOD[:-9])
    skipped: list[str] = []
    assert len(list(read_metrics(path, skipped=skipped))) == 1
    assert skipped[0].startswith("line 2 is not JSON")


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path: Path, is_replaced: bool) -> None:
    path = tmp_path / "m"
    path.write_text(GOOD * 3)
    reader = MetricsReader(path)
    assert len(list(reader.records())) == 3
    if is_replaced:
        aside = tmp_path / "aside"
        aside.write_text(GOOD * 4)
        aside.replace(path)
    else:
        path.write_text(GOOD * 2)
    assert len(list(reader.records())) == (4 if is_replaced else 2)
    assert reader.begins_anew


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    reader = MetricsReader(tmp_path / "m")
    assert list(reader.records()) == []
    (tmp_path / "m").write_text(GOOD)
    assert len(list(reader.records())) == 1


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m")
    with pytest.raises(TrackingError, match=r"/m cannot be read: it is not a regular file$"):
        list(read_metrics(tmp_path / "m"))


def test_random_damage_to_one_line_costs_no_other(tmp_path: Path) -> None:
    path, chance = tmp_path / "m", random.Random(1)
    line = b'{"step": 2, "time": 5.5, "train/loss": 2.5, "x": null}'
    pieces = [b"\0", b'"', b"{", b"[", b"}", b"-", b"1e999", b"NaN", b"\xff", b"9" * 400, b",", b":", b"true", b"\\u"]
    for _ in range(2000):
        damaged = bytearray(line)
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(len(damaged) + 1)
            damaged[start : start + chance.randint(0, 9)] = chance.choice([b"", *pieces])
        path.write_bytes(GOOD.encode() + bytes(damaged) + b"\n" + GOOD.encode())
        skipped: list[str] = []
        records = list(read_metrics(path, skipped=skipped))
        assert len(records) + len(skipped) == (3 if damaged.strip(b"\0\r\n\t ") or 0 in damaged else 2)
        assert [record.step for record in (records[0], records[-1])] == [1, 1]
        assert all(type(value) is float for record in records for value in record.metrics.values())


def test_many_damaged_lines_are_one_message() -> None:
    assert describe_skipped(Path("m"), ["line 1 a", "line 2 b", "line 3 c", "line 9 d", "line 10 e"]) == (
        "m: 5 lines cannot be read and are skipped: line 1 a; line 2 b; line 3 c; and 2 more"
    )
    assert describe_skipped(Path("m"), ["line 1 a"]) == "m: 1 line cannot be read and is skipped: line 1 a"


def test_a_long_run_is_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "m"
    line = '{"step": %d, "time": 1700000000.123, ' + ", ".join(f'"m{i}": {i}.25' for i in range(12)) + "}\n"
    path.write_text("".join(line % step for step in range(20_000)))
    started_s = time.monotonic()
    assert sum(1 for _ in read_metrics(path)) == 20_000
    assert time.monotonic() - started_s < 10.0
