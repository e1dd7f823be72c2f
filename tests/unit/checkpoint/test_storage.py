"""Any box of a tensor that lies in the files as other boxes; truth: slices of the tensor itself."""

import itertools

import pytest
import torch

from chinchilla_ds.checkpoint import tensors
from chinchilla_ds.checkpoint.folder import checkpoint_name
from chinchilla_ds.checkpoint.index import INDEX_NAME, read_index
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.testing import tiny_plan

MATRIX = torch.arange(48.0).view(8, 6)
VECTOR = torch.arange(7.0)


def blocks_of_a_grid(key, whole, rows, columns):
    """Cut a tensor into boxes at the given places."""
    edges = [(0, *cuts, size) for cuts, size in zip((rows, columns), whole.shape, strict=False)]
    spans = [list(itertools.pairwise(places)) for places in edges]
    for box in itertools.product(*spans):
        values = whole[tuple(slice(first, end) for first, end in box)]
        yield tensors.Block(
            key=key, full_shape=tuple(whole.shape), offsets=tuple(first for first, _ in box), values=values
        )


def save(blocks, folder):
    """Write blocks as a rank does, into one file; return their index."""
    tensors.save_blocks(blocks, folder=folder, group=None)  # without ranks
    return read_index(folder / INDEX_NAME)


@pytest.mark.parametrize(
    ("written", "wanted"),
    list(itertools.permutations([((), ()), ((3,), ()), ((), (2, 5)), ((1, 2, 6), (3,)), ((4,), (1,))], 2)),
)
def test_boxes_are_read_from_other_boxes(tmp_path, written, wanted):
    stored = [*blocks_of_a_grid("weight/m", MATRIX, *written), *blocks_of_a_grid("weight/v", VECTOR, written[0], ())]
    index = save(stored, tmp_path)
    for transposed in (False, True):  # memory that is not in the order of the file
        found = torch.full((6, 8), -1.0).t() if transposed else torch.full((8, 6), -1.0)
        vector = torch.full((14,), -1.0)[::2] if transposed else torch.full((7,), -1.0)
        blocks = [*blocks_of_a_grid("weight/m", found, *wanted), *blocks_of_a_grid("weight/v", vector, wanted[0], ())]
        tensors.load_blocks(blocks, index=index, folder=tmp_path)
        assert torch.equal(found, MATRIX)
        assert torch.equal(vector, VECTOR)


def test_the_file_is_nothing_but_the_values(tmp_path):
    save([tensors.whole_block("weight/m", MATRIX)], tmp_path)
    [file] = tmp_path.glob("*.distcp")
    assert file.read_bytes() == MATRIX.numpy().tobytes()


def test_a_file_that_ends_early_is_named(tmp_path):
    checkpoint = tmp_path / checkpoint_name(0)
    write_checkpoint(checkpoint, plan=tiny_plan(), ds_config={}, weights=[("m", MATRIX)])
    index = read_index(checkpoint / "tensors" / INDEX_NAME)
    [file] = checkpoint.rglob("*.distcp")
    file.write_bytes(file.read_bytes()[:-5])
    block = tensors.whole_block("weight/m", torch.empty(8, 6))
    with pytest.raises(CheckpointError, match=r"000000\.distcp ends 5 bytes before its last block does"):
        tensors.load_blocks([block], index=index, folder=checkpoint / "tensors")
