"""A checkpoint from elsewhere runs no code, has no file read outside of it, hangs nothing, and ends in a message."""

import io
import json
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.cli.main import main
from chinchilla_ds.testing import tiny_plan

WEIGHT = torch.arange(12.0).view(4, 3)
NAME = "output_layer.weight"
KEY = f"weight/{NAME}"
LIMIT_S = 5.0


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "t.model").write_bytes(b"pieces")
    return write_checkpoint(
        tmp_path / "run/checkpoints/step_0000000",
        plan=tiny_plan(),
        ds_config={},
        weights=[(NAME, WEIGHT)],
        tokenizer=tmp_path / "t.model",
    )


def sign(checkpoint, *, version=3, more=None):
    """Make the manifest match the files again, as a forger would."""
    manifest = checkpoint / "manifest.json"
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path != manifest]
    records = {str(path.relative_to(checkpoint)): vars(folders.record_file(path)) for path in files}
    manifest.write_text(json.dumps({"format_version": version, "files": records | (more or {})}))


def refused(checkpoint, capsys, *, marker=None):
    """Return what every command says in the place of reading."""
    run, out = str(checkpoint.parents[1]), str(checkpoint.parents[2] / "out")
    said = ""
    for words in (
        ["checkpoint", "inspect", run],
        ["checkpoint", "verify", run],
        ["checkpoint", "convert", run, "--to", "weights", "--out", out],
        ["checkpoint", "convert", run, "--to", "universal", "--out", out],
        ["generate", run, "--prompt", "a"],
        ["export", run, "--out", out],
    ):
        started_s = time.monotonic()
        assert main(words) == 2, words
        assert time.monotonic() - started_s < LIMIT_S, words
        captured = capsys.readouterr()
        assert captured.out == "", words
        lines = captured.err.splitlines()
        whole = [line for line in lines if line.startswith("error: intact: none")]
        assert len(lines) - len(whole) == 1, (words, lines)
        assert not Path(out).exists()
        assert marker is None or not marker.exists(), words
        said = lines[0]
    return said


def test_control_what_is_signed_anew_is_read(checkpoint, capsys):
    sign(checkpoint)
    assert main(["checkpoint", "verify", str(checkpoint)]) == 0
    assert torch.equal(CheckpointReader.open(checkpoint).read(NAME), WEIGHT)


# ---- pickles ---------------------------------------------------------------------------------------------------------


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def put_pickle(checkpoint, content):
    (checkpoint / "tensors/index.json").unlink()
    (checkpoint / "tensors/.metadata").write_bytes(content)
    sign(checkpoint, version=2)


def metadata(*, file="000000.distcp", start=0, length=48, size=(4, 3), sizes=(4, 3), key=KEY, extra=None):
    tensor = TensorStorageMetadata(
        properties=TensorProperties(dtype=torch.float32),
        size=torch.Size(size),
        chunks=[ChunkStorageMetadata(offsets=torch.Size((0, 0)), sizes=torch.Size(sizes))],
    )
    return Metadata(
        state_dict_metadata={key: tensor, **({} if extra is None else {"weight/more": extra})},
        storage_data={MetadataIndex(key, (0, 0)): _StorageInfo(file, start, length)},
    )


def test_control_a_pickle_as_torch_writes_it_is_read(checkpoint):
    put_pickle(checkpoint, pickle.dumps(metadata()))
    assert torch.equal(CheckpointReader.open(checkpoint).read(NAME), WEIGHT)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(checkpoint, protocol, capsys, tmp_path):
    marker = tmp_path / "it ran"
    control = io.BytesIO(pickle.dumps(Runs(tmp_path / "control"), protocol=protocol))
    pickle.load(control)
    assert (tmp_path / "control").exists(), "control"
    for forged in (Runs(marker), metadata(extra=Runs(marker))):
        checkpoint.joinpath("tensors/index.json").touch()
        put_pickle(checkpoint, pickle.dumps(forged, protocol=protocol))
        assert ".metadata is not an index of tensors" in refused(checkpoint, capsys, marker=marker)


def nested(depth):
    return b"\x80\x04" + b")" + b"\x85" * depth


