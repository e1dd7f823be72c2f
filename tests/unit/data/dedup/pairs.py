"""Pairs of texts whose Jaccard index of shingles is known exactly, and real text that is always there."""

import random
import sysconfig
from pathlib import Path

from chinchilla_ds.data.dedup.bands import MinHashConfig, Unit

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_pair(
    *, jaccard: float, config: MinHashConfig, generator: random.Random, shingles: int = 180
) -> tuple[str, str]:
    """Two texts of as many shingles each, of which they share the first so many: J = shared / (2 shingles - shared).

    Units are drawn so that shingles are all different but for those shared (words of 8 random letters; random letters).
    """
    shared = round(2 * shingles * jaccard / (1 + jaccard))
    length, common = shingles + config.shingle_size - 1, shared + config.shingle_size - 1

    def units(number: int) -> list[str]:
        letters = generator.choices(LETTERS, k=number * (8 if config.unit is Unit.WORD else 1))
        if config.unit is Unit.CHARACTER:
            return letters
        return ["".join(letters[8 * i : 8 * i + 8]) for i in range(number)]

    start = units(common) if shared else []
    glue = " " if config.unit is Unit.WORD else ""
    first, second = (start + units(length - len(start)) for _ in range(2))
    if config.unit is Unit.CHARACTER and len(start) < length:
        first[len(start)], second[len(start)] = "1", "2"  # lest the texts agree one letter longer by chance
    return glue.join(first), glue.join(second)


def exact_jaccard(first: str, second: str, *, config: MinHashConfig) -> float:
    """The naive way: sets of strings."""
    sets = []
    for text in (first, second):
        units = text.split() if config.unit is Unit.WORD else list(text)
        size = config.shingle_size
        sets.append({tuple(units[i : i + size]) for i in range(len(units) - size + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def real_texts(*, number: int, characters: int = 2000) -> list[str]:
    """Pieces of the standard library's source."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        content = path.read_text(encoding="utf-8")
        texts += [content[i : i + characters] for i in range(0, len(content) - characters, characters)]
        if len(texts) >= number:
            break
    return texts[:number]
