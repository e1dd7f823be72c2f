"""Checkpoints of format version 2, which commit eee8a9d wrote, are read through the allow-list and resumed exactly.

tests/fixtures/checkpoints_of_eee8a9d.tar.xz holds two of a model of 1,720 parameters: `saved` by two ranks under ZeRO-3
after two steps of `tiny_plan`, and `written` from it by one process, weights alone; `expected.json` holds the SHA-256
of every tensor as that commit read it, and what its next three steps gave.
"""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.engine import checkpoint
from tests.distributed.test_checkpoint import state_at, train_steps
from tests.parity import harness

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "checkpoints_of_eee8a9d.tar.xz"


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def expected(old):
    return json.loads((old / "expected.json").read_text())


def hash_of(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def hashes_of(reader):
    return {
        f"{moment or 'weight'}/{name}": hash_of(reader.read(name, state=moment))
        for name in reader.names()
        for moment in ((None, "exp_avg", "exp_avg_sq") if reader.has_optimizer else (None,))
    }


def resume(engine, folder):
    """A body for `on_engine`: what the next steps give, and what is saved after loading, in the format of today."""
    checkpoint.load(engine, checkpoint=checkpoint.newest_whole(folder, warn=pytest.fail))
    checkpoint.Checkpointer(engine, folder=folder.parent / "again", ds_config={}).save(state_at(2))
    return train_steps(engine, range(2, 5))


def test_a_run_of_that_commit_is_resumed_exactly(old):
    reader, wanted = CheckpointReader.open(old / "saved"), expected(old)
    assert folders.read_manifest(reader.folder).format_version == 2
    assert hashes_of(reader) == wanted["sha256_of_tensors"]
    for steps in harness.on_engine(reader.plan, resume, old / "saved"):
        for found, told in zip(steps, wanted["losses_and_norms_of_steps_2_to_4"], strict=True):
            assert harness.largest_relative(list(found), told) < 1e-6  # processors round in other orders
    again = CheckpointReader.open(old / "again")
    assert folders.read_manifest(again.folder).format_version == 3
    assert hashes_of(again) == wanted["sha256_of_tensors"], "what was loaded, bit by bit"
    assert (again.state.optimizer_step, again.state.iteration) == (2, 2)


def test_weights_written_by_one_process_are_read(old):
    reader = CheckpointReader.open(old / "written")
    weights = {key: value for key, value in expected(old)["sha256_of_tensors"].items() if key.startswith("weight/")}
    assert hashes_of(reader) == weights
    copy = write_checkpoint(
        old / "copy/step_0000002",
        plan=reader.plan,
        ds_config=reader.ds_config(),
        weights=((name, reader.read(name)) for name in reader.names()),
    )
    assert not list(copy.rglob(".metadata"))
    assert hashes_of(CheckpointReader.open(copy)) == weights
