"""The one reader of JSON and YAML: a file gives either plain, finite data of the right types, or a one-line error.

Files come from people, from other programs, from power cuts and from strangers. Nothing else in the package calls
`json.loads` or `yaml.load`, so every file meets the same limits:

- A regular file (a FIFO or a device would hang the reader) of bounded size, in UTF-8.
- No duplicate keys, of which JSON readers silently keep the last; no NaN or Infinity, not even written as 1e400.
- No integer beyond the range of a float, and no nesting that a recursive function could not follow.
- No lone surrogate, which no encoding can write: it becomes U+FFFD.
- YAML: mappings with text keys, lists and plain values; no tags, so nothing is constructed.

`build`, of `typed`, then makes a dataclass of it.
"""

import errno
import functools
import json
import math
import os
import re
import stat
import typing
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chinchilla_ds.errors import ChinchillaError, ConfigError, did_you_mean, reason
from chinchilla_ds.typed import SHOWN_CHARACTERS, shown
from chinchilla_ds.typed import build as build

MAX_JSON_BYTES = 64 << 20
"""The largest JSON file that is read whole; tokenizer.json and indices of sharded weights reach tens of MB."""
MAX_YAML_BYTES = 256 << 10
"""The largest YAML file: recipes and blends, written by hand."""
MAX_DEPTH = 100
"""Nesting depth of lists and objects."""
MAX_YAML_VALUES = 100_000
"""Values of a YAML file after its aliases are expanded."""
_PIECE_BYTES = 1 << 20
_MAX_DIGITS = 308
"""Digits of an integer, so that it can always be converted to a float."""

Error = type[ChinchillaError]


# ---- files -----------------------------------------------------------------------------------------------------------


def open_regular(path: Path, /) -> BinaryIO:
    """Open a file for reading, without waiting for the writer of a FIFO.

    Raises:
        OSError: it cannot be opened, or is a folder, a FIFO, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(descriptor, "rb")


def read_bytes(path: Path, *, what: str, error: Error = ConfigError, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a small file; `what` names it in messages.

    Args:
        path: the file.
        what: its name in messages.
        error: the class of the exception to raise.
        max_bytes: the largest size that is read.

    Raises:
        ChinchillaError: as `error`: it is missing, unreadable, not a regular file, or larger than `max_bytes`.
    """
    try:
        with open_regular(path) as stream:
            content = b"".join(_pieces(stream, max_bytes=max_bytes))
    except OSError as problem:
        raise error(f"{what} {path} cannot be read: {reason(problem)}{_neighbour(path, problem)}") from None
    except ValueError as problem:  # a NUL in the name
        raise error(f"{what} {str(path)!r} cannot be read: {problem}") from None
    if len(content) > max_bytes:
        raise error(f"{what} {path} is larger than {max_bytes >> 10} KiB, the most that is read of such a file")
    return content


def _pieces(stream: BinaryIO, *, max_bytes: int) -> Iterator[bytes]:
    """Yield a file's content until it exceeds `max_bytes`; a single read would allocate all of them."""
    left = max_bytes
    while left >= 0 and (piece := stream.read(min(_PIECE_BYTES, left + 1))):
        left -= len(piece)
        yield piece


def _neighbour(path: Path, problem: OSError) -> str:
    if not isinstance(problem, FileNotFoundError) or not path.parent.is_dir():
        return ""
    return did_you_mean(path.name, (file.name for file in path.parent.glob(f"*{path.suffix}")))


def _text(content: bytes, *, where: str, error: Error) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not UTF-8: {problem.reason} at byte {problem.start}") from None


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path, *, what: str, error: Error = ConfigError) -> Any:
    """Return the plain data in a JSON file.

    Args:
        path: The file.
        what: What it is, for messages: `plan`, `tokenizer`.
        error: The class of the exception to raise.

    Raises:
        ChinchillaError: as `error`, in one line: it cannot be read, or is not JSON within the limits above.
    """
    return parse_json(read_bytes(path, what=what, error=error), where=f"{what} {path}", error=error)


def parse_json(text: str | bytes, *, where: str, error: Error = ConfigError) -> Any:
    """Return the plain data in JSON text, such as one line of a JSONL file; raises as `read_json` does.

    Args:
        text: the JSON, UTF-8 if bytes.
        where: its place, for messages.
        error: the class of the exception to raise.
    """
    if isinstance(text, bytes):
        text = _text(text, where=where, error=error)
    try:
        data = _DECODER.decode(text)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_extent(data)
        if _SURROGATE.search(text):
            data = _without_lone_surrogates(data)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno} column {problem.colno}"
        raise error(f"{where} is not JSON: {problem.msg.removesuffix(' at')} at {place}") from None
    except RecursionError:
        raise error(f"{where} is not JSON that can be read: {_TOO_DEEP}") from None
    except _NonFiniteError as problem:
        line = text.count("\n", 0, text.find(problem.written)) + 1
        raise error(f"{where} is not JSON that can be read: {problem}, line {line}") from None
    except ValueError as problem:
        raise error(f"{where} is not JSON that can be read: {problem}") from None
    return data


