import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.errors import OutputError
from chinchilla_ds.runs.disk import check_output, output_errors

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
