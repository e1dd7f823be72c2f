"""Keeps passwords out of everything printed or stored: tracking URIs contain them, and so do errors that quote a URI.

A URI may be mistyped, so its grammar cannot be relied on: whatever may be a secret is removed, even if
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
"""A URI's scheme and slashes, as far as present."""
_END_OF_AUTHORITY = re.compile(r"[/?#]")
_HOST_AND_PORT = re.compile(r"[\w.-]+:[0-9]+(/|$)")
_MIN_QUERY_SECRET_CHARACTERS = 4
"""Shorter values of a query are not secrets, and occur in other words."""


def public_uri(uri: str, /) -> str:
    """Return a URI to print: without user, password, query and fragment; paths of local files are unchanged."""
    if _is_path(uri):
        return uri
    scheme, separator, authority, tail = _parts(uri)
    if "@" in tail:  # of an unescaped password, or of a query: the start of the host is unknown
        return f"{scheme}{separator}{MASK}"
    _, at, host = authority.rpartition("@")
    shown = f"{MASK}@{host}" if at else host
    path, mark, _ = tail.partition("?")
    return f"{scheme}{separator}{shown}{path.partition('#')[0]}" + (f"?{MASK}" if mark else "")


def uri_problem(uri: str, /) -> str | None:
    """Return the problem of a tracking URI whose parts would be parsed as others; None for any other URI.

    MLflow treats a URI without a scheme as a folder, which it creates, and quotes pieces of a password that it mistakes
    for a port.
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
    """Return a function that removes these URIs' secrets, and those of the environment, from a text.

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
    """A text stream that removes secrets before the underlying one, as far as each is within one `write`."""

    def __init__(self, stream: TextIO, *, redact: Callable[[str], str]) -> None:
        self._stream = stream
        self._redact = redact

    def write(self, text: str) -> int:
        """Write the redacted text; return the length of the original."""
        self._stream.write(self._redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _parts(uri: str) -> tuple[str, str, str, str]:
    """Return scheme, `://`, user with host, and the rest; no scheme if there is no `://`."""
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
    """Yield the parts of a URI that may be secret: user with password, password, query and each of its values."""
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
