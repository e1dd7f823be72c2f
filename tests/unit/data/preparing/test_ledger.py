import dataclasses
from collections import Counter

import pytest

from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.laws.repetition import optimal_with_repetition
from chinchilla_ds.data.preparing.ledger import (
    Amount,
    Ledger,
    budget_for_epochs,
    format_ledger,
    make_ledger,
    source_ledger,
)

COUNTS = Counter(
    {
        "documents_in": 21,
        "bytes_in": 2100,
        "skipped/not JSON": 2,
        "dropped/empty/documents": 1,
        "dropped/min_length/documents": 3,
        "dropped/min_length/bytes": 90,
        "changed/nfc": 4,
        "edited_bytes": 10,
        "exact/documents": 2,
        "exact/bytes": 200,
        "near/documents": 1,
        "near/bytes": 100,
        "held_out/documents": 2,
        "held_out/bytes": 300,
        "train/documents": 10,
        "train/bytes": 1400,
    }
)


def test_in_is_out() -> None:
    source = source_ledger("a", counts=COUNTS, tokens=350)
    assert source.balances()
    assert source.dropped == {"empty": Amount(documents=1), "min_length": Amount(documents=3, bytes=90)}
    assert source.skipped == {"not JSON": 2}
    for name in ("exact_duplicates", "near_duplicates", "held_out", "train", "read"):
        amount = getattr(source, name)
        more = dataclasses.replace(source, **{name: amount + Amount(documents=1)})
        assert not more.balances()
        assert not dataclasses.replace(source, **{name: amount + Amount(bytes=1)}).balances()
    with pytest.raises(AssertionError, match="does not balance"):
        make_ledger([dataclasses.replace(source, edited_bytes=11)], held_out_tokens=75)


def test_budgets_by_the_laws() -> None:
    ledger = make_ledger([source_ledger("a", counts=COUNTS, tokens=int(1e9))], held_out_tokens=75)
    once = get_law(DEFAULT_LAW).optimal(compute_budget_flops=ledger.one_epoch_flops)
    assert once.num_tokens == pytest.approx(1e9)
    four = optimal_with_repetition(compute_budget_flops=ledger.four_epochs_flops, unique_tokens=1e9)
    assert four.epochs == pytest.approx(4)
    assert budget_for_epochs(unique_tokens=1e9, epochs=8) > ledger.four_epochs_flops


def test_json_and_text() -> None:
    sources = [source_ledger(name, counts=COUNTS, tokens=350) for name in ("a", "b")]
    ledger = make_ledger(sources, held_out_tokens=75)
    assert Ledger.from_json(ledger.to_json()) == ledger
    text = format_ledger(ledger)
    assert text.splitlines()[0].split() == ["a", "b", "all"]
    rows = {line[:28].strip(): line[28:].split() for line in text.splitlines() if line}
    assert rows["read"][-4] == "42"
    assert rows["- dropped: min_length"][-4] == "6"
    assert rows["= train"][-4] == "20"
