"""Boxes against the plain way: number every value of a weight, cut it, and look where each one came from."""

import pytest
import torch

from chinchilla_ds.checkpoint.boxes import boxes_of, cut_of
from chinchilla_ds.model.initialization import cut_for_tensor_parallel_rank

WEIGHTS = {
    "norm": ("decoder.final_layernorm.weight", (24,), None),
    "rows": ("decoder.layers.0.self_attention.linear_qkv.weight", (24, 5), 0),
    "halves": ("decoder.layers.0.mlp.linear_fc1.weight", (24, 5), 0),
    "columns": ("decoder.layers.0.mlp.linear_fc2.weight", (7, 12), 1),
    "whole": ("decoder.layers.0.self_attention.linear_qkv.weight", (9, 4), None),
}


@pytest.mark.parametrize(("name", "shape", "dim"), WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_flat_piece_lies_where_its_values_came_from(name, shape, dim, world_size):
    full = torch.arange(torch.Size(shape).numel()).view(shape)
    for rank in range(world_size):
        part = full
        if dim is not None:
            part = cut_for_tensor_parallel_rank(name, full, rank=rank, world_size=world_size, dim=dim)
        cut = cut_of(name=name, full_shape=shape, dim=dim, rank=rank, world_size=world_size)
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
    cut = cut_of(name="x", full_shape=(100, 10), dim=0, rank=1, world_size=2)
    assert [box.sizes for box in boxes_of(cut, start=7, numel=300)] == [(1, 3), (29, 10), (1, 7)]
