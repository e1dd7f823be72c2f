"""Shingles and signatures: against naive ways, by measurement of the estimate and the bands, and a fixed value."""

import random
import re
import string
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from chinchilla_ds.data.dedup import minhash, shingles
from chinchilla_ds.data.dedup.bands import PRESETS, MinHashConfig, Unit
from chinchilla_ds.data.dedup.minhash import agreeing, band_keys, signatures
from chinchilla_ds.data.dedup.shingles import normalise, pieces, shingle_hashes
from tests.unit.data.dedup.pairs import exact_jaccard, make_pair, real_texts
from tests.unit.data.dedup.probabilities import detection_probability

EVERY_CHARACTER = [
    chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cs", "Cn")
]
ODD_TEXTS = ["", " \n", "a", "...", "one two", "数据 科学", "🙂" * 40, "x" * 30, "a b " * 30, "Tab\tand\u00a0space"]


UNSPACED = (
    *(
        "CJK",
        "IDEOGRAPHIC",
        "HIRAGANA",
        "KATAKANA",
        "HENTAIGANA",
        "VERTICAL KANA",
        "VERTICAL IDEOGRAPHIC",
        "HANGZHOU",
        "MASU",
        "BOPOMOFO",
        "YI",
    ),
    *(
        "THAI",
        "LAO",
        "TIBETAN",
        "MYANMAR",
        "KHMER",
        "TAI",
        "NEW TAI",
        "BALINESE",
        "JAVANESE",
        "AHOM",
        "TANGUT",
        "NUSHU",
    ),
    *(
        "KHITAN",
        "OLD CHINESE",
        "VIETNAMESE ALTERNATE",
        "HALFWIDTH KATAKANA",
        "COMBINING KATAKANA",
        "HANGUL SINGLE DOT",
        "HANGUL DOUBLE DOT",
    ),
)
"""How the names of characters begin that belong to scripts without spaces, and of two marks that stand among them."""


def is_unspaced(character: str, *categories: str) -> bool:
    unnamed = "TANGUT" if 0x17000 <= ord(character) < 0x18D80 else ""  # Python has no names for them
    name = unicodedata.name(character, unnamed)
    return unicodedata.category(character).startswith(categories) and name.startswith(UNSPACED)


