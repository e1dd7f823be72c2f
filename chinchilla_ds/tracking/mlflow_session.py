"""Settings around every use of MLflow, so that neither it nor its libraries print a secret."""

import contextlib
import logging
import os
import sqlite3
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from chinchilla_ds.errors import ChinchillaError
from chinchilla_ds.tracking.mlflow_database import sqlite_path
from chinchilla_ds.tracking.redaction import RedactedStream, redactor

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Failures are retried later by us; MLflow's seven retries take four minutes to report that there is no server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it contains the password
}
_MAX_CHARACTERS = 400
_CHATTY_LOGGERS = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")
"""Loggers that report every table of the first migration, and every failure with a traceback; errors are also
raised."""


def environment(tracking_uri: str, /) -> dict[str, str]:
    """Return the variables to set before MLflow is imported, unless the user has set them."""
    if sqlite_path(tracking_uri) is None or "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE" in os.environ:
        return dict(_ENVIRONMENT)
    # A connection that stays open keeps writing into a database that was deleted.
    return _ENVIRONMENT | {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}


@contextlib.contextmanager
def mlflow_session(tracking_uri: str, /) -> Iterator[None]:
    """Keep secrets out of the output of MLflow and its libraries, and that output off standard output."""
    for name, value in environment(tracking_uri).items():
        os.environ.setdefault(name, value)
    stream: Any = RedactedStream(sys.stderr, redact=redactor(tracking_uri))
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        import mlflow.tracking  # noqa: F401  it sets the levels of loggers

        for name in _CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


def describe(error: Exception, tracking_uri: str, /) -> str:
    """Return one line about an error, without secrets: its root cause, or its own first line."""
    root: BaseException = error
    while cause := root.__cause__ or root.__context__:
        root = cause
    if isinstance(error, ChinchillaError):
        text = "; ".join(error.problems)
    elif isinstance(root, OSError) and root.strerror:
        text = f"{root.strerror}: {root.filename}" if root.filename else root.strerror
    elif isinstance(root, sqlite3.Error):
        text = str(root)
    else:
        text = f"{type(error).__name__}: {error}"
    return textwrap.shorten(redactor(tracking_uri)(text).strip().splitlines()[0], _MAX_CHARACTERS)
