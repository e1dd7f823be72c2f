import dataclasses
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data.cleaning.rules import Cleaner, CleaningConfig
from chinchilla_ds.data.prepare import prepare
from chinchilla_ds.data.prepared import PreparedData, is_prepared
from chinchilla_ds.data.preparing import pipeline as pipeline_module
from chinchilla_ds.data.preparing import read_stage as stages_module
from chinchilla_ds.data.preparing.encode import unigram_loss
from chinchilla_ds.data.tokenizing.tokenizer import SentencePieceTokenizer, Tokenizer
from chinchilla_ds.errors import DataError, OutputError
from tests.unit.data.conftest import SEQ_LENGTH, VOCAB_SIZE


def run(
    data: DataConfig, folder: Path, *, num_tokens: int = 1000, vocab_size: int = VOCAB_SIZE, seed: int = 1
) -> PreparedData:
    return prepare(data, vocab_size=vocab_size, seq_length=SEQ_LENGTH, num_tokens=num_tokens, seed=seed, folder=folder)


def texts_of(prepared: PreparedData, prefix: Path) -> list[str]:
    tokenizer = Tokenizer.load(prepared.tokenizer_path)
    dataset = IndexedDataset(str(prefix))
    documents = [dataset[index].tolist() for index in range(len(dataset))]
    assert all(document.index(prepared.eod_id) == len(document) - 1 for document in documents)
    return [tokenizer.decode(document) for document in documents]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_document_comes_back_once_on_one_side(prepared: PreparedData, corpus_folder: Path) -> None:
    train, held_out = (texts_of(prepared, prefix) for prefix in (prepared.train_prefix, prepared.held_out_prefix))
    texts = [path.read_text() for path in corpus_folder.iterdir()]
    assert sorted(train + held_out) == sorted(text for text in texts if Cleaner(CleaningConfig()).clean(text).text)
    assert len(train + held_out) > 100
    assert not set(train) & set(held_out)
    assert (prepared.num_documents, prepared.held_out_documents) == (len(train), len(held_out))
    assert prepared.train_bytes == sum(len(text.encode()) for text in train)
    assert prepared.held_out_bytes == sum(len(text.encode()) for text in held_out)
    share = prepared.held_out_bytes / (prepared.held_out_bytes + prepared.train_bytes)
    assert share == pytest.approx(0.1, abs=0.02)


def test_numbers_of_the_manifest_are_those_of_the_files(prepared: PreparedData) -> None:
    train, held_out = (IndexedDataset(str(prefix)) for prefix in (prepared.train_prefix, prepared.held_out_prefix))
    assert train[0].dtype == np.uint16
    assert prepared.train_tokens == train.sequence_lengths.sum()
    assert prepared.held_out_tokens == held_out.sequence_lengths.sum()
    assert prepared.bytes_per_token == prepared.held_out_bytes / prepared.held_out_tokens
    tokenizer = Tokenizer.load(prepared.tokenizer_path)
    assert (prepared.vocab_size, prepared.eod_id) == (tokenizer.vocab_size, tokenizer.eod_id)
    assert prepared.tokenizer_sha256 == tokenizer.sha256


def test_unigram_loss_by_hand() -> None:
    loss = unigram_loss(train_counts=np.array([3, 1, 0]), held_out_counts=np.array([1, 0, 1]))
    assert loss == pytest.approx(-(math.log(4 / 7) + math.log(1 / 7)) / 2)


def test_unigram_loss_of_the_files(prepared: PreparedData) -> None:
    train, held_out = (IndexedDataset(str(prefix)) for prefix in (prepared.train_prefix, prepared.held_out_prefix))
    counts = Counter(token for index in range(len(train)) for token in train[index].tolist())
    total = counts.total() + prepared.vocab_size
    tokens = [token for index in range(len(held_out)) for token in held_out[index].tolist()]
    expected = -sum(math.log((counts[token] + 1) / total) for token in tokens) / len(tokens)
    assert prepared.unigram_loss == pytest.approx(expected)


