"""Cleaning: what is repaired in a document, and which documents are dropped; every rule is named, on or off, counted.

A document is edited until no rule changes it any more, so what comes out satisfies every rule that is on, and
cleaning it again changes nothing.
"""

import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Rule(StrEnum):
    """What can be done to a document; docs/cleaning.md has the table."""

    MOJIBAKE = "mojibake"
    """Text that was decoded with the wrong encoding is decoded again; lone surrogates become U+FFFD."""
    NFC = "nfc"
    """Unicode normalisation form C: letter and accent become one character where there is one."""
    CONTROL_CHARACTERS = "control_characters"
    """C0, DEL, C1 and byte order marks go; tab and what breaks a line or page stays."""
    MIN_LENGTH = "min_length"
    """Documents shorter than `min_characters` are dropped, counted as SlimPajama counts."""
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


DEFAULT_RULES = frozenset({Rule.MOJIBAKE, Rule.NFC, Rule.CONTROL_CHARACTERS, Rule.MIN_LENGTH})
"""What is on unless the user says otherwise: SlimPajama's two steps, and control characters."""


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Which rules are on."""

    rules: frozenset[Rule] = DEFAULT_RULES
    min_characters: int = 200
    """Length below which `Rule.MIN_LENGTH` drops a document: characters without punctuation and repeated space."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A document after cleaning."""

    text: str | None
    """The text to keep; None where the document is dropped."""
    dropped_by: Rule | None = None
    """The rule that dropped the document."""
    counts: Mapping[Rule, int] = field(default_factory=dict)
    """What each rule changed: lines repaired or dropped, characters removed or composed, addresses replaced."""

    @property
    def changed_by(self) -> tuple[Rule, ...]:
        """The rules that changed the text, in the order of `Rule`."""
        return tuple(rule for rule in Rule if self.counts.get(rule))


_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Cleaner:
    """Cleans documents; picklable, one per worker process."""

    def __init__(self, config: CleaningConfig) -> None:
        self.config = config

    def __reduce__(self) -> tuple[type["Cleaner"], tuple[CleaningConfig]]:
        """Pickle by configuration."""
        return type(self), (self.config,)

    def clean(self, text: str) -> Cleaned:
        """Return the document cleaned, or that it is dropped and by which rule."""
        counts: dict[Rule, int] = {}
        rules = self.config.rules
        if Rule.NFC in rules:
            fixed = unicodedata.normalize("NFC", text)
            if fixed != text:
                text, counts[Rule.NFC] = fixed, 1
        if Rule.CONTROL_CHARACTERS in rules:
            text, removed = _CONTROL.subn("", text)
            if removed:
                counts[Rule.CONTROL_CHARACTERS] = removed
        if Rule.MIN_LENGTH in rules:
            plain = re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION).strip())
            if len(plain) < self.config.min_characters:
                return Cleaned(text=None, dropped_by=Rule.MIN_LENGTH, counts=counts)
        return Cleaned(text=text, counts=counts)
