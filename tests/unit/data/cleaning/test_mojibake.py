# ruff: noqa: RUF001 (characters that look alike are what these tests are about)
import random

import ftfy
import pytest
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES, is_bad
from ftfy.chardata import CHARMAP_ENCODINGS

from chinchilla_ds.data.cleaning import mojibake
from chinchilla_ds.data.cleaning.mojibake import FTFY_CONFIG, repair, repair_lines, suspects
from tests.unit.data.languages import LANGUAGES

CLEAN = {
    "French": "L’été où « l’école » était fermée, son cœur battait. « Ça va ? » — Très bien, 20 € à Noël.",
    "German": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; „schön“, sagte Ärztin Öz.",
    "Polish": "Zażółć gęślą jaźń. Pójdź, kińże tę chmurność w głąb flaszy!",
    "Turkish": "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ılık bir gün.",
    "Russian": "Съешь же ещё этих мягких французских булок, да выпей чаю. «Да», — сказал он.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Καλημέρα, τι κάνεις;",
    "Chinese": "“你好，世界。”他说：“中文文本——测试……”《书》１２３，价格￥５０。",
    "Japanese": "いろはにほへと ちりぬるを。「こんにちは」とＡさんは言った。ﾊﾝｶｸもある。",
    "Korean": "다람쥐 헌 쳇바퀴에 타고파. “안녕하세요?”",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم. هل هذا صحيح؟",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "Hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "emoji": "Done ✔ 🙂👩‍👩‍👧 ¯\\_(ツ)_/¯ (╯°□°)╯",
    "code": "if (a ≤ b) { s = 'naïve'; t = \"½ × π ≈ 1.57\"; } // © 2024 Ünal, see §3",
}
WRONG_ENCODINGS = (*CHARMAP_ENCODINGS, "sloppy-windows-1256", "sloppy-windows-1258", "koi8-r", "cp850", "mac-cyrillic")


def always(text: str) -> str:
    """The second implementation: ftfy on every line."""
    return ftfy.fix_text(text, FTFY_CONFIG)


def decoded_wrongly() -> list[str]:
    """Real text in UTF-8, read as something else; two layers too."""
    lines = []
    for encoding in WRONG_ENCODINGS:
        for text in CLEAN.values():
            once = text.encode().decode(encoding, errors="replace")
            lines += (once, once.replace("\xa0", " "), once.encode().decode(encoding, errors="replace"))
    return lines


@pytest.mark.parametrize("language", CLEAN)
def test_clean_text_is_not_touched_nor_shown_to_ftfy(language: str) -> None:
    assert suspects(CLEAN[language]) == []
    assert repair(CLEAN[language]) == repair_lines(CLEAN[language]) == (CLEAN[language], 0)


@pytest.mark.parametrize("language", CLEAN)
def test_text_read_as_windows_1252_comes_back(language: str) -> None:
    text = CLEAN[language]
    damaged = text.encode().decode("sloppy-windows-1252")
    assert repair(damaged) == repair_lines(damaged) == (text, 1)


@pytest.mark.parametrize("joint", ["\n", " ", "\r\n", ""])
def test_wrongly_decoded_text_is_repaired_as_if_ftfy_read_everything(joint: str) -> None:
    text = joint.join(decoded_wrongly())
    repaired, num_lines = repair_lines(text)
    assert repaired == always(text)
    assert num_lines > 0


@pytest.mark.slow
def test_every_character_alone_and_beside_mojibake_is_treated_as_ftfy_does() -> None:
    contexts = ("{}", "{}Ã", "Ã{}", "aâ€{}", "œ{}", "√{}é")
    characters = [chr(code) for code in (*range(0x10000), *range(0x1F300, 0x1F700), 0x10FFFF)]
    text = "\n".join(context.format(character) for character in characters for context in contexts)
    repaired, num_lines = repair_lines(text)
    assert repaired == always(text)
    assert num_lines > 1000