def parse_record(text: str, /) -> Any:
    """Return the data in one record of a corpus, at the full speed of the decoder.

    A record is foreign data of which one field is read: its other numbers may be NaN, which Python writes. Lone
    surrogates stay in the text.

    Raises:
        ValueError: in one line: it is not JSON, too deeply nested, has a key twice, or an integer of 4,300 digits.
    """
    try:
        return _RECORD_DECODER.decode(text)
    except json.JSONDecodeError as problem:
        place = f"column {problem.colno}" if problem.lineno == 1 else f"line {problem.lineno} column {problem.colno}"
        raise ValueError(f"{problem.msg.removesuffix(' at')} at {place}") from None
    except RecursionError:
        raise ValueError("lists and objects are nested too deep") from None
    except ValueError as problem:
        raise ValueError(str(problem).partition(";")[0]) from None


class _NonFiniteError(ValueError):
    def __init__(self, written: str) -> None:
        self.written = written
        super().__init__(f"{written[:SHOWN_CHARACTERS]} is not a finite number")


_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        doubled = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(doubled)} occurs twice in one object")
    return values


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(text)} digits; at most {_MAX_DIGITS} are read")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NonFiniteError(text)
    return value


def _constant(name: str) -> float:
    raise _NonFiniteError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


_RECORD_DECODER = json.JSONDecoder(object_pairs_hook=_object)


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _without_lone_surrogates(value: Any) -> Any:
    """Return `value` with U+FFFD for every lone surrogate, which no text encoding can represent."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_lone_surrogates(name): _without_lone_surrogates(item) for name, item in value.items()}
    return value


def _check_extent(data: Any, *, max_values: float = math.inf) -> None:
    """Check depth and number of values, level by level: YAML aliases may repeat one value in many places.

    Raises:
        ValueError: too deep, or too many.
    """
    level, depth, count = [data], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > MAX_DEPTH + 1:
            raise ValueError(_TOO_DEEP)
        if count > max_values:
            raise ValueError(f"it holds more than {max_values:,} values")
        holders = (value for value in level if isinstance(value, dict | list))
        level = [item for holder in holders for item in (holder.values() if isinstance(holder, dict) else holder)]


# ---- YAML ------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path, *, what: str, error: Error = ConfigError) -> Any:
    """Return the plain data in a YAML file, None for an empty one; see `read_json` for arguments and errors.

    Args:
        path: the file.
        what: its name in messages.
        error: the class of the exception to raise.
    """
    where = f"{what} {path}"
    content = read_bytes(path, what=what, error=error, max_bytes=MAX_YAML_BYTES)
    return parse_yaml(_text(content, where=where, error=error), where=where, error=error)


def parse_yaml(text: str, *, where: str, error: Error = ConfigError) -> Any:
    """Return the plain data in YAML text; raises as `read_json` does.

    Args:
        text: the YAML.
        where: its place, for messages.
        error: the class of the exception to raise.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        data = yaml.load(text, Loader=_yaml_loader())
        _check_extent(data, max_values=MAX_YAML_VALUES)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        place = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise error(f"{where} is not YAML that can be read: {problem.problem or problem.context}{place}") from None
    except RecursionError:
        raise error(f"{where} is not YAML that can be read: {_TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError) as problem:
        first_line = str(problem).splitlines()[0]
        raise error(f"{where} is not YAML that can be read: {first_line}") from None
    return data


@functools.cache
def _yaml_loader() -> Any:
    """Return a loader of plain values: unique text keys, finite numbers, no tags, dates as text."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise yaml.MarkedYAMLError(problem=f"the tag {shown(tag)} is not read", problem_mark=event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                plain = isinstance(key, yaml.ScalarNode) and key.tag in ("tag:yaml.org,2002:str", _MERGE)
                if not plain:
                    written = shown(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {written} is not text; quote it", problem_mark=key.start_mark
                    )
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {shown(key.value)} occurs twice in one mapping", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            values: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
            return values

    def number(construct: Any) -> Any:
        def checked(loader: Any, node: Any) -> int | float:
            value = _integer(node.value) if len(node.value) > _MAX_DIGITS else construct(loader, node)
            if not math.isfinite(value):
                raise ValueError(f"{node.value} is not a finite number, line {node.start_mark.line + 1}")
            return typing.cast(float, value)

        return checked

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # YAML 1.2's floats, such as 1e-3, which YAML 1.1 reads as text
    exponent = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:int", number(yaml.SafeLoader.construct_yaml_int))
    Loader.add_constructor("tag:yaml.org,2002:float", number(yaml.SafeLoader.construct_yaml_float))
    return Loader


_MERGE = "tag:yaml.org,2002:merge"
