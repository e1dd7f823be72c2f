"""Cleaning: rules that repair or drop documents; each has a name, can be on or off, and is counted.

A document is edited until no rule changes it, so the result satisfies every rule that is on, and
cleaning it again changes nothing.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeAlias

from chinchilla_ds.data import words
from chinchilla_ds.data.cleaning import pii, quality
from chinchilla_ds.errors import ConfigError


class Rule(StrEnum):
    """The cleaning rules; docs/cleaning.md has the table."""

    MOJIBAKE = "mojibake"
    """A document decoded with the wrong encoding, if all of it proves that, is decoded again."""
    FTFY = "ftfy"
    """ftfy repairs each suspicious line separately; clean text may be damaged."""
    NFC = "nfc"
    """Unicode normalisation form C: letter and accent become one character if there is one."""
    CONTROL_CHARACTERS = "control_characters"
    """C0, DEL, C1 and byte order marks are removed; tab and line and page breaks are kept."""
    MIN_LENGTH = "min_length"
    """Documents shorter than `min_characters` are dropped."""
    EMAIL = "email"
    """E-mail addresses become `|||EMAIL_ADDRESS|||`."""
    IP_ADDRESS = "ip_address"
    """Public IP addresses become `|||IP_ADDRESS|||`."""
    PHONE_NUMBER = "phone_number"
    """Telephone numbers become `|||PHONE_NUMBER|||`."""
    GOPHER = "gopher"
    """Documents that fail Gopher's quality and repetition rules are dropped (English; needs datatrove)."""
    C4 = "c4"
    """Lines and documents that fail C4's rules are dropped (English; needs datatrove)."""


DEFAULT_RULES = frozenset({Rule.MOJIBAKE, Rule.CONTROL_CHARACTERS, Rule.MIN_LENGTH})
"""The rules that are on by default: none of them changes clean text."""

CLEANING_VERSION = 2
"""Version of the rules and of the normalised form for comparison; part of the key of a prepared corpus."""

DEFAULT_MIN_CHARACTERS = 200
"""SlimPajama's minimum length (Soboleva et al. 2023)."""

Edit: TypeAlias = Callable[[str], tuple[str | None, int]]
"""Returns the changed text, or None to drop it, and the number of changes, as `re.subn` does."""

Test: TypeAlias = Callable[[str], bool]
"""Returns whether a text is kept."""


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Which rules are on."""

    rules: frozenset[Rule] = DEFAULT_RULES
    min_characters: int = DEFAULT_MIN_CHARACTERS
    """Length below which `Rule.MIN_LENGTH` drops a document, as `words.length` counts."""

    def __post_init__(self) -> None:
        """Check the length.

        Raises:
            ConfigError: it is negative, or set while the rule is off.
        """
        if self.min_characters < 0:
            raise ConfigError(f"the shortest length is {self.min_characters} characters; 0 keeps all documents")
        if self.min_characters != DEFAULT_MIN_CHARACTERS and Rule.MIN_LENGTH not in self.rules:
            raise ConfigError(
                f"the shortest length is set to {self.min_characters} characters and the cleaning rule"
                f" {Rule.MIN_LENGTH} is off; turn it on, or leave the length out"
            )

    def describe(self, rule: str, /) -> str:
        """Return a rule's name with its settings, for messages."""
        if rule != Rule.MIN_LENGTH:
            return rule
        return (
            f"{rule} (fewer than {self.min_characters} characters, where one of a script without spaces counts as"
            f" {words.UNIT_CHARACTERS}; `prepare.min_characters` sets it)"
        )


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A document after cleaning."""

    text: str | None
    """The text to keep; None if the document is dropped."""
    dropped_by: Rule | None = None
    """The rule that dropped the document."""
    counts: Mapping[Rule, int] = field(default_factory=dict)
    """Changes by rule: lines repaired or dropped, characters removed or composed, addresses replaced."""

    @property
    def changed_by(self) -> tuple[Rule, ...]:
        """The rules that changed the text, in the order of `Rule`."""
        return tuple(rule for rule in Rule if self.counts.get(rule))


_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
"""C0, DEL, C1 and the byte order mark, except Unicode's line and page breaks, LF, VT, FF, CR and NEL, and tab."""

_MAX_PASSES = 100
"""A bound, so that no text can stall a worker; each pass undoes one layer, and real text has one or two."""


class Cleaner:
    """Cleans documents; picklable, one per worker process."""

    def __init__(self, config: CleaningConfig) -> None:
        """Load the modules that the rules need.

        Raises:
            ConfigError: a rule needs a package that is not installed.
        """
        self.config = config
        self._edits = [(rule, load()) for rule, load in _EDITS.items() if rule in config.rules]
        self._tests = [(rule, load(config)) for rule, load in _TESTS.items() if rule in config.rules]

    def __reduce__(self) -> tuple[type["Cleaner"], tuple[CleaningConfig]]:
        """Pickle by configuration."""
        return type(self), (self.config,)

    def clean(self, text: str) -> Cleaned:
        """Return the cleaned document, or the rule that drops it."""
        counts: dict[Rule, int] = {}
        for _ in range(_MAX_PASSES):
            before = text
            for rule, edit in self._edits:
                edited, count = edit(text)
                if edited is None:
                    return Cleaned(text=None, dropped_by=rule, counts=counts)
                text = edited
                if count:
                    counts[rule] = counts.get(rule, 0) + count
            if text == before:
                break
        dropped_by = next((rule for rule, passes in self._tests if not passes(text)), None)
        return Cleaned(text=None if dropped_by else text, dropped_by=dropped_by, counts=counts)


def is_long_enough(text: str, *, min_characters: int) -> bool:
    """Return whether a text has `min_characters` characters, as `words.length` counts.

    A prefix is never longer than the whole text, so a short prefix is enough for most texts.
    """
    size = 2 * min_characters
    while words.length(text[:size]) < min_characters:
        if size >= len(text):
            return False
        size *= 4
    return True


def _compose(text: str) -> tuple[str, int]:
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text, 0
    return unicodedata.normalize("NFC", text), 1


def _remove_control_characters(text: str) -> tuple[str, int]:
    return _CONTROL.subn("", text) if _CONTROL.search(text) else (text, 0)


def _load_mojibake() -> Edit:
    from chinchilla_ds.data.cleaning import mojibake

    return mojibake.repair


def _load_ftfy() -> Edit:
    from chinchilla_ds.data.cleaning import mojibake

    return mojibake.repair_lines


def _load_gopher(config: CleaningConfig) -> Test:
    del config
    return quality.gopher()


def _load_min_length(config: CleaningConfig) -> Test:
    return partial(is_long_enough, min_characters=config.min_characters)


_EDITS: Mapping[Rule, Callable[[], Edit]] = {
    Rule.MOJIBAKE: _load_mojibake,
    Rule.FTFY: _load_ftfy,
    Rule.CONTROL_CHARACTERS: lambda: _remove_control_characters,
    Rule.NFC: lambda: _compose,
    Rule.EMAIL: lambda: pii.replace_emails,
    Rule.IP_ADDRESS: lambda: pii.replace_ip_addresses,
    Rule.PHONE_NUMBER: lambda: pii.replace_phone_numbers,
    Rule.C4: quality.c4,
}
"""The rules that change a text, applied in this order until none does."""

_TESTS: Mapping[Rule, Callable[[CleaningConfig], Test]] = {Rule.MIN_LENGTH: _load_min_length, Rule.GOPHER: _load_gopher}
"""The rules that a text must pass after all changes, cheapest first."""