def test_every_pair_that_ftfy_calls_bad_is_suspect() -> None:
    alphabet = sorted(
        set("".join(MOJIBAKE_CATEGORIES.values())) | set("ÂÃÐÑØÙàâóаяАЯВГРСвЂЎўβΒΓΞΟā°´œŒ√≈‚\x80\x9f aZ.\n1")
    )
    bad = [left + right for left in alphabet for right in alphabet if is_bad(left + right)]
    assert len(bad) > 5000
    assert [pair for pair in bad if not suspects(pair)] == []


@pytest.mark.parametrize("number", range(37))
def test_what_each_alternative_of_ftfy_matches_is_suspect(number: int) -> None:
    tokens = mojibake._alternatives(BADNESS_RE.pattern)[number]
    generator = random.Random(number)
    choices = [mojibake._members(token) for token in tokens if token is not None]
    for _ in range(400):
        text = "".join(chr(generator.choice(codes)) for codes in choices)
        assert BADNESS_RE.match(text)
        assert suspects(text) != []


def test_random_mixtures_are_treated_as_ftfy_does() -> None:
    generator = random.Random(1)
    pieces = decoded_wrongly() + list(CLEAN.values())
    alphabet = sorted(set("".join(pieces)) | set("\x80\x85\x9d\ud83d\ude00\ufffd\x1a?\n \xa0"))
    lines = []
    for _ in range(4000):
        piece, start = generator.choice(pieces), generator.randrange(40)
        lines.append(piece[start : start + generator.randrange(30)] + "".join(generator.choices(alphabet, k=4)))
        lines.append("".join(generator.choices(alphabet, k=generator.randrange(8))))
    text = "".join(line + generator.choice(["", " ", "\n", "\n\n"]) for line in lines)
    repaired, num_lines = repair_lines(text)
    assert repaired == always(text)
    assert num_lines > 1000


def test_chunks_of_the_scan_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(decoded_wrongly())[:3000]
    whole = suspects(text)
    monkeypatch.setattr(mojibake, "_CHUNK_CHARACTERS", 7)
    assert suspects(text) == whole
    assert len(whole) > 100


def test_a_long_line_is_read_in_the_parts_that_ftfy_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FTFY_CONFIG._replace(max_decode_length=10)
    monkeypatch.setattr(mojibake, "FTFY_CONFIG", config)
    for shift in range(25):
        text = "first\n" + "x" * shift + "dÃ©jÃ\xa0 vu, â€œokâ€\x9d" * 3 + "\nlast Ã©"
        assert repair_lines(text)[0] == ftfy.fix_text(text, config)


def test_lone_surrogates_can_be_written_afterwards() -> None:
    assert repair("a\ud83d\ude00b\ud800c") == repair_lines("a\ud83d\ude00b\ud800c") == ("a\U0001f600b\ufffdc", 1)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "“curly” ‘quotes’",
            "ﬁne ligature ﬂ Ǆ",
            "ＦＵＬＬ　ＷＩＤＴＨ ｶﾀｶﾅ",
            "&amp;&lt;é&gt; &#233;",
            "é\r\né\ré\u2028é",
        ),
        *("\x1b[31mrouge é\x1b[0m", "a\x00b é\x07", "cafe\u0301", "ÀÉÎ ÀÉÎ", "Ã", "São Ãngelo", "2² × 3³ ± ½°"),
    ],
)
def test_what_is_not_mojibake_stays(text: str) -> None:
    assert repair(text) == repair_lines(text) == (text, 0)


CAPITALS = (
    "“MANHÃ”",
    "MANHÃ”",
    "MANHÃ»",
    "MANHÃ…",
    "A MANHÃ DE HOJE",
    "«IRMÃ»",
    "XÃ HỘI",
    "“HÂLÂ”",
    "HÂLÂ™",
    "„Â”",
    "“ĐÃ”",
    "AVELÃ®",
    "IRMÃ¹",
    "PÃO, MANHÃ?",
    "CHÃ–MATE",
    "É A MANHÃ\xa0!",
    "НІ, ЦІ, ТІ",
    "Úžas",
    "×½",
    "CAFÉ…",
    "CAFÉ´S",
    "HÔTEL·CAFÉ·",
    "NOË’",
)
"""Clean: capitals that are the first byte of a UTF-8 sequence where something stands behind that could be the rest."""


