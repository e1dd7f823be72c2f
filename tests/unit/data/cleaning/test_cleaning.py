# ruff: noqa: RUF001 (characters that look alike are what these tests are about)
import pickle
import random
import re
import string
import subprocess
import sys
import sysconfig
import unicodedata
from pathlib import Path

import pytest

from chinchilla_ds.data.cleaning.rules import DEFAULT_RULES, Cleaned, Cleaner, CleaningConfig, Rule, is_long_enough
from chinchilla_ds.errors import ConfigError
from tests.unit.data.languages import LANGUAGES

OWN_RULES = frozenset(Rule) - {Rule.GOPHER, Rule.C4}
"""Rules that need no extra."""

WORDS = "Plain words, long enough that no rule on length has anything to say about them. " * 4

FRAGMENTS = (
    *(
        "déjà vu ",
        "Ã©",
        "â€œ",
        "â€",
        "\x9d",
        "Ã",
        "\x00",
        "©",
        "\ufeff",
        "\x85",
        "\x0c",
        "\r\n",
        "\ud83d",
        "\ude00",
        "À€",
    ),
    *(
        "e\u0301",
        "\u212b",
        "\u0958",
        "क़",
        "\u0301",
        "\u1112\u1161\u11ab",
        "ﬁ",
        "Ａ",
        "½",
        "\xa0",
        "Ã ",
        "\ufffd",
        "\x1a",
        "?",
    ),
    *(
        "bob@corp.com",
        "a",
        ".b@corp.de",
        "@corp.com",
        "93.184.216.34",
        "-93.184.216.34",
        ".1",
        "v",
        "8.8.8.8",
        "2a00:1450::5",
    ),
    *(
        "212-555-0123",
        "+44 20 7946 0958",
        "(212) 555-0123",
        " ",
        "\n",
        "1",
        "-",
        "中文",
        "Ёж",
        "|||EMAIL_ADDRESS|||",
        "🙂",
    ),
)


def clean(text: str, *rules: Rule, min_characters: int = 200) -> Cleaned:
    return Cleaner(CleaningConfig(rules=frozenset(rules), min_characters=min_characters)).clean(text)


def plain_length(text: str) -> int:
    """The second implementation: SlimPajama's, for all punctuation; 中, の and ก are 4, with no space beside them."""
    composed = unicodedata.normalize("NFC", text).lower()
    kept = "".join(
        character
        for character in composed
        if character not in string.punctuation and unicodedata.category(character)[0] != "P"
    )
    rest = re.sub("[中のก]", "", kept)
    return len(re.sub(r"\s+", " ", rest.strip())) + 4 * (len(kept) - len(rest))


def random_texts(*, number: int, seed: int = 3) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(FRAGMENTS, k=generator.randrange(1, 40))) for _ in range(number)]


def test_no_rule_changes_nothing() -> None:
    for text in random_texts(number=200):
        assert clean(text) == Cleaned(text=text)


def test_the_defaults_are_three_rules() -> None:
    assert CleaningConfig().rules == DEFAULT_RULES
    assert {str(rule) for rule in DEFAULT_RULES} == {"mojibake", "control_characters", "min_length"}


def test_the_page_on_cleaning_lists_every_rule_with_its_default() -> None:
    page = Path(__file__).parents[4] / "docs" / "cleaning.md"
    table = page.read_text(encoding="utf-8").split("## Mojibake")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| `")]
    listed = {row[1].strip(" `"): row[2].strip() for row in rows}
    assert listed == {rule.value: "on" if rule in DEFAULT_RULES else "off" for rule in Rule}


def test_each_rule_is_counted_under_its_name() -> None:
    text = "Ã©tÃ©\nÃ  la carte\nok\x00\x01\x02 cafe\u0301 bob@corp.com 93.184.216.34 +44 20 7946 0958 a@b.org " + WORDS
    cleaned = clean(text, *OWN_RULES)
    assert cleaned.text == (
        "été\nà la carte\nok café |||EMAIL_ADDRESS||| |||IP_ADDRESS||| |||PHONE_NUMBER||| |||EMAIL_ADDRESS||| " + WORDS
    )
    assert cleaned.counts == {
        Rule.FTFY: 2,  # the accent apart proves that not all of it was decoded wrongly
        Rule.CONTROL_CHARACTERS: 3,
        Rule.NFC: 1,
        Rule.EMAIL: 2,
        Rule.IP_ADDRESS: 1,
        Rule.PHONE_NUMBER: 1,
    }
    assert cleaned.changed_by == tuple(rule for rule in Rule if rule in cleaned.counts)


def test_lines_of_mojibake_are_counted() -> None:
    assert clean("Ã©tÃ©\nÃ  la carte\nok", Rule.MOJIBAKE) == Cleaned(
        text="été\nà la carte\nok", counts={Rule.MOJIBAKE: 2}
    )


def test_a_dropped_document_names_its_rule() -> None:
    cleaned = clean("too\x00 short", *DEFAULT_RULES)
    assert cleaned == Cleaned(text=None, dropped_by=Rule.MIN_LENGTH, counts={Rule.CONTROL_CHARACTERS: 1})


