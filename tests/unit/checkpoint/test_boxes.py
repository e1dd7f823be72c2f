"""Boxes against the plain way: number every value of a weight, cut it, and look where each one came from."""

import pytest
import torch

from chinchilla_ds.checkpoint.boxes import boxes_of, cut_of
from chinchilla_ds.model.initialization import cut_for_tensor_parallel_rank
from chinchilla_ds.weights import COLUMNS, HALVES, ROWS

WEIGHTS = {
    "norm": ((24,), None),
    "rows": ((24, 5), ROWS),
    "vector": ((24,), ROWS),
    "halves": ((24, 5), HALVES),
    "columns": ((7, 12), COLUMNS),
    "whole": ((9, 4), None),
}


@pytest.mark.parametrize(("shape", "split"), WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_flat_piece_lies_where_its_values_came_from(shape, split, world_size):
    full = torch.arange(torch.Size(shape).numel()).view(shape)
    for rank in range(world_size):
        part = full
        if split is not None:
            part = cut_for_tensor_parallel_rank(full, split=split, rank=rank, world_size=world_size)
        cut = cut_of(full_shape=shape, split=split, rank=rank, world_size=world_size)
        assert cut.local_shape == tuple(part.shape)
        flat = part.flatten()
        for start in range(0, flat.numel(), 3):
            for end in range(start + 1, flat.numel() + 1, 4):
                seen = torch.full((end - start,), -1)
                for box in boxes_of(cut, start=start, numel=end - start):
                    where = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))
                    seen[box.start : box.start + box.numel] = full[where].flatten()
                assert torch.equal(seen, flat[start:end])


def test_a_piece_of_a_matrix_is_at_most_three_boxes():
    cut = cut_of(full_shape=(100, 10), split=ROWS, rank=1, world_size=2)
    assert [box.sizes for box in boxes_of(cut, start=7, numel=300)] == [(1, 3), (29, 10), (1, 7)]
