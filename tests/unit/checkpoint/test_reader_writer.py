"""Checkpoints from one process, read back one tensor at a time."""

from pathlib import Path

import pytest
import torch

from chinchilla_ds.checkpoint import tensors
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.errors import CheckpointError, OutputError
from chinchilla_ds.testing import tiny_plan

WEIGHTS = {"output_layer.weight": torch.arange(12.0).view(4, 3), "decoder.final_layernorm.weight": torch.arange(3.0)}


def write(tmp_path, weights=WEIGHTS, **more):
    checkpoint = tmp_path / "checkpoints" / "step_0000000"
    return write_checkpoint(checkpoint, plan=tiny_plan(), ds_config={"a": 1}, weights=weights.items(), **more)


def test_what_was_written_is_read_back(tmp_path):
    (tmp_path / "t.model").write_bytes(b"pieces")
    reader = CheckpointReader.open(write(tmp_path, tokenizer=tmp_path / "t.model"))
    assert reader.names() == ("decoder.final_layernorm.weight", "output_layer.weight")
    for name, value in WEIGHTS.items():
        assert torch.equal(reader.read(name), value)
    assert reader.shape("output_layer.weight") == (4, 3)
    assert torch.equal(reader.read_rows("output_layer.weight", rows=slice(1, 3)), WEIGHTS["output_layer.weight"][1:3])
    assert reader.read_rows("output_layer.weight", rows=slice(4, 9)).shape == (0, 3)
    assert reader.plan == tiny_plan()
    assert (reader.state.iteration, reader.has_optimizer) == (0, False)
    assert reader.state.versions["torch"] == torch.__version__
    assert reader.tokenizer_path is not None
    assert reader.tokenizer_path.read_bytes() == b"pieces"


def test_moments_are_read_by_their_names(tmp_path):
    weights = {"a": torch.ones(2), "exp_avg/a": torch.full((2,), 2.0), "exp_avg_sq/a": torch.full((2,), 3.0)}
    reader = CheckpointReader.open(write(tmp_path, weights))
    assert reader.has_optimizer
    assert reader.names() == ("a",)
    assert [float(reader.read("a", state=kind)[0]) for kind in (None, "exp_avg", "exp_avg_sq")] == [1, 2, 3]


def test_an_unknown_tensor_is_named_with_the_nearest(tmp_path):
    reader = CheckpointReader.open(write(tmp_path))
    with pytest.raises(CheckpointError, match=r"did you mean 'weight/output_layer\.weight'"):
        reader.read("output_layers.weight")


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    def weights():
        yield from WEIGHTS.items()
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_checkpoint(tmp_path / "checkpoints" / "step_0000000", plan=tiny_plan(), ds_config={}, weights=weights())
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path)


def test_state_of_another_version_is_refused():
    with pytest.raises(CheckpointError, match="iteration is missing"):
        CheckpointState.from_json('{"steps": 3}', where="here")


def test_a_block_is_cut_into_rows():
    values = torch.empty(1000, 300_000, device="meta")  # 55.9 rows are 64 MiB
    block = tensors.Block(key="k", full_shape=(4000, 600_000), offsets=(2000, 300_000), values=values)
    parts = list(tensors.row_blocks(block))
    assert [part.values.shape[0] for part in parts] == [55] * 18 + [10]
    assert [part.offsets for part in parts] == [(2000 + 55 * number, 300_000) for number in range(19)]
    assert {(part.key, part.full_shape) for part in parts} == {("k", (4000, 600_000))}


@pytest.mark.parametrize("shape", [(3, 20_000_000), (20_000_000,), (1, 1)])
def test_a_row_is_never_cut(shape):
    values = torch.empty(shape, device="meta")
    parts = list(tensors.row_blocks(tensors.whole_block("k", values)))
    rows = [part.values.shape[0] for part in parts]
    assert sum(rows) == shape[0]
    assert rows == {3: [1, 1, 1], 20_000_000: [2**24, 20_000_000 - 2**24], 1: [1]}[shape[0]]


def bytes_read_for(reader, rows):
    """Return how many bytes this process reads from files for some rows, which must be right bit by bit."""

    def so_far():
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counters["rchar"])

    start = so_far()
    found = reader.read_rows("output_layer.weight", rows=rows)
    read = so_far() - start
    assert torch.equal(found, large_weight()[rows])
    return read


def large_weight():
    return torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))


def test_rows_are_read_without_the_rest(tmp_path, monkeypatch):
    weights = {**WEIGHTS, "output_layer.weight": large_weight(), "exp_avg/output_layer.weight": large_weight() + 1}
    uncut = CheckpointReader.open(write(tmp_path / "uncut", weights))
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 30 * 4000)
    cut = CheckpointReader.open(write(tmp_path / "cut", weights))
    for name in WEIGHTS:
        assert torch.equal(cut.read(name), uncut.read(name))
    assert torch.equal(cut.read("output_layer.weight", state="exp_avg"), large_weight() + 1)
    for reader in (uncut, cut):
        assert 8_000 < bytes_read_for(reader, slice(59, 61)) < 8_000 + 100_000, "two rows, and the metadata"
        assert bytes_read_for(reader, slice(0, 1000)) > 4_000_000, "control"
