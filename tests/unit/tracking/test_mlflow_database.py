import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.tracking import mlflow_database
from chinchilla_ds.tracking.mlflow_database import ensure_database, sqlite_path


def make_tables(uri: str) -> None:
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        database.execute("CREATE TABLE runs (name TEXT)")


def tables(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT name FROM sqlite_master")]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:///b.db?timeout=5", "b.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("sqlite:///file:/a/b.db?mode=ro&uri=true", None),
        ("http://host", None),
        ("./mlruns", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: str | None) -> None:
    assert sqlite_path(uri) == (None if path is None else Path(path))
    if path is None:
        ensure_database(uri, make_tables=lambda uri: pytest.fail("a server's database is its own"))


@pytest.mark.parametrize("empty", [True, False])
def test_a_database_is_made_where_there_is_none(empty: bool, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mlflow.db"
    if empty:
        path.parent.mkdir()
        path.touch()
    ensure_database(f"sqlite:///{path}", make_tables=make_tables)
    assert tables(path) == ["runs"]
    assert list(path.parent.iterdir()) == [path], "nothing is left beside it"
    ensure_database(f"sqlite:///{path}", make_tables=lambda uri: pytest.fail("it is there"))


def test_two_that_make_it_at_once_get_one(tmp_path: Path) -> None:
    path, barrier = tmp_path / "mlflow.db", threading.Barrier(2)
    made: list[str] = []

    def make_with_the_other(uri: str) -> None:
        make_tables(uri)
        made.append(uri)
        barrier.wait(30)

    both = [
        threading.Thread(
            target=ensure_database, args=(f"sqlite:///{path}",), kwargs={"make_tables": make_with_the_other}
        )
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(set(made)) == 2, "control: both made one"
    assert tables(path) == ["runs"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(mlflow_database.os, "link", no_link)
    ensure_database(f"sqlite:///{tmp_path / 'mlflow.db'}", make_tables=make_tables)
    assert tables(tmp_path / "mlflow.db") == ["runs"]


def test_one_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def disk_full(uri: str) -> None:
        make_tables(uri)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        ensure_database(f"sqlite:///{tmp_path / 'mlflow.db'}", make_tables=disk_full)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_database, "LOCK_PATIENCE_S", 0.05)
    path = tmp_path / "mlflow.db"
    make_tables(f"sqlite:///{path}")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match=r"mlflow\.db: database is locked$"):
            ensure_database(f"sqlite:///{path}", make_tables=make_tables)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE _alembic_tmp_metrics (key TEXT)")
    with pytest.raises(TrackingError, match=r"mlflow\.db was left incomplete, .*move it away: `chinchilla-ds track`"):
        ensure_database(f"sqlite:///{path}", make_tables=make_tables)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(TrackingError, match=r"mlflow\.db: file is not a database$"):
        ensure_database(f"sqlite:///{path}", make_tables=make_tables)
