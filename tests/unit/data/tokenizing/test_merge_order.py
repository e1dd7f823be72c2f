"""Merges in SentencePiece's order: by brute force on small vocabularies, tied scores among them."""

import itertools
import random

import pytest

from chinchilla_ds.data.tokenizing.merge_order import TiedScoresError, merged, merges_of


def by_rank(text, ranks):
    """What `tokenizers` does: the pair of the lowest rank, of equal ones the leftmost."""
    symbols = list(text)
    while True:
        found = [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        place = min(found)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def random_scores(generator, *, alphabet, levels):
    pieces = {"".join(generator.choices(alphabet, k=generator.randint(2, 5))) for _ in range(generator.randint(1, 8))}
    return {piece: float(-generator.randrange(levels)) for piece in sorted(pieces)}


def all_texts(alphabet, longest):
    return ["".join(text) for length in range(longest + 1) for text in itertools.product(alphabet, repeat=length)]


@pytest.mark.parametrize(
    ("alphabet", "longest", "levels"), [("ab", 9, 3), ("ab", 9, 1000), ("abc", 6, 4), ("a", 60, 2)]
)
def test_what_is_not_refused_is_exact(alphabet, longest, levels):
    generator, texts, exact = random.Random(3), all_texts(alphabet, longest), 0
    for _ in range(120):
        scores = random_scores(generator, alphabet=alphabet, levels=levels)
        try:
            ranks = {pair: rank for rank, pair in enumerate(merges_of(scores))}
        except TiedScoresError:
            assert len(set(scores.values())) < len(scores), "different scores are never refused"
            continue
        exact += 1
        wrong = [
            text
            for text in generator.sample(texts, min(150, len(texts)))
            if merged(text, scores) != by_rank(text, ranks)
        ]
        assert wrong == [], scores
    assert exact > 30, "most of them can be put in an order"


def test_every_piece_has_the_one_merge_that_can_make_it():
    scores = {"ab": -1.0, "bc": -2.0, "abc": -3.0, "cd": -4.0, "bcd": -5.0, "xyz": -6.0}
    assert merges_of(scores) == [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "d"), ("bc", "d")]


def test_runs_of_spaces_with_one_score_as_llama_has_them():
    lengths = [*range(2, 15), 16]
    scores = {"\u2581" * length: -1e9 for length in lengths} | {"\u2581a": -1.0}
    merges = merges_of(scores)
    assert merges[:3] == [("\u2581", "a"), ("\u2581" * 14, "\u2581" * 2), ("\u2581" * 13, "\u2581")]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for length in range(200):
        for text in ("\u2581" * length, "\u2581" * length + "a", "x" + "\u2581" * length + "x"):
            assert by_rank(text, ranks) == merged(text, scores)
    shortest_first = {pair: -rank for pair, rank in ranks.items()}
    text = "\u2581" * 40
    assert by_rank(text, shortest_first) != merged(text, scores), "control: the order matters"


def test_pieces_of_one_score_that_compete_are_named():
    with pytest.raises(TiedScoresError, match="the pieces 'ab' and 'bc' compete"):
        merges_of({"ab": 0.0, "bc": 0.0})
    assert merges_of({"ab": 0.0, "cd": 0.0}) == [("a", "b"), ("c", "d")], "these never meet"
