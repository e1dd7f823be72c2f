"""The merges that make `tokenizers` join characters in exactly SentencePiece's order.

SentencePiece merges the two neighbours whose union has the best score (the leftmost if equal), whatever the two pieces
are. `tokenizers` merges the pair with the lowest rank (the leftmost if equal), and every pair has its own rank. Where
scores differ, the two agree if each piece is given a single merge, the one that can occur:

When two neighbours are merged, no earlier merge has crossed their outer ends, so the merges inside them are the first
merges of their union on its own. That process is deterministic and passes through exactly one state of two symbols. So
the last merge of a piece on its own is the only one that produces it anywhere.

What remains are different pieces with equal scores, of which SentencePiece merges the leftmost. They are harmless if
they never compete. If they do, only runs of one character are known to have an equivalent order, longer ones first
(Llama 2 and Mistral have the same score for all runs of spaces); that order is compared with SentencePiece's on runs of
every length up to three times the longest piece, beyond which the process repeats.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

Merge = tuple[str, str]


class TiedScoresError(ValueError):
    """Pieces with equal scores compete, and no order of merges reproduces SentencePiece's."""


def merges_of(scores: Mapping[str, float], /) -> list[Merge]:
    """Return the merges in order of their rank.

    Args:
        scores: Score of every piece of two characters or more that text can become by merging.

    Raises:
        TiedScoresError: no list of merges is equivalent to the scores.
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
    """Return the merge that completes a piece on its own; None if merging never produces it."""
    symbols = merged(piece, scores, until=2)
    return (symbols[0], symbols[1]) if len(symbols) == 2 else None


def merged(text: str, scores: Mapping[str, float], *, until: int = 1) -> list[str]:
    """Return the symbols to which SentencePiece merges a text, stopping at `until` symbols.

    Args:
        text: the text to merge.
        scores: score of every piece of two characters or more.
        until: number of symbols at which merging stops.
    """
    symbols: list[str] = list(text)
    while len(symbols) > until:
        candidates = [
            (scores[union], -place)
            for place in range(len(symbols) - 1)
            if (union := symbols[place] + symbols[place + 1]) in scores
        ]
        if not candidates:
            break
        place = -max(candidates)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return symbols


# ---- pieces of equal score
# ---------------------------------------------------------------------------------------------


def _check_tied(
    group: list[str],
    last: Mapping[str, Merge],
    scores: Mapping[str, float],
    *,
    parts: Mapping[str, list[str]],
    runs: Mapping[str, list[str]],
) -> None:
    """Check that pieces of equal score never compete, or are runs of a character that can be ordered."""
    repeated = {piece[0] for piece in group if len(set(piece)) == 1}
    whole = {character for character in repeated if len({scores[piece] for piece in runs[character]}) == 1}
    for character in whole:
        _check_runs(character, lengths=frozenset(map(len, runs[character])))

    def known(first: str, second: str) -> bool:
        return first[0] in whole and set(first) == set(second) and len(set(first)) == 1

    for piece in group:
        for other in parts[piece]:  # a piece that this one completes is merged at once, before anything further left
            if scores[other] >= scores[piece] and not known(piece, other):
                raise _tied(piece, other)
    by_left: dict[str, list[str]] = defaultdict(list)
    for piece in group:
        by_left[last[piece][0]].append(piece)
    for piece in group:
        left, middle = last[piece]
        for other in by_left[middle]:
            if other != piece and not known(piece, other) and _can_meet(left, middle, last[other][1], scores):
                raise _tied(piece, other)


def _tied(first: str, second: str) -> TiedScoresError:
    return TiedScoresError(
        f"the pieces {first!r} and {second!r} compete, and SentencePiece decides by their position alone"
    )


def _can_meet(left: str, middle: str, right: str, scores: Mapping[str, float]) -> bool:
    return merged(left + middle + right, scores, until=3) == [left, middle, right]


def _check_runs(character: str, *, lengths: frozenset[int]) -> None:
    """Compare both ways to merge runs of one character, step by step."""
    for length in range(2, 3 * max(lengths) + 4):
        if list(_steps(length, lengths, longest_first=False)) != list(_steps(length, lengths, longest_first=True)):
            raise TiedScoresError(f"runs of {character!r} of equal score cannot be ordered")


def _steps(length: int, lengths: frozenset[int], *, longest_first: bool) -> Iterator[int]:
    """Yield the positions at which a run is merged: the leftmost first, or the one that gives the longest piece."""
    symbols = [1] * length
    while True:
        sums = [(symbols[place] + symbols[place + 1], place) for place in range(len(symbols) - 1)]
        candidates = [(-size if longest_first else 0, place) for size, place in sums if size in lengths]
        if not candidates:
            return
        place = min(candidates)[1]
        yield place
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
