"""No password in anything that is printed or kept: tracking URIs carry them, and so do the errors that quote a URI.

A URI may be mistyped, so that nothing can be taken from its grammar: what may be a secret is left out, even where a
part of the address goes with it.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO
from urllib.parse import parse_qsl, quote, unquote

MASK = "***"

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")
_USERINFO = re.compile(r"(?<=://)(?!/)[^\s'\"<>]*@")
"""The `user:password@` of any URI in a text, up to the last @: a password may hold one that was not escaped."""
_PREFIX = re.compile(r"[\w+.-]*:?/+")
"""A URI's scheme and slashes, as far as they are there."""
_END_OF_AUTHORITY = re.compile(r"[/?#]")
_HOST_AND_PORT = re.compile(r"[\w.-]+:[0-9]+(/|$)")
_MIN_QUERY_SECRET_CHARACTERS = 4
"""Shorter values of a query are no secrets, and stand in other words."""


def public_uri(uri: str, /) -> str:
    """Return a URI to print: without user, password, query and fragment; paths of local files stay as they are."""
    if _is_path(uri):
        return uri
    scheme, separator, authority, tail = _parts(uri)
    if "@" in tail:  # of a password that was not escaped, or of a query: where the host begins is not known
        return f"{scheme}{separator}{MASK}"
    _, at, host = authority.rpartition("@")
    shown = f"{MASK}@{host}" if at else host
    path, mark, _ = tail.partition("?")
    return f"{scheme}{separator}{shown}{path.partition('#')[0]}" + (f"?{MASK}" if mark else "")


def uri_problem(uri: str, /) -> str | None:
    """Return why a tracking URI cannot be one, where its parts would be taken for others; None for any other URI.

    MLflow takes what has no scheme for a folder, which it makes, and quotes pieces of a password that it mistakes for
    a port.
    """
    if _HOST_AND_PORT.match(uri):
        return f"it has no scheme; write http://{uri}"
    if _is_path(uri) or "@" not in uri:
        return None
    _, separator, _, tail = _parts(uri)
    if not separator:
        return "it has a user or a password and no scheme; write one such as http://HOST:5000 or postgresql://HOST/NAME"
    if "@" in tail:
        return "an @ follows the host; in a user or password write % as %25, / as %2F, ? as %3F, # as %23 and @ as %40"
    return None


def redactor(*uris: str, environ: Mapping[str, str] = os.environ) -> Callable[[str], str]:
    """Return a function that takes these URIs' secrets, and those of the environment, out of a text.

    Args:
        uris: Tracking URIs, well-formed or not.
        environ: Where MLflow's and Databricks' passwords and tokens are looked up.
    """
    replacements = {uri: public_uri(uri) for uri in uris}
    secrets = {secret for uri in uris for secret in _secrets(uri)}
    secrets |= {environ[name] for name in _SECRET_VARIABLES if environ.get(name)}
    for secret in secrets:
        replacements |= dict.fromkeys((secret, unquote(secret), quote(secret, safe="")), MASK)
    longest_first = sorted((text for text in replacements if text), key=len, reverse=True)

    def redact(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, replacements[secret])
        return redacted(text)

    return redact


def redacted(text: str, /) -> str:
    """Return a text without the `user:password@` of any URI in it."""
    return _USERINFO.sub(f"{MASK}@", text)


class RedactedStream:
    """A text stream that keeps secrets from the one below it, as far as each stands in one `write`."""

    def __init__(self, stream: TextIO, *, redact: Callable[[str], str]) -> None:
        self._stream = stream
        self._redact = redact

    def write(self, text: str) -> int:
        """Write, redacted; return the length of what was asked for."""
        self._stream.write(self._redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _parts(uri: str) -> tuple[str, str, str, str]:
    """Return scheme, `://`, user with host, and what follows; no scheme where there is no `://`."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    end = _END_OF_AUTHORITY.search(rest)
    place = len(rest) if end is None else end.start()
    return scheme, separator, rest[:place], rest[place:]


def _is_path(uri: str) -> bool:
    """Return whether a URI names a local file or folder and has no place for a password."""
    scheme, separator, _ = uri.partition(":///")
    if separator:
        return scheme in ("file", "sqlite")
    return uri.startswith(("/", ".")) and not uri.startswith("//")


def _secrets(uri: str) -> Iterator[str]:
    """Yield what may be secret of a URI: user with password, password, query and each of its values."""
    if _is_path(uri):
        return
    user, at, _ = _PREFIX.sub("", uri, count=1).rpartition("@")
    if at:
        yield user
        yield user.partition(":")[2]
    query = uri.partition("?")[2]
    if query:
        yield query
        yield from (value for _, value in parse_qsl(query) if len(value) >= _MIN_QUERY_SECRET_CHARACTERS)
