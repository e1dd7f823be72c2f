import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_ds.budget.laws.lookup import LAWS
from chinchilla_ds.cli.main import main
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.plan_file import read_plan

REQUIRED = (
    "num_params",
    "num_tokens",
    "tokens_per_param",
    "predicted_loss",
    "interval",
    "shape",
    "true_flops",
    "batch",
    "optimizer",
    "layout",
    "memory_bytes",
    "step_time_s",
)
CLUSTER = ["--gpus", "64", "--gpu", "h100"]


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("error: ") for line in captured.err.splitlines())
    return captured.err


def test_a_budget_on_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--flops", "1e21", *CLUSTER)
    assert set(REQUIRED) <= data.keys()
    assert all(data[name] is not None for name in REQUIRED)
    assert data["true_flops"] == pytest.approx(1e21, rel=0.01)
    assert data["memory_bytes"]["total"] <= data["cluster"]["device_memory_bytes"]
    low, high = data["interval"]["num_params"]
    assert low < data["prediction"]["optimal_num_params"] < high
    assert data["interval"]["loss"][0] < data["predicted_loss"] < data["interval"]["loss"][1]
    layout = data["layout"]
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size")
    assert math.prod(layout[name] for name in sizes) == 64
    # MFU by its definition: model FLOPs over time, devices and the dense BF16 peak of an H100 SXM
    rate = data["true_flops"] / (data["step_time_s"] * data["batch"]["train_iters"] * 64)
    assert data["step_time"]["mfu"] == pytest.approx(rate / 989.4e12, rel=1e-3)
    assert data["report"]["runners_up"]
    rates = {one["name"]: one for one in data["report"]["hyperparameters"]["learning_rate"]}
    assert rates["used"]["value"] == data["optimizer"]["learning_rate"]
    assert not rates["used"]["in_range"]  # 2.9B parameters on 51B tokens: beyond Step Law's N, below the teams' D
    assert len(rates) >= 4
    assert data["report"]["rejected"]


def test_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--flops", "1e21", *CLUSTER]) == 0
    text = capsys.readouterr().out
    for part in ("80% interval", "tokens per parameter", "per device", "MFU", "GPU-hours", "next best", "rejected"):
        assert part in text
    unwrapped = " ".join(text.split())
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "margin"):
        assert f"{part} " in unwrapped
    assert max(map(len, text.splitlines())) <= 120


