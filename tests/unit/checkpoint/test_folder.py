"""A checkpoint is whole or has no name; what is wrong with one is named."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.errors import CheckpointError


def write(checkpoints, iteration, text="tensor"):
    checkpoint = checkpoints / folders.checkpoint_name(iteration)
    aside = folders.begin(checkpoint)
    names = ("tensors/a", "plan.json", "state.json")
    for name in names:
        (aside / name).write_text(text)
    records = {name: folders.record_file(aside / name) for name in names}
    folders.commit(checkpoint, records=records)
    return checkpoint


def test_a_written_checkpoint_is_whole_and_latest(tmp_path):
    checkpoint = write(tmp_path, 7)
    assert folders.problems_of(checkpoint) == []
    assert (tmp_path / "latest").read_text() == "step_0000007\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_0000007"]
    assert folders.iteration_of(checkpoint) == 7


def test_what_is_written_has_no_name_until_it_is_whole(tmp_path):
    aside = folders.begin(tmp_path / "step_0000007")
    (aside / "tensors/a").write_text("half")
    assert folders.list_checkpoints(tmp_path) == []
    write(tmp_path, 8)
    assert not aside.exists(), "what a killed process has left is removed"


def test_a_second_checkpoint_of_the_same_step_takes_its_place(tmp_path):
    write(tmp_path, 7, "first")
    checkpoint = write(tmp_path, 7, "second")
    assert (checkpoint / "plan.json").read_text() == "second"
    assert folders.problems_of(checkpoint) == []


class Killed(BaseException):
    pass


def killed_at(monkeypatch, call):
    """Kill the process, so to speak, in front of the `call`th rename or removal."""
    left = itertools.count(call - 1, -1)

    def counted(real):
        def run(*args):
            if next(left) <= 0:
                raise Killed
            return real(*args)

        return run

    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))


@pytest.mark.parametrize("call", range(1, 7))
def test_at_every_moment_of_a_replacement_one_of_the_two_is_there_whole(call, tmp_path, monkeypatch):
    """The manifest, the old one aside, the new one in, `latest`, the old one's name, its files."""
    write(tmp_path, 6, "before")
    write(tmp_path, 7, "first")
    with monkeypatch.context() as patch:
        killed_at(patch, call)
        with pytest.raises(Killed):
            write(tmp_path, 7, "second")
    [newest, before] = folders.find_checkpoints(tmp_path)
    assert (folders.iteration_of(newest), before.name) == (7, "step_0000006")
    assert folders.problems_of(newest) == []
    wanted = "first" if call <= 3 else "second"
    assert (newest / "plan.json").read_text() == wanted
    assert (newest.name == "step_0000007") == (call != 3)
    folders.begin(tmp_path / "step_0000008")
    names = sorted(path.name for path in tmp_path.iterdir() if "step" in path.name)
    assert names == [".step_0000008.partial", "step_0000006", "step_0000007"]
    assert (tmp_path / "step_0000007/plan.json").read_text() == wanted


def test_one_that_was_to_be_replaced_can_be_removed(tmp_path):
    write(tmp_path, 6)
    write(tmp_path, 7).rename(tmp_path / ".step_0000007.replaced")
    assert [path.name for path in folders.prune(tmp_path, keep=0, milestone_iters=2)] == [".step_0000007.replaced"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_0000006"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped": (lambda path: flip(path / "tensors/a"), "its content does not match the hash"),
    "cut": (lambda path: (path / "tensors/a").write_text("ten"), "has 3 bytes and the manifest says 6"),
    "missing": (lambda path: (path / "plan.json").unlink(), "cannot be read: No such file"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "cannot be read: No such file"),
    "half a manifest": (lambda path: (path / "manifest.json").write_text('{"format_version": 1'), "is not JSON"),
    "a list": (lambda path: (path / "manifest.json").write_text("[]"), "is not a manifest"),
    "another version": (
        lambda path: (path / "manifest.json").write_text(json.dumps({"format_version": 9, "files": {}})),
        "has format version 9; this version reads 2 and 3",
    ),
}


@pytest.mark.parametrize(("do", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(do, message, tmp_path):
    checkpoint = write(tmp_path, 7)
    do(checkpoint)
    [problem] = folders.problems_of(checkpoint)
    assert message in problem
    assert str(checkpoint) in problem


def test_the_newest_and_the_milestones_stay(tmp_path):
    for iteration in range(10, 110, 10):
        write(tmp_path, iteration)
    removed = folders.prune(tmp_path, keep=2, milestone_iters=40)
    left = [folders.iteration_of(path) for path in folders.list_checkpoints(tmp_path)]
    assert left == [100, 90, 80, 40]
    assert len(removed) == 6
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_loses_its_name_before_its_files(tmp_path, monkeypatch):
    checkpoint = write(tmp_path, 7)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.prune(tmp_path, keep=0, milestone_iters=None)
    assert not checkpoint.exists()
    assert folders.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("inside", ["run", "run/checkpoints", "run/checkpoints/step_0000002"])
def test_a_path_may_be_a_run_its_checkpoints_or_one(inside, tmp_path):
    for iteration in (1, 2):
        write(tmp_path / "run/checkpoints", iteration)
    assert folders.find_checkpoints(tmp_path / inside)[0].name == "step_0000002"


@pytest.mark.parametrize(("name", "why"), [("", "holds no checkpoint"), ("nowhere", "does not exist")])
def test_no_checkpoint_is_an_error(name, why, tmp_path):
    with pytest.raises(CheckpointError, match=why):
        folders.find_checkpoints(tmp_path / name)
