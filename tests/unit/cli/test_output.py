import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.errors import OutputError
from chinchilla_ds.runs.disk import check_output, output_errors, write_text

_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b", num_bytes=12_000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file; name another place"):
        check_output(tmp_path / "file", num_bytes=12_000)


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "link", num_bytes=12_000)


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"cannot be written: .*: Read-only file system"):
        check_output(tmp_path / "runs", num_bytes=12_000)


def test_a_disk_too_small_for_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"GiB free, and a checkpoint takes at least 10913\.94 TiB"):
        check_output(tmp_path, num_bytes=12 * 10**15)


@pytest.mark.parametrize("error", [_FULL, RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos")])
def test_a_full_disk_is_a_message(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError, match=r"cannot write to .* are free; free some"), output_errors(tmp_path):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no", "/x")]
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), output_errors(tmp_path):
        raise error


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