def test_gpu_hours_are_met_by_the_plan_s_own_time(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--gpu-hours", "5000", *CLUSTER)
    assert data["wall_clock_s"] * 64 / 3600 == pytest.approx(5000, rel=0.02)


def test_gpu_hours_at_a_given_mfu(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--gpu-hours", "5000", "--mfu", "0.4", *CLUSTER)
    assert data["compute_budget_flops"] == pytest.approx(5000 * 3600 * 989.4e12 * 0.4, rel=1e-3)


def test_a_share_may_be_a_percentage(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpu-hours", "100", "--gpu", "h100", "--mfu"]
    assert planned(capsys, *words, "40%") == planned(capsys, *words, "0.4")
    assert "--mfu (40) is a share of the peak: above 0 and at most 1; nearest: 40%" in refused(capsys, *words, "40")
    assert "nearest: 1" in refused(capsys, *words, "140%")


def test_flops_in_lower_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--flops", "1zflop")["compute_budget_flops"] == 1e21
    assert "1 ZFLOP" in refused(capsys, "--flops", "1z")


def test_tokens_that_no_decoder_can_be_trained_on_for_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest decoder with 16384 pieces takes 4.88e6 FLOPs per token, and 1e18 / 4.88e6 is 204B."""
    text = refused(capsys, "--tokens", "1T", "--flops", "1e18")
    for part in ("--tokens (1T tokens)", "--flops (1e+18 FLOPs)", "4.88 times the budget", "at most 204B tokens fit"):
        assert part in text
    refused(capsys, "--tokens", "1T", "--flops", "1e18", "--gpu", "h100")
    fitting = planned(capsys, "--tokens", "204B", "--flops", "1e18")
    assert fitting["true_flops"] == pytest.approx(1e18, rel=0.02)


@pytest.mark.parametrize("tokens", ["50B", "100B", "150B"])
def test_small_decoders_meet_budget_and_tokens_too(capsys: pytest.CaptureFixture[str], tokens: str) -> None:
    """Without shapes of narrow FFN the steps of hidden size spend up to 4.5 times the budget there."""
    assert planned(capsys, "--tokens", tokens, "--flops", "1e18")["true_flops"] == pytest.approx(1e18, rel=0.02)


def test_a_run_of_years_is_remarked_upon(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--flops", "1e24", "--gpus", "8", "--gpu", "h100"]
    assert main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    remark = re.search(
        r"Warning: the run takes ([\d,]+) days. At the same MFU, ([\d,]+) devices would take 180 days", text
    )
    assert remark is not None
    days, devices = (int(number.replace(",", "")) for number in remark.groups())
    assert days > 1000
    assert devices == pytest.approx(8 * days / 180, rel=0.01)
    assert "(longer than half a year)" in text
    assert main(["plan", "--flops", "1e21", *CLUSTER]) == 0
    assert "half a year" not in capsys.readouterr().out


def test_a_loss_far_outside_the_law_s_range_is_not_printed_as_a_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    """The law gives 18.24 nats per token, where guessing among 1024 pieces gives 6.93."""
    assert main(["plan"]) == 0
    text = capsys.readouterr().out
    assert "predicted     no loss: the budget lies 1,200,000 times below the 6e+18 to 3e+21 FLOPs" in text
    assert "18.2" not in text


def test_heads_fill_the_tiles_of_tensor_cores(capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("4e8", "7e8", "1e9", "1.4e9", "3e9"):
        shape = planned(capsys, "--params", size)["shape"]
        assert (shape["kv_channels"], shape["hidden_size"] % 256) == (128, 0)
    small = planned(capsys, "--params", "1.2e8")["shape"]
    assert (small["kv_channels"], small["num_attention_heads"]) == (64, 12)


def test_a_size_gets_the_tokens_of_its_own_optimum(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--params", "7e9", *CLUSTER)
    assert data["num_params"] == pytest.approx(7e9, rel=0.1)
    law = LAWS[data["prediction"]["law"]]
    # N of the law counts one of the two tables
    size = data["num_params"] - data["shape"]["padded_vocab_size"] * data["shape"]["hidden_size"]
    assert law.optimal(compute_budget_flops=6 * size * data["num_tokens"]).num_params == pytest.approx(size, rel=0.01)
    assert data["true_flops"] == pytest.approx(data["compute_budget_flops"], rel=0.01)


def test_tokens_get_the_size_of_their_own_optimum(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--tokens", "1e11", *CLUSTER)
    assert data["num_tokens"] == pytest.approx(1e11, rel=0.001)
    law = LAWS[data["prediction"]["law"]]
    wanted = law.optimal(compute_budget_flops=law.budget_for_tokens(num_tokens=1e11)).num_params
    size = data["num_params"] - data["shape"]["padded_vocab_size"] * data["shape"]["hidden_size"]
    assert size == pytest.approx(wanted, rel=0.1)


def test_two_of_three_fix_the_third(capsys: pytest.CaptureFixture[str]) -> None:
    by_size = planned(capsys, "--flops", "1e21", "--params", "1e9")
    assert by_size["num_params"] == pytest.approx(1e9, rel=0.1)
    assert by_size["true_flops"] == pytest.approx(1e21, rel=0.01)
    by_tokens = planned(capsys, "--flops", "1e21", "--tokens", "2e11")
    assert by_tokens["num_tokens"] == pytest.approx(2e11, rel=0.001)
    assert by_tokens["true_flops"] == pytest.approx(1e21, rel=0.01)
    both = planned(capsys, "--params", "1e9", "--tokens", "2e11")
    assert both["num_tokens"] == pytest.approx(2e11, rel=0.001)


def test_a_published_shape(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--shape", "chinchilla-70b", "--tokens", "1.4T", "--gpus", "512", "--gpu", "h100")
    assert (data["shape"]["num_layers"], data["shape"]["hidden_size"]) == (80, 8192)
    assert data["num_tokens"] == pytest.approx(1.4e12, rel=0.001)


def test_repetition_is_planned_with_its_own_law(capsys: pytest.CaptureFixture[str]) -> None:
    plenty = planned(capsys, "--flops", "1e21", "--unique-tokens", "1e12")
    assert plenty["unique_tokens"] is None
    scarce = planned(capsys, "--flops", "1e21", "--unique-tokens", "1e10")
    assert scarce["prediction"]["law"] == "muennighoff2023"
    assert scarce["num_tokens"] > 1.5e10
    # Muennighoff et al. 2023, figure 1: with scarce data parameters grow more slowly than epochs
    free = planned(capsys, "--flops", "1e21", "--law", "muennighoff2023")
    assert scarce["num_tokens"] > free["num_tokens"]
    assert scarce["predicted_loss"] > free["predicted_loss"]


def test_serving_makes_the_model_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    alone = planned(capsys, "--flops", "1e22")
    served = planned(capsys, "--flops", "1e22", "--inference-tokens", "1e13")
    assert served["num_params"] < 0.8 * alone["num_params"]
    assert served["num_tokens"] > 1.3 * alone["num_tokens"]
    assert served["predicted_loss"] == pytest.approx(alone["predicted_loss"], rel=0.003)
    assert any("Sardana" in reason for reason in served["reasons"])


def test_a_law_without_a_loss_borrows_the_default_s(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--flops", "1e21", "--law", "porian2024")
    assert (data["prediction"]["law"], data["prediction"]["loss_law"]) == ("porian2024", "besiroglu2024")
    assert data["interval"] is None
    size = data["num_params"] - data["shape"]["padded_vocab_size"] * data["shape"]["hidden_size"]
    expected = LAWS["besiroglu2024"].loss(num_params=size, num_tokens=data["num_tokens"])
    assert data["predicted_loss"] == pytest.approx(expected)
    assert any("gives the optimum but no loss" in reason for reason in data["reasons"])


def test_a_toy_budget_is_split_by_the_law_that_is_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--flops", "1e16")["prediction"]["law"] == "porian2024"
    assert planned(capsys, "--flops", "1e17")["prediction"]["law"] == "besiroglu2024"
    assert planned(capsys, "--flops", "1e16", "--law", "hoffmann2022")["prediction"]["law"] == "hoffmann2022"


def test_a_fixed_part_of_the_layout_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--flops", "1e21", *CLUSTER, "--zero-stage", "1", "--tensor-model-parallel-size", "4")
    assert (data["layout"]["zero_stage"], data["layout"]["tensor_model_parallel_size"]) == (1, 4)


def test_an_unknown_device_gets_no_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hardware = tmp_path / "hardware.json"
    hardware.write_text(json.dumps({"name": "X1", "memory_bytes": 96 * 2**30}))
    data = planned(capsys, "--flops", "1e21", "--gpus", "8", "--gpu", "x1", "--hardware", str(hardware))
    assert data["step_time_s"] is None
    assert data["memory_bytes"]["total"] <= 96 * 2**30
    text = refused(capsys, "--gpu-hours", "10", "--gpus", "8", "--gpu", "x1", "--hardware", str(hardware))
    assert "peak bf16 rate" in text


def test_a_cpu_gets_the_layout_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    data = planned(capsys, "--flops", "1e13", "--gpu", "cpu")
    assert (data["precision"], data["step_time_s"], data["cluster"]) == ("fp32", None, None)


def test_the_file_is_the_plan_and_nothing_is_half_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    data = planned(capsys, "--flops", "1e21", *CLUSTER, "--out", str(path))
    assert json.loads(path.read_text()) == data
    plan = read_plan(path, world_size=64)
    assert RunPlan.from_json(plan.to_json()) == plan
    assert list(tmp_path.iterdir()) == [path]
    assert "is not a folder" in refused(capsys, "--flops", "1e21", "--out", str(tmp_path / "none" / "plan.json"))


def test_ds_config_of_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "ds_config.json"
    words = ("--zero-stage", "1", "--tensor-model-parallel-size", "2", "--recompute", "selective")
    data = planned(capsys, "--flops", "1e21", *CLUSTER, *words, "--out", str(path))
    assert main(["ds-config", str(path), "--out", str(out)]) == 0
    ds = json.loads(out.read_text())
    batch, data_parallel = data["batch"], data["layout"]["data_parallel_size"]
    assert ds["train_batch_size"] == batch["global_batch_size"]
    assert ds["train_batch_size"] == (
        ds["train_micro_batch_size_per_gpu"] * ds["gradient_accumulation_steps"] * data_parallel
    )
    assert ds["zero_optimization"]["stage"] == 1
    assert ds["chinchilla_ds"]["tensor_model_parallel_size"] == 2
    assert ds["chinchilla_ds"]["recompute"] == "selective"
    assert "auto" not in out.read_text()


def test_memory_of_a_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    words = ("--zero-stage", "1", "--pipeline-model-parallel-size", "4")
    data = planned(capsys, "--flops", "1e21", *CLUSTER, *words, "--out", str(path))
    assert main(["memory", str(path), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)
    assert memory["memory_bytes"] == data["memory_bytes"]
    assert [stage["pipeline_stage"] for stage in memory["stages"]] == [0, 1, 2, 3]
    assert main(["memory", str(path)]) == 0
    assert "The fullest rank is of stage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--flops", "-1e21"], "is not a positive finite number"),
        (["--flops", "0"], "is not a positive finite number"),
        (["--flops", "nan"], "is not a positive finite number"),
        (["--flops", "1e21 tokens"], "is in tokens, and FLOPs are asked for"),
        (["--params", "1e21"], "is this another quantity?"),
        (["--flops", "1e21", "--params", "7e9", "--tokens", "1e12"], "all three are given"),
        (["--params", "7e9", "--shape", "llama-3-8b"], "both fix the model"),
        (["--flops", "1e21", "--gpu-hours", "10", *CLUSTER], "are both budgets"),
        (["--gpu-hours", "10"], "needs --gpu"),
        (["--flops", "1e21", "--mfu", "0.4"], "has no effect"),
        (["--gpu-hours", "10", "--mfu", "40", *CLUSTER], "above 0 and at most 1"),
        (["--flops", "1e21", "--gpu", "h1000"], "must be one of"),
        (["--flops", "1e21", "--gpus-per-node", "8"], "has no effect without --gpu"),
        (["--flops", "1e21", "--law", "hoffmann2022_rounded"], "40.4B"),
        (["--flops", "1e21", "--law", "nowhere.json"], "nowhere.json"),
        (["--flops", "1e21", "--shape", "lama-3-8b"], "did you mean 'llama-3-8b'"),
        (["--flops", "1e21", "--inference-tokens", "1e12", "--law", "porian2024"], "predicts loss"),
        (["--flops", "1e21", "--inference-tokens", "1e12", "--unique-tokens", "1e10"], "drop one of them"),
        (["--flops", "1e21", "--inference-tokens", "1e17"], "serve fewer tokens, or give a larger budget"),
        (["--tokens", "100"], "nearest: about"),
        (
            ["--flops", "1e21", "--gpu", "h100", "--offload-param", "gpu"],
            "not one of none, cpu, nvme; did you mean 'cpu'",
        ),
        (["--flop", "1e21"], "did you mean '--flops'"),
        (["--flops", "1e9"], "the smallest budget that works with these settings is about"),
        (["--flops", "1e21", *CLUSTER, "--tensor-model-parallel-size", "7"], "tensor_model_parallel_size"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    assert expected in refused(capsys, *words)


def test_a_cluster_on_which_nothing_fits_names_one_that_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "llama-3-405b", "--tokens", "1e12")
    text = refused(
        capsys, *words, "--gpus", "8", "--gpu", "l40s", "--offload-optimizer", "none", "--offload-param", "none"
    )
    assert "GiB" in text
    gpus = int(text.split("smallest that would fit: ")[1].split()[0])
    words = (*words, "--gpus", str(gpus), "--gpu", "l40s", "--offload-optimizer", "none", "--offload-param", "none")
    assert planned(capsys, *words)["layout"]["data_parallel_size"] >= 1


def test_all_problems_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--flops", "1e21", "--gpu-hours", "5", "--mfu", "3", "--gpus-per-node", "4")
    assert refused(capsys, *words).count("\n") == 4


def test_the_command_alone_lists_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in ("plan", "fit", "laws", "ds-config", "memory"))
    assert main(["plna"]) == 2
    assert "did you mean 'plan'" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    shell = f"{sys.executable} -m chinchilla_ds.cli.main plan --flops 1e21 | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


def test_laws(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "--flops", "5.76e23", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in data["laws"]}
    # Besiroglu et al. 2024, table 2 and section 5: about 20 tokens per parameter at Chinchilla's budget
    assert rows["besiroglu2024"]["tokens_per_param"] == pytest.approx(20, rel=0.15)
    assert rows["hoffmann2022"]["num_params"] == pytest.approx(40.4e9, rel=0.01)
    assert main(["laws", "--flops", "5.76e23"]) == 0
    assert "Smaller and longer" in capsys.readouterr().out
    assert main(["laws", "--flops", "1e21", "--law", "porian2024"]) == 2
    assert "predicts no loss" in capsys.readouterr().err
