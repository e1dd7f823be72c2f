import random
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.data.preparing import split
from chinchilla_ds.data.preparing.segments import SegmentWriter, document_hash, segments_of
from chinchilla_ds.data.preparing.split import FilteredSegment, held_out_threshold, tokenizer_sample
from chinchilla_ds.errors import DataError
from tests.unit.data.conftest import make_documents

DOCUMENTS = [text.encode() for text in make_documents(number=500)]


def kept_of(documents: list[bytes], folder: Path, *, segment_bytes: int = 20_000) -> list[FilteredSegment]:
    folder.mkdir()
    writer = SegmentWriter(folder=folder, source=0, minhash=None, segment_bytes=segment_bytes)
    for document in documents:
        writer.add(document.decode(), document)
    writer.flush()
    return [FilteredSegment(folder=path, verdict=None) for path in segments_of([folder])]


def naive_threshold(documents: list[bytes], *, fraction: float) -> int:
    """Hash after hash, until the ones before it hold the share."""
    wanted, held_out = fraction * sum(map(len, documents)), 0
    sizes: dict[int, int] = {}
    for document in documents:
        sizes[document_hash(document)] = sizes.get(document_hash(document), 0) + len(document)
    for content in sorted(sizes):
        if held_out and (held_out >= wanted or content == max(sizes)):
            return content
        held_out += sizes[content]
    raise AssertionError


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.1, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_lowest_hashes_make_up_the_fraction(tmp_path: Path, fraction: float, copies: int) -> None:
    documents = copies * DOCUMENTS
    kept = kept_of(documents, tmp_path / "shard")
    assert len(kept) > 5
    assert held_out_threshold(kept, held_out_fraction=fraction) == naive_threshold(documents, fraction=fraction)


def test_a_copy_falls_on_the_side_of_its_original_and_something_is_left_to_train_on(tmp_path: Path) -> None:
    for number, documents in enumerate([[b"a", b"b"], [b"a", b"b", b"a", b"b", b"b"]]):
        for fraction in (0.01, 0.99):
            kept = kept_of(documents, tmp_path / f"{number}-{fraction}", segment_bytes=2)
            threshold = held_out_threshold(kept, held_out_fraction=fraction)
            assert {document_hash(document) < threshold for document in documents} == {True, False}


@pytest.mark.parametrize(("documents", "message"), [([], "holds no text"), ([b"a", b"a"], "a single document")])
def test_a_corpus_that_cannot_be_split(tmp_path: Path, documents: list[bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        held_out_threshold(kept_of(documents, tmp_path / "shard"), held_out_fraction=0.1)
    kept = kept_of(documents, tmp_path / "again")
    with pytest.raises(DataError, match=f"{message}.*of 9 documents read, 7 dropped by email"):
        held_out_threshold(kept, held_out_fraction=0.1, fates="of 9 documents read, 7 dropped by email")


def test_dropped_documents_are_neither_held_out_nor_counted(tmp_path: Path) -> None:
    kept = []
    for number, one in enumerate(kept_of(DOCUMENTS, tmp_path / "shard")):
        verdict = tmp_path / f"verdict{number}"
        verdict.mkdir()
        np.save(verdict / "keep.npy", one.hashes_and_sizes()[0] % 2 == 0)
        kept.append(FilteredSegment(folder=one.folder, verdict=verdict))
    even = [document for document in DOCUMENTS if document_hash(document) % 2 == 0]
    assert 100 < len(even) < 400
    assert held_out_threshold(kept, held_out_fraction=0.3) == naive_threshold(even, fraction=0.3)
    assert sorted(tokenizer_sample(kept, threshold=0, seed=1)) == sorted(even)


def test_the_sample_is_bounded_distinct_and_free_of_held_out_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "SAMPLE_BYTES", 5000)
    monkeypatch.setattr(split, "SAMPLE_DOCUMENT_BYTES", 100)
    kept = kept_of(DOCUMENTS + DOCUMENTS, tmp_path / "shard")
    threshold = held_out_threshold(kept, held_out_fraction=0.3)
    sample = tokenizer_sample(kept, threshold=threshold, seed=1)
    held_out = {document[:100] for document in DOCUMENTS if document_hash(document) < threshold}
    assert len(set(sample)) == len(sample)
    assert not held_out & set(sample)
    assert 5000 <= sum(map(len, sample)) < 5100
    assert max(map(len, sample)) == 100


def test_the_sample_depends_on_content_and_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SAMPLE_BYTES", 5000)
    shuffled = random.Random(3).sample(DOCUMENTS, len(DOCUMENTS))
    first, second = kept_of(DOCUMENTS, tmp_path / "a"), kept_of(shuffled + shuffled, tmp_path / "b")
    reference = tokenizer_sample(first, threshold=0, seed=1)
    assert tokenizer_sample(second, threshold=0, seed=1) == reference
    assert tokenizer_sample(first, threshold=0, seed=2) != reference


def test_a_long_document_is_sampled_up_to_a_whole_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SAMPLE_DOCUMENT_BYTES", 10)
    kept = kept_of(["世界你好".encode()], tmp_path / "shard")
    assert tokenizer_sample(kept, threshold=0, seed=1) == ["世界你".encode()]
