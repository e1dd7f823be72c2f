"""Memory of an export and of an import, in a process of its own: a part of a shard, not the model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.checkpoint.tensors import BLOCK_BYTES
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.exporting import llama
from chinchilla_ds.exporting.config_json import config_of
from chinchilla_ds.run_plan import Precision
from chinchilla_ds.testing import tiny_plan
from tests.unit.exporting.conftest import english_tokenizer, small_shape

SHARD_BYTES = 120_000_000
TOKEN_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
LARGE = {"hidden_size": 1024, "ffn_hidden_size": 2560, "num_attention_heads": 16, "kv_channels": 64}

MEASURED = """
import json, sys
from pathlib import Path
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.run_plan import Precision

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

def export(run, out):
    facts = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
    reader = CheckpointReader.open(run)
    export_checkpoint(reader, out=out, dtype=Precision.FP32, facts=facts, max_shard_bytes=int(sys.argv[3]))

small, large = map(Path, sys.argv[1:3])
export(small / "run", small / "out")
import_folder(small / "out", out=small / "back")
start = peak()
if sys.argv[4] == "export":
    export(large / "run", large / "out")
else:
    import_folder(large / "out", out=large / "back")
print(json.dumps(peak() - start))
"""


def make_run(folder, **changes):
    """Write a checkpoint of ones, a weight at a time."""
    plan = tiny_plan(shape=small_shape(**changes))
    folder.mkdir()
    english_tokenizer().save(folder / "tokenizer.model")
    weights = llama.weights(plan.shape, vocab_size=1)
    write_checkpoint(
        folder / "run" / "checkpoints" / "step_0000000",
        plan=plan,
        ds_config=ds_config.emit(plan),
        weights=((weight.name, torch.ones(weight.shape)) for weight in weights),
        tokenizer=folder / "tokenizer.model",
    )


def make_model_with_a_large_table(folder):
    """Write a Hugging Face folder with one layer and an embedding table of 410 MB."""
    shape = small_shape(**LARGE, num_layers=1, vocab_size=100_000, padded_vocab_size=100_096, tied_embeddings=True)
    folder.mkdir(parents=True)
    english_tokenizer().save(folder / "tokenizer.model")
    config = config_of(shape, vocab_size=shape.vocab_size, token_ids=TOKEN_IDS, dtype=Precision.FP32)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        piece.name: torch.ones(piece.num_rows, *weight.shape[1:])
        for weight in llama.weights(shape, vocab_size=shape.vocab_size)
        for piece in weight.pieces
    }
    save_file(weights, folder / "model.safetensors")


@pytest.mark.slow
def test_peak_memory_of_importing_a_table_that_is_a_shard(tmp_path):
    make_run(tmp_path / "small")
    make_model_with_a_large_table(tmp_path / "large" / "out")
    grown, shard = peak_growth(tmp_path, "import"), (tmp_path / "large" / "out" / "model.safetensors").stat().st_size
    print(f"grown by {grown}, of a shard of {shard}")
    assert grown <= 5 * BLOCK_BYTES < shard, "a block from the file, as it is mapped, read, put together and written"


@pytest.mark.slow
def test_peak_memory_is_below_the_largest_shard(tmp_path):
    make_run(tmp_path / "small")
    make_run(tmp_path / "large", num_layers=10, **LARGE)
    grown = {step: peak_growth(tmp_path, step) for step in ("export", "import")}
    shards = [path.stat().st_size for path in (tmp_path / "large" / "out").glob("*.safetensors")]
    assert sum(shards) > 3 * max(shards), "control: the model is several shards"
    print(f"grown by {grown}, of shards up to {max(shards)} and {sum(shards)} in all")
    assert grown["export"] <= 1.3 * max(shards)
    assert grown["import"] <= 1.3 * max(shards)


def peak_growth(folder, step):
    """Bytes that the peak memory grows by, over that of the same step on a small model."""
    for name in ("out", "back"):
        shutil.rmtree(folder / "small" / name, ignore_errors=True)
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, folder / "small", folder / "large", str(SHARD_BYTES), step],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout.splitlines()[-1])
