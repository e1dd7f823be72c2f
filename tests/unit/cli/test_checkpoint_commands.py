"""`chinchilla-ds checkpoint inspect`, `verify` and `convert`: what a user reads, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from chinchilla_ds.checkpoint.folder import checkpoint_name
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.checkpoint.writer import write_checkpoint
from chinchilla_ds.cli.main import main, run_command
from chinchilla_ds.testing import tiny_plan

WEIGHTS = {"decoder.final_layernorm.weight": torch.ones(3), "output_layer.weight": torch.arange(12.0).view(4, 3)}


def write(run: Path, iteration: int, *, moments: bool = True) -> Path:
    tensors = list(WEIGHTS.items())
    if moments:
        tensors += [(f"exp_avg/{name}", value + 1) for name, value in WEIGHTS.items()]
        tensors += [(f"exp_avg_sq/{name}", value + 2) for name, value in WEIGHTS.items()]
    state = CheckpointState(
        iteration=iteration,
        data_step=iteration,
        attempts=iteration,
        optimizer_step=iteration,
        elapsed_s=75.0,
        loss=3.25,
        held_out_loss=3.5,
        held_out_bits_per_byte=2.125,
        tokenizer_sha256="5" * 64,
        data_key="abc",
        versions={"torch": torch.__version__},
    )
    run.mkdir(exist_ok=True)
    (run / "pieces.model").write_bytes(b"pieces")
    return write_checkpoint(
        run / "checkpoints" / checkpoint_name(iteration),
        plan=tiny_plan(train_iters=5),
        ds_config={"a": 1},
        weights=tensors,
        state=state,
        tokenizer=run / "pieces.model",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for iteration in (2, 4):
        write(tmp_path / "run", iteration)
    return tmp_path / "run"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_inspect_lists_the_checkpoints_and_shows_the_newest(run: Path) -> None:
    text = run_command(["checkpoint", "inspect", str(run)])
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line)
    assert text.index("step_0000004") < text.index("step_0000002")
    assert lines["trained"].startswith("4 of 5 steps, ")
    assert lines["trained"].endswith("in 1 min 15 s")
    assert lines["train"] == "loss      3.2500 nats per token"
    assert "3.5000 nats per token, 2.1250 bits/byte" in text
    assert lines["optimizer"] == "AdamW's moments, after 4 steps"
    assert "TP 1 x PP 1 x DP 1 = 1 rank" in text
    assert f"torch {torch.__version__}" in text


def test_inspect_lists_tensors_and_speaks_json(run: Path) -> None:
    text = run_command(["checkpoint", "inspect", str(run), "--tensors"])
    assert text.splitlines()[-1].split() == ["output_layer.weight", "[4,", "3]"]
    facts = json.loads(run_command(["checkpoint", "inspect", str(run), "--json"]))
    assert facts["num_params"] == 15
    assert facts["tensors"]["output_layer.weight"] == [4, 3]
    assert facts["state"]["iteration"] == 4
    assert facts["plan"]["batch"]["train_iters"] == 5


def test_inspect_passes_over_a_damaged_one_and_says_so(run: Path) -> None:
    with (run / "checkpoints/step_0000004/state.json").open("a") as stream:
        stream.write("x")
    text = run_command(["checkpoint", "inspect", str(run)])
    assert "step_0000004  damaged: " in text
    assert "2 of 5 steps" in text


def test_verify_reads_every_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["step_0000004  whole", "step_0000002  whole"]
    path = next((run / "checkpoints/step_0000004/tensors").rglob("*.distcp"))
    damage(path)
    assert main(["checkpoint", "verify", str(run)]) == 2
    captured = capsys.readouterr()
    assert f"error: {path} is damaged" in captured.err
    assert "error: intact: step_0000002; a run resumes from the newest that is intact" in captured.err
    assert captured.out == ""


def test_weights_alone_are_a_checkpoint_too(run: Path, tmp_path: Path) -> None:
    said = run_command(["checkpoint", "convert", str(run), "--to", "weights", "--out", str(tmp_path / "out")])
    assert said.startswith(f"wrote {tmp_path / 'out'}: ")
    assert f"--init-from {tmp_path / 'out'}" in said
    reader = CheckpointReader.open(tmp_path / "out")
    assert not reader.has_optimizer
    assert CheckpointReader.open(run).has_optimizer, "control"
    assert all(reader.read(name).equal(value) for name, value in WEIGHTS.items())
    assert reader.tokenizer_path is not None
    assert reader.tokenizer_path.read_bytes() == b"pieces"
    assert reader.state == CheckpointReader.open(run).state


def test_the_universal_format_has_a_folder_per_parameter(run: Path, tmp_path: Path) -> None:
    """That DeepSpeed reads it: tests/distributed/test_universal.py."""
    run_command(["checkpoint", "convert", str(run), "--to", "universal", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/latest_universal").read_text() == "step_0000004"
    folder = tmp_path / "out/step_0000004/zero/output_layer.weight"
    kinds = {"fp32": 0, "exp_avg": 1, "exp_avg_sq": 2}
    for kind, more in kinds.items():
        assert torch.load(folder / f"{kind}.pt")["param"].equal(WEIGHTS["output_layer.weight"] + more)
    assert torch.load(folder / "step.pt") == 4


@pytest.mark.parametrize("target", ["weights", "universal"])
def test_the_newest_whole_one_is_converted(run: Path, tmp_path: Path, target: str) -> None:
    (run / "checkpoints/step_0000004/plan.json").unlink()
    said = run_command(["checkpoint", "convert", str(run), "--to", target, "--out", str(tmp_path / "out")])
    assert "step_0000002" in said


def test_what_convert_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "weights", 1, moments=False)
    (tmp_path / "there" / "something").mkdir(parents=True)
    cases = {
        ("there", "weights", run): "--out {out} exists already, and nothing is overwritten",
        ("out", "universal", tmp_path / "weights"): "holds weights alone, and the universal format needs",
        ("out", "weights", tmp_path / "nowhere"): "nowhere does not exist; name a run's folder",
        ("out", "safetensors", run): "'safetensors' is not one of weights, universal",
        ("pieces.model/out", "weights", run): "cannot be written: Not a directory",
    }
    (tmp_path / "pieces.model").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    for (name, target, source), message in cases.items():
        out = tmp_path / name
        assert main(["checkpoint", "convert", str(source), "--to", target, "--out", str(out)]) == 2
        assert message.format(out=out) in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
