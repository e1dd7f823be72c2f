"""Whether the runs of a table may be compared: one tokenizer, unless losses are per byte, and one held-out text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run's loss was measured with."""

    name: str
    """The run."""
    tokenizer_hash: str = ""
    """Empty if it is not recorded."""
    held_out_hash: str = ""
    """Empty if it is not recorded."""


def mixture_problems(origins: Sequence[Origin], /, *, per_byte: bool) -> Iterator[str]:
    """Yield why the losses cannot be compared: both runs and both hashes of a difference.

    Args:
        origins: One for each run.
        per_byte: Whether losses are per byte, which makes different tokenizers comparable.
    """
    if not per_byte and (pair := _different([(run.name, run.tokenizer_hash) for run in origins])):
        first, other = pair
        yield (
            f"{first[0]} has the tokenizer {first[1]} and {other[0]} {other[1]}: losses per token of different "
            "tokenizers cannot be compared. `unit=byte` fits them per byte; or fit the runs of one tokenizer"
        )
    if pair := _different([(run.name, run.held_out_hash) for run in origins]):
        first, other = pair
        yield (
            f"{first[0]} was evaluated on the held-out text {first[1]} and {other[0]} on {other[1]}: losses on "
            "different text cannot be compared. Evaluate them on one text (`evaluate.data=FOLDER`) "
            "and give a table with those losses; or fit the runs of one text"
        )


def unknown_notes(origins: Sequence[Origin], /, *, per_byte: bool) -> Iterator[str]:
    """Yield how many runs have no hash where others have one: that they are comparable is then assumed.

    Args:
        origins: One for each run.
        per_byte: Whether losses are per byte.
    """
    for what, hashes in (
        ("tokenizer", [] if per_byte else [run.tokenizer_hash for run in origins]),
        ("held-out text", [run.held_out_hash for run in origins]),
    ):
        missing = sum(not text for text in hashes)
        if 0 < missing < len(hashes):
            yield f"{missing} of {len(hashes)} runs do not say which {what} they have: assumed to be that of the others"


def _different(hashes: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Return the first named run with a hash, and the first with another one."""
    known = [(name, text) for name, text in hashes if text]
    other = next(((name, text) for name, text in known if text != known[0][1]), None)
    return None if other is None else (known[0], other)
