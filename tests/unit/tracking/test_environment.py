import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_ds.tracking.environment import describe_environment, git_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_named_and_changes_are_marked(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_outside_of_git_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None


def test_versions_come_from_the_installed_packages() -> None:
    environment = describe_environment()
    assert environment["versions"]["megatron-core"] == environment["packages"]["megatron-core"]


def test_a_password_in_the_command_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--data", "https://me:hidden@host/text.jsonl"])
    assert describe_environment()["command"] == ["pretrain.py", "--data", "https://***@host/text.jsonl"]
