"""What is there already is found without reading it: the same files by the same key, in well under two seconds."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data import prepare as prepare_module
from chinchilla_ds.data.feeding.loader import TokenLoader
from chinchilla_ds.data.prepare import prepare
from chinchilla_ds.data.prepared import INPUTS_NAME, PreparedData
from chinchilla_ds.data.preparing.pipeline import content_key
from chinchilla_ds.data.preparing.recipe import find_sources
from chinchilla_ds.data.reading.kinds import FileKind
from chinchilla_ds.data.reading.sources import SourceFile, identities
from chinchilla_ds.run_plan import RunPlan
from tests.unit.data.conftest import SEQ_LENGTH, VOCAB_SIZE

NUM_FILES = 3000
LIMIT_S = 2.0


def test_a_warm_start_looks_once_and_takes_under_two_seconds(
    prepared: PreparedData, make_plan: Callable[..., RunPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(NUM_FILES):
        path = tmp_path / "text" / f"{index // 500}" / f"{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    data = DataConfig(paths=(tmp_path / "text",))
    recipe = prepare_module._recipe(data, vocab_size=VOCAB_SIZE, seed=1)
    key = content_key(find_sources(recipe), recipe)
    shutil.copytree(prepared.folder, tmp_path / key)  # as if it had been prepared from these files
    inputs = json.loads((prepared.folder / INPUTS_NAME).read_text())
    (tmp_path / key / INPUTS_NAME).write_text(json.dumps(inputs | {"key": key}))
    looked = []
    monkeypatch.setattr(prepare_module, "find_sources", lambda recipe: looked.append(recipe) or find_sources(recipe))
    plan = make_plan(train_iters=20)

    def start() -> float:
        began = time.perf_counter()
        found = prepare(data, vocab_size=VOCAB_SIZE, seq_length=SEQ_LENGTH, num_tokens=1000, seed=1, folder=tmp_path)
        next(TokenLoader(prepared=found, plan=plan).micro_batches(0, 0))
        return time.perf_counter() - began

    start()  # builds the index
    seconds = start()
    assert seconds < LIMIT_S
    assert len(looked) == 2
    (tmp_path / "text" / "0" / "0.txt").write_text("another text")
    assert content_key(find_sources(recipe), recipe) != key


def test_files_are_told_apart_as_resolved_paths_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (tmp_path / "real" / name).write_text("x")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "c.txt").symlink_to("a.txt")
    (tmp_path / "real" / "loose.txt").symlink_to("nowhere.txt")
    monkeypatch.chdir(tmp_path / "real")
    paths = [Path(name) for name in ("a.txt", "c.txt", "loose.txt", "deep/b.txt", "deep/../a.txt", "../linked/a.txt")]
    paths += [path.absolute() for path in paths] + [tmp_path / "linked" / "deep" / "b.txt"]
    files = [SourceFile(path=path, kind=FileKind.TEXT, num_bytes=1, modified_ns=1) for path in paths]
    assert identities(files) == [str(path.resolve()) for path in paths]
    hub = dataclasses.replace(files[0], path=Path("hf://a/b"), kind=FileKind.HUB, hub_name="hf://a/b")
    assert identities([hub]) == ["hf://a/b"]