def lowered(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def slimpajama_normalise(text: str) -> str:
    """get_features of SlimPajama's to_hash.py before the n-grams, for all scripts, character by character."""
    kept = "".join(
        c for c in lowered(text) if c not in string.punctuation and unicodedata.category(c)[0] != "P" and visible(c)
    )
    single = " " + re.sub(r"\s+", " ", kept.strip()) + " "
    return "".join(
        character
        for before, character, after in zip(single, single[1:], single[2:], strict=False)
        if character != " " or not (is_unspaced(before, "Lo", "Lm", "Nl", "M") or is_unspaced(after, "Lo", "Lm", "Nl"))
    )


def visible(character: str) -> bool:
    return unicodedata.category(character) != "Cf"


def fineweb_normalise(text: str) -> str:
    """Character by character, with no table and no shortcut for ASCII."""
    kept, in_unit = "", False
    for character in re.sub(r"\d+([.,]\d+)?", "0", lowered(text)):
        category = unicodedata.category(character)
        if category == "Cf":
            continue
        selects = "\u0300" <= character <= "\u036f" or unicodedata.name(character, "").startswith("VARIATION SELECTOR-")
        goes_on = in_unit and (selects or is_unspaced(character, "M"))
        starts = is_unspaced(character, "Lo", "Lm", "Nl")
        kept += " " if starts or (in_unit and not goes_on) else ""
        in_unit = starts or goes_on
        kept += " " if category[0] == "P" or category == "Cc" or character in "$+<=>^`|~" else character
    bare = "".join(c for c in unicodedata.normalize("NFD", kept) if unicodedata.category(c) != "Mn")
    return re.sub(r"\s+", " ", bare.strip())


@pytest.mark.parametrize(("unit", "naive"), [(Unit.CHARACTER, slimpajama_normalise), (Unit.WORD, fineweb_normalise)])
def test_normalisation_matches_the_naive_one_on_every_character(unit: Unit, naive) -> None:  # type: ignore[no-untyped-def]
    generator = random.Random(0)
    shuffled = generator.sample(EVERY_CHARACTER, k=len(EVERY_CHARACTER))
    texts = ["w" + "".join(shuffled[i : i + 400]) for i in range(0, len(shuffled), 400)]
    texts += ["A  b\t\nC", "1.5 and 1,000,000 in 2024", "don't", "x_y", *real_texts(number=50)]
    assert [normalise(text, unit=unit) for text in texts] == [naive(text) for text in texts]


def test_what_has_only_punctuation_is_kept_as_it_is() -> None:
    assert normalise(" !? \n ...", unit=Unit.CHARACTER) == "!? ..."
    assert normalise(" \n ", unit=Unit.WORD) == ""


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_shingle_hashes_are_equal_where_the_shingles_are(unit: Unit, size: int) -> None:
    texts = [normalise(text, unit=unit) for text in (*ODD_TEXTS, *real_texts(number=20))]
    hashes, offsets = shingle_hashes(texts, unit=unit, size=size)
    owner: dict[int, tuple[str, ...]] = {}
    distinct = set()
    for index, text in enumerate(texts):
        units = text.split(" ") if unit is Unit.WORD and text else list(text)
        naive = [tuple(units[i : i + size]) for i in range(max(len(units) - size + 1, min(len(units), 1)))]
        mine = hashes[offsets[index] : offsets[index + 1]].tolist()
        assert len(mine) == len(naive)
        assert all(owner.setdefault(value, shingle) == shingle for value, shingle in zip(mine, naive, strict=True))
        distinct |= set(naive)
    assert len(owner) == len(distinct)


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("length", [0, 3, 4, 5, 10, 11, 12, 50])
def test_pieces_have_exactly_the_shingles_of_the_text(unit: Unit, length: int) -> None:
    letters = [chr(ord("a") + i % 26) * (1 + i // 26) for i in range(length)]
    text = (" " if unit is Unit.WORD else "").join(letters)
    parts = list(pieces(text, unit=unit, size=4, units=7))
    whole, _ = shingle_hashes([text], unit=unit, size=4)
    cut, _ = shingle_hashes(parts, unit=unit, size=4)
    assert set(cut.tolist()) == set(whole.tolist())
    assert len(cut) == len(whole)


@pytest.mark.parametrize("name", PRESETS)
def test_a_text_gives_the_same_keys_in_any_batch_and_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ODD_TEXTS + real_texts(number=30, characters=5000)
    expected = band_keys(texts, config=PRESETS[name])
    assert expected.shape == (len(texts), PRESETS[name].num_columns)
    one_by_one = [band_keys([text], config=PRESETS[name])[0] for text in texts]
    assert np.array_equal(expected, one_by_one)
    monkeypatch.setattr(minhash, "BLOCK_UNITS", 64)
    assert np.array_equal(expected, band_keys(texts, config=PRESETS[name]))
    assert np.array_equal(expected[::-1], band_keys(texts[::-1], config=PRESETS[name]))


@pytest.mark.parametrize("name", PRESETS)
def test_a_text_too_short_for_a_shingle_is_like_its_equals_only(name: str) -> None:
    config = PRESETS[name]
    texts = ["Two words", "two  WORDS!", "two", "two words x", "???", "!!!", "", "\n"]
    bands = band_keys(texts, config=config)[:, : config.bands]
    same = (bands[:, None] == bands[None]).any(axis=2)
    expected = np.eye(len(texts), dtype=bool)
    expected[0, 1] = expected[1, 0] = expected[6, 7] = expected[7, 6] = True
    assert np.array_equal(same, expected)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("jaccard", [0.5, 0.8, 0.95])
def test_the_estimate_is_unbiased_and_bands_collide_as_the_formula_says(name: str, jaccard: float) -> None:
    config, generator, number = PRESETS[name], random.Random(1), 1500
    made = [make_pair(jaccard=jaccard, config=config, generator=generator) for _ in range(number)]
    exact = [exact_jaccard(*pair, config=config) for pair in made[:50]]
    assert max(exact) == min(exact) == pytest.approx(jaccard, abs=0.006)
    first, second = (signatures([pair[side] for pair in made], config=config) for side in (0, 1))
    agree = first == second
    deviation = np.sqrt(exact[0] * (1 - exact[0]) / (number * config.num_permutations))
    assert agree.mean() == pytest.approx(exact[0], abs=4 * deviation)
    per_function = agree.mean(axis=0)  # no hash function that is off on its own
    assert np.abs(per_function - exact[0]).max() < 5 * np.sqrt(exact[0] * (1 - exact[0]) / number)
    first, second = (band_keys([pair[side] for pair in made], config=config) for side in (0, 1))
    found = (first[:, : config.bands] == second[:, : config.bands]).any(axis=1)
    banded = agree[:, : config.bands * config.rows].reshape(number, config.bands, config.rows)
    assert np.array_equal(found, banded.all(axis=2).any(axis=1))
    assert found.mean() == pytest.approx(detection_probability(config, exact[0]), abs=0.05)
    counted = agreeing(first, second, config=config)
    assert (counted >= agree.sum(axis=1)).all()
    assert (counted - agree.sum(axis=1)).mean() < 1  # of 128, by chance equal in a byte


def test_another_seed_gives_other_keys() -> None:
    one, other = (
        MinHashConfig(unit=Unit.WORD, shingle_size=5, num_permutations=16, bands=4, rows=4, seed=seed)
        for seed in (1, 2)
    )
    text = real_texts(number=1)
    assert not np.intersect1d(band_keys(text, config=one)[:, :4], band_keys(text, config=other)[:, :4]).size


GOLDEN = {"slimpajama": "73460ea3cfa9b2b9", "fineweb": "f8f79e738803bfe5"}
"""What another process, platform or version must give too; a change here makes old band keys useless."""


@pytest.mark.parametrize("name", PRESETS)
def test_keys_are_the_same_in_every_process_and_version(name: str) -> None:
    code = (
        "from chinchilla_ds.data.dedup.bands import PRESETS; from chinchilla_ds.data.dedup.minhash import band_keys;"
        "import hashlib; texts = ['The quick brown fox jumps over the lazy dog. ' * 3,"
        "'数据科学' * 9, 'Élan 3.14', ''];"
        f"keys = band_keys(texts, config=PRESETS[{name!r}]);"
        "print(hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == GOLDEN[name]


def test_mix_is_splitmix64() -> None:
    # the first outputs of Vigna's splitmix64.c for seed 1234567
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert shingles.mix(states).tolist() == expected
