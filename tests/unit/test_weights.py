"""The table of weights against the plain-PyTorch reference, which knows names and shapes by another way."""

import pytest
import torch

from chinchilla_ds.exporting import llama
from chinchilla_ds.testing.configs import tiny_shape
from chinchilla_ds.weights import (
    COLUMNS,
    HALVES,
    ROWS,
    TABLE,
    chunk_layers,
    held_kinds,
    kind_of,
    named_kinds,
    stage_layers,
)
from tests.parity.reference_llama import ReferenceLlama, to_megatron_state

SHAPES = {
    "grouped": tiny_shape(),
    "tied": tiny_shape(tied_embeddings=True),
    "qk-norm": tiny_shape(qk_norm=True),
    "plain-heads": tiny_shape(num_query_groups=4, padded_vocab_size=384, vocab_size=300),
    "wide-heads": tiny_shape(num_layers=1, kv_channels=32, ffn_hidden_size=130),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


def test_names_and_shapes_are_the_models(shape):
    wanted = {name: tuple(value.shape) for name, value in to_megatron_state(ReferenceLlama(shape)).items()}
    assert {name: kind.shape(shape) for name, kind, _ in named_kinds(shape)} == wanted


def test_every_name_leads_to_its_row(shape):
    assert all(kind_of(name) is kind for name, kind, _ in named_kinds(shape))
    assert len({kind.attribute for kind in TABLE}) == len(TABLE), "a decoder names its weights by them"


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.0.output_layer.weight",
        "mlp.linear_fc1.weight",
        "decoder.layers.0.mlp.linear_fc1.bias",
        "objective.gate",
        "",
    ],
)
def test_other_names_are_no_weights(name):
    assert kind_of(name) is None


def test_vectors_are_ones_and_not_decayed(shape):
    for _, kind, _ in named_kinds(shape):
        is_vector = len(kind.shape(shape)) == 1
        assert kind.is_decayed is not is_vector
        assert (kind.std(shape) is None) is is_vector


def test_an_export_takes_every_row_once(shape):
    for weight in llama.weights(shape, vocab_size=shape.vocab_size):
        rows = [row for piece in weight.pieces for part in piece.rows for row in range(part.start, part.stop)]
        padding = weight.shape[0] - shape.vocab_size if weight.name in llama.TABLES else 0
        assert sorted(rows) == list(range(weight.shape[0] - padding))
        assert all(piece.num_rows == sum(part.stop - part.start for part in piece.rows) for piece in weight.pieces)


def test_stages_together_hold_the_model():
    first, middle, last = (held_kinds(tiny_shape(), is_first=a, is_last=b) for a, b in ((1, 0), (0, 0), (0, 1)))
    assert [kind.attribute for kind in first if kind not in middle] == ["word_embeddings"]
    assert [kind.attribute for kind in last if kind not in middle] == ["final_layernorm", "output_layer"]
    tied = held_kinds(tiny_shape(tied_embeddings=True), is_first=False, is_last=True)
    assert [kind.attribute for kind in tied if not kind.in_layers] == ["word_embeddings", "final_layernorm"]


def test_ranks_take_equal_parts_of_every_run():
    rows = torch.arange(8)
    taken = {split: [[rows[part].tolist() for part in split.parts(8, rank=r, world_size=2)] for r in (0, 1)]
             for split in (ROWS, COLUMNS, HALVES)}  # fmt: skip
    assert taken[ROWS] == taken[COLUMNS] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert taken[HALVES] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


# ---- layers of pipeline stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "pipeline", "stages"),
    [
        (126, 16, (7, *[8] * 14, 7)),  # Llama 3 405B (arXiv:2407.21783), section 3.3.2
        (6, 4, (1, 2, 2, 1)),
        (7, 2, (4, 3)),  # one layer less: on the last stage, with the logits
        (5, 4, (1, 2, 1, 1)),
        (12, 4, (3, 3, 3, 3)),
        (3, 1, (3,)),
    ],
)
def test_stages_at_the_ends_have_fewer_layers(num_layers, pipeline, stages):
    assert stage_layers(num_layers=num_layers, pipeline=pipeline) == stages


@pytest.mark.parametrize("virtual", [1, 2, 4, 8])
def test_chunks_add_up_to_their_stages(virtual):
    """Megatron deals chunks to stages in turn; a stage has as many layers however it is cut into chunks."""
    for pipeline in range(2, 40):
        for full in (8, 16):
            for num_layers in range((full - 1) * pipeline + 1, full * pipeline + 1):
                chunks = chunk_layers(num_layers=num_layers, pipeline=pipeline, virtual=virtual)
                stages = tuple(sum(chunks[stage::pipeline]) for stage in range(pipeline))
                assert stages == stage_layers(num_layers=num_layers, pipeline=pipeline)
                assert sum(chunks) == num_layers
                assert max(chunks) - min(chunks) <= 1
