import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.data.blend import BlendSource, blend, unimax
from chinchilla_ds.data.feeding.indexed import (
    BlendedSequences,
    Sequences,
    interleave,
    open_blend,
    open_sequences,
)
from chinchilla_ds.errors import DataError
from tests.unit.data.feeding.indexed_writer import IndexedWriter

VOCAB_SIZE, EOD_ID, SEQ_LENGTH = 1_000_000, 999_999, 16


def source(name: str, **values: float | None) -> BlendSource:
    return BlendSource(name=name, prefix=Path(name), num_tokens=int(values.pop("num_tokens", 1000) or 0), **values)  # type: ignore[arg-type]


# ---- weights --------------------------------------------------------------------------------------------------------


def test_given_weights() -> None:
    shares = blend([source("a", weight=0.75), source("b", weight=0.25, num_tokens=500)], num_tokens=4000)
    assert [share.weight for share in shares] == [0.75, 0.25]
    assert [share.epochs for share in shares] == [3.0, 2.0]


def test_without_weights_every_document_is_read_equally_often() -> None:
    shares = blend([source("a", num_tokens=3000), source("b", num_tokens=1000)], num_tokens=6000)
    assert [share.weight for share in shares] == [0.75, 0.25]
    assert [share.epochs for share in shares] == [1.5, 1.5]


def test_unimax_gives_all_the_same_while_no_cap_binds() -> None:
    shares = blend([source(name, num_tokens=900, max_epochs=4) for name in "abc"], num_tokens=3000)
    assert [share.weight for share in shares] == pytest.approx([1 / 3] * 3)


def test_unimax_fills_small_sources_to_their_cap() -> None:
    """By hand: 100 x 4 is below a third of 3,000 and is full; the other two share the 2,600 that are left."""
    sizes = {"small": 100, "middle": 900, "large": 100_000}
    shares = blend([source(n, num_tokens=t, max_epochs=4) for n, t in sizes.items()], num_tokens=3000)
    assert [share.weight * 3000 for share in shares] == pytest.approx([400, 1300, 1300])
    assert [share.epochs for share in shares] == pytest.approx([4, 1300 / 900, 0.013])


def test_unimax_is_the_water_level() -> None:
    """The level is where the sum of min(capacity, level) is the total: found here by bisection."""
    generator = random.Random(3)
    for _ in range(200):
        capacities = [generator.uniform(0.1, 10) ** 2 for _ in range(generator.randint(1, 8))]
        total = generator.uniform(0.01, 1) * sum(capacities)
        low, high = 0.0, max(capacities)
        for _ in range(200):
            level = (low + high) / 2
            low, high = (level, high) if sum(min(c, level) for c in capacities) < total else (low, level)
        assert unimax(capacities, total=total) == pytest.approx([min(c, high) for c in capacities])


def test_more_tokens_than_the_caps_give() -> None:
    with pytest.raises(DataError, match="trains on 9K tokens and the sources give at most 8K within"):
        blend([source(name, max_epochs=4) for name in "ab"], num_tokens=9000)


def test_a_weight_that_breaks_a_cap_is_told_with_one_that_does_not() -> None:
    sources = [source("a", weight=0.5, max_epochs=2), source("b", weight=0.5)]
    with pytest.raises(DataError, match=r"reads source 'a' \(1K tokens\) 2.50 times .* at most 0.4 respects"):
        blend(sources, num_tokens=5000)
    assert blend(sources, num_tokens=4000)[0].epochs == 2


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "a blend needs at least one source"),
        ([source("a", weight=0.5), source("a", weight=0.5)], "2 sources are named 'a'"),
        (
            [source("a", weight=0.5), source("b", weight=0.3)],
            "sum to 0.8; they must sum to 1, nearest: a 0.625, b 0.375",
        ),
        ([source("a", weight=0.5), source("b")], "weight is given for some sources and not for b"),
        ([source("a", max_epochs=4.0), source("b")], "max_epochs is given for some sources and not for b"),
        ([source("a", weight=-1.0), source("b", weight=2.0)], "weight of source 'a' is -1; it must be above 0"),
        ([source("a", weight=float("nan"))], "weight of source 'a' is nan; it must be above 0"),
        ([source("a", num_tokens=0)], "source 'a' holds no tokens"),
    ],
)
def test_what_cannot_be_is_refused(sources: Sequence[BlendSource], message: str) -> None:
    with pytest.raises(DataError, match=message):
        blend(sources, num_tokens=1000)


def test_all_problems_are_told_together() -> None:
    with pytest.raises(DataError) as raised:
        blend([source("a", weight=0.0), source("a", num_tokens=0)], num_tokens=1000)
    assert len(raised.value.problems) == 4


# ---- the order of samples -------------------------------------------------------------------------------------------


def naive_interleave(weights: Sequence[float], num_samples: int) -> list[int]:
    """Always the source that is furthest behind its weight, the first of equals."""
    counts = [0] * len(weights)
    order = []
    for index in range(num_samples):
        behind = [weight * max(index, 1) - count for weight, count in zip(weights, counts, strict=True)]
        order.append(max(range(len(weights)), key=behind.__getitem__))
        counts[order[-1]] += 1
    return order


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.7, 0.2, 0.1), (0.001, 0.299, 0.7), (0.1,) * 10])
def test_interleave_is_the_naive_one(weights: tuple[float, ...]) -> None:
    sources, samples = interleave(weights, num_samples=2000)
    assert sources.tolist() == naive_interleave(weights, 2000)
    for place in range(len(weights)):
        mine = samples[sources == place]
        assert mine.tolist() == list(range(len(mine)))


