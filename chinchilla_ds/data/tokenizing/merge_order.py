"""The merges that make `tokenizers` join characters in the very order in which SentencePiece does.

SentencePiece takes the two neighbours whose union has the best score, of equal ones the leftmost, whichever pieces the
two are. `tokenizers` takes the pair with the lowest rank, of equal ones the leftmost, and every pair has a rank of its
own. Both are the same wherever scores differ, if each piece is given one merge, the one that can occur:

No merge has crossed the ends of two neighbours so far, so what happened between them is what happens first when their
union stands alone. That process is deterministic, and passes through one state of two symbols. So the last merge of a
piece that stands alone is the only one that makes it anywhere.

What is left are different pieces of one score, of which SentencePiece takes the leftmost. They do no harm where they
never meet. Where they do, only runs of one character are known to have an order that does the same, longer ones first
(Llama 2 and Mistral have one score for all runs of spaces); it is compared with SentencePiece's on runs of every length
up to thrice the longest piece, beyond which the process repeats itself.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

Merge = tuple[str, str]


class TiedScoresError(ValueError):
    """Pieces of one score meet, and no order of merges does what SentencePiece does."""


def merges_of(scores: Mapping[str, float], /) -> list[Merge]:
    """Return the merges in order, the first to be made first.

    Args:
        scores: Of every piece of two characters or more that text can become by merging.

    Raises:
        TiedScoresError: no list of merges can do what the scores say.
    """
    last = {piece: merge for piece in scores if (merge := _last_merge(piece, scores)) is not None}
    tied: dict[float, list[str]] = defaultdict(list)
    for piece in last:
        tied[scores[piece]].append(piece)
    parts: dict[str, list[str]] = defaultdict(list)
    for piece, merge in last.items():
        for part in merge:
            parts[part].append(piece)
    runs: dict[str, list[str]] = defaultdict(list)
    for piece in scores:
        if len(set(piece)) == 1:
            runs[piece[0]].append(piece)
    for group in tied.values():
        if len(group) > 1:
            _check_tied(group, last, scores, parts=parts, runs=runs)
    return [last[piece] for piece in sorted(last, key=lambda piece: (-scores[piece], -len(piece), piece))]


def _last_merge(piece: str, scores: Mapping[str, float]) -> Merge | None:
    """Return the merge that completes a piece that stands alone; None where it never gets there."""
    symbols = merged(piece, scores, until=2)
    return (symbols[0], symbols[1]) if len(symbols) == 2 else None


def merged(text: str, scores: Mapping[str, float], *, until: int = 1) -> list[str]:
    """Return the symbols that SentencePiece's merging leaves of a text, or the first `until` at which it arrives."""
    symbols: list[str] = list(text)
    while len(symbols) > until:
        found = [
            (scores[union], -place)
            for place in range(len(symbols) - 1)
            if (union := symbols[place] + symbols[place + 1]) in scores
        ]
        if not found:
            break
        place = -max(found)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return symbols


# ---- pieces of one score ---------------------------------------------------------------------------------------------


def _check_tied(
    group: list[str],
    last: Mapping[str, Merge],
    scores: Mapping[str, float],
    *,
    parts: Mapping[str, list[str]],
    runs: Mapping[str, list[str]],
) -> None:
    """Check that pieces of one score never meet, or are runs of a character that can be put in order."""
    repeated = {piece[0] for piece in group if len(set(piece)) == 1}
    whole = {character for character in repeated if len({scores[piece] for piece in runs[character]}) == 1}
    for character in whole:
        _check_runs(character, lengths=frozenset(map(len, runs[character])))

    def known(one: str, other: str) -> bool:
        return one[0] in whole and set(one) == set(other) and len(set(one)) == 1

    for one in group:
        for other in parts[one]:  # it is a part of a piece that is made at once, before what stands further left
            if scores[other] >= scores[one] and not known(one, other):
                raise _tied(one, other)
    by_left: dict[str, list[str]] = defaultdict(list)
    for piece in group:
        by_left[last[piece][0]].append(piece)
    for one in group:
        left, middle = last[one]
        for other in by_left[middle]:
            if other != one and not known(one, other) and _can_meet(left, middle, last[other][1], scores):
                raise _tied(one, other)


def _tied(one: str, other: str) -> TiedScoresError:
    return TiedScoresError(f"the pieces {one!r} and {other!r} compete where SentencePiece goes by their place alone")


def _can_meet(left: str, middle: str, right: str, scores: Mapping[str, float]) -> bool:
    return merged(left + middle + right, scores, until=3) == [left, middle, right]


def _check_runs(character: str, *, lengths: frozenset[int]) -> None:
    """Compare both ways to merge runs of one character, step by step."""
    for length in range(2, 3 * max(lengths) + 4):
        if list(_steps(length, lengths, longest_first=False)) != list(_steps(length, lengths, longest_first=True)):
            raise TiedScoresError(f"runs of {character!r} of one score cannot be put in an order")


def _steps(length: int, lengths: frozenset[int], *, longest_first: bool) -> Iterator[int]:
    """Yield the places at which a run is merged: the leftmost first, or where the longest piece comes of it."""
    symbols = [1] * length
    while True:
        sums = [(symbols[place] + symbols[place + 1], place) for place in range(len(symbols) - 1)]
        found = [(-size if longest_first else 0, place) for size, place in sums if size in lengths]
        if not found:
            return
        place = min(found)[1]
        yield place
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
