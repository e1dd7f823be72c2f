"""Forged Hugging Face folders: nothing outside is read, nothing is run or left, and a line says what is wrong."""

import json
import os
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.cli.main import main
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.quantize import Quantization, quantize_folder
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.run_plan import Precision
from tests.unit.data.tokenizing.test_tokenizer_child import panics
from tests.unit.exporting.conftest import small_shape, write_random

FACTS = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An export of ours, which every test forges in its own way."""
    folder = tmp_path_factory.mktemp("sound")
    export_checkpoint(write_random(folder, small_shape()), out=folder / "out", dtype=Precision.FP32, facts=FACTS)
    return folder / "out"


@pytest.fixture
def exported(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def refused(exported, tmp_path, capsys):
    """Return what imports, and returns the one line that says why it does not."""
    before = sorted(tmp_path.iterdir())

    def run():
        started_s = time.monotonic()
        assert main(["import", str(exported), "--out", str(tmp_path / "run")]) == 2
        assert time.monotonic() - started_s < 5
        assert sorted(tmp_path.iterdir()) == before, "something was left"
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("error: ") for line in lines)
        assert 1 <= len(lines) <= 9
        return "\n".join(lines)

    return run


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- weights that are not numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_counted(dtype, exported, refused):
    weights = {name: value.to(dtype) for name, value in load_file(exported / WEIGHTS).items()}
    weights["model.layers.1.mlp.up_proj.weight"].view(-1)[[3, 500, 999]] = float("nan")
    weights["model.embed_tokens.weight"][-1, -1] = -float("inf")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, exported / WEIGHTS)
    message = refused()
    assert "has 3 NaN or infinite values in model.layers.1.mlp.up_proj.weight" in message
    assert "has 1 NaN or infinite values in model.embed_tokens.weight" in message
    assert "has 1 NaN or infinite values in model.norm.weight" in message
    assert len(message.splitlines()) == 3


def test_large_weights_are_finite(exported, tmp_path):
    """Their sum is not."""
    weights = load_file(exported / WEIGHTS)
    weights["model.norm.weight"][:] = torch.finfo(torch.float32).max
    save_file(weights, exported / WEIGHTS)
    import_folder(exported, out=tmp_path / "run")


def test_padding_that_is_not_finite(exported, refused):
    path = exported / "chinchilla_ds" / "padding.safetensors"
    padding = load_file(path)
    save_file({name: torch.full_like(value, float("nan")) for name, value in padding.items()}, path)
    assert "holds non-finite padding" in refused()


def test_a_checkpoint_that_has_diverged_is_not_exported(make_checkpoint, tmp_path, capsys, monkeypatch):
    reader, read = make_checkpoint(seed=1), CheckpointReader.read
    monkeypatch.setattr(CheckpointReader, "read", lambda self, name: read(self, name) / 0.0)
    assert main(["export", str(reader.folder), "--out", str(tmp_path / "new")]) == 2
    assert "holds non-finite values: the run has diverged" in capsys.readouterr().err


# ---- places outside --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.json", WEIGHTS, "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"],
)
@pytest.mark.parametrize(
    "kind", ["file", "fifo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("folder", "device"))]
)
def test_links_to_elsewhere_and_what_is_no_file(name, kind, exported, refused, tmp_path_factory):
    path, elsewhere = exported / name, tmp_path_factory.mktemp("elsewhere") / name
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_text("secret")
    if kind == "file":
        path.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    message = refused()
    assert "is not a regular file" in message or "is a link to" in message
    assert len(message.splitlines()) == 1


def test_folders_that_are_links_to_elsewhere(exported, refused, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "ours"
    (exported / "chinchilla_ds").rename(elsewhere)
    (exported / "chinchilla_ds").symlink_to(elsewhere)
    assert "is a link to" in refused()


def test_a_folder_of_the_hugging_face_cache_is_imported(exported, tmp_path):
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "rev", tmp_path / "repo" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in exported.rglob("*") if path.is_file())):
        place = snapshot / path.relative_to(exported)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    imported = import_folder(snapshot, out=tmp_path / "run")
    assert imported.restored_plan
    assert not any(path.is_symlink() for path in (tmp_path / "run").rglob("*"))


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "text"),
    [
        ({"a": "../outside.safetensors"}, "names the file '../outside.safetensors', which is not a plain name"),
        ({"a": "/tmp/outside.safetensors"}, "which is not a plain name"),
        ({"a": "sub/model.safetensors"}, "which is not a plain name"),
        ({"a": "absent.safetensors"}, "lacks absent.safetensors"),
        ({"a": "pytorch_model.bin"}, "which is not a safetensors file"),
        ({"a": 3}, "says that a lies in 3, which is not a safetensors file"),
        ({"a": None}, "lies in None"),
        ({"a": ["model.safetensors"]}, "lies in ['model.safetensors']"),
        ({"a": "x\0.safetensors"}, "which is not a plain name"),
        ({}, "it has no weight_map"),
        ([], "it has no weight_map"),
        ("model.safetensors", "it has no weight_map"),
        (None, "it has no weight_map"),
    ],
)
def test_weight_maps(weight_map, text, exported, refused):
    write_index(exported, weight_map)
    assert text in refused()


def test_an_index_that_leads_outside_is_not_followed(exported, tmp_path, capsys):
    (exported / WEIGHTS).rename(tmp_path / "outside.safetensors")
    for place in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        write_index(exported, {"a": place})
        assert main(["import", str(exported), "--out", str(tmp_path / "run")]) == 2
        assert "which is not a plain name of a file in it" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": ' + "[" * 5000, "3", "\ufeff", "{}" * 2])
def test_indices_that_are_no_objects(content, exported, refused):
    (exported / INDEX).write_text(content)
    refused()


def test_a_tensor_in_two_files(exported, refused):
    (exported / "copy.safetensors").write_bytes((exported / WEIGHTS).read_bytes())
    write_index(exported, {"a": WEIGHTS, "b": "copy.safetensors"})
    assert "twice: copy.safetensors, model.safetensors" in refused()


# ---- configurations --------------------------------------------------------------------------------------------------

WRONG = [1e30, 10**30, 10**400, -1, 0, 2.5, True, "64", None, [], {}]


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_sizes_of_the_wrong_type_or_range(name, exported, refused):
    sound = (exported / "config.json").read_text()
    for value in WRONG:
        change(exported, **{name: value})
        assert len(refused().splitlines()) == 1
        (exported / "config.json").write_text(sound)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_key_value_heads": 10**9}, "num_key_value_heads is 1000000000; it must be at most 2,048"),
        ({"num_key_value_heads": -2}, "it must be at least 1"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"max_position_embeddings": "64"}, "it must be a whole number"),
        ({"rms_norm_eps": -1.0}, "it must be above 0"),
        ({"rms_norm_eps": "1e-5"}, "it must be a number"),
        ({"rope_theta": [1]}, "rope_theta is [1]"),
        ({"rope_parameters": [1, 2]}, "rope_parameters is [1, 2]; it must be an object"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_parameters.rope_type is 3; it must be text"),
        ({"rope_parameters": {}, "rope_scaling": {"type": "dynamic"}}, "rope_type is 'dynamic'"),
        ({"tie_word_embeddings": "yes"}, "it must be true or false"),
        ({"attention_bias": 1}, "it must be true or false"),
        ({"hidden_act": 3}, "it must be text"),
        ({"architectures": "LlamaForCausalLM"}, "only LlamaForCausalLM"),
        ({"architectures": [3]}, "only LlamaForCausalLM"),
        ({"model_type": ["llama"]}, "only LlamaForCausalLM"),
        ({"quantization_config": "int8"}, "quantization_config is 'int8'"),
        ({"quantization_config": {"quant_method": 3}}, "quant_method is 3"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "names its own Python code (auto_map)"),
        ({"initializer_range": 0}, "initializer_range is 0"),
        ({"head_dim": 15}, "head_dim must be even"),
    ],
)
def test_configurations(values, text, exported, refused):
    change(exported, **values)
    assert text in refused()


@pytest.mark.parametrize(
    "content", ["[]", "", "{", "[" * 10**5, '{"a": NaN}', '{"hidden_size": 64, "hidden_size": 32}']
)
def test_configurations_that_are_no_objects(content, exported, refused):
    (exported / "config.json").write_text(content)
    assert len(refused().splitlines()) == 1


def test_a_thousand_layers_that_are_not_there(exported, refused):
    change(exported, num_hidden_layers=1024)
    assert "has 2 layers, and config.json says 1024" in refused()


# ---- safetensors that lie --------------------------------------------------------------------------------------------


def header(**tensors):
    return {name: {"dtype": "F32", "shape": shape, "data_offsets": ends} for name, (shape, ends) in tensors.items()}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        *(
            struct.pack("<Q", len(text)) + text + b"\0" * 64
            for text in (
                json.dumps(values).encode()
                for values in (
                    header(a=([16], [0, 4])),
                    header(a=([16], [0, 2**40])),
                    header(a=([16], [-4, 60])),
                    header(a=([2**40, 2**40], [0, 64])),
                    header(a=([8], [0, 32]), b=([8], [16, 48])),
                    header(a=([8], [32, 64])),
                    header(a=([16], [64, 0])),
                    {"a": {"dtype": "X9", "shape": [16], "data_offsets": [0, 64]}},
                    {"a": 3},
                    {"__metadata__": {"a": 3}},
                )
            )
        ),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
    ids=range(16),
)
def test_headers_that_lie(content, exported, refused):
    (exported / WEIGHTS).write_bytes(content)
    assert "not a whole safetensors file" in refused()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float64, torch.bool])
def test_weights_of_other_types(dtype, exported, refused):
    weights = load_file(exported / WEIGHTS)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
    save_file(weights, exported / WEIGHTS)
    assert "and F32, BF16, F16 can be imported" in refused()


@pytest.mark.parametrize("part", ["codes", "codebook", "scales"])
def test_coded_weights_that_lie(part, exported, tmp_path, capsys):
    coded = tmp_path / "coded"
    quantize_folder(exported, out=coded, method=Quantization.VECTOR3)
    [path] = coded.glob("coded*.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(path)
    name = f"model.layers.0.mlp.up_proj.weight.{part}"
    save_file({**weights, name: weights[name][:-1].clone()}, path, metadata=metadata)
    assert main(["import", str(coded), "--out", str(tmp_path / "run")]) == 2
    assert "model.layers.0.mlp.up_proj.weight is not coded as config.json says" in capsys.readouterr().err
    save_file(weights, path, metadata=metadata | {"model.layers.0.mlp.up_proj.weight.columns": "9" * 400})
    assert main(["import", str(coded), "--out", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- tokenizers, code, and our own part ------------------------------------------------------------------------------


def test_a_tokenizer_that_ends_the_library_that_reads_it(exported, refused):
    (exported / "tokenizer.json").write_text(json.dumps(panics()))
    assert "the library that reads it fails" in refused()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"eos_token": 3}'),
        ("tokenizer_config.json", '{"eos_token": {"content": ["a"]}}'),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "[" * 5000),
        ("special_tokens_map.json", "3"),
        ("generation_config.json", "[1]"),
        ("tokenizer.json", '{"model": 3}'),
        ("chinchilla_ds/plan.json", "{}"),
        ("chinchilla_ds/plan.json", "[" * 5000),
        ("chinchilla_ds/plan.json", "\udcff"),
        ("chinchilla_ds/padding.safetensors", "x"),
    ],
)
def test_other_files_of_the_wrong_types(name, content, exported, refused):
    if name == "special_tokens_map.json":
        (exported / "tokenizer_config.json").unlink()
    (exported / name).write_bytes(content.encode(errors="surrogateescape"))
    refused()


def test_a_pickle_beside_an_index_that_names_it(exported, refused, tmp_path):
    (exported / WEIGHTS).unlink()
    (exported / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    assert "pytorch_model.bin is a pickle, which is not read" in refused()


def test_code_in_the_folder_is_never_run(exported, tmp_path, monkeypatch):
    for name in ("modeling_llama", "tokenization_llama", "tokenizers", "json", "conftest", "setup"):
        (exported / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(exported)
    import_folder(exported, out=tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_a_config_that_fits_is_imported_control(exported, tmp_path):
    assert small_shape().num_layers == import_folder(exported, out=tmp_path / "run").plan.shape.num_layers
