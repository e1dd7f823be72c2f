"""Files of a folder from elsewhere: regular, named, and inside it."""

import os

import pytest

from chinchilla_ds.data.named_files import find_named, read_named
from chinchilla_ds.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "model"


def test_files_and_links_within_are_found(folder):
    (folder / "link").symlink_to("config.json")
    assert find_named(folder, "config.json") == find_named(folder, "link") == folder.resolve() / "config.json"
    assert find_named(folder, "absent") is None
    assert read_named(folder, "link") == b"{}"


def test_a_folder_may_itself_be_a_link(folder, tmp_path):
    (tmp_path / "here").symlink_to("model")
    assert read_named(tmp_path / "here", "config.json") == b"{}"


def test_a_snapshot_of_the_hugging_face_cache(tmp_path):
    repository = tmp_path / "models--someone--llama"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "chinchilla_ds").mkdir(parents=True)
    (repository / "blobs" / "5eed").write_text("weights")
    (snapshot / "model").symlink_to("../../blobs/5eed")
    (snapshot / "chinchilla_ds" / "plan").symlink_to("../../../blobs/5eed")
    assert read_named(snapshot, "model") == b"weights"
    assert read_named(snapshot / "chinchilla_ds", "plan", home=snapshot) == b"weights"
    (snapshot / "other").symlink_to("../../refs")
    (repository / "refs").write_text("main")
    with pytest.raises(DataError, match=r"is a link to .*refs, outside"):
        read_named(snapshot, "other")
    (repository / "blobs" / "outside").symlink_to("/etc/hostname")
    (snapshot / "chained").symlink_to("../../blobs/outside")
    with pytest.raises(DataError, match="is a link to /etc/hostname, outside"):
        read_named(snapshot, "chained")


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd"])
def test_links_to_elsewhere_are_refused(target, folder):
    (folder / "link").symlink_to(target)
    with pytest.raises(DataError, match=r"link is a link to .*, outside .*model; only files in that folder are read"):
        find_named(folder, "link")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "", "a\0b"])
def test_names_that_are_paths_are_refused(name, folder):
    with pytest.raises(DataError, match="which is not a plain name of a file in it"):
        find_named(folder, name)


def test_what_is_no_file_is_refused(folder):
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "circle").symlink_to("circle")
    (folder / "broken").symlink_to("absent")
    for name in ("fifo", "folder"):
        with pytest.raises(DataError, match="is not a regular file"):
            find_named(folder, name)
    for name in ("circle", "broken"):
        with pytest.raises(DataError, match="cannot be read"):
            find_named(folder, name)
