"""What files and command lines look like after editors, power cuts, other programs and people of bad will."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

_RAW = "\ue000raw "
"""Begins a text that stands for JSON which `json.dumps` cannot write; ends with \ue001."""
_RAW_JSON = (
    "1e400", "-1e400", "NaN", "Infinity", "9" * 5000, "-" + "9" * 400, "0." + "3" * 5000, "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"', '{"a": 1, "a": 2}', "01", "0x10", "'a'", "", '"a\tb"',
    "-", "+1",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 2**31, 2**53 + 1, 2**63, 10**30, 10**300, -(10**300), 0.0,
    -0.0, 0.5, -1.5,
    1e-320, 1e-300, 1e300, 1.7e308, -1e308, "", " ", "0", "1", "nan", "inf", "-1", "1e5", "true", "null",
    "a", "a\0b", "é",
    "文", "\U0001f600", "\n", "../x", "/etc/passwd", "/dev/zero", "~", "a" * 5000, "%s%n{0}{x}$HOME",
    "file:///etc/passwd",
    [], [[]], [None], ["a"], [1, 2], [1.5] * 50, {}, {"a": 1}, {"": None}, {"__class__": "x", "__proto__": {}},
)  # fmt: skip
_NEW_KEYS = ("a", "", "name", "__class__", "x" * 300)
_BYTES = (
    b"\0", b"\0" * 512, b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\r\n", b"\n", b'"',
    b"'", b",", b";",
    b"\\", b"{", b"}", b"[" * 2000, b"9" * 5000, b"-", b"e9", b"\x1b[31m", b"\x80\x04\x95", b"#", b": ",
    b"&a [*a]", b"!!x ",
)  # fmt: skip


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(tree, dict):
        for key in tree:
            yield from _paths(tree[key], (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree[:20]):
            yield from _paths(value, (*path, index))


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _numbers_near(value: Any) -> tuple[Any, ...]:
    """Return what someone would type over a value: its neighbours, its negative, its text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return (str(value) + "x", [value], {"value": value})
    return (
        -value,
        value + 1,
        value - 1,
        value * 2,
        value * 1e6,
        value / 3,
        str(value),
        [value],
        value + 0.5,
        float(value),
    )


