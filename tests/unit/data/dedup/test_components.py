"""Which documents are kept: planted duplicates, a naive second implementation, order, workers, kills and bad input."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.data.dedup import candidates, verdicts
from chinchilla_ds.data.dedup.bands import PRESETS, MinHashConfig, Unit
from chinchilla_ds.data.dedup.components import (
    BAND_KEYS_NAME,
    CONTENT_HASH_NAME,
    DUPLICATE_OF_NAME,
    KEEP_NAME,
    SOURCE_NAME,
    find_duplicates,
)
from chinchilla_ds.data.dedup.minhash import agreeing, band_keys
from chinchilla_ds.errors import DataError, OutputError
from chinchilla_ds.processes.pool import Workers
from tests.unit.data.dedup.pairs import make_pair, real_texts
from tests.unit.data.dedup.probabilities import detection_probability

SMALL = MinHashConfig(unit=Unit.WORD, shingle_size=3, num_permutations=32, bands=8, rows=4)
Document = tuple[str, int]
"""A text and its source."""


def content_hash(text: str) -> tuple[int, int]:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def write_shards(
    documents: Sequence[Document], *, folder: Path, config: MinHashConfig | None, size: int, bits: int = 128
) -> list[Path]:
    shards = []
    for start in range(0, len(documents), size):
        part = documents[start : start + size]
        shards.append(folder / f"shard_{start:05d}")
        shards[-1].mkdir(parents=True)
        hashes = np.array([content_hash(text) for text, _ in part], dtype=np.uint64)
        np.save(shards[-1] / CONTENT_HASH_NAME, hashes if bits == 128 else hashes[:, 0].copy())
        np.save(shards[-1] / SOURCE_NAME, np.array([source for _, source in part], dtype=np.uint16))
        if config is not None:
            np.save(shards[-1] / BAND_KEYS_NAME, band_keys([text for text, _ in part], config=config))
    return shards


def keeps(verdicts: Sequence[Path]) -> list[bool]:
    return np.concatenate([np.load(folder / KEEP_NAME) for folder in verdicts]).tolist()


def count(shards: Sequence[Path], verdicts: Sequence[Path]) -> tuple[int, int]:
    """Return how many documents are exact, and how many near duplicates of a kept one."""
    num_exact = num_dropped = 0
    for shard, folder in zip(shards, verdicts, strict=True):
        dropped = ~np.load(folder / KEEP_NAME)
        same = np.load(folder / DUPLICATE_OF_NAME) == np.load(shard / CONTENT_HASH_NAME)
        same = same.all(axis=1) if same.ndim == 2 else same
        num_exact += int(np.count_nonzero(same & dropped))
        num_dropped += int(np.count_nonzero(dropped))
    return num_exact, num_dropped - num_exact


def deduplicate(
    documents: Sequence[Document], *, folder: Path, config: MinHashConfig | None, size: int = 500, workers: int = 1
) -> list[bool]:
    shards = write_shards(documents, folder=folder / "in", config=config, size=size)
    found = find_duplicates(shards, config=config, work_folder=folder / "work", workers=Workers(workers))
    kept = keeps(found)
    assert len(kept) == len(documents)
    return kept


def mixed_documents(*, number: int = 300, seed: int = 0) -> list[Document]:
    """Real text, copies in the same and in other sources, lightly and heavily edited copies."""
    generator = random.Random(seed)
    base = real_texts(number=number, characters=600)
    documents = [(text, generator.randrange(3)) for text in base]
    for text in generator.sample(base, k=number // 3):
        words = text.split(" ")
        for edits in (0, 1, 2, 8):
            changed = list(words)
            for _ in range(edits):
                changed[generator.randrange(len(changed))] = "edited"
            documents.append((" ".join(changed), generator.randrange(3)))
    generator.shuffle(documents)
    return documents


def naive_keeps(documents: Sequence[Document], *, config: MinHashConfig) -> list[bool]:
    """All pairs within each band's groups, held against the smallest hash; components by repeated merging."""
    keys = band_keys([text for text, _ in documents], config=config)
    hashes = [content_hash(text) for text, _ in documents]
    component = list(range(len(documents)))
    for band in range(config.bands):
        for key in np.unique(keys[:, band]):
            group = np.flatnonzero(keys[:, band] == key)
            centre = min(group, key=lambda index: (hashes[index], index))
            for index in group:
                if agreeing(keys[[centre]], keys[[index]], config=config)[0] >= config.min_agreeing:
                    old, new = component[index], component[centre]
                    component = [new if label == old else label for label in component]
    best: dict[int, tuple[tuple[int, int], int, int]] = {}
    for index, (_, source) in enumerate(documents):
        rank = (hashes[index], source, index)
        best[component[index]] = min(best.get(component[index], rank), rank)
    return [best[component[index]][2] == index for index in range(len(documents))]


