import importlib.util
import sys

import pytest

from chinchilla_ds.data.cleaning.rules import Cleaner, CleaningConfig, Rule
from chinchilla_ds.errors import ConfigError

needs_datatrove = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("datatrove", "spacy")),
    reason="datatrove and spacy come with `pip install chinchilla-ds[quality]`",
)

PROSE = [
    "The history of the town is long, and it was told to the people that lived there with great care.",
    "They have to be sure that the water of the river is clean, and that the bread is good.",
    "When the winter comes, the children of the village go to the school on the hill and learn to read.",
    "It is said that the mill was built by two brothers, and that they never spoke to each other again.",
    "Nobody knows why, but the wheel still turns when the rain is heavy and the wind comes from the north.",
    "Some evenings the old miller sits at the door with a lamp and waits for the last boat of the day.",
]


def cleaner(*rules: Rule) -> Cleaner:
    return Cleaner(CleaningConfig(rules=frozenset(rules)))


@pytest.mark.parametrize("rule", [Rule.GOPHER, Rule.C4])
def test_a_missing_extra_names_the_command(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigError, match=rf"'{rule}' needs spacy.*pip install chinchilla-ds\[quality\]"):
        cleaner(rule)


@needs_datatrove
def test_c4_drops_lines_and_counts_them() -> None:
    cleaned = cleaner(Rule.C4).clean(
        "\n".join([*PROSE[:3], "Home | About | Contact", "uses cookies here, yes.", *PROSE[3:]])
    )
    assert cleaned.text == "\n".join(PROSE)
    assert cleaned.counts == {Rule.C4: 2}


@needs_datatrove
@pytest.mark.parametrize("extra", ["Some function f { return x }.", "Then lorem ipsum follows the text."])
def test_c4_drops_documents(extra: str) -> None:
    cleaned = cleaner(Rule.C4).clean("\n".join([*PROSE, extra]))
    assert (cleaned.text, cleaned.dropped_by) == (None, Rule.C4)


@needs_datatrove
def test_c4_leaves_a_text_that_it_would_leave_again() -> None:
    once = cleaner(Rule.C4).clean("\n".join([*PROSE, "[1] [2] this.", "The end [[1]2] is here."])).text
    assert once is not None
    assert once.startswith("\n".join(PROSE))
    assert "[" not in once
    assert cleaner(Rule.C4).clean(once).text == once


@needs_datatrove
def test_gopher_keeps_prose_and_drops_what_repeats_or_lacks_words() -> None:
    gopher = cleaner(Rule.GOPHER)
    prose = " ".join(PROSE)
    assert gopher.clean(prose).text == prose
    for text in (PROSE[0], "\n".join([PROSE[0]] * 20), " ".join(f"{n} #" for n in range(200)), ""):
        assert gopher.clean(text).dropped_by is Rule.GOPHER
