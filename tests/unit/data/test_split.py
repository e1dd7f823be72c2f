import random

import pytest

from chinchilla_ds.data import split
from chinchilla_ds.data.split import DocumentSurvey, document_hash
from chinchilla_ds.errors import DataError
from tests.unit.data.conftest import make_documents

DOCUMENTS = [text.encode() for text in make_documents(number=500)]


def survey_of(documents: list[bytes], *, seed: int = 1) -> DocumentSurvey:
    survey = DocumentSurvey(seed=seed)
    for document in documents:
        survey.add(document)
    return survey


def test_the_lowest_hashes_make_up_the_fraction() -> None:
    threshold = survey_of(DOCUMENTS).held_out_threshold(held_out_fraction=0.1)
    held_out = [document for document in DOCUMENTS if document_hash(document) < threshold]
    total, size = sum(map(len, DOCUMENTS)), sum(map(len, held_out))
    last = max(held_out, key=document_hash)
    assert size - len(last) < 0.1 * total <= size


def test_a_copy_falls_on_the_side_of_its_original_and_something_is_left_to_train_on() -> None:
    for documents in ([b"a", b"b"], [b"a", b"b", b"a", b"b", b"b"]):
        threshold = survey_of(documents).held_out_threshold(held_out_fraction=0.99)
        assert {document_hash(document) < threshold for document in documents} == {True, False}


@pytest.mark.parametrize(("documents", "message"), [([], "holds no text"), ([b"a", b"a"], "one single document")])
def test_a_corpus_that_cannot_be_split(documents: list[bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        survey_of(documents).held_out_threshold(held_out_fraction=0.1)


def test_the_sample_is_bounded_distinct_and_free_of_held_out_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SAMPLE_BYTES", 5000)
    monkeypatch.setattr(split, "SAMPLE_DOCUMENT_BYTES", 100)
    survey = survey_of(DOCUMENTS + DOCUMENTS)
    threshold = survey.held_out_threshold(held_out_fraction=0.3)
    sample = survey.tokenizer_sample(threshold=threshold)
    held_out = {document[:100] for document in DOCUMENTS if document_hash(document) < threshold}
    assert len(set(sample)) == len(sample)
    assert not held_out & set(sample)
    assert 2500 < sum(map(len, sample)) < 5100
    assert max(map(len, sample)) == 100


def test_the_sample_depends_on_content_and_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SAMPLE_BYTES", 5000)
    shuffled = random.Random(3).sample(DOCUMENTS, len(DOCUMENTS))
    reference = survey_of(DOCUMENTS).tokenizer_sample(threshold=0)
    assert survey_of(shuffled + shuffled).tokenizer_sample(threshold=0) == reference
    assert survey_of(DOCUMENTS, seed=2).tokenizer_sample(threshold=0) != reference


def test_a_long_document_is_sampled_up_to_a_whole_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SAMPLE_DOCUMENT_BYTES", 10)
    assert survey_of(["世界你好".encode()]).tokenizer_sample(threshold=0) == ["世界你".encode()]
