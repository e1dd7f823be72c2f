"""A run of the launcher's, and all that a user does with it: export, quantise, import, train on, generate, evaluate."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.cli.main import main
from chinchilla_ds.data.feeding.loader import TokenBatch, TokenLoader
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import EXIT_CODE_STOPPED
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.text import find_text
from tests.launching import ROOT, finish, interrupt, launch, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUDGET = ("--flops", "1e12", "--max-epochs", "2")
TOLERANCE = 1e-4
"""Of losses and bits per byte, relative."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run, and its export in FP32."""

    folder: Path
    corpus: Path
    export: Path

    @property
    def plan(self) -> RunPlan:
        return RunPlan.from_json((self.folder / "plan.json").read_text())

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def recorded(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics if name in row]

    def prepared(self) -> PreparedData:
        place = find_text(self.folder)
        assert place is not None
        return PreparedData.load(place)

    def model(self) -> LlamaForCausalLM:
        return AutoModelForCausalLM.from_pretrained(self.export).eval()


def command(*words: object, folder: Path) -> str:
    """Run `chinchilla-ds` in a process of its own, and return what it prints."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "chinchilla_ds.cli.main", *map(str, words)],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    corpus = write_corpus(folder / "corpus.txt")
    ended = finish(launch(*BUDGET, "--data", corpus, folder=folder, ranks=1, ds="zero1"))
    assert ended.exit_code == 0, ended.text
    [plan] = folder.glob("runs/*/plan.json")
    command("export", plan.parent, "--out", folder / "export", "--licence", "mit", folder=folder)
    found = Trained(folder=plan.parent, corpus=corpus, export=folder / "export")
    assert found.recorded("held_out/loss")[-1] < 0.8 * found.recorded("train/loss")[0], "it has learnt something"
    return found


@torch.inference_mode()
def loss_of(model: LlamaForCausalLM, batches: list[TokenBatch]) -> float:
    """Nats per token with transformers, on sequences cut as training cuts them."""
    rows = [(tokens, labels) for batch in batches for tokens, labels in zip(batch.tokens, batch.labels, strict=True)]
    losses = [torch.nn.functional.cross_entropy(model(tokens[None]).logits[0], labels) for tokens, labels in rows]
    return float(torch.stack(losses).double().mean())


def test_the_export_has_the_loss_and_the_bits_per_byte_that_the_run_recorded(trained):
    prepared = trained.prepared()
    assert trained.plan.shape.padded_vocab_size == trained.plan.shape.vocab_size, "training counts rows of padding"
    batches = TokenLoader(prepared=prepared, plan=trained.plan).held_out_batches(data_parallel_rank=0)
    loss = loss_of(trained.model(), list(batches))
    assert loss == pytest.approx(trained.recorded("held_out/loss")[-1], rel=TOLERANCE)
    bits = loss / math.log(2) * prepared.held_out_tokens / prepared.held_out_bytes
    assert bits == pytest.approx(trained.recorded("held_out/bits_per_byte")[-1], rel=TOLERANCE)
    card = (trained.export / "README.md").read_text()
    assert f"{loss:.4f}"[:5] in card
    assert "license: mit" in card


def change_of_bits_per_byte(trained: Trained, method: str, *, out: Path) -> float:
    """Export quantised; return by what share of the plain export the report says that bits per byte grow."""
    report = command("export", trained.folder, "--out", out, "--quantize", method, folder=out.parent)
    print(report)
    [(before, after, change)] = re.findall(r"bits per byte +([0-9.]+) +([0-9.]+) +([+-][0-9.]+)%", report)
    assert float(before) == pytest.approx(trained.recorded("held_out/bits_per_byte")[-1], rel=0.05)
    assert float(after) / float(before) - 1 == pytest.approx(float(change) / 100, abs=1e-4)
    return float(change) / 100


@pytest.mark.filterwarnings("ignore")  # of what the extra imports
def test_int8_costs_at_most_half_a_percent_of_bits_per_byte(trained, tmp_path):
    pytest.importorskip("torchao", reason="torchao, an extra, is not installed")
    assert change_of_bits_per_byte(trained, "int8", out=tmp_path / "int8") <= 0.005
    held = list(TokenLoader(prepared=trained.prepared(), plan=trained.plan).held_out_batches(data_parallel_rank=0))
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "int8").eval()
    assert type(small.model.layers[0].mlp.gate_proj.weight).__name__ == "Int8Tensor"
    plain, quantised = loss_of(trained.model(), held), loss_of(small, held)
    assert plain != quantised
    print(f"{plain:.6f} nats per token plain, {quantised:.6f} in int8")
    assert quantised <= 1.005 * plain, "by transformers alone, over all of the held-out text"


def test_control_two_bits_cost_more_than_half_a_percent(trained, tmp_path):
    assert change_of_bits_per_byte(trained, "vq2", out=tmp_path / "vq2") > 0.005


def test_training_goes_on_from_an_import_of_the_export(trained, tmp_path):
    command("import", trained.export, "--out", tmp_path / "back", folder=tmp_path)
    before, back = CheckpointReader.open(trained.folder), CheckpointReader.open(tmp_path / "back")
    assert back.names() == before.names()
    assert all(torch.equal(back.read(name), before.read(name)) for name in before.names())

    flags = (*BUDGET, "--data", trained.corpus, "--init-from", tmp_path / "back")
    # without the launcher, whose own exit code is the signal's
    ended = interrupt(launch(*flags, folder=tmp_path, ranks=None, ds="zero1"), signal.SIGTERM, after="| loss")
    assert ended.exit_code == EXIT_CODE_STOPPED, ended.text
    [plan] = tmp_path.glob("runs/*/plan.json")
    run = dataclasses.replace(trained, folder=plan.parent)
    assert run.plan == trained.plan
    first = run.recorded("train/loss")[0]
    text = list(TokenLoader(prepared=run.prepared(), plan=run.plan).micro_batches(0, 0))
    assert first == pytest.approx(loss_of(trained.model(), text), rel=TOLERANCE), "the first batch, by transformers"
    held_out, fresh = trained.recorded("held_out/loss")[-1], trained.recorded("train/loss")[0]
    assert first == pytest.approx(held_out, rel=0.1)
    assert fresh > 1.5 * held_out, "control: the first loss of a run with fresh weights"


def test_generated_text_is_that_of_transformers(trained, tmp_path):
    prompt = "def __init__(self"
    words = ("generate", trained.folder, "--prompt", prompt, "--temperature", "0", "--max-tokens", "40", "--json")
    [row] = json.loads(command(*words, folder=tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(trained.export)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    theirs = trained.model().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    assert row["num_tokens"] == 40
    assert prompt + row["text"] == tokenizer.decode(theirs[0], skip_special_tokens=True)


@torch.inference_mode()
def test_llama_cpp_converts_the_export_and_writes_the_same_text(trained, tmp_path):
    if "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_CPP does not name a folder of llama.cpp's source")
    pytest.importorskip("gguf", reason="gguf, which transformers reads llama.cpp's files with, is not installed")
    source, file = Path(os.environ["LLAMA_CPP"]), tmp_path / "model.gguf"
    script = (source / "convert_hf_to_gguf.py", trained.export, "--outtype", "f32", "--outfile", file)
    subprocess.run([sys.executable, *map(str, script)], check=True, capture_output=True, timeout=200)
    back, wanted = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name), trained.model()
    assert back.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in wanted.state_dict().items())

    program, prompt = source / "build/bin/llama-simple", "def __init__(self"
    if not program.exists():
        pytest.skip("converted and read back; llama.cpp itself is not built: cmake --build build -t llama-simple")
    theirs = subprocess.run(
        [program, "-m", file, "-n", "40", prompt], check=True, capture_output=True, text=True, timeout=100
    ).stdout
    words = ("generate", trained.folder, "--prompt", prompt, "--temperature", "0", "--max-tokens", "40", "--json")
    [row] = json.loads(command(*words, folder=tmp_path))
    assert prompt + row["text"] == theirs.removesuffix("\n")


@torch.inference_mode()
def test_bits_per_byte_of_evaluate_are_those_of_transformers(trained, tmp_path):
    model, tokenizer = trained.model(), AutoTokenizer.from_pretrained(trained.export)
    lines = trained.corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    texts = ["".join(lines[start : start + 4]) for start in range(0, 400, 4)]
    nats = num_bytes = 0.0
    for text in texts:
        tokens = [tokenizer.eos_token_id, *tokenizer(text).input_ids, tokenizer.eos_token_id]
        assert len(tokens) <= trained.plan.shape.seq_length, "one window"
        ids = torch.tensor(tokens)
        nats += float(torch.nn.functional.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="sum"))
        num_bytes += len(text.encode())
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ("evaluate", trained.folder, "--json")
    found = json.loads(command(*words, "--data", tmp_path / "texts.jsonl", folder=tmp_path))["scores"]["all"]
    assert found["documents"] == len(texts)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=TOLERANCE)
    own = json.loads(command(*words, folder=tmp_path))["scores"]["all"]
    # each document by itself, and not cut where a training sequence ends
    assert own["bits_per_byte"] == pytest.approx(trained.recorded("held_out/bits_per_byte")[-1], rel=0.05)
    assert len((trained.folder / "evaluations.jsonl").read_text().splitlines()) == 2


def test_bad_input_is_told_in_a_line_and_nothing_is_written(trained, tmp_path, capsys):
    def refused(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        assert line.startswith("error: ")
        return line

    def contents() -> dict[Path, bytes]:
        folders = (trained.folder, trained.export, tmp_path)
        return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}

    other, bare = tmp_path / "other", tmp_path / "bare"
    for copy in (other, bare):
        shutil.copytree(trained.export, copy)
    config = json.loads((other / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (other / "config.json").write_text(json.dumps(config))
    for path in bare.glob("tokenizer*"):
        path.unlink()
    before, new = contents(), tmp_path / "new"

    assert "Qwen2ForCausalLM, and only LlamaForCausalLM (model_type" in refused("import", other, "--out", new)
    assert "holds no tokenizer" in refused("import", bare, "--out", new)
    assert "exists already" in refused("import", trained.export, "--out", other)
    assert "exists already" in refused("export", trained.folder, "--out", trained.export)
    assert "holds no checkpoint" in refused("export", trained.export, "--out", new)
    long = refused("generate", trained.folder, "--prompt", "def f():\n" * 1000)
    assert f"the model's context has {trained.plan.shape.seq_length}; shorten it" in long
    assert contents() == before
    assert not new.exists()


@pytest.mark.filterwarnings("ignore")  # of what the extra imports
def test_an_unknown_task_is_told_with_the_nearest(trained, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval, an extra, is not installed")
    assert main(["evaluate", str(trained.folder), "--tasks", "arc_eesy"]) == 2
    assert "did you mean 'arc_easy'" in capsys.readouterr().err