def test_cleaning_twice_is_cleaning_once() -> None:
    rules = OWN_RULES - {Rule.MIN_LENGTH}
    changed = 0
    for text in random_texts(number=3000):
        once = clean(text, *rules).text
        assert once is not None
        assert clean(once, *rules) == Cleaned(text=once)
        changed += once != text
    assert changed > 2500


def test_what_comes_out_can_be_written_and_is_composed() -> None:
    for text in random_texts(number=500, seed=4):
        cleaned = clean(text, Rule.MOJIBAKE, Rule.NFC, Rule.CONTROL_CHARACTERS).text
        assert cleaned is not None
        assert unicodedata.is_normalized("NFC", cleaned.encode().decode())


def test_a_repair_that_a_control_character_hid_is_made() -> None:
    assert clean("dÃ\x00©jÃ\x01\xa0", Rule.MOJIBAKE, Rule.CONTROL_CHARACTERS).text == "déjà"
    assert clean("dÃ\x00©jÃ\x01\xa0", Rule.MOJIBAKE).text != "déjà"


def test_control_characters_go_and_what_breaks_lines_stays() -> None:
    kept = {"\t", "\n", "\v", "\f", "\r", "\x85"}
    for code in (*range(0x100), 0xFEFF, 0x2028, 0x200D):
        character = chr(code)
        is_control = unicodedata.category(character) == "Cc" or code == 0xFEFF
        expected = "ab" if is_control and character not in kept else f"a{character}b"
        assert clean(f"a{character}b", Rule.CONTROL_CHARACTERS).text == expected


def test_nfc_is_that_of_unicode_and_no_more() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x11000), *range(0x1D100, 0x1D200), 0x2F800):
        text = f"e{chr(code)}\u0301"
        assert clean(text, Rule.NFC).text == unicodedata.normalize("NFC", text)
    assert clean("ﬁ Ａ ² ½ ™ ﾊ", Rule.NFC).text == "ﬁ Ａ ² ½ ™ ﾊ"


def test_length_is_that_of_slimpajama_and_a_unit_of_a_script_without_spaces_is_four() -> None:
    generator = random.Random(5)
    alphabet = "aB9é中のกΣ.,!_-$。，“ \n\t\xa0\u3000\u2028\x1c"
    outcomes = set()
    for _ in range(3000):
        text = "".join(generator.choices(alphabet, k=generator.randrange(80)))
        for min_characters in (0, 1, 5, 20):
            expected = plain_length(text) >= min_characters
            assert is_long_enough(text, min_characters=min_characters) is expected
            outcomes.add((min_characters, expected))
    assert len(outcomes) == 7  # all but a text shorter than 0


@pytest.mark.parametrize(("length", "is_kept"), [(199, False), (200, True)])
def test_the_limit_itself_is_kept(length: int, is_kept: bool) -> None:
    text = "  (" + "x" * (length - 2) + " \n\t...---  y" + "!" * 500
    assert plain_length(text) == length
    assert (clean(text, Rule.MIN_LENGTH).text == text) is is_kept


def test_length_is_measured_after_the_changes() -> None:
    text = "x" * 199 + "Ã©"  # 201 characters before, 200 after
    assert clean(text, *DEFAULT_RULES).text == "x" * 199 + "é"
    assert clean(text, *DEFAULT_RULES, min_characters=201).dropped_by is Rule.MIN_LENGTH


def test_source_code_comes_out_as_it_went_in() -> None:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    assert len(paths) > 100
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
        assert clean(text, *DEFAULT_RULES, min_characters=0) == Cleaned(text=text), path


def test_a_cleaner_can_be_sent_to_a_worker() -> None:
    cleaner = Cleaner(CleaningConfig(rules=OWN_RULES, min_characters=3))
    twin = pickle.loads(pickle.dumps(cleaner))
    assert twin.config == cleaner.config
    for text in random_texts(number=50):
        assert twin.clean(text) == cleaner.clean(text)


def test_a_length_that_is_negative_or_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the shortest length is -1 characters; 0 keeps all documents"):
        CleaningConfig(min_characters=-1)
    with pytest.raises(ConfigError, match=r"is set to 50 characters and the cleaning rule min_length is off"):
        CleaningConfig(rules=frozenset({Rule.NFC}), min_characters=50)


@pytest.mark.parametrize("language", LANGUAGES)
def test_clean_text_comes_out_as_it_went_in(language: str) -> None:
    for text in LANGUAGES[language]:
        assert clean(text, *DEFAULT_RULES) == Cleaned(text=text)


def test_a_short_article_in_chinese_is_long_enough() -> None:
    article = LANGUAGES["Chinese"][1][:59]
    assert plain_length("中" * 49) < 200 <= plain_length("中" * 50)
    assert len(article) < 60
    assert clean(article, *DEFAULT_RULES).text == article
    assert clean(article[:40], *DEFAULT_RULES).dropped_by is Rule.MIN_LENGTH


def test_naming_the_rules_loads_nothing_heavy() -> None:
    script = (
        "import sys, chinchilla_ds.data.cleaning.rules;"
        "print({'numpy', 'ftfy', 'datatrove', 'spacy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
