"""MLflow's SQLite file: there with all its tables, or not there.

MLflow creates its tables and migrates them step by step, without a lock (`SqlAlchemyStore.__init__`, seen in 3.17).
Two runs that begin on a fresh folder make the same table twice, of which one dies; a kill or a full disk half-way
leaves a database that no later start can migrate. So it is made aside and then given its name in one step.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

from chinchilla_ds.errors import TrackingError

LOCK_PATIENCE_S = 10.0
"""How long another process may hold the database; a batch of metrics takes milliseconds."""
_PREFIX = "sqlite:///"
_LEFT_BY_MIGRATION = r"SELECT count(*) FROM sqlite_master WHERE name LIKE '\_alembic\_tmp\_%' ESCAPE '\'"
"""Tables that exist only while MLflow changes its schema."""


def sqlite_uri(path: Path, /) -> str:
    """Return the URI of an SQLite file; a `?` or `%` in its name would otherwise be read as part of the syntax."""
    return _PREFIX + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(tracking_uri: str, /) -> Path | None:
    """Return the file of an SQLite URI; None for any other place, databases in memory and SQLite's own URIs."""
    path = tracking_uri.removeprefix(_PREFIX).partition("?")[0]
    is_file = tracking_uri.startswith(_PREFIX) and path not in ("", ":memory:") and not path.startswith("file:")
    return Path(unquote(path)) if is_file else None


def ensure_database(tracking_uri: str, /, *, make_tables: Callable[[str], None]) -> None:
    """Make the SQLite file of a tracking URI where it is missing or empty, or check that it can be read.

    Args:
        tracking_uri: Any tracking URI; nothing is done about a server's.
        make_tables: Makes the database of the URI that it is given.

    Raises:
        TrackingError: it is locked, or no database.
        OSError: it cannot be made.
    """
    path = sqlite_path(tracking_uri)
    if path is None:
        return
    if path.exists() and path.stat().st_size > 0:
        _check(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        make_tables(f"{_PREFIX}{aside}")
        _give_name(aside, path)
    finally:
        for left in (aside, aside.with_name(f"{aside.name}-journal")):
            left.unlink(missing_ok=True)


def _give_name(aside: Path, path: Path) -> None:
    """Name the database; one that another process has made meanwhile stays."""
    if path.exists() and path.stat().st_size == 0:
        aside.replace(path)
        return
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            aside.rename(path)


def _check(path: Path) -> None:
    """Read the database, which waits for who writes, and takes back what a killed process began."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=LOCK_PATIENCE_S)
        ) as database:
            [(num_left,)] = database.execute(_LEFT_BY_MIGRATION)
    except sqlite3.Error as error:
        raise TrackingError(f"{path}: {error}") from None
    if num_left:
        raise TrackingError(
            f"{path} was left half-made, or another process migrates it now; if it stays so, move it away: "
            "`chinchilla-ds track` brings each run into a new one"
        )
