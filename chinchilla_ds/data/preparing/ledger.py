"""The ledger: the fate of every document and byte that was read, and the budget that the tokens serve."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.laws.repetition import optimal_with_repetition
from chinchilla_ds.data.cleaning.rules import CleaningConfig
from chinchilla_ds.errors import DataError
from chinchilla_ds.ranges import Ge, Gt
from chinchilla_ds.structured import build, parse_json
from chinchilla_ds.units import format_bytes, format_count, format_flops

MANY_EPOCHS = 4.0
"""Up to four epochs repeated text is worth almost as much as fresh text (Muennighoff et al. 2023, section 5)."""

_LAW_BISECTIONS = 100
_LOG_FLOPS = (math.log(1e3), math.log(1e33))


Count = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Documents and their bytes."""

    documents: Count = 0
    bytes: Count = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(documents=self.documents + other.documents, bytes=self.bytes + other.bytes)


@dataclass(frozen=True, kw_only=True)
class SourceLedger:
    """The fate of one source. Bytes are UTF-8 bytes of text; those of skipped records are unknown, and 0."""

    name: str
    read: Amount
    """Every record of the input."""
    skipped: Mapping[str, Count] = field(default_factory=dict)
    """Records that could not be read, by kind of problem."""
    dropped: Mapping[str, Amount] = field(default_factory=dict)
    """Dropped documents, by cleaning rule, in bytes as read."""
    changed: Mapping[str, Count] = field(default_factory=dict)
    """Documents that a cleaning rule changed; one may count for several rules."""
    unchecked: Count = 0
    """Documents with fewer words than an overlap with a benchmark, kept unchecked; the fields below include them."""
    edited_bytes: int
    """Bytes that cleaning removed from the other documents, less those that it added."""
    exact_duplicates: Amount
    near_duplicates: Amount
    held_out: Amount
    train: Amount
    tokens: Count
    """Tokens of the training documents, with an end-of-document token after each."""

    def balances(self) -> bool:
        """Return whether every document and every byte that was read is accounted for."""
        ends = sum(
            [*self.dropped.values(), self.exact_duplicates, self.near_duplicates, self.held_out, self.train],
            start=Amount(),
        )
        ends += Amount(documents=sum(self.skipped.values()), bytes=self.edited_bytes)
        return ends == self.read


