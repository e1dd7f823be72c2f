import errno
import os

import pytest

from chinchilla_ds.cli import main as commands
from chinchilla_ds.errors import ConfigError, OutOfMemoryError


def test_a_problem_is_one_line_whatever_it_quotes() -> None:
    assert ConfigError("name 'a\nb\x1b[31m\u2028c' is no name").problems == (
        "name 'a\\nb\\x1b[31m\\u2028c' is no name",
    )
    (long,) = ConfigError("x" * 10**6).problems
    assert len(long) < 1100
    assert OutOfMemoryError("a table\nof two lines").problems == ("a table\nof two lines",)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ELOOP, errno.EIO])
def test_what_the_machine_does_not_allow_is_one_line(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> str:
        raise OSError(code, os.strerror(code), "/a/place")

    monkeypatch.setattr(commands, "run_command", run)
    assert commands.main([]) == 2
    assert capsys.readouterr().err == f"error: /a/place: {os.strerror(code)}\n"


def test_what_may_be_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "gone", "/a/place")

    monkeypatch.setattr(commands, "run_command", run)
    with pytest.raises(FileNotFoundError):
        commands.main([])
