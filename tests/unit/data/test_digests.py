"""Prepared data on disk is what was written: every exchange and every change is told before anything is trained on."""

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.cli.main import main
from chinchilla_ds.config import DataConfig
from chinchilla_ds.data import digests
from chinchilla_ds.data.feeding.indexed import check_index
from chinchilla_ds.data.feeding.loader import TokenLoader, open_held_out
from chinchilla_ds.data.prepare import prepare
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import DataError
from chinchilla_ds.run_plan import RunPlan
from tests.unit.data.conftest import SEQ_LENGTH, VOCAB_SIZE

TRAIN = "train-corpus.bin"


@pytest.fixture
def folder(prepared: PreparedData, tmp_path: Path) -> Path:
    shutil.copytree(prepared.folder, tmp_path / "corpus", ignore=shutil.ignore_patterns("index"))
    return tmp_path / "corpus"


def start(folder: Path) -> PreparedData:
    """Do what a training run does with a prepared folder."""
    return prepare(
        DataConfig(paths=(folder,)),
        vocab_size=VOCAB_SIZE,
        seq_length=SEQ_LENGTH,
        num_tokens=1000,
        seed=1,
        folder=folder.parent / "out",
    )


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        start(folder)
    return "\n".join(caught.value.problems)


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def test_what_is_whole_is_taken_also_from_another_place(prepared: PreparedData, folder: Path) -> None:
    found = start(folder)
    assert found == dataclasses.replace(prepared, folder=folder)
    assert found.content_key == prepared.content_key


