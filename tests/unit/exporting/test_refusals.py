"""Bad input: what is wrong is said, and nothing is written."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.cli.main import main
from chinchilla_ds.errors import ConfigError, DataError, OutputError
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.run_plan import Precision

FACTS = TrainingFacts(consumed_tokens=0, flops_spent=0.0)


@pytest.fixture
def exported(make_checkpoint, tmp_path):
    export_checkpoint(make_checkpoint(), out=tmp_path / "out", dtype=Precision.FP32, facts=FACTS)
    return tmp_path / "out"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder, kind):
    before = names_in(folder.parent)
    with pytest.raises(kind) as caught:
        import_folder(folder, out=folder.parent / "run")
    assert names_in(folder.parent) == before, "something was left"
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM, and only LlamaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification, and only"),
        ({"attention_bias": True}, "attention_bias is true, and this decoder has no biases"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"use_sliding_window": True}, "use sliding-window attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "use sliding-window attention"),
        ({"num_key_value_heads": 3}, r"num_attention_heads (4) must be a multiple of num_key_value_heads (3)"),
        ({"hidden_size": None}, "config.json.hidden_size is None; it must be a whole number"),
    ],
)
def test_another_model_is_refused(values, text, exported):
    change(exported, **values)
    assert text in refused(exported, ConfigError)


def test_all_that_is_unsupported_is_named_at_once(exported):
    change(exported, attention_bias=True, hidden_act="relu")
    message = refused(exported, ConfigError)
    assert "attention_bias" in message
    assert "'relu'" in message


def test_weights_must_be_those_of_the_config(exported):
    change(exported, num_hidden_layers=3)
    assert "has 2 layers, and config.json says 3" in refused(exported, ConfigError)
    change(exported, intermediate_size=100, num_hidden_layers=2)
    message = refused(exported, ConfigError)
    assert "mlp.gate_proj.weight as [192, 64], and config.json makes it [100, 64]" in message
    change(exported, intermediate_size=192)
    weights = load_file(exported / "model.safetensors")
    save_file({**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, exported / "model.safetensors")
    assert "has an unknown weight: model.layers.0.self_attn.q_proj.bias" in refused(exported, ConfigError)


def test_folders_that_are_no_model(exported, tmp_path):
    assert "config.json" in refused(tmp_path / "nowhere", DataError)
    for name, text in (("model.safetensors", "holds neither"), ("config.json", "not a Hugging Face model")):
        copy = tmp_path / f"without-{name}"
        shutil.copytree(exported, copy)
        (copy / name).unlink()
        assert text in refused(copy, DataError)
    (exported / "model.safetensors").write_bytes(b"\0" * 64)
    assert "not a whole safetensors file" in refused(exported, DataError)


def test_a_pickle_is_not_read(exported):
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in refused(exported, DataError)


def test_missing_tokenizers(exported, make_checkpoint, tmp_path):
    for name in ("tokenizer.json", "tokenizer.model"):
        (exported / name).unlink()
    assert "holds neither tokenizer.json nor tokenizer.model" in refused(exported, DataError)
    reader = make_checkpoint(seed=1)
    reader.tokenizer_path.unlink()
    with pytest.raises(DataError, match="holds no tokenizer"):
        export_checkpoint(reader, out=tmp_path / "new", dtype=Precision.FP32, facts=FACTS)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(exported, make_checkpoint, tmp_path):
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="exists already, and nothing is overwritten"):
        export_checkpoint(make_checkpoint(seed=1), out=exported, dtype=Precision.FP32, facts=FACTS)
    with pytest.raises(OutputError, match="exists already"):
        import_folder(exported, out=exported)
    assert before == {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    export_checkpoint(make_checkpoint(seed=2), out=tmp_path / "empty", dtype=Precision.FP32, facts=FACTS)
    assert (tmp_path / "empty" / "config.json").is_file()


def test_fp16_that_would_overflow_is_refused(make_checkpoint, tmp_path, monkeypatch):
    reader = make_checkpoint()
    read = CheckpointReader.read
    monkeypatch.setattr(CheckpointReader, "read", lambda self, name: read(self, name) * 1e7)
    with pytest.raises(
        ConfigError, match=r"holds values up to 65504, and model.embed_tokens.weight holds .*use `dtype=bf16`"
    ):
        export_checkpoint(reader, out=tmp_path / "new", dtype=Precision.FP16, facts=FACTS)
    assert not [path for path in tmp_path.iterdir() if "new" in path.name]


def test_a_plan_that_no_longer_fits_is_left(exported):
    weights = load_file(exported / "model.safetensors")
    grown = {
        name: torch.cat([value, value[:200]]) if name in ("model.embed_tokens.weight", "lm_head.weight") else value
        for name, value in weights.items()
    }
    save_file(grown, exported / "model.safetensors")
    rows = len(grown["lm_head.weight"])
    change(exported, vocab_size=rows)
    imported = import_folder(exported, out=exported.parent / "run")
    assert not imported.restored_plan
    back = CheckpointReader.open(exported.parent / "run")
    assert torch.equal(back.read("output_layer.weight")[:rows], grown["lm_head.weight"])
    assert not back.read("output_layer.weight")[rows:].any(), "padding of other models is zero"
    assert back.plan.shape == dataclasses.replace(back.plan.shape, vocab_size=rows)


def test_commands_end_with_one_message(exported, tmp_path, capsys):
    assert main(["import", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert main(["export", str(tmp_path), "--out", str(exported)]) == 2
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x"), "--quantize", "int3"]) == 2
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
    assert "int8, 2:4, vq4, vq3, vq2" in lines[2]
    assert not (tmp_path / "x").exists()