def test_same_bytes_out_twice(prepared: PreparedData, data: DataConfig, tmp_path: Path) -> None:
    again = run(data, tmp_path)
    first = {name: content for name, content in files_of(prepared.folder).items() if not name.startswith("index")}
    assert files_of(again.folder) == first
    assert dataclasses.replace(again, folder=prepared.folder) == prepared


def test_a_second_call_reads_nothing(prepared: PreparedData, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "read_tasks", None)
    assert run(data, prepared.folder.parent) == prepared


def test_a_change_of_text_or_settings_prepares_again(corpus_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "corpus"
    shutil.copytree(corpus_folder, source)
    data = DataConfig(paths=(source,), held_out_fraction=0.1)
    folders = {run(data, tmp_path).folder}
    folders.add(run(data, tmp_path, vocab_size=400).folder)
    folders.add(run(data, tmp_path, seed=2).folder)
    folders.add(run(dataclasses.replace(data, held_out_fraction=0.2), tmp_path).folder)
    os.utime(source / "000.txt", ns=(0, 0))
    folders.add(run(data, tmp_path).folder)
    assert len(folders) == 5


def test_manifest_in_and_out_and_moved(prepared: PreparedData, tmp_path: Path) -> None:
    assert PreparedData.load(prepared.folder) == prepared
    moved = tmp_path / "moved"
    shutil.copytree(prepared.folder, moved)
    assert PreparedData.load(moved) == dataclasses.replace(prepared, folder=moved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "the manifest is not an object of named fields"),
        ('{"format_version": 0}', "the manifest's format_version is 0; 3 and 2 can be read"),
        ('{"format_version": 2, "folder": "x"}', r"manifest\.eod_id is missing"),
    ],
)
def test_a_broken_manifest(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=f"(?s){message}.*; restore the folder, or remove it to prepare the text again"):
        PreparedData.load(tmp_path)
    with pytest.raises(DataError, match=r"holds no usable prepared data: the manifest .* cannot be read: No such file"):
        PreparedData.load(tmp_path / "nowhere")


def test_too_few_tokens_says_how_many_epochs_and_what_budget(prepared: PreparedData, data: DataConfig) -> None:
    wanted = int(prepared.train_tokens * 2.5)
    with pytest.raises(DataError) as caught:
        run(data, prepared.folder.parent, num_tokens=wanted)
    message = str(caught.value)
    assert f"({wanted + 1})" in message
    assert f"({prepared.train_tokens})" in message
    assert "at most 1 epoch it serves 40.0% of the plan's tokens, about 16.0% of its compute budget" in message
    assert "read it 2.50 times: allow that with `data.max_epochs=3`" in message
    run(dataclasses.replace(data, max_epochs=3), prepared.folder.parent, num_tokens=wanted)


def test_the_last_token_counts(prepared: PreparedData, data: DataConfig) -> None:
    run(data, prepared.folder.parent, num_tokens=prepared.train_tokens - 1)
    with pytest.raises(DataError, match=r"`data\.max_epochs=2`"):
        run(data, prepared.folder.parent, num_tokens=prepared.train_tokens)


def test_a_held_out_part_below_one_sequence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short" * 50)
    (tmp_path / "b.txt").write_text("small" * 50)
    data = DataConfig(paths=(tmp_path / "a.txt", tmp_path / "b.txt"))
    with pytest.raises(DataError, match=r"one sequence needs 1001; raise `data.held_out_fraction` \(0.02\)"):
        prepare(data, vocab_size=VOCAB_SIZE, seq_length=1000, num_tokens=1, seed=1, folder=tmp_path / "out")