@pytest.mark.parametrize("text", CAPITALS)
def test_a_capital_before_a_quotation_mark_is_not_mojibake(text: str) -> None:
    for document in (text, f"{text} – {text}", f"Read aloud: {text}. " * 20, "\n".join(CAPITALS)):
        assert repair(document) == (document, 0)


def documents() -> list[tuple[str, str]]:
    return [(language, text) for language, texts in LANGUAGES.items() for text in texts]


def test_no_fragment_of_clean_text_in_any_language_is_changed() -> None:
    generator = random.Random(5)
    for _, text in documents():
        for _ in range(300):
            start, size = generator.randrange(len(text)), generator.choice((1, 2, 3, 5, 10, 30, 100))
            assert repair(text[start : start + size]) == (text[start : start + size], 0)
        assert repair(text) == (text, 0)


def test_ftfy_on_each_line_changes_clean_text_where_the_whole_document_does_not() -> None:
    changed = [language for language, text in documents() if repair_lines(text)[1]]
    assert changed == ["Portuguese", "Portuguese", "Romanian", "Turkish", "Vietnamese"]


@pytest.mark.parametrize("encoding", CHARMAP_ENCODINGS)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_document_read_wrongly_as_a_whole_comes_back(encoding: str, layers: int) -> None:
    left = set()
    for language, text in documents():
        states = [text]
        for _ in range(layers):
            states.append(states[-1].encode().decode(encoding))
        repaired, _ = repair(states[-1])
        assert repaired in states  # never anything else
        if repaired != text:
            left.add(language)
    # what ISO-8859-2 made of it could be of Windows-1250 as well, and two readings are no proof
    assert left == ({"Spanish"} if (encoding, layers) == ("iso-8859-2", 1) else set())


@pytest.mark.parametrize("text", ["café", "señor", "für", "it’s", "“hi”", "£5", "naïve", "São", "garçon", "mère"])
def test_one_sequence_that_no_clean_text_has_is_proof(text: str) -> None:
    assert repair(text.encode().decode("sloppy-windows-1252")) == (text, 1)


def test_one_clean_passage_makes_the_document_doubtful() -> None:
    damaged = LANGUAGES["French"][0].encode().decode("sloppy-windows-1252")
    both = f"{damaged}\n« Où étiez-vous ? »"
    assert repair(both) == (both, 0)
    assert repair_lines(both)[0] == f"{LANGUAGES['French'][0]}\n« Où étiez-vous ? »"


def test_what_no_text_can_hold_is_put_right_anywhere() -> None:
    assert repair("\x93Où ?\x94 – \x80 5") == ("“Où ?” – € 5", 1)
    assert repair("one\x85two é") == ("one\x85two é", 0)  # NEL breaks lines


def test_every_alternative_of_the_pattern_has_its_pair() -> None:
    pairs = mojibake._necessary_pairs("a b # no | here [x] \n | [c-d]\\s?[e] f | ^ [ ] g | \\w [.] h | [z]")
    assert pairs == [("a", "b"), ("[e]", "f"), ("[ ]", "g"), ("[.]", "h"), ("[z]", r"[\s\S]")]
    assert len(mojibake._necessary_pairs(BADNESS_RE.pattern)) == 37


@pytest.mark.parametrize("pattern", ["(ab)", "a{2}", "ab*", "ab+", "ab?"])
def test_a_pattern_that_cannot_be_read_is_not_guessed_at(pattern: str) -> None:
    with pytest.raises(AssertionError, match="cannot read"):
        mojibake._necessary_pairs(pattern)