PICKLES = {
    "outside": (pickle.dumps(metadata(file="../plan.json")), "not the name of a file with tensors"),
    "absolute": (pickle.dumps(metadata(file="/etc/passwd")), "not the name of a file with tensors"),
    "missing": (pickle.dumps(metadata(file="1.distcp")), "is not among the checkpoint's files"),
    "beyond": (pickle.dumps(metadata(start=4)), "ends before its last block does"),
    "huge": (pickle.dumps(metadata(size=(2**40, 2**20), sizes=(2**40, 2**20), length=2**62)), "values; at most"),
    "half": (pickle.dumps(metadata(sizes=(2, 3), length=24)), "its blocks hold 6 values"),
    "another name": (pickle.dumps(metadata(key="weight/../../x")), "not the name of a tensor"),
    "bytes entries": (pickle.dumps(metadata(extra=BytesStorageMetadata())), "BytesStorageMetadata', which is not read"),
    "empty": (b"", "not an index"),
    "cut": (pickle.dumps(metadata())[:-20], "not an index"),
    "deep": (nested(100_000) + b".", "a Metadata is missing"),
    "deep key": (b"\x80\x04}" + nested(100_000)[2:] + b"Ns.", "a Metadata is missing"),
    "large memo": (b"\x80\x04Nr\xff\xff\xff\x7f.", "a Metadata is missing"),
    "long text": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00.", "not an index"),
    "digits": (b"I" + b"9" * 5000 + b"\n.", "not an index"),
}


