"""Quantised exports: what is stored, and what transformers and the reader make of it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.config_json import read_config
from chinchilla_ds.exporting.measure import load_model, measure
from chinchilla_ds.exporting.quantize import CODECS, Quantization, is_matrix, quantize_folder
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.shards import ShardReader
from chinchilla_ds.exporting.vector_folder import open_weights
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.run_plan import Precision
from tests.unit.exporting.conftest import small_shape, write_random

TOKENS = torch.arange(2, 34)
GAUSSIAN_ERROR = {Quantization.VECTOR4: 0.0095, Quantization.VECTOR3: 0.0346, Quantization.VECTOR2: 0.1175}
"""Of the best scalar quantiser of so many bits: vectors must do better."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An export, which no test may change."""
    folder = tmp_path_factory.mktemp("plain")
    return export_of(write_random(folder, small_shape(hidden_size=128, num_attention_heads=8)), folder / "plain")


@pytest.fixture(scope="module")
def coded(plain, tmp_path_factory):
    """The export as vectors of three bits, and what was said of it."""
    folder = tmp_path_factory.mktemp("coded") / "coded"
    return folder, quantize_folder(plain, out=folder, method=Quantization.VECTOR3)


def export_of(reader, out, *, dtype=Precision.FP32):
    facts = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
    return export_checkpoint(reader, out=out, dtype=dtype, facts=facts).folder


def logits(model):
    with torch.no_grad():
        return model(TOKENS[None]).logits


def test_vector_codec_of_a_model(plain, coded):
    check_codec(Quantization.VECTOR3, plain, *coded)


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in CODECS if method is not Quantization.VECTOR3])
def test_other_vector_codecs_of_a_model(method, plain, tmp_path):
    check_codec(method, plain, tmp_path / "coded", quantize_folder(plain, out=tmp_path / "coded", method=method))


def check_codec(method, plain, folder, result):
    before, after = ShardReader(plain), open_weights(folder, read_config(folder))
    assert after.names() == before.names()
    weights = bytes_ = 0
    for name in before.names():
        assert after.shape(name) == before.shape(name)
        if not is_matrix(name):
            assert torch.equal(after.read(name), before.read(name))
            continue
        weights += before.read(name).numel()
        bytes_ += CODECS[method].bits_per_weight(before.shape(name)) * before.read(name).numel() / 8
    assert result.bits_per_weight == pytest.approx(8 * bytes_ / weights)
    assert 0.3 * GAUSSIAN_ERROR[method] < result.relative_error < GAUSSIAN_ERROR[method]
    assert result.num_bytes < result.source_bytes
    apart = (logits(load_model(folder)) - logits(load_model(plain))).abs().max()
    assert 0 < apart < 5
    assert "## Quantisation" in (folder / "README.md").read_text()


@pytest.mark.parametrize("method", [Quantization.VECTOR3, Quantization.INT8])
def test_tied_tables_stay_tied(method, make_checkpoint, tmp_path):
    if method is Quantization.INT8:
        pytest.importorskip("torchao")
    plain = export_of(make_checkpoint(small_shape(tied_embeddings=True)), tmp_path / "plain")
    quantize_folder(plain, out=tmp_path / "small", method=method)
    model = load_model(tmp_path / "small")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert 0 < (logits(model) - logits(load_model(plain))).abs().max() < 5


def test_transformers_refuses_what_it_cannot_decode(coded):
    folder, _ = coded
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_coded_model_can_be_imported(coded, tmp_path):
    folder, _ = coded
    import_folder(folder, out=tmp_path / "run")
    back, decoded = CheckpointReader.open(tmp_path / "run"), open_weights(folder, read_config(folder))
    assert torch.equal(
        back.read("decoder.layers.1.mlp.linear_fc2.weight"), decoded.read("model.layers.1.mlp.down_proj.weight")
    )


def test_int8_is_loaded_by_transformers(plain, tmp_path):
    pytest.importorskip("torchao")
    result = quantize_folder(plain, out=tmp_path / "int8", method=Quantization.INT8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    weight = model.model.layers[0].mlp.gate_proj.weight
    assert type(weight).__name__ == "Int8Tensor"
    original = ShardReader(plain).read("model.layers.0.mlp.gate_proj.weight")
    step = original.abs().amax(dim=1, keepdim=True) / 127.5
    assert ((weight.dequantize() - original).abs() <= 0.501 * step).all(), "half a step of each row's own scale"
    assert 8 < result.bits_per_weight < 8.6
    apart = (logits(model) - logits(load_model(plain))).abs().max()
    assert 0 < apart < 0.5


def test_int8_in_bf16(make_checkpoint, tmp_path):
    pytest.importorskip("torchao")
    export_of(make_checkpoint(), tmp_path / "plain", dtype=Precision.BF16)
    quantize_folder(tmp_path / "plain", out=tmp_path / "int8", method=Quantization.INT8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype="auto")
    assert model.model.layers[0].mlp.gate_proj.weight.dtype is torch.bfloat16
    apart = (logits(model).float() - logits(load_model(tmp_path / "plain")).float()).abs().max()
    assert apart < 1


def test_two_of_four_are_zero_and_the_larger_stay(plain, tmp_path):
    pytest.importorskip("torchao")
    quantize_folder(plain, out=tmp_path / "sparse", method=Quantization.SPARSE)
    dense, sparse = ShardReader(plain), ShardReader(tmp_path / "sparse")
    for name in filter(is_matrix, dense.names()):
        before, after = dense.read(name).reshape(-1, 4), sparse.read(name).reshape(-1, 4)
        assert ((after != 0).sum(dim=1) == 2).all()
        expected = before.abs().sort(dim=1, descending=True).values[:, :2]
        assert torch.equal(after.abs().sort(dim=1, descending=True).values[:, :2], expected)
    assert logits(AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")).isfinite().all()


def test_measured_loss_is_that_of_the_logits(plain):
    labels = TOKENS + 1
    found = measure(plain, windows=[(TOKENS, labels), (labels, TOKENS)])
    probabilities = [logits_of.log_softmax(dim=-1) for logits_of in both(plain)]
    expected = -sum(p[range(32), after].sum() for p, after in zip(probabilities, (labels, TOKENS), strict=True)) / 64
    assert found.loss == pytest.approx(float(expected), abs=1e-5)
    assert found.num_tokens == 64
    assert found.tokens_per_s > 1


def both(folder):
    model = load_model(folder)
    with torch.no_grad():
        return [model(tokens[None]).logits[0] for tokens in (TOKENS, TOKENS + 1)]


def test_sizes_that_do_not_allow_the_method(make_checkpoint, tmp_path):
    export_of(make_checkpoint(small_shape(ffn_hidden_size=130)), tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"groups 4 neighbours, and .*down_proj.weight has 130 columns"):
        quantize_folder(tmp_path / "plain", out=tmp_path / "coded", method=Quantization.VECTOR2)
    assert not (tmp_path / "coded").exists()
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["intermediate_size"] == 130


def test_a_missing_package_is_named_before_anything_is_written(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"`quantize=int8` needs torchao and transformers, .*chinchilla-ds\[quantize\]"
    ):
        quantize_folder(plain, out=tmp_path / "int8", method=Quantization.INT8)
    assert not (tmp_path / "int8").exists()
