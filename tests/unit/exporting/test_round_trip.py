"""Export and import against transformers, and against each other."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from chinchilla_ds.checkpoint import tensors
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.shards import ShardReader
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.run_plan import Precision
from tests.parity.reference_llama import ReferenceLlama, load_from_megatron_state
from tests.unit.exporting.conftest import english_tokenizer, small_shape

FACTS = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
SHAPES = {
    "grouped": {},
    "multi-head": {"num_query_groups": 4},
    "tied": {"tied_embeddings": True},
    "qk-norm": {"qk_norm": True, "norm_epsilon": 1e-3},
    "wide heads": {"kv_channels": 32, "num_query_groups": 1, "rotary_base": 500000.0, "norm_epsilon": 1e-6},
}


def pieces():
    return english_tokenizer().vocab_size


def export(reader, out, *, dtype=Precision.FP32, **more):
    return export_checkpoint(reader, out=out, dtype=dtype, facts=FACTS, **more)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_transformers_computes_the_logits_of_the_reference(changes, make_checkpoint, tmp_path):
    reader = make_checkpoint(small_shape(**changes))
    exported = export(reader, tmp_path / "out")
    reference = ReferenceLlama(reader.plan.shape)
    load_from_megatron_state(reference, {name: reader.read(name) for name in reader.names()})
    tokens = torch.randint(0, pieces(), (2, 32), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == exported.num_params
    assert type(model).__name__ == ("Qwen3ForCausalLM" if reader.plan.shape.qk_norm else "LlamaForCausalLM")
    with torch.no_grad():
        found, truth = model(tokens).logits, reference(tokens)[..., : pieces()]
    assert found.shape == truth.shape
    assert (found - truth).abs().max() <= 1e-5 * truth.abs().max()
    assert truth.abs().max() > 1, "control: logits that would show a wrong weight"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, Precision.FP32) for name in SHAPES), ("grouped", Precision.BF16), ("tied", Precision.FP16)],
)
def test_import_gives_the_checkpoint_back_bit_by_bit(name, dtype, make_checkpoint, tmp_path):
    changes = SHAPES[name]
    reader = make_checkpoint(small_shape(**changes))
    export(reader, tmp_path / "out", dtype=dtype)
    imported = import_folder(tmp_path / "out", out=tmp_path / "back")
    back = CheckpointReader.open(tmp_path / "back")
    assert imported.restored_plan
    assert back.plan == reader.plan
    assert back.tokenizer_path.read_bytes() == reader.tokenizer_path.read_bytes()
    assert back.names() == reader.names()
    kept = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[dtype]
    for name in reader.names():
        assert torch.equal(back.read(name), reader.read(name).to(kept).float()), name


@pytest.mark.parametrize("block_bytes", [37 * 256, 100 * 256], ids=["37 rows of 64", "100 rows of 64"])
def test_import_is_the_same_whatever_rows_are_in_memory_at_a_time(block_bytes, make_checkpoint, tmp_path, monkeypatch):
    reader = make_checkpoint(small_shape(num_layers=1))
    assert reader.shape("embedding.word_embeddings.weight") == (512, 64), "rows of padding are among them"
    export(reader, tmp_path / "out")
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block_bytes)
    import_folder(tmp_path / "out", out=tmp_path / "back")
    back = CheckpointReader.open(tmp_path / "back")
    assert all(torch.equal(back.read(name), reader.read(name)) for name in reader.names())


@pytest.mark.parametrize(
    ("config_class", "model_class", "tied"),
    [
        (LlamaConfig, LlamaForCausalLM, False),
        (LlamaConfig, LlamaForCausalLM, True),
        (Qwen3Config, Qwen3ForCausalLM, False),
    ],
)
def test_a_model_of_transformers_goes_in_and_out_bit_by_bit(config_class, model_class, tied, make_checkpoint, tmp_path):
    config = config_class(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=pieces(), max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    source = model_class(config)
    with torch.no_grad():
        for name, value in source.named_parameters():
            if "norm" in name:
                value.add_(0.1 * torch.randn_like(value))
    source.save_pretrained(tmp_path / "source")
    make_checkpoint()
    (tmp_path / "tokenizer.model").rename(tmp_path / "source" / "tokenizer.model")
    imported = import_folder(tmp_path / "source", out=tmp_path / "run")
    assert not imported.restored_plan
    export(CheckpointReader.open(tmp_path / "run"), tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.state_dict().keys() == source.state_dict().keys()
    for name, value in source.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    tokens = torch.arange(2, 66)[None]
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, source(tokens).logits)


def test_shards_hold_the_same_tensors(make_checkpoint, tmp_path):
    reader = make_checkpoint()
    export(reader, tmp_path / "one")
    export(reader, tmp_path / "many", max_shard_bytes=100_000)
    one, many = ShardReader(tmp_path / "one"), ShardReader(tmp_path / "many")
    files = sorted(tmp_path.glob("many/*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    largest = max(reader.read(name).numel() for name in one_tensor_names(reader)) * 4
    assert all(path.stat().st_size < max(100_000, largest) + 50_000 for path in files)
    assert one.names() == many.names()
    assert all(torch.equal(one.read(name), many.read(name)) for name in one.names())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "many")
    assert all(torch.equal(model.state_dict()[name], one.read(name)) for name in one.names())


def one_tensor_names(reader):
    return [name for name in reader.names() if "linear_fc1" not in name and "linear_qkv" not in name]


ELSEWHERE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer(sys.argv[2], return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=None)
assert not any(name.startswith("chinchilla_ds") for name in sys.modules)
print(json.dumps([type(model).__name__, inputs["input_ids"][0].tolist(), tokens[0].tolist()]))
"""


def test_a_process_without_this_package_generates_the_same_tokens(make_checkpoint, tmp_path):
    reader = make_checkpoint()
    export(reader, tmp_path / "out")
    prompt = "  the model\n\tof 2024"
    found = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path / "out"), prompt],
        capture_output=True,
        text=True,
        check=True,
    )
    name, ids, tokens = json.loads(found.stdout.splitlines()[-1])
    reference = ReferenceLlama(reader.plan.shape)
    load_from_megatron_state(reference, {name: reader.read(name) for name in reader.names()})
    expected = english_tokenizer().encode(prompt)
    assert (name, ids) == ("LlamaForCausalLM", expected)
    with torch.no_grad():
        for _ in range(24):
            logits = reference(torch.tensor([expected]))[0, -1, : pieces()]
            expected = [*expected, int(logits.argmax())]
    assert tokens == expected
    assert len(set(expected[-24:])) > 3, "control: not one token over and over"