@pytest.mark.parametrize(("content", "message"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_torch_does_not_write_is_refused(checkpoint, content, message, capsys):
    put_pickle(checkpoint, content)
    assert message in refused(checkpoint, capsys)


# ---- the index -------------------------------------------------------------------------------------------------------


def test_an_index_has_no_room_for_a_pickle(checkpoint, capsys, tmp_path):
    """A checkpoint of today's format: a `.metadata` in it is not looked at."""
    (checkpoint / "tensors/.metadata").write_bytes(pickle.dumps(Runs(tmp_path / "it ran")))
    sign(checkpoint)
    assert torch.equal(CheckpointReader.open(checkpoint).read(NAME), WEIGHT)
    assert not (tmp_path / "it ran").exists()


def tensor(**changes):
    one = {"shape": [4, 3], "file_numbers": [0], "starts": [0], "offsets": [0, 0], "sizes": [4, 3], **changes}
    return {"files": ["000000.distcp"], "tensors": {KEY: one}}


def files(*names):
    return {**tensor(), "files": list(names)}


INDICES = {
    "outside": (files("../state.json"), "'../state.json' is not the name of a file with tensors"),
    "absolute": (files("/etc/passwd"), "is not the name of a file with tensors"),
    "upwards": (files("000000.distcp/../../x.distcp"), "is not the name of a file with tensors"),
    "no such file": (files("1.distcp"), "1.distcp is not among the checkpoint's files"),
    "no such number": (tensor(file_numbers=[1]), "lies in file 1 of 1"),
    "negative number": (tensor(file_numbers=[-1]), "must be at least 0"),
    "negative start": (tensor(starts=[-4]), "must be at least 0"),
    "far start": (tensor(starts=[2**40]), "ends before its last block does"),
    "huge start": (tensor(starts=[10**300]), "10000"),
    "true": (tensor(starts=[True]), "whole number"),
    "fraction": (tensor(starts=[0.5]), "whole number"),
    "out of the shape": (tensor(offsets=[1, 0]), "reaches out of the shape [4, 3]"),
    "too few values": (tensor(sizes=[3, 3]), "hold 9 values, and the shape [4, 3] has 12"),
    "huge shape": (tensor(shape=[2**40, 2**20], sizes=[2**40, 2**20]), "values; at most"),
    "wrapping shape": (tensor(shape=[2**32, 2**31], sizes=[2**32, 2**31]), "values; at most"),
    "large shape": (tensor(shape=[2**20, 2**20], sizes=[2**20, 2**20]), "ends before its last block does"),
    "three dimensions": (tensor(shape=[2, 2, 3], offsets=[0] * 3, sizes=[2, 2, 3]), "3 dimensions"),
    "no dimension": (tensor(shape=[], offsets=[], sizes=[]), "0 dimensions"),
    "empty dimension": (tensor(shape=[0, 3], sizes=[0, 3]), "at least 1"),
    "columns": (tensor(starts=[0, 0]), "file_numbers has 1 entries"),
    "twice the bytes": (
        tensor(shape=[8, 3], file_numbers=[0, 0], starts=[0, 0], offsets=[0, 0, 4, 0], sizes=[4, 3, 4, 3]),
        "two blocks lie over one another",
    ),
    "no block": (tensor(file_numbers=[], starts=[], offsets=[], sizes=[]), "hold 0 values"),
    "folder as a name": ({**tensor(), "tensors": {"weight/../../x": tensor()["tensors"][KEY]}}, "not the name of a te"),
    "another kind": ({**tensor(), "tensors": {"bytes/x": tensor()["tensors"][KEY]}}, "not the name of a tensor"),
    "a list": ([], "must be an object"),
    "unknown field": ({**tensor(), "pickle": 1}, "is not a field"),
}


@pytest.mark.parametrize(("index", "message"), INDICES.values(), ids=INDICES)
def test_an_index_that_contradicts_itself_or_the_files_is_refused(checkpoint, index, message, capsys):
    (checkpoint / "tensors/index.json").write_text(json.dumps(index))
    sign(checkpoint)
    assert message in refused(checkpoint, capsys)


@pytest.mark.parametrize("text", ["", "nan", "[" * 100_000, '{"files": NaN}', "\xff", "9" * 5000])
def test_an_index_that_is_not_json_is_refused(checkpoint, text, capsys):
    (checkpoint / "tensors/index.json").write_bytes(text.encode("latin-1"))
    sign(checkpoint)
    assert "index" in refused(checkpoint, capsys)


# ---- the manifest and the files -------------------------------------------------------------------------------------


RECORD = {"bytes": 1, "xxh3": "0" * 32}
MANIFESTS = {
    "outside": ({"../secret": RECORD}, "lies outside of the checkpoint"),
    "absolute": ({"/etc/passwd": RECORD}, "lies outside of the checkpoint"),
    "upwards": ({"tensors/../../../secret": RECORD}, "lies outside of the checkpoint"),
    "no name": ({"": RECORD}, "lies outside of the checkpoint"),
    "nul": ({"a\0b": RECORD}, "holds a NUL"),
    "surrogate": ({"\ud800": RECORD}, "No such file"),
    "long": ({"x" * 5000: RECORD}, "File name too long"),
    "text for a number": ({"a": {"bytes": "1", "xxh3": "0" * 32}}, "whole number"),
    "negative": ({"a": {"bytes": -1, "xxh3": "0" * 32}}, "at least 0"),
    "a list": ({"a": []}, "named fields"),
    "null": ({"a": None}, "named fields"),
    "number for a hash": ({"a": {"bytes": 1, "xxh3": 5}}, "text"),
}


@pytest.mark.parametrize(("more", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_names_files_inside_and_nothing_else(checkpoint, more, message, capsys):
    checkpoint.parent.joinpath("secret").write_text("x")
    sign(checkpoint, more=more)
    assert message in refused(checkpoint, capsys)


@pytest.mark.parametrize("version", [None, True, "3", [], {}, 10**30, 1])
def test_another_version_is_refused(checkpoint, version, capsys):
    sign(checkpoint, version=version)
    assert "manifest" in refused(checkpoint, capsys)


FILES = ["manifest.json", "state.json", "plan.json", "tensors/index.json", "tensors/000000.distcp", "tokenizer.model"]


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_checkpoint_is_not_followed(checkpoint, name, capsys, tmp_path):
    """Even where all it leads to is right."""
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    said = refused(checkpoint, capsys)
    assert f"{checkpoint / name} is a link out of the checkpoint" in said


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_a_circle_is_refused(checkpoint, name, capsys):
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to(checkpoint / name)
    assert str(checkpoint) in refused(checkpoint, capsys)


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_fifo_hangs_nothing(checkpoint, name, capsys):
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert f"{checkpoint / name} is not a regular file" in refused(checkpoint, capsys)


def test_a_fifo_for_a_manifest_hangs_nothing(checkpoint, capsys):
    (checkpoint / "manifest.json").unlink()
    os.mkfifo(checkpoint / "manifest.json")
    assert "manifest.json is not a regular file" in refused(checkpoint, capsys)


@pytest.mark.parametrize("name", ["state.json", "plan.json"])
def test_what_the_manifest_does_not_name_is_not_read(checkpoint, name, capsys):
    values = json.loads((checkpoint / "manifest.json").read_text())
    del values["files"][name]
    (checkpoint / "manifest.json").write_text(json.dumps(values))
    assert f"does not name {name}" in refused(checkpoint, capsys)


def test_a_tokenizer_folder_has_no_links_out(checkpoint, capsys, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private/key").write_text("secret")
    (checkpoint / "tokenizer.model").unlink()
    (checkpoint / "tokenizer").mkdir()
    (checkpoint / "tokenizer/tokenizer.json").write_text("{}")
    sign(checkpoint)
    for name, target in (("key", tmp_path / "private/key"), ("more", tmp_path / "private")):
        (checkpoint / "tokenizer" / name).symlink_to(target)
        assert f"{checkpoint / 'tokenizer' / name} is a link out" in refused(checkpoint, capsys)
        (checkpoint / "tokenizer" / name).unlink()
    os.mkfifo(checkpoint / "tokenizer/fifo")
    assert "fifo is not a regular file" in refused(checkpoint, capsys)
