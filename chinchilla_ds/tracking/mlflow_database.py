"""MLflow's SQLite file: complete with all its tables, or absent.

MLflow creates its tables and migrates them step by step, without a lock (`SqlAlchemyStore.__init__`, seen in 3.17).
Two runs that start in a fresh folder create the same table twice, and one of them fails; a kill or a full disk half-way
leaves a database that no later start can migrate. So it is created aside and then renamed in one step.
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
"""How long another process may lock the database; a batch of metrics takes milliseconds."""
_PREFIX = "sqlite:///"
_LEFT_BY_MIGRATION = r"SELECT count(*) FROM sqlite_master WHERE name LIKE '\_alembic\_tmp\_%' ESCAPE '\'"
"""Tables that exist only while MLflow changes its schema."""


def sqlite_uri(path: Path, /) -> str:
    """Return the URI of an SQLite file; a `?` or `%` in its name would otherwise be read as part of the syntax."""
    return _PREFIX + str(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(tracking_uri: str, /) -> Path | None:
    """Return the file of an SQLite URI; None for any other store, databases in memory and SQLite's own URIs."""
    path = tracking_uri.removeprefix(_PREFIX).partition("?")[0]
    is_file = tracking_uri.startswith(_PREFIX) and path not in ("", ":memory:") and not path.startswith("file:")
    return Path(unquote(path)) if is_file else None


def ensure_database(tracking_uri: str, /, *, make_tables: Callable[[str], None]) -> None:
    """Create the SQLite file of a tracking URI if it is missing or empty, or check that it can be read.

    Args:
        tracking_uri: Any tracking URI; a server's is ignored.
        make_tables: Creates the database of the URI that it is given.

    Raises:
        TrackingError: it is locked, or not a database.
        OSError: it cannot be created.
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
    """Rename the database, unless another process has created one in the meantime."""
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
    """Read the database, which waits for writers and rolls back what a killed process started."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=LOCK_PATIENCE_S)
        ) as database:
            [(num_left,)] = database.execute(_LEFT_BY_MIGRATION)
    except sqlite3.Error as error:
        raise TrackingError(f"{path}: {error}") from None
    if num_left:
        raise TrackingError(
            f"{path} was left incomplete, or another process is migrating it; if this persists, move it away: "
            "`chinchilla-ds track` brings each run into a new one"
        )