@dataclass(frozen=True, kw_only=True)
class BenchmarkLedger:
    """The benchmarks with which the documents were compared."""

    texts: Count
    too_short: Count
    """Texts with fewer words than an overlap, which cannot be found."""
    words: Count
    """Number of words of an overlap; characters in scripts without spaces."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All sources, and their totals for the plan."""

    sources: tuple[SourceLedger, ...]
    benchmarks: BenchmarkLedger | None = None
    """None if there were none, and in corpora of older versions."""
    train_tokens: Count
    """Distinct training tokens: one epoch."""
    held_out_tokens: Count
    bytes_per_token: Annotated[float, Gt(0)]
    """Mean bytes per token of the training text, end-of-document tokens counted as tokens."""
    one_epoch_flops: Annotated[float, Gt(0)]
    """Budget whose compute-optimal run, by the default law, reads the training text once."""
    four_epochs_flops: Annotated[float, Gt(0)]
    """Budget whose best run, by the law of repeated text, reads it four times."""

    def to_json(self) -> str:
        """Return indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, /, *, where: str = "ledger") -> "Ledger":
        """Read what `to_json` wrote; `where` names it in messages.

        Raises:
            DataError: it is not JSON, fields are missing, unknown or out of range, or it does not balance.
        """
        ledger: Ledger = build(cls, parse_json(text, where=where, error=DataError), where=where, error=DataError)
        unbalanced = [source.name for source in ledger.sources if not source.balances()]
        if unbalanced:
            raise DataError(
                [
                    f"{where}: the counts of source {name} do not balance: read is not the sum of the rest"
                    for name in unbalanced
                ]
            )
        return ledger


_AMOUNTS = ("read", "exact_duplicates", "near_duplicates", "held_out", "train")


def source_ledger(name: str, /, *, counts: Counter[str], tokens: int) -> SourceLedger:
    """Return the ledger of a source from what its workers counted.

    Args:
        name: the source's name.
        counts: the workers' counts, by name.
        tokens: training tokens, end-of-document tokens included.
    """

    def amount(prefix: str) -> Amount:
        return Amount(documents=counts[f"{prefix}/documents"], bytes=counts[f"{prefix}/bytes"])

    def below(prefix: str) -> list[str]:
        return sorted({key.split("/")[1] for key in counts if key.startswith(f"{prefix}/")})

    return SourceLedger(
        name=name,
        read=Amount(documents=counts["documents_in"], bytes=counts["bytes_in"]),
        skipped={kind: counts[f"skipped/{kind}"] for kind in below("skipped")},
        dropped={rule: amount(f"dropped/{rule}") for rule in below("dropped")},
        changed={rule: counts[f"changed/{rule}"] for rule in below("changed")},
        unchecked=counts["unchecked"],
        edited_bytes=counts["edited_bytes"],
        exact_duplicates=amount("exact"),
        near_duplicates=amount("near"),
        held_out=amount("held_out"),
        train=amount("train"),
        tokens=tokens,
    )


def tell_fates(counts: Mapping[str, int], /, *, cleaning: CleaningConfig) -> str:
    """Return the fates of the documents that were read, for messages: rules by name, with their settings."""
    names = {"exact": "exact duplicates", "near": "near duplicates", "held_out": "held out", "train": "kept"}
    fates = [f"of {counts.get('documents_in', 0)} documents read"]
    for key, value in sorted(counts.items()):
        kind, _, detail = key.partition("/")
        if kind == "skipped" and value:
            fates.append(f"{value} skipped ({detail})")
        elif kind == "dropped" and detail.endswith("/documents") and value:
            fates.append(f"{value} dropped by {cleaning.describe(detail.removesuffix('/documents'))}")
        elif detail == "documents" and value:
            fates.append(f"{value} {names[kind]}")
    return ", ".join(fates)


def make_ledger(
    sources: Sequence[SourceLedger], /, *, held_out_tokens: int, benchmarks: BenchmarkLedger | None = None
) -> Ledger:
    """Return the ledger of all sources; it balances, otherwise there is a bug.

    Args:
        sources: the ledgers of all sources.
        held_out_tokens: tokens of the held-out part.
        benchmarks: the benchmarks of decontamination; None: there were none.
    """
    for source in sources:
        assert source.balances(), f"the ledger of {source.name} does not balance: {source}"
    tokens = sum(source.tokens for source in sources)
    return Ledger(
        sources=tuple(sources),
        benchmarks=benchmarks,
        train_tokens=tokens,
        held_out_tokens=held_out_tokens,
        bytes_per_token=sum(source.train.bytes for source in sources) / tokens,
        one_epoch_flops=get_law(DEFAULT_LAW).budget_for_tokens(num_tokens=tokens),
        four_epochs_flops=budget_for_epochs(unique_tokens=tokens, epochs=MANY_EPOCHS),
    )


def budget_for_epochs(*, unique_tokens: float, epochs: float) -> float:
    """Return the budget in FLOPs whose best run over `unique_tokens` distinct tokens reads them `epochs` times."""
    low, high = _LOG_FLOPS
    for _ in range(_LAW_BISECTIONS):
        middle = (low + high) / 2
        best = optimal_with_repetition(compute_budget_flops=math.exp(middle), unique_tokens=unique_tokens)
        low, high = (middle, high) if best.epochs < epochs else (low, middle)
    return math.exp((low + high) / 2)


def format_ledger(ledger: Ledger, /) -> str:
    """Return the ledger as a table, one column per source and one for all."""
    sources = [*ledger.sources, *([_total(ledger.sources)] if len(ledger.sources) > 1 else [])]
    width = max(24, *(len(source.name) + 2 for source in sources))
    lines = [" " * 28 + "".join(f"{source.name:>{width}}" for source in sources)]
    for label, cells in _rows(sources):
        lines.append(f"{label:<28}" + "".join(f"{cell:>{width}}" for cell in cells))
    if (benchmarks := ledger.benchmarks) is not None:
        lines += ["", f"benchmarks    {benchmarks.texts} texts; {_too_short(benchmarks)}"]
    lines += [
        "",
        f"held out      {format_count(ledger.held_out_tokens)} tokens",
        f"one epoch     {format_count(ledger.train_tokens)} unique tokens of {ledger.bytes_per_token:.2f} bytes: "
        f"serves up to {format_flops(ledger.one_epoch_flops)} ({DEFAULT_LAW})",
        f"four epochs   {format_count(MANY_EPOCHS * ledger.train_tokens)} tokens: serves up to "
        f"{format_flops(ledger.four_epochs_flops)} (Muennighoff et al. 2023)",
    ]
    return "\n".join(lines)


def _too_short(benchmarks: BenchmarkLedger) -> str:
    if not benchmarks.too_short:
        return f"searched for runs of {benchmarks.words} words"
    return (
        f"{benchmarks.too_short} of them cannot be found: they have fewer than {benchmarks.words} words (in scripts"
        " without spaces: characters)"
    )


def _rows(sources: Sequence[SourceLedger]) -> Iterator[tuple[str, list[str]]]:
    yield "read", [_cell(source.read) for source in sources]
    for kind in sorted({kind for source in sources for kind in source.skipped}):
        yield f"- skipped: {kind}", [_cell(Amount(documents=source.skipped.get(kind, 0))) for source in sources]
    for rule in sorted({rule for source in sources for rule in source.dropped}):
        yield f"- dropped: {rule}", [_cell(source.dropped.get(rule, Amount())) for source in sources]
    yield "- removed by cleaning", [format_bytes(source.edited_bytes) for source in sources]
    yield "- exact duplicates", [_cell(source.exact_duplicates) for source in sources]
    yield "- near duplicates", [_cell(source.near_duplicates) for source in sources]
    yield "- held out", [_cell(source.held_out) for source in sources]
    yield "= train", [_cell(source.train) for source in sources]
    if any(source.unchecked for source in sources):
        yield "too short for benchmarks", [f"{source.unchecked} docs" for source in sources]
    yield "tokens", [format_count(source.tokens) for source in sources]
    for rule in sorted({rule for source in sources for rule in source.changed}):
        yield f"changed by {rule}", [f"{source.changed.get(rule, 0)} docs" for source in sources]


def _cell(amount: Amount) -> str:
    return f"{amount.documents} docs {format_bytes(amount.bytes):>11}"


def _total(sources: Sequence[SourceLedger]) -> SourceLedger:
    def summed(maps: Iterator[Mapping[str, int]]) -> dict[str, int]:
        total = Counter[str]()
        for counts in maps:
            total.update(counts)
        return dict(total)

    dropped: dict[str, Amount] = {}
    for source in sources:
        for rule, amount in source.dropped.items():
            dropped[rule] = dropped.get(rule, Amount()) + amount
    return SourceLedger(
        name="all",
        skipped=summed(source.skipped for source in sources),
        changed=summed(source.changed for source in sources),
        dropped=dropped,
        unchecked=sum(source.unchecked for source in sources),
        edited_bytes=sum(source.edited_bytes for source in sources),
        tokens=sum(source.tokens for source in sources),
        **{name: sum((getattr(source, name) for source in sources), start=Amount()) for name in _AMOUNTS},
    )