@st.composite
def changed_trees(draw: st.DrawFn, tree: Any) -> Any:
    """Draw plain data with one to three places changed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        path = draw(st.sampled_from(list(_paths(tree))))
        kind = draw(st.sampled_from(("value", "value", "near", "near", "raw", "delete", "add", "rename")))
        here = _at(tree, path)
        if kind == "add" and isinstance(here, dict):
            here[draw(st.sampled_from(_NEW_KEYS))] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
            continue
        if not path:
            tree = copy.deepcopy(draw(st.sampled_from(_VALUES))) if kind == "value" else tree
            continue
        holder, key = _at(tree, path[:-1]), path[-1]
        if kind == "delete":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[str(key)[:-1] + draw(st.sampled_from("xs_ "))] = holder.pop(key)
        elif kind == "near":
            holder[key] = copy.deepcopy(draw(st.sampled_from(_numbers_near(here))))
        elif kind == "raw":
            holder[key] = f"{_RAW}{draw(st.integers(0, len(_RAW_JSON) - 1))}\ue001"
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(_VALUES)))
    return tree


def write_json(tree: Any) -> bytes:
    """Return JSON of what `changed_trees` drew, with what is no JSON where it stands for that."""
    text = json.dumps(tree, ensure_ascii=False)
    for index, raw in enumerate(_RAW_JSON):
        text = text.replace(f'"{_RAW}{index}\ue001"', raw)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file's content, cut off, overwritten, doubled in part, or with bytes that do not belong there."""
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        size = len(changed)
        at = draw(st.integers(0, size))
        length = draw(st.sampled_from((1, 1, 2, 8, 64, 1024)))
        kind = draw(st.sampled_from(("cut", "flip", "insert", "insert", "overwrite", "remove", "double")))
        if kind == "cut":
            del changed[at:]
        elif kind == "flip" and at < size:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            changed[at:at] = draw(st.sampled_from(_BYTES))
        elif kind == "overwrite":
            changed[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "remove":
            del changed[at : at + length]
        else:
            changed[at:at] = changed[at : at + length]
    return bytes(changed)


def json_files(content: bytes) -> st.SearchStrategy[bytes]:
    """Draw the content of a JSON file that begins as `content`."""
    tree = json.loads(content)
    return st.one_of(changed_trees(tree).map(write_json), changed_trees(tree).map(write_json), damaged(content))


_YAML_VALUES = (
    "", "~", "yes", ".nan", ".inf", "-1", "0", "1e400", "9" * 5000, "1e-3", "'a", '"a', "[", "[]", "{}",
    "&a [*a]", "*a", "!!python/name:os.system",
    "!!float x", "!!binary aGk=", "2026-99-99", "0x_", "1:2:3", "|", ">-", "%", "@a", "`", "a: b", "- a",
    "? a", "\t", "[" * 500, "../..", "~root",
)  # fmt: skip

_YAML_KEYS = ("no", "1", "x" * 300, "é", "<<", "a b", "../x")


@st.composite
def _edited_yaml(draw: st.DrawFn, content: bytes) -> bytes:
    lines = content.decode().splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[at].partition(":")
        kind = draw(st.sampled_from(("value", "value", "value", "double", "indent", "key", "remove")))
        if kind == "value":
            lines[at] = f"{key}{colon} {draw(st.sampled_from(_YAML_VALUES))}"
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "indent":
            lines[at] = draw(st.sampled_from((" ", "  ", "\t", "- "))) + lines[at]
        elif kind == "key":
            lines[at] = lines[at].replace(
                key.strip(), draw(st.sampled_from(("no", "1", "x" * 300, "é", "<<", "a b", "../x"))), 1
            )
        elif len(lines) > 1:
            del lines[at]
    return "\n".join(lines).encode()


def yaml_files(content: bytes) -> st.SearchStrategy[bytes]:
    """Draw the content of a YAML file that begins as `content`."""
    return st.one_of(_edited_yaml(content), _edited_yaml(content), damaged(content))


_CELLS = (
    "", " ", "0", "-1", "1e400", "nan", "inf", "-inf", "9" * 5000, "1e-400", "7B", "70 M", "1,000", '"',
    '""', '"a', "a,b", "=1+1",
    "1_000", "0x10", "½", "\ufeff", "a\0b", "1e9999999999", "1.5T tokens", "--", "Ⅷ", "1" + "0" * 30, "é" * 3000,
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a CSV file that begins as `content`."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        kind = draw(st.sampled_from(("cell", "cell", "cell", "drop", "double", "remove")))
        if kind == "cell" and row:
            row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(_CELLS))
        elif kind == "drop" and row:
            row.pop()
        elif kind == "double":
            rows.insert(draw(st.integers(0, len(rows))), list(row))
        elif len(rows) > 1:
            rows.remove(row)
    newline = draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n")))
    return newline.join(",".join(row) for row in rows).encode()


def csv_files(content: bytes) -> st.SearchStrategy[bytes]:
    """Draw the content of a CSV file that begins as `content`."""
    return st.one_of(tables(content), tables(content), damaged(content))


# No path of the machine's own: a flag may name an output, and tests may run as root.
_WORDS = (
    "", " ", "-", "--", "---", "-1", "0", "1", "1e400", "nan", "inf", "1e21", "7B", "9" * 400, "a\0b",

    "?", "#", "%", "文", "\udcff", "=", "--=x", "-h x", "@file", "a" * 300,
    "true", "[1]", "{}", "-nan",
    "1e308FLOPs", "1e-320", "0x10", "1_0", "1e3tokens", "½",
)  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn, words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Draw a command line that begins as `words`, with other values, and other flags of the command."""
    line = list(words)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(line)))
        kind = draw(st.sampled_from(("value", "value", "flag", "flag", "remove", "double")))
        if kind == "value" and at < len(line):
            line[at] = draw(st.sampled_from(_WORDS))
        elif kind == "flag" and flags:
            line[at:at] = [draw(st.sampled_from(flags)), draw(st.sampled_from(_WORDS))]
        elif kind == "remove" and at < len(line):
            del line[at]
        elif kind == "double" and at < len(line):
            line.insert(at, line[at])
    return line