def test_settings_out_of_range_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(DataConfig(held_out_fraction=1.0, max_epochs=0.0), tmp_path, vocab_size=256)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "`data.held_out_fraction`",
        "`data.max_epochs`",
        "`vocab_size`",
    ]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b.txt is not UTF-8"):
        run(DataConfig(paths=(tmp_path,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_whole_pieces_that_a_second_try_starts_from(
    data: DataConfig, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SentencePieceTokenizer, "save", fail)
    with pytest.raises(
        OutputError, match=f"cannot write prepared data to {tmp_path}: No space left on device; complete"
    ):
        run(data, tmp_path)
    (work,) = tmp_path.iterdir()
    assert work.name.endswith(".work")
    assert not is_prepared(work)
    assert {path.name for path in work.iterdir() if path.name != "key"} == {"shards", "duplicates", "held_out"}
    monkeypatch.undo()
    monkeypatch.setattr(stages_module, "read_part", None)
    again = run(data, tmp_path)
    assert files_of(again.folder) == {
        name: content for name, content in files_of(prepared.folder).items() if not name.startswith("index")
    }
    assert not work.exists()


def test_a_folder_that_cannot_be_written(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write prepared data to .*/file/data: Not a directory"):
        run(data, tmp_path / "file" / "data")


def test_a_corpus_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    original = pipeline_module.read_tasks

    def grow(*args: Any, **kwargs: Any) -> Any:
        tasks = original(*args, **kwargs)
        path.write_text("more text")
        return tasks

    monkeypatch.setattr(pipeline_module, "read_tasks", grow)
    with pytest.raises(DataError, match=r"a\.txt changed while it was being read"):
        run(DataConfig(paths=(path,)), tmp_path)


def test_progress_goes_from_nothing_to_all_of_each_stage(data: DataConfig, tmp_path: Path) -> None:
    told: dict[str, list[float]] = {}
    prepare(
        data,
        vocab_size=VOCAB_SIZE,
        seq_length=SEQ_LENGTH,
        num_tokens=1,
        seed=1,
        folder=tmp_path,
        progress=lambda stage, share: told.setdefault(stage, []).append(share),
    )
    names = [stage for stage in told if not stage.startswith("finding duplicates: ")]
    assert names == ["reading and cleaning", "holding out", "training the tokenizer", "encoding", "writing"]
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in told.values())


def test_a_continued_run_keeps_what_an_earlier_version_prepared(data: DataConfig, tmp_path: Path) -> None:
    """Version 2 had no digests; its text is taken for the same files, and not for others."""
    settings: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "seq_length": SEQ_LENGTH, "num_tokens": 1000, "seed": 1}
    folder = prepare(data, folder=tmp_path / "old", **settings).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    assert prepare(data, folder=tmp_path / "new", earlier=folder, **settings).folder == folder
    inputs = json.loads((folder / "inputs.json").read_text())
    inputs["files"][0]["bytes"] += 1
    (folder / "inputs.json").write_text(json.dumps(inputs))
    assert prepare(data, folder=tmp_path / "new", earlier=folder, **settings).folder.parent == tmp_path / "new"


def test_the_held_out_hash_is_that_of_the_text_and_not_of_its_tokens(data: DataConfig, tmp_path: Path) -> None:
    first, other_tokenizer = run(data, tmp_path / "a"), run(data, tmp_path / "b", vocab_size=320)
    assert first.tokenizer_sha256 != other_tokenizer.tokenizer_sha256
    assert first.held_out_hash == other_tokenizer.held_out_hash == first.held_out_identity
    other_text = run(dataclasses.replace(data, held_out_fraction=0.3), tmp_path / "c")
    assert other_text.held_out_hash not in (None, first.held_out_hash)
    again = PreparedData.load(first.folder)
    assert again.held_out_hash == first.held_out_hash
    assert json.loads((first.folder / "inputs.json").read_text())["text_fields"] == {"corpus": "text"}


def test_a_corpus_from_before_there_was_a_hash_of_its_held_out_text(data: DataConfig, tmp_path: Path) -> None:
    prepared = run(data, tmp_path)
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    del manifest["held_out_hash"]
    (prepared.folder / "manifest.json").write_text(json.dumps(manifest))
    older = PreparedData.load(prepared.folder)
    assert older.content_key == prepared.content_key
    assert older.held_out_identity == f"tokens:{older.key_of(older.held_out_prefix)}"
    assert "held_out_hash" not in json.loads(older.to_json())
