"""Union-find on disk, against a naive one."""

import random
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.data.dedup import union
from chinchilla_ds.data.dedup.union import join, label_type, read_labels


def naive_labels(pairs: list[tuple[int, int]], number: int) -> list[int]:
    component = {node: {node} for pair in pairs for node in pair}
    for first, second in pairs:
        merged = component[first] | component[second]
        for node in merged:
            component[node] = merged
    return [min(component[node]) + 1 if node in component else 0 for node in range(number)]


@pytest.mark.parametrize("seed", range(8))
def test_components_match_the_naive_ones_in_any_order_and_chunk(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(seed)
    number = 200
    pairs = [(generator.randrange(number - 1), generator.randrange(number - 1)) for _ in range(30 + 20 * seed)]
    pairs += [(i, i + 1) for i in range(100, 140)]  # a long chain
    expected = naive_labels(pairs, number)
    assert 0 in expected
    for chunk in (3, 1000):
        monkeypatch.setattr(union, "CHUNK", chunk)
        generator.shuffle(pairs)
        files = []
        for part in range(3):
            files.append(tmp_path / f"{part}.npy")
            np.save(files[-1], np.array(pairs[part::3], dtype=np.int64).reshape(-1, 2))
        join(files, num_documents=number, output=tmp_path / "labels.bin")
        found = read_labels(tmp_path / "labels.bin", first=0, last=number, num_documents=number)
        assert found.tolist() == expected
        part_of = read_labels(tmp_path / "labels.bin", first=90, last=150, num_documents=number)
        assert part_of.tolist() == expected[90:150]


def test_no_edges_leave_zeros_that_have_their_place_on_the_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.empty((0, 2), dtype=np.int64))
    join([tmp_path / "0.npy"], num_documents=1_000_000, output=tmp_path / "labels.bin")
    assert (tmp_path / "labels.bin").read_bytes() == bytes(4_000_000)
    assert (tmp_path / "labels.bin").stat().st_blocks * 512 >= 4_000_000


def test_labels_hold_every_ordinal() -> None:
    assert label_type(2**32 - 2).itemsize == 4
    assert label_type(2**32 - 1).itemsize == 8
