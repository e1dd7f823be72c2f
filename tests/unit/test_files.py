"""Files and folders that are whole or not there: under exceptions, kills, and a disk that takes no more."""

import ast
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds import files
from chinchilla_ds.errors import DataError, OutputError
from chinchilla_ds.files import (
    check_arrays,
    check_free,
    new_folder,
    remove_asides,
    save_array,
    scratch_folder,
    whole_file,
    whole_folder,
    write_durably,
    write_json,
    write_output,
    write_text,
)

LIMIT_BYTES = 4096


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; return its exit code, that of a signal below zero."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except OSError:
            os._exit(28)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def no_room() -> None:
    """Let no file of this process grow beyond LIMIT_BYTES: a write takes what fits, then fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_file(path: Path, content: bytes, then: Callable[[], None]) -> None:
    with whole_file(path) as aside:
        aside.write_bytes(content)
        then()


def write_folder(folder: Path, content: bytes, then: Callable[[], None]) -> None:
    with whole_folder(folder) as aside:
        (aside / "a").write_bytes(content)
        then()
        (aside / "b").write_bytes(content)


def nothing() -> None:
    pass


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        write_file(tmp_path / "file", content, nothing)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_what_was_there_and_nothing_beside_it(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    write_file(tmp_path / "file", b"old", nothing)
    with pytest.raises(error):
        write_file(tmp_path / "file", b"new", fail)
    with pytest.raises(error):
        write_folder(tmp_path / "folder", b"new", fail)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


WRITERS: dict[str, Callable[[Path, bytes], object]] = {
    "whole_file": lambda path, content: write_file(path, content, nothing),
    "write_durably": write_durably,
    "write_output": lambda path, content: write_output(path, content=content),
    "write_text": lambda path, content: write_text(path, text=content.decode()),
    "write_json": lambda path, content: write_json(path, content.decode()),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_what_was_there(write: Callable[[Path, bytes], object], tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    before = path.read_bytes()

    def fill() -> None:
        no_room()
        try:
            write(path, b"x" * 3 * LIMIT_BYTES)
        except OutputError as error:
            raise OSError from error

    assert in_child(fill) == 28
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]
    write(path, b"x" * 3 * LIMIT_BYTES)  # the control: with room it is written
    assert path.stat().st_size >= 3 * LIMIT_BYTES


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    def fill() -> None:
        no_room()
        write_folder(tmp_path / "folder", b"x" * 3 * LIMIT_BYTES, nothing)

    assert in_child(fill) == 28
    assert os.listdir(tmp_path) == []


def test_a_kill_leaves_what_was_there_and_what_is_swept(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old", nothing)
    (tmp_path / ".notes.partial").touch()  # the user's own
    below = tmp_path / "below"
    below.mkdir()
    assert in_child(lambda: write_file(tmp_path / "file", b"new", die)) == -signal.SIGKILL
    assert in_child(lambda: write_folder(below / "folder", b"new", die)) == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (below / "folder").exists()
    assert len(os.listdir(tmp_path)) == 4, "the control: the kill came while something lay aside"
    remove_asides(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".notes.partial", "below", "file"]
    assert os.listdir(below) == []


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    """Whoever ends last has the name, whole; process ids repeat on the hosts of a cluster, so one process does both."""
    path = tmp_path / "file"
    with whole_file(path) as first:
        first.write_bytes(b"fir")
        with whole_file(path) as second:
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
        with first.open("ab") as stream:
            stream.write(b"st")
    assert path.read_bytes() == b"first"


def test_a_folder_is_named_once_it_is_whole_and_replaces_none_that_holds_something(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "folder"
    write_folder(folder, b"x", lambda: None if not folder.exists() else pytest.fail("it has its name too early"))
    assert sorted(os.listdir(folder)) == ["a", "b"]
    with pytest.raises(OSError, match="not empty"):
        write_folder(folder, b"y", nothing)
    assert (folder / "a").read_bytes() == b"x"
    assert os.listdir(folder.parent) == ["folder"]


def test_scratch_is_removed_with_what_a_killed_process_left_of_its_like(tmp_path: Path) -> None:
    def killed(name: str) -> None:
        with scratch_folder(tmp_path / name):
            die()

    for name in ("a", "a.0123abcd"):
        assert in_child(lambda name=name: killed(name)) == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    with scratch_folder(tmp_path / "a") as scratch:
        (scratch / "file").touch()
        [other] = left & {path.name for path in tmp_path.iterdir()}
        assert other.startswith(".a.0123abcd.")
    assert os.listdir(tmp_path) == [other]


def test_durable_is_the_content_then_the_name_then_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size >= 3 or os.path.isdir(f"/proc/self/fd/{descriptor}"), "written before"
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        calls.append(("replace", path.stat().st_ino))
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_durably(tmp_path / "file", "é1")
    inode = (tmp_path / "file").stat().st_ino
    assert calls == [("fsync", inode), ("replace", inode), ("fsync", tmp_path.stat().st_ino)]
    assert (tmp_path / "file").read_bytes() == "é1".encode()
    calls.clear()
    write_file(tmp_path / "file", b"new", nothing)
    assert [name for name, _ in calls] == ["replace"], "the control: nothing is flushed where nothing was promised"


def test_names_of_any_length_lie_aside_apart(tmp_path: Path) -> None:
    longest = [tmp_path / ("é" * 126 + end) for end in ("a", "b")]
    for path in longest:
        write_text(path, text=path.name)
        with new_folder(path.with_name(path.name[:-1] + "c")) as first, scratch_folder(longest[0]):
            (first / "file").touch()  # not swept as what a killed process left of the other
        (first.parent / (path.name[:-1] + "c") / "file").unlink()
    assert [path.read_text() for path in longest] == [path.name for path in longest]


def test_a_new_folder_is_new_or_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with new_folder(out) as aside:
        (aside / "file").touch()
    assert os.listdir(out) == ["file"]
    for taken in (out, out / "file"):
        with pytest.raises(OutputError, match=f"`out={taken}` exists already, and nothing is overwritten"):
            check_free(taken)
        with pytest.raises(OutputError, match="exists already"), new_folder(taken):
            pytest.fail("the block does not begin")
    with pytest.raises(OutputError, match=r"`out=\.` cannot be replaced; name a new folder"):
        check_free(Path())
    wanted = r"`to=.*/file/x` cannot be written: Not a directory"
    with pytest.raises(OutputError, match=wanted), new_folder(out / "file" / "x", named="to"):
        pytest.fail("the block does not begin")
    assert os.listdir(tmp_path) == ["out"]


def test_a_fifo_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    """As a device must: renamed over, /dev/null would be a file for every program of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, text="law")
        assert os.read(reader, 10) == b"law"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "laws").mkdir()
    (tmp_path / "laws/a.json").write_text("old")
    (tmp_path / "link.json").symlink_to("laws/a.json")
    write_text(tmp_path / "link.json", text="new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "laws/a.json").read_text() == "new"


def test_a_folder_and_a_name_of_the_longest_length(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; name a file in it"):
        write_text(tmp_path, text="x")
    longest = tmp_path / ("é" * 127)
    write_text(longest, text="x")
    assert longest.read_text() == "x"


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"`picture=.*x.png` cannot be written: No such file .*; .*/no is not a folder"
    ):
        write_output(tmp_path / "no" / "x.png", content=b"x", named="picture")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "values",
    [np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.zeros((0, 2), dtype="<u2"), np.array([True])],
)
def test_an_array_is_what_numpy_writes(values: np.ndarray, tmp_path: Path) -> None:
    save_array(tmp_path / "ours.npy", values)
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(values))
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    check_arrays(tmp_path)