@pytest.mark.parametrize("bits", [64, 128])
@pytest.mark.parametrize("task_records", [1 << 20, 40])
def test_matches_the_naive_implementation(
    task_records: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (candidates, verdicts):
        monkeypatch.setattr(module, "TASK_RECORDS", task_records)
    documents = mixed_documents(number=150)
    shards = write_shards(documents, folder=tmp_path / "in", config=SMALL, size=64, bits=bits)
    found = find_duplicates(shards, config=SMALL, work_folder=tmp_path / "work", workers=Workers(1))
    expected = naive_keeps(documents, config=SMALL)
    assert keeps(found) == expected
    hashes = np.concatenate([np.load(shard / CONTENT_HASH_NAME) for shard in shards])
    named = np.concatenate([np.load(folder / DUPLICATE_OF_NAME) for folder in found])
    kept = np.array(expected)
    assert np.array_equal(named[kept], hashes[kept])
    assert {str(value) for value in named[~kept]} <= {str(value) for value in hashes[kept]}
    num_exact, num_near = count(shards, found)
    assert num_near > 20
    assert num_exact > 10


def test_exact_copies_only_without_a_config(tmp_path: Path) -> None:
    documents = mixed_documents()
    kept = deduplicate(documents, folder=tmp_path, config=None, size=100)
    first: dict[str, tuple[int, int]] = {}
    for index, (text, source) in enumerate(documents):
        first[text] = min(first.get(text, (source, index)), (source, index))
    assert kept == [first[text][1] == index for index, (text, _) in enumerate(documents)]


@pytest.mark.parametrize("name", PRESETS)
def test_planted_duplicates_among_real_text(name: str, tmp_path: Path) -> None:
    config, generator = PRESETS[name], random.Random(3)
    real = [(text, 0) for text in dict.fromkeys(real_texts(number=300))]
    bare = deduplicate(real, folder=tmp_path / "bare", config=config)
    copies = [(text, 1) for text, _ in real[::2]]
    planted = {
        jaccard: [make_pair(jaccard=jaccard, config=config, generator=generator) for _ in range(number)]
        for jaccard, number in ((0.95, 500), (0.8, 1500), (0.5, 3000), (0.3, 1000))
    }
    documents = real + copies + [(text, 0) for pairs in planted.values() for pair in pairs for text in pair]
    kept = deduplicate(documents, folder=tmp_path / "planted", config=config, size=1000)
    assert kept[: len(real)] == bare  # copies come from a later source, and go
    assert not any(kept[len(real) : len(real) + len(copies)])
    start, share = len(real) + len(copies), {}
    for jaccard, pairs in planted.items():
        both = np.array(kept[start : start + 2 * len(pairs)]).reshape(-1, 2)
        share[jaccard] = 1 - both.all(axis=1).mean()
        assert both.any(axis=1).all()
        start += 2 * len(pairs)
    assert share[0.95] >= 0.99
    assert share[0.8] == pytest.approx(detection_probability(config, 0.8), abs=0.05)
    assert share[0.5] <= 0.001
    assert share[0.3] == 0


def test_the_same_content_is_kept_in_any_order_and_layout(tmp_path: Path) -> None:
    documents = mixed_documents()
    results = []
    for run, size in enumerate((1000, 37, 250)):
        shuffled = random.Random(run).sample(documents, k=len(documents))
        kept = deduplicate(shuffled, folder=tmp_path / str(run), config=SMALL, size=size)
        results.append(sorted(document for document, keep in zip(shuffled, kept, strict=True) if keep))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) < len(documents)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_from_1_2_and_4_workers(tmp_path: Path) -> None:
    shards = write_shards(mixed_documents(), folder=tmp_path / "in", config=SMALL, size=120)
    seen: list[tuple[str, float]] = []
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        report: Callable[[str, float], None] | None = (lambda *now: seen.append(now)) if workers == 2 else None
        with Workers(workers) as pool:
            find_duplicates(shards, config=SMALL, work_folder=folder, workers=pool, progress=report)
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "4")
    assert len(files(tmp_path / "1")) == 2 * len(shards) + 1  # the manifest; nothing else is left
    assert [share for stage, share in seen if stage == "match"][-1] == 1


