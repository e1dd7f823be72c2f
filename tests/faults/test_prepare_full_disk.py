"""A preparation on a disk that is full, a real one: told in one line, nothing looks whole that is not, and a rerun."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.cli.main import main
from chinchilla_ds.data.dedup.union import join
from chinchilla_ds.data.prepared import is_prepared
from chinchilla_ds.data.preparing import read_stage as stages
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe
from chinchilla_ds.errors import OutputError

WORDS = [f"{left}{right}" for left in ("al", "be", "cu", "do", "er") for right in ("na", "to", "ri", "sel")]
PLENTY = 256 * 2**20
STAGES = (
    "reading and cleaning",
    "finding duplicates",
    "holding out",
    "training the tokenizer",
    "encoding",
    "writing",
)


class SmallDisk:
    """A tmpfs whose size can be changed."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def resize(self, num_bytes: int) -> None:
        options = f"remount,size={num_bytes // 1024}k"
        subprocess.run(["mount", "-o", options, str(self.place)], check=True)

    def used(self) -> int:
        status = os.statvfs(self.place)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield SmallDisk(place)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stages, "_MIN_PART_BYTES", 100_000)
    generator, path = random.Random(0), tmp_path / "text.jsonl"
    texts = [" ".join(generator.choices(WORDS, k=100)) for _ in range(2000)]
    texts += texts[:300]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def recipe_of(corpus: Path) -> Recipe:
    return Recipe(sources=(SourceRecipe(paths=(str(corpus),)),), vocab_size=400)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def bytes_added_by_each_stage(corpus: Path, disk: SmallDisk) -> dict[str, int]:
    """Prepare with room for all; return what each stage adds to the disk."""
    used: dict[str, list[int]] = {}
    prepare_recipe(
        recipe_of(corpus),
        folder=disk.place / "whole",
        num_workers=1,
        progress=lambda stage, share: used.setdefault(stage.partition(":")[0], []).append(disk.used()),
    )
    assert tuple(used) == STAGES
    return {stage: max(found) - found[0] for stage, found in used.items()}


@pytest.mark.slow
def test_a_full_disk_in_each_stage_and_a_rerun_with_room(corpus: Path, disk: SmallDisk) -> None:
    added = bytes_added_by_each_stage(corpus, disk)
    whole, out = bytes_of(disk.place / "whole"), disk.place / "out"
    for victim in STAGES:
        seen: list[str] = []

        def fill(stage: str, share: float, *, victim: str = victim, seen: list[str] = seen) -> None:
            stage = stage.partition(":")[0]
            if stage == victim and stage not in seen:
                disk.resize(disk.used() + added[victim] // 2)
            seen.append(stage)

        with pytest.raises(OutputError, match="No space left on device"):
            prepare_recipe(recipe_of(corpus), folder=out, num_workers=1, progress=fill)
        assert seen[-1] == victim
        assert not is_prepared(out)
        left = [path for path in (disk.place / ".out.work").rglob("*") if path.name.startswith(".")]
        assert not left, "what is half written is removed"
        disk.resize(PLENTY)
        again = prepare_recipe(recipe_of(corpus), folder=out, num_workers=1)
        assert bytes_of(again.folder) == whole
        assert [path.name for path in disk.place.glob(".*")] == []
        shutil.rmtree(out)


def test_what_is_mapped_into_memory_has_its_place_before_it_is_written(disk: SmallDisk, tmp_path: Path) -> None:
    """A page that finds no place when it is written ends the process by SIGBUS."""
    documents = np.arange(2_000_000, dtype=np.int64)
    np.save(tmp_path / "edges.npy", documents.reshape(-1, 2))
    disk.resize(2**20)
    with pytest.raises(OutputError, match=r"labels\.bin: No space left on device; deduplication resumes from here"):
        join([tmp_path / "edges.npy"], num_documents=len(documents), output=disk.place / "labels.bin")
    assert not list(disk.place.iterdir())
    disk.resize(PLENTY)
    join([tmp_path / "edges.npy"], num_documents=len(documents), output=disk.place / "labels.bin")


def test_the_command_says_it_in_one_line(corpus: Path, disk: SmallDisk, capsys: pytest.CaptureFixture[str]) -> None:
    disk.resize(2**20)
    command = ["prepare", "--source", str(corpus), "--out", str(disk.place / "out"), "--vocab-size", "400"]
    assert main([*command, "--workers", "2"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert f"cannot write prepared data to {disk.place}: No space left on device; complete pieces are kept in" in line
    assert [path.name for path in disk.place.iterdir()] == [".out.work"]
    disk.resize(PLENTY)
    assert main([*command, "--workers", "2"]) == 0
    assert [path.name for path in disk.place.iterdir()] == ["out"]
