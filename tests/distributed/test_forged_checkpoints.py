"""What --resume and --init-from do with a checkpoint from elsewhere: no code is run, and all ranks end together."""

import json
import os
import pickle

import pytest

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.folder import list_checkpoints
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.errors import CheckpointError
from tests.distributed.test_checkpoint import save_in
from tests.parity import harness
from tests.parity.layouts import Case

CASE = Case(zero=3, dp=2)


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def sign(path, *, version):
    manifest = path / "manifest.json"
    files = [file for file in path.rglob("*") if file.is_file() and file != manifest]
    records = {str(file.relative_to(path)): vars(folders.record_file(file)) for file in files}
    manifest.write_text(json.dumps({"format_version": version, "files": records}))


def save(engine, folder, iterations):
    for iteration in iterations:
        save_in(engine, folder, iteration=iteration)


def forge_pickle(path, marker):
    (path / "tensors/index.json").unlink()
    (path / "tensors/.metadata").write_bytes(pickle.dumps(Runs(marker)))
    sign(path, version=2)


def test_a_forged_checkpoint_is_passed_over_and_runs_nothing(tmp_path):
    def resume(engine):
        said = []
        found = checkpoint.newest_whole(tmp_path / "run", warn=said.append)
        return found.name, said

    harness.on_engine(CASE.plan(), save, tmp_path / "run", (1, 2))
    forge_pickle(list_checkpoints(tmp_path / "run")[0], tmp_path / "it ran")
    (first, said), (second, _) = harness.on_engine(CASE.plan(), resume)
    assert first == second == "step_0000001"
    assert ".metadata is not an index of tensors" in said[0]
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("weights_only", [False, True], ids=["resume", "init-from"])
def test_a_forged_checkpoint_alone_is_an_error_on_every_rank(tmp_path, weights_only):
    def load(engine):
        with pytest.raises(CheckpointError, match="is not an index of tensors"):
            checkpoint.newest_whole(tmp_path / "run", warn=pytest.fail)
        with pytest.raises(CheckpointError, match="is not an index of tensors"):
            checkpoint.load(engine, checkpoint=tmp_path / "run/step_0000001", weights_only=weights_only)
        return True

    harness.on_engine(CASE.plan(), save, tmp_path / "run", (1,))
    forge_pickle(tmp_path / "run/step_0000001", tmp_path / "it ran")
    assert harness.on_engine(CASE.plan(), load) == [True, True]
    assert not (tmp_path / "it ran").exists()


def test_a_tensor_that_one_stage_lacks_is_an_error_on_every_rank(tmp_path):
    """Only the last stage asks for it; the first would wait for ever."""

    def load(engine):
        with pytest.raises(CheckpointError, match=r"no tensor weight/output_layer\.weight"):
            checkpoint.load(engine, checkpoint=tmp_path / "run/step_0000001")
        return True

    plan = Case(zero=1, pp=2, accumulation=4).plan()
    harness.on_engine(plan, save, tmp_path / "run", (1,))
    path = tmp_path / "run/step_0000001"
    index = json.loads((path / "tensors/index.json").read_text())
    del index["tensors"]["weight/output_layer.weight"]
    (path / "tensors/index.json").write_text(json.dumps(index))
    sign(path, version=3)
    assert harness.on_engine(plan, load) == [True, True]
