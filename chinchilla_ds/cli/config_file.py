"""`--config run.yaml`: a YAML file whose keys are flags. A flag on the command line overrides its key."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import ConfigError, did_you_mean
from chinchilla_ds.structured import read_yaml

CONFIG_FLAG = "--config"
_NO_KEYS = ("--help", CONFIG_FLAG)


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The flags in a file."""

    path: Path | None = None
    words: Sequence[str] = ()
    """As written on the command line."""

    def place_of(self, problem: str) -> str:
        """Return `run.yaml: ` before a problem that starts with a flag of the file, otherwise the empty string."""
        flag = problem.split(":")[0].split("/")[0]
        given = {word.split("=")[0] for word in self.words}
        return f"{self.path}: " if flag in given else ""


def flags_of(parser: argparse.ArgumentParser, /) -> list[argparse.Action]:
    """Return the flags of a parser, without alternative names, which have no help text."""
    return [action for action in parser._actions if action.option_strings and action.help is not argparse.SUPPRESS]


def take_config(words: Sequence[str], /, *, flags: Sequence[argparse.Action]) -> tuple[ConfigFile, list[str]]:
    """Return the flags in the file that `--config` names, and the command line without `--config`.

    Args:
        words: The command line.
        flags: The flags of the command.

    Raises:
        ConfigError: the file cannot be read, or holds unknown flags or invalid values; lists all of them.
    """
    path, rest = _named_file(words)
    if path is None:
        return ConfigFile(), rest
    values = read_yaml(path, what="config")
    if values is None:
        return ConfigFile(path=path), rest
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} must be a mapping of flags to values, such as `flops: 1e21`")
    known = {_plain(option): flag for flag in flags for option in flag.option_strings if option.startswith("--")}
    known = {name: flag for name, flag in known.items() if f"--{name}" not in _NO_KEYS}
    given = {known.get(_plain(word.split("=")[0])) for word in rest if word.startswith("--")}
    problems: list[str] = []
    from_file: list[str] = []
    seen: dict[argparse.Action, str] = {}
    for key, value in values.items():
        flag = known.get(_plain(key))
        if flag is None:
            problems.append(f"{path}: {key} is not a flag{did_you_mean(key, known)}")
        elif flag in seen:
            problems.append(f"{path}: {key} and {seen[flag]} are the same flag; keep one of them")
        else:
            seen[flag] = key
            if flag not in given:
                from_file += _as_words(flag, value, where=f"{path}: {key}", problems=problems)
    if problems:
        raise ConfigError(problems)
    return ConfigFile(path=path, words=from_file), rest


def _named_file(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the file that `--config` names, and the other words; argparse reports a bare flag."""
    path, rest = None, []
    left: Iterator[str] = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name != CONFIG_FLAG:
            rest.append(word)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"{CONFIG_FLAG} needs the name of a YAML file")
        if path is not None:
            raise ConfigError(f"{CONFIG_FLAG} is given twice, with {path} and {value}; one file holds all flags")
        path = Path(value)
    return path, rest


def _plain(option: str) -> str:
    return option.removeprefix("--").replace("_", "-")


def _as_words(flag: argparse.Action, value: Any, *, where: str, problems: list[str]) -> list[str]:
    """Return a key and its value as words of a command line."""
    option = flag.option_strings[0]
    if flag.nargs == 0:  # a switch
        if not isinstance(value, bool):
            problems.append(f"{where} is {value!r}; it must be true or false")
            return []
        off = [name for name in flag.option_strings if name.startswith("--no-")]
        return [option] if value else off[:1]
    several = flag.nargs in ("+", "*") or isinstance(flag, argparse._AppendAction)
    items = value if isinstance(value, list) and several else [value]
    if None in items:
        problems.append(f"{where} has no value; leave it out for the default")
        return []
    if bad := [item for item in items if isinstance(item, bool | Mapping | list)]:
        problems.append(
            f"{where} is {bad[0]!r}; it must be {'a value or a list of values' if several else 'one value'}"
        )
        return []
    texts = [str(item) for item in items]
    if flag.nargs in ("+", "*"):
        if dashed := [text for text in texts if text.startswith("-")]:
            problems.append(f"{where} is {dashed[0]!r}, which begins with a dash; write ./{dashed[0]} for a file")
            return []
        return [option, *texts] if texts else []
    return [f"{option}={text}" for text in texts]