def find_and_die(shards: list[Path], folder: Path, survive: int, before: bool) -> None:
    """Be killed at a certain move of a finished file to its place, before or after it."""
    move, moved = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal moved
        moved += 1
        if moved <= survive:
            return move(self, target)
        if not before:
            move(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
        return target

    Path.replace = replace  # type: ignore[assignment, method-assign]
    find_duplicates(shards, config=SMALL, work_folder=folder, workers=Workers(1))


@pytest.mark.parametrize("before", [True, False])
def test_killed_again_and_again_it_ends_with_the_same_bytes(before: bool, tmp_path: Path) -> None:
    shards = write_shards(mixed_documents(number=90), folder=tmp_path / "in", config=SMALL, size=60)
    find_duplicates(shards, config=SMALL, work_folder=tmp_path / "whole", workers=Workers(1))
    codes = []
    while not codes or codes[-1] != 0:
        arguments = (shards, tmp_path / "killed", 2 - (not before) + len(codes) % 3, before)  # a task moves two at most
        process = multiprocessing.get_context("fork").Process(target=find_and_die, args=arguments)
        process.start()
        process.join()
        codes.append(process.exitcode)
        assert len(codes) < 100
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    moves = 1 + len(shards) + SMALL.bands + 1 + len(shards) + 1 + 2 * len(shards)
    assert len(codes) > moves / 4
    assert set(codes[:-1]) == {-signal.SIGKILL}


def test_finished_parts_are_reused_and_other_inputs_start_anew(tmp_path: Path) -> None:
    documents = mixed_documents(number=60)
    shards = write_shards(documents, folder=tmp_path / "in", config=SMALL, size=60)
    work = tmp_path / "work"
    first = find_duplicates(shards, config=SMALL, work_folder=work, workers=Workers(1))
    times = {path: path.stat().st_mtime_ns for path in work.rglob("*.npy")}
    assert find_duplicates(shards, config=SMALL, work_folder=work, workers=Workers(1)) == first
    assert times == {path: path.stat().st_mtime_ns for path in work.rglob("*.npy")}
    hashes = np.load(shards[0] / CONTENT_HASH_NAME)
    hashes[1] = hashes[0]
    np.save(shards[0] / CONTENT_HASH_NAME, hashes)
    again = find_duplicates(shards[:1], config=None, work_folder=work, workers=Workers(1))
    assert count(shards[:1], again)[0] >= 1
    assert {path.parent.name for path in work.rglob("*.npy")} == {"000000"}
    assert json.loads((work / "manifest.json").read_text())["config"] is None


def test_no_document_and_empty_shards(tmp_path: Path) -> None:
    assert find_duplicates([], config=SMALL, work_folder=tmp_path / "none", workers=Workers(1)) == ()
    shards = write_shards(mixed_documents(number=9), folder=tmp_path / "in", config=SMALL, size=500)
    empty = tmp_path / "in" / "empty"
    empty.mkdir()
    for path in shards[0].iterdir():
        np.save(empty / path.name, np.load(path)[:0])
    with_empty = find_duplicates([empty, *shards], config=SMALL, work_folder=tmp_path / "a", workers=Workers(1))
    without = find_duplicates(shards, config=SMALL, work_folder=tmp_path / "b", workers=Workers(1))
    assert keeps(with_empty) == keeps(without)
    assert keeps(find_duplicates([empty], config=SMALL, work_folder=tmp_path / "c", workers=Workers(1))) == []


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    shards = write_shards(mixed_documents(number=60), folder=tmp_path / "in", config=SMALL, size=30)
    (shards[0] / SOURCE_NAME).unlink()
    path = shards[1] / BAND_KEYS_NAME
    path.write_bytes(path.read_bytes()[:-100])
    np.save(shards[2] / SOURCE_NAME, np.zeros(7, dtype=np.uint16))
    with pytest.raises(DataError) as caught:
        find_duplicates(shards[:3], config=SMALL, work_folder=tmp_path / "work", workers=Workers(1))
    assert [str(shard) in problem for shard, problem in zip(shards, caught.value.problems, strict=False)] == [True] * 3
    assert "holds 7 documents, but content_hash.npy beside it holds 30" in caught.value.problems[2]
    np.save(shards[4] / CONTENT_HASH_NAME, np.zeros(30))
    with pytest.raises(DataError, match=r"content_hash.npy holds float64 \(30,\); rows of unsigned integers"):
        find_duplicates(shards[4:5], config=SMALL, work_folder=tmp_path / "work", workers=Workers(1))
    with pytest.raises(DataError, match="has 12 columns, but these settings give 28"):
        find_duplicates(shards[3:4], config=PRESETS["fineweb"], work_folder=tmp_path / "work", workers=Workers(1))
    assert not (tmp_path / "work").exists()


def test_a_folder_that_cannot_be_made_is_an_error_of_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shards = write_shards(mixed_documents(number=9), folder=tmp_path / "in", config=SMALL, size=500)
    with pytest.raises(OutputError, match="cannot write"):
        find_duplicates(shards, config=SMALL, work_folder=tmp_path / "file" / "work", workers=Workers(1))


@pytest.mark.slow
def test_killed_at_20_random_moments_with_2_workers_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    shards = write_shards(mixed_documents(), folder=tmp_path / "in", config=SMALL, size=20)
    find_duplicates(shards, config=SMALL, work_folder=tmp_path / "whole", workers=Workers(1))
    generator, killed = random.Random(0), 0
    while killed < 20:
        code = (
            "import sys; from pathlib import Path; from chinchilla_ds.data.dedup.components import *;"
            "from chinchilla_ds.data.dedup.bands import MinHashConfig, Unit;"
            f"config = MinHashConfig(unit=Unit.WORD, shingle_size={SMALL.shingle_size},"
            f" num_permutations={SMALL.num_permutations}, bands={SMALL.bands}, rows={SMALL.rows});"
            "work, *shards = map(Path, sys.argv[1:]);"
            "from chinchilla_ds.processes.pool import Workers;"
            "find_duplicates(shards, config=config, work_folder=work, workers=Workers(2))"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed"), *map(str, shards)])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0.2, 4))
        process.kill()
        if process.wait() == 0:
            assert files(tmp_path / "killed") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")  # done before the next kill: once more from the start
        else:
            killed += 1
    with Workers(2) as pool:
        find_duplicates(shards, config=SMALL, work_folder=tmp_path / "killed", workers=pool)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