def test_ten_thousand_samples_keep_to_their_weights() -> None:
    """Within 1 % of each weight over the run, and never more than a few samples behind on the way."""
    weights = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]
    sources, _ = interleave(weights, num_samples=10_000)
    for place, weight in enumerate(weights):
        assert abs((sources == place).sum() / 10_000 - weight) < 0.01 * weight
        behind = weight * np.arange(1, 10_001) - np.cumsum(sources == place)
        assert np.abs(behind).max() < len(weights)


def write_source(prefix: Path, *, first_token: int, num_documents: int, seed: int) -> int:
    """Write documents of tokens that occur once each, the end of document apart; return how many tokens."""
    generator, token, total = random.Random(seed), first_token, 0
    with IndexedWriter(prefix=prefix, vocab_size=VOCAB_SIZE) as writer:
        for _ in range(num_documents):
            length = generator.randint(3, 40)
            writer.add_document(np.array([*range(token, token + length), EOD_ID], dtype=np.int32))
            token, total = token + length, total + length + 1
    return total


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    found = [folder / name for name in ("train-web", "train-code", "train-books")]
    for place, prefix in enumerate(found):
        write_source(prefix, first_token=100_000 * (place + 1), num_documents=200 * (place + 1), seed=place)
    return found


def open_one(prefix: Path, *, num_samples: int, index_folder: Path) -> Sequences:
    return open_sequences(
        prefix=prefix,
        index_folder=index_folder,
        seq_length=SEQ_LENGTH,
        num_samples=num_samples,
        seed=5,
        eod_id=EOD_ID,
        vocab_size=VOCAB_SIZE,
        tokenizer_sha256="none",
    )


def open_three(
    prefixes: list[Path], *, weights: Sequence[float], num_samples: int, index_folder: Path
) -> BlendedSequences:
    def open_source(place: int, count: int) -> Sequences:
        return open_one(prefixes[place], num_samples=count, index_folder=index_folder)

    return open_blend(open_source, weights=weights, num_samples=num_samples, index_folder=index_folder)


def rows(sequences: object, numbers: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(sequences[number]["tokens"].tolist()) for number in numbers]  # type: ignore[index]


def test_every_source_gives_its_own_sequences_in_its_own_order(prefixes: list[Path], tmp_path: Path) -> None:
    weights = [0.5, 0.2, 0.3]
    blended = open_three(prefixes, weights=weights, num_samples=400, index_folder=tmp_path / "index")
    assert len(blended) == 400
    found = rows(blended, range(400))
    owners = [next(t for t in row if t != EOD_ID) // 100_000 - 1 for row in found]
    assert owners == naive_interleave(weights, 400)
    assert Counter(owners) == {0: 200, 1: 80, 2: 120}
    alone = open_one(prefixes[1], num_samples=80, index_folder=tmp_path / "alone")
    assert [row for row, owner in zip(found, owners, strict=True) if owner == 1] == rows(alone, range(80))
    assert len(set(found)) == 400, "within one epoch of each source nothing comes twice"


def test_a_second_opening_reads_the_index(
    prefixes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_three(prefixes, weights=[0.5, 0.2, 0.3], num_samples=90, index_folder=tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("chinchilla_ds.data.feeding.indexed.interleave", None)
    again = open_three(prefixes, weights=[0.5, 0.2, 0.3], num_samples=90, index_folder=tmp_path)
    assert rows(again, range(90)) == rows(first, range(90))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_stock_megatron_opens_the_files_and_blends_them_in_the_same_order(prefixes: list[Path], tmp_path: Path) -> None:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from chinchilla_ds.data.feeding.indexed import _TokenizerFacts

    weights, num_samples = [0.5, 0.2, 0.3], 300
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=SEQ_LENGTH,
        blend=([str(prefix) for prefix in prefixes], weights),
        split="1,0,0",
        tokenizer=_TokenizerFacts(eod_id=EOD_ID, vocab_size=VOCAB_SIZE, sha256="none"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    stock, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config).build()
    ours = open_three(prefixes, weights=weights, num_samples=num_samples, index_folder=tmp_path)
    assert rows(ours, range(num_samples)) == rows(stock, range(num_samples))
    others = open_three(prefixes, weights=[0.2, 0.5, 0.3], num_samples=num_samples, index_folder=tmp_path / "others")
    assert rows(others, range(num_samples)) != rows(stock, range(num_samples)), "control: other weights"


def test_stock_megatron_reads_the_documents(prefixes: list[Path]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    stock = IndexedDataset(str(prefixes[0]))
    assert len(stock) == 200
    tokens = list(itertools.chain.from_iterable(document.tolist() for document in stock))
    assert [token for token in tokens if token != EOD_ID] == list(range(100_000, 100_000 + len(tokens) - 200))
    assert all(document[-1] == EOD_ID for document in stock)