@pytest.mark.parametrize("name", [TRAIN, "train-corpus.idx", "held_out.bin", "held_out.idx", "held_out_origins.npy"])
def test_a_changed_byte_is_found(folder: Path, name: str) -> None:
    change(folder / name, lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert f"{folder / name} has changed since it was prepared" in refusal(folder)


def test_every_other_byte_changed(folder: Path) -> None:
    change(folder / TRAIN, lambda content: bytes(byte ^ (place % 2) for place, byte in enumerate(content)))
    assert f"{folder / TRAIN} has changed since it was prepared, first in the bytes from 0 to " in refusal(folder)


def test_files_that_are_cut_off_exchanged_or_gone(prepared: PreparedData, folder: Path) -> None:
    size = (folder / TRAIN).stat().st_size
    change(folder / TRAIN, lambda content: content[:-2])
    assert f"{folder / TRAIN} has {size - 2} bytes; it was written with {size}; restore the folder" in refusal(folder)
    (folder / TRAIN).unlink()
    assert f"{folder / TRAIN}: No such file or directory" in refusal(folder)
    os.mkfifo(folder / TRAIN)
    assert f"{folder / TRAIN} is not a regular file" in refusal(folder)
    (folder / TRAIN).unlink()
    shutil.copy(prepared.folder / TRAIN, folder / TRAIN)
    change(folder / "blocks.xxh3", lambda content: content[:-1] + b"\xff")
    assert "blocks.xxh3 and the manifest disagree about " in refusal(folder)


def test_another_tokenizer_in_its_place(folder: Path) -> None:
    change(folder / "tokenizer.model", lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{folder / 'tokenizer.model'} is not the tokenizer that the text was prepared with" in refusal(folder)


def as_before_digests(folder: Path) -> None:
    """Make the folder what commit eee8a9d wrote."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]
    (folder / "blocks.xxh3").unlink()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2, "folder": "."}))


def test_a_folder_without_digests_is_taken_its_sizes_and_tokenizer_are_checked(
    prepared: PreparedData, folder: Path, make_plan: Callable[..., RunPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    as_before_digests(folder)
    found = start(folder)
    assert found.files is None
    old_key = {  # what commit eee8a9d hashed
        field: value
        for field, value in dataclasses.asdict(found).items()
        if field not in ("files", "index_folder", "held_out_hash")
    } | {"folder": "", "source": ""}
    import hashlib

    key = hashlib.blake2b(json.dumps(old_key, sort_keys=True).encode(), digest_size=10).hexdigest()
    assert found.content_key == key != prepared.content_key
    assert main(["prepare", "--verify", str(folder)]) == 0
    assert "prepared before files had digests" in capsys.readouterr().out
    change(folder / TRAIN, lambda content: b"\xff" * len(content))
    loader = TokenLoader(prepared=start(folder), plan=make_plan())
    with pytest.raises(DataError, match=r"holds token 65535, but its tokenizer has \d+ pieces"):
        list(loader.micro_batches(0, 0))
    change(folder / TRAIN, lambda content: content[:-2])
    assert "it was written with" in refusal(folder)


def test_of_a_large_corpus_a_sample_is_checked_at_the_start_and_all_by_verify(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digests, "BLOCK_BYTES", 64)
    monkeypatch.setattr(digests, "_WHOLE_BYTES", 4096)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != "manifest.json"]
    names = [name for name in names if name not in ("blocks.xxh3", "inputs.json")]
    files = digests.digest_files(folder, names)
    small = sum(file.num_bytes for file in files.values() if file.num_bytes <= 4096)
    assert digests.check_content(folder, files, max_bytes=6400) <= small + 6400
    change(folder / TRAIN, lambda content: bytes(byte ^ (place % 2) for place, byte in enumerate(content)))
    with pytest.raises(DataError, match=f"{TRAIN} has changed"):
        digests.check_content(folder, files, max_bytes=6400)
    change(folder / TRAIN, lambda content: bytes(byte ^ (place % 2) for place, byte in enumerate(content)))
    change(folder / TRAIN, lambda content: content[:1000] + bytes([content[1000] ^ 4]) + content[1001:])
    with pytest.raises(DataError, match="in the bytes from 960 to 1024"):
        digests.check_content(folder, files, max_bytes=None)


def test_verify_reads_everything_and_prepares_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--verify", str(folder)]) == 0
    assert f"intact        {folder}: 7 files, " in capsys.readouterr().out
    change(folder / TRAIN, lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert main(["prepare", "--verify", str(folder)]) == 2
    assert "has changed since it was prepared" in capsys.readouterr().err
    assert main(["prepare", "--verify", str(folder), "--source", "x", "--seed", "3"]) == 2
    assert "--source, --seed cannot be combined with --verify, which prepares nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": "400"}, "manifest.vocab_size is '400'; it must be a whole number"),
        ({"vocab_size": -1}, "manifest.vocab_size is -1; it must be at least 1"),
        ({"train_tokens": 7}, "train_tokens is 7; those of the sources sum to"),
        ({"eod_id": 10**6}, "eod_id is 1000000; it must be below vocab_size"),
        ({"sources": []}, "sources are []; at least one is needed"),
        ({"sources": None}, "manifest.sources is None"),
        ({"unigram_loss": "x"}, "manifest.unigram_loss is 'x'; it must be a number"),
        ({"files": {}}, "manifest.files lacks held_out.bin"),
        ({"files": None}, "manifest.files is missing"),
        ({"index_folder": "/tmp"}, "manifest.index_folder is not a field"),
        ({"format_version": 9}, "the manifest's format_version is 9; 3 and 2 can be read"),
        ({"held_out_bytes": 10**400}, "an integer has 401 digits"),
    ],
)
def test_a_manifest_with_wrong_values(folder: Path, changed: dict[str, object], message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))
    assert message in refusal(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "tokenizer/../../x", "..", ""])
def test_a_manifest_that_names_files_elsewhere(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"num_bytes": 1, "digest": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert f"manifest.files names {name!r}" in refusal(folder)
    del manifest["files"][name]
    manifest["sources"][0]["name"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "source name" in refusal(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: b"not an index at all, whatever its size" + content[38:], "is not an index of Megatron-core"),
        (lambda content: content[:9] + struct.pack("<Q", 7) + content[17:], "has version 7 and type 8"),
        (lambda content: content[:17] + b"\x63" + content[18:], "has version 1 and type 99"),
        (lambda content: content[:18] + struct.pack("<QQ", 2**60, 2**60 + 1) + content[34:], "bytes, but an index of"),
        (lambda content: content[:-30], "bytes, but an index of"),
        (lambda content: content[:34] + b"\xff" * (len(content) - 34), "of the tokens, but they have"),
        (lambda content: content[:20], "is not an index of Megatron-core"),
        (lambda content: b"", "is not an index of Megatron-core"),
    ],
)
def test_an_index_that_cannot_be(folder: Path, edit: Callable[[bytes], bytes], message: str) -> None:
    check_index(folder / "train-corpus")
    change(folder / "train-corpus.idx", edit)
    with pytest.raises(DataError, match=message):
        check_index(folder / "train-corpus")


def test_a_pickle_in_the_place_of_a_sequence_index_is_not_run(
    folder: Path, make_plan: Callable[..., RunPlan], tmp_path: Path
) -> None:
    import pickle

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    prepared = start(folder)
    TokenLoader(prepared=prepared, plan=make_plan())
    (path, *_) = sorted((folder / "index").rglob("train*/*document_index.npy"))
    path.write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DataError, match=r"document_index\.npy is damaged; remove the folder"):
        TokenLoader(prepared=prepared, plan=make_plan())
    assert not (tmp_path / "executed").exists()


def test_a_corpus_that_may_only_be_read(
    folder: Path, make_plan: Callable[..., RunPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = TokenLoader(prepared=PreparedData.load(folder), plan=make_plan())
    shutil.rmtree(folder / "index")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)  # root may write anywhere
    prepared = start(folder)
    assert prepared.index_folder is not None
    assert prepared.index_folder.parent == folder.parent / "out"
    loader = TokenLoader(prepared=prepared, plan=make_plan())
    assert not (folder / "index").exists()
    assert sorted(path.name.split("-")[0] for path in prepared.index_folder.iterdir()) == ["held_out", "train"]
    for found, wanted in zip(loader.micro_batches(3, 0), reference.micro_batches(3, 0), strict=True):
        assert found.tokens.equal(wanted.tokens)


def test_a_place_for_the_index_is_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = PreparedData.load(folder)
    kept = [
        item["tokens"].tolist() for item in map(open_held_out(prepared, seq_length=SEQ_LENGTH).__getitem__, range(3))
    ]
    shutil.rmtree(folder / "index")
    mkdir = Path.mkdir

    def fail(path: Path, *rest: object, **more: object) -> None:
        if path == folder / "index":
            raise OSError(30, "Read-only file system")
        mkdir(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", fail)
    sequences = open_held_out(prepared, seq_length=SEQ_LENGTH)
    assert [sequences[number]["tokens"].tolist() for number in range(3)] == kept