def test_arrays_that_are_none_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(9))
    whole = (tmp_path / "a.npy").read_bytes()
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    pickled = (tmp_path / "a.npy").read_bytes()
    for content in (whole[:-1], whole + b"x", pickled, b"", b"text"):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy is damaged; remove the folder"):
            check_arrays(tmp_path)


def test_nothing_else_renames_or_flushes() -> None:
    """One way to write whole: what renames or flushes by itself is named here, with why."""
    own = {
        "files.py": "this is the way",
        "checkpoint/folder.py": "a folder that many ranks write together",
        "data/preparing/pipeline.py": "the whole result moves from the work folder to its place",
        "exporting/shards.py": "within a folder aside: names that tell how many files there are",
        "tracking/jsonl.py": "lines that are appended",
        "tracking/mlflow_database.py": "SQLite writes it, and another process's stays",
        "tracking/record.py": "a damaged file is put away",
    }
    package = Path(files.__file__).parent
    calls = (".rename(", "os.rename", "os.replace", "os.fsync", "mkstemp", "NamedTemporaryFile")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(call in (text := path.read_text()) for call in calls) or _replaces_a_path(text)
    }
    assert found == set(own)


def _replaces_a_path(text: str) -> bool:
    """Return whether a source calls `replace` with one argument, as paths have it; text takes two."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "replace"
        and len(node.args) == 1
        and not node.keywords
        for node in ast.walk(ast.parse(text))
    )
