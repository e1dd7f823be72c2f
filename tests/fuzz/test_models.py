"""Checkpoints and Hugging Face folders: every file of them, as the commands that read them meet it."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.runs.request import RunRequest, SavedRequest
from chinchilla_ds.tracking.metrics_file import read_metrics
from chinchilla_ds.tracking.record import RunRecord
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import damaged, json_files
from tests.fuzz.outcome import accepted, ends_well, put

REQUEST = RunRequest(config=RunConfig(data=DataConfig(paths=(Path("a.jsonl"),)), compute_budget_flops=1e13))


def _inputs(seed: bytes, path: Path) -> st.SearchStrategy[bytes]:
    if path.suffix == ".json":
        return json_files(seed)
    if path.suffix == ".safetensors":
        length = int.from_bytes(seed[:8], "little")
        headers = json_files(seed[8 : 8 + length])
        return st.one_of(
            damaged(seed), headers.map(lambda header: len(header).to_bytes(8, "little") + header + seed[8 + length :])
        )
    return damaged(seed)


@pytest.mark.parametrize(
    "name",
    [
        "plan.json",
        "state.json",
        "manifest.json",
        "ds_config.json",
        "tokenizer.model",
        "tensors/index.json",
        "tensors/000000.distcp",
        "../latest",
    ],
)
def test_checkpoints(fuzz: Fuzz, run_folder: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run, symlinks=True)
    path = next((run / "checkpoints").glob("step_*")) / name
    seed = path.read_bytes()

    def try_one(content: bytes) -> None:
        put(path, content)
        ends_well(["checkpoint", "inspect", str(run)])
        if ends_well(["checkpoint", "verify", str(run)]) and name not in ("manifest.json", "../latest"):
            assert content == seed, "damage that verify does not see"

    fuzz(try_one, _inputs(seed, path), share=0.5)


@pytest.mark.parametrize("command", ["generate", "export", "convert"])
@pytest.mark.parametrize("name", ["plan.json", "tokenizer.model"])
def test_commands_that_use_a_checkpoint(fuzz: Fuzz, run_folder: Path, tmp_path: Path, command: str, name: str) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run_folder, run, symlinks=True)
    path = next((run / "checkpoints").glob("step_*")) / name
    lines = {
        "generate": ["generate", str(run), "--prompt", "the loss", "--max-new-tokens", "2"],
        "export": ["export", str(run), "--out", str(out)],
        "convert": ["checkpoint", "convert", str(run), "--to", "weights", "--out", str(out)],
    }

    def try_one(content: bytes) -> None:
        put(path, content)
        ends_well(lines[command])
        shutil.rmtree(out, ignore_errors=True)

    fuzz(try_one, _inputs(path.read_bytes(), path), share=0.1)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json", "tokenizer.model"]
)
def test_hugging_face_folders(fuzz: Fuzz, exported_folder: Path, tmp_path: Path, name: str) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(exported_folder, folder)
    if name == "tokenizer.json":
        (folder / "tokenizer.model").unlink()
    seed = (folder / name).read_bytes()

    def try_one(content: bytes) -> None:
        put(folder / name, content)
        if not ends_well(["import", str(folder), "--out", str(out)]):
            assert not out.exists(), "something was left"
        shutil.rmtree(out, ignore_errors=True)

    fuzz(try_one, _inputs(seed, folder / name), share=0.2)


def test_requests(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "request.json"

    def try_one(content: bytes) -> None:
        put(path, content)
        accepted(lambda: json.loads(SavedRequest.load(tmp_path).request.to_json()))

    fuzz(try_one, json_files(REQUEST.to_json().encode()))


@pytest.mark.parametrize("name", ["metrics.jsonl", "tracking.json"])
def test_what_a_run_has_told(fuzz: Fuzz, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    moment = {"step": 3, "time": 1.7e9, "train/loss": 3.5, "learning_rate": 1e-3}
    record = {"id": "a1", "started_s": 1.7e9, "params": {"seed": "1"}, "artifacts": ["plan.json"]}
    seed = json.dumps(moment if name == "metrics.jsonl" else record).encode()

    def read() -> None:
        list(read_metrics(path)) if name == "metrics.jsonl" else RunRecord.load(tmp_path)

    def try_one(content: bytes) -> None:
        put(path, b"\n".join([content, seed, content]) if name == "metrics.jsonl" else content)
        accepted(read)

    fuzz(try_one, json_files(seed), share=0.5)
