import io
import sys

import pytest

from chinchilla_ds.tracking.redaction import RedactedStream, public_uri, redacted, redactor, uri_problem

SECRET = "hid-den"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://mlflow.example:5000", "http://mlflow.example:5000"),
        ("http://[::1]:5000/prefix", "http://[::1]:5000/prefix"),
        ("databricks://profile", "databricks://profile"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("file:///home/me@work/mlruns", "file:///home/me@work/mlruns"),
        ("./mlruns", "./mlruns"),
        (f"http://me:{SECRET}@host:5000/x", "http://***@host:5000/x"),
        (f"https://me:{SECRET}@host/?a=b", "https://***@host/?***"),
        (f"mysql+pymysql://me:{SECRET}@db/mlflow?charset=utf8", "mysql+pymysql://***@db/mlflow?***"),
        (f"postgresql://db/mlflow?user=me&password={SECRET}", "postgresql://db/mlflow?***"),
        (f"http://host/#{SECRET}", "http://host/"),
        (f"http://me:p@{SECRET}@host", "http://***@host"),
        (f"http://me:a/{SECRET}@host", "http://***"),
        (f"http://me:a?{SECRET}@host", "http://***"),
        (f"http://me:p@ss/{SECRET}@host", "http://***"),
        (f"postgresql://db/x?password={SECRET}@1", "postgresql://***"),
        (f"htp//me:{SECRET}@host", "***"),
        (f"http:/me:{SECRET}@host", "***"),
        (f"//me:{SECRET}@host", "***"),
        (f"me:{SECRET}@host:5000", "***@host:5000"),
    ],
)
def test_a_uri_is_shown_without_its_secrets(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown
    redact = redactor(uri, environ={})
    assert redact(f"API request to {uri}/api/2.0 failed") == f"API request to {shown}/api/2.0 failed"


def test_a_secret_is_taken_out_wherever_it_stands_alone() -> None:
    redact = redactor(f"http://me:{SECRET}%2F1@host/?token=abcd", environ={"MLFLOW_TRACKING_TOKEN": "efgh"})
    said = redact(f"Basic me:{SECRET}%2F1, decoded {SECRET}/1, abcd, efgh, me")
    assert said == "Basic ***, decoded ***, ***, ***, me"


def test_any_uri_of_a_text_loses_its_password() -> None:
    said = redacted("Cannot connect to proxy http://me:pass@word@proxy:3128/ or 'https://h/x' or sqlite:////a@b/c")
    assert said == "Cannot connect to proxy http://***@proxy:3128/ or 'https://h/x' or sqlite:////a@b/c"


def test_what_is_printed_passes_through() -> None:
    below = io.StringIO()
    stream = RedactedStream(below, redact=redactor(f"http://me:{SECRET}@host", environ={}))
    print(f"View run at: http://me:{SECRET}@host/#/runs/1", file=stream, flush=True)  # type: ignore[arg-type]
    assert below.getvalue() == "View run at: http://***@host/#/runs/1\n"
    assert RedactedStream(sys.stdout, redact=str).encoding == sys.stdout.encoding


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://me:secret@host:5000", None),
        ("http://me:p@ss@host", None),
        ("sqlite:////a/me@work/m.db", None),
        ("databricks", None),
        ("localhost:5000", "it has no scheme; write http://localhost:5000"),
        ("htp//me:secret@host", "no scheme"),
        ("me:secret@host", "no scheme"),
        ("http://me:se/cret@host", "write % as %25, / as %2F"),
    ],
)
def test_a_uri_whose_parts_would_be_mistaken_is_refused(uri: str, problem: str | None) -> None:
    found = uri_problem(uri)
    assert found is None if problem is None else problem in (found or "")
    assert "secret" not in (found or "")
