"""Offload to NVMe trains the same model, and its checkpoints are as any other.

Needs libaio, to build DeepSpeed's asynchronous reads and writes.
"""

import dataclasses

import pytest
import torch

from chinchilla_ds.run_plan import Offload
from chinchilla_ds.testing.configs import tiny_shape
from tests.distributed.test_checkpoint import load_and_train, train_and_save
from tests.parity.harness import difference, largest_relative, on_engine, parity_plan, reference, trained

SHAPE = tiny_shape(hidden_size=128, ffn_hidden_size=384, kv_channels=32, vocab_size=2048, padded_vocab_size=2048)
"""DeepSpeed leaves in memory what is below 1 MiB; here the embedding alone is that large."""
TIMEOUT_S = 900.0
"""Minutes of it go into the C++ compiler, the first time."""


def require_libaio() -> None:
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        pytest.skip("DeepSpeed's NVMe offload needs libaio (on Debian and Ubuntu: libaio-dev)")


def plan_and_json(folder, offload_param):
    layout = {"zero_stage": 3, "offload_optimizer": Offload.NVME, "offload_param": offload_param}
    plan = dataclasses.replace(parity_plan(gradient_accumulation_steps=4, **layout), shape=SHAPE)
    nvme = {"device": "nvme", "nvme_path": str(folder), "pin_memory": False}
    zero = {"stage": 3, "reduce_bucket_size": 20_000, "stage3_param_persistence_threshold": 0}
    zero["offload_optimizer"] = dict(nvme)
    if offload_param is Offload.NVME:
        zero["offload_param"] = {**nvme, "buffer_size": 1_000_000}
    return plan, zero


def swapped_kinds(folder):
    return {path.parent.parent.name for path in folder.rglob("*.swp")}


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("offload_param", [Offload.NONE, Offload.NVME])
def test_offload_to_nvme_equals_single_process(tmp_path, offload_param):
    require_libaio()
    plan, zero = plan_and_json(tmp_path, offload_param)
    found = difference(trained(plan, timeout_s=TIMEOUT_S, zero_optimization=zero), reference(plan), plan)
    assert found.loss < 1e-5
    assert found.grad_norm < 1e-5
    other_seed = dataclasses.replace(plan, seed=7)
    assert difference(reference(other_seed), reference(plan), plan).loss > 1e-3
    wanted = {"optimizer", "float32params"} if offload_param is Offload.NVME else {"optimizer"}
    assert swapped_kinds(tmp_path) == wanted


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("offload_param", [Offload.NONE, Offload.NVME])
def test_checkpoint_from_nvme_goes_on_there_bit_by_bit_and_in_another_layout(tmp_path, offload_param):
    require_libaio()
    plan, zero = plan_and_json(tmp_path / "nvme", offload_param)
    extra = {"timeout_s": TIMEOUT_S, "zero_optimization": zero}
    [(saved, steps, shards)] = on_engine(plan, train_and_save, tmp_path, True, **extra)
    assert "optimizer" in swapped_kinds(tmp_path / "nvme")
    [(fresh, loaded, again, ended)] = on_engine(plan, load_and_train, tmp_path, **extra)
    assert (loaded, again) == (saved, steps)
    assert all(torch.equal(ended[name].value, shard.value) for name, shard in shards.items())
    assert abs(fresh - saved) > 1e-3 * saved, "control: what was loaded does not show"

    elsewhere = dataclasses.replace(parity_plan(gradient_accumulation_steps=4, zero_stage=1), shape=SHAPE)
    [(_, loaded, others, _)] = on_engine(elsewhere, load_and_train, tmp_path)
    assert abs(loaded - saved) < 1e-5 * saved
    assert largest_relative([loss for loss, _ in others], [loss for loss, _ in steps]) < 1e-5
