"""Offload to NVMe trains the same model. Needs libaio, to build DeepSpeed's asynchronous reads and writes."""

import dataclasses

import pytest

from chinchilla_ds.plan import Offload
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.harness import difference, parity_plan, reference, trained

SHAPE = tiny_shape(hidden_size=128, ffn_hidden_size=384, kv_channels=32, vocab_size=2048, padded_vocab_size=2048)
"""DeepSpeed leaves in memory what is below 1 MiB; here the embedding alone is that large."""
TIMEOUT_S = 900.0
"""Minutes of it go into the C++ compiler, the first time."""


def require_libaio() -> None:
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        pytest.skip("DeepSpeed's NVMe offload needs libaio (on Debian and Ubuntu: libaio-dev)")


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("offload_param", [Offload.NONE, Offload.NVME])
def test_offload_to_nvme_equals_single_process(tmp_path, offload_param):
    require_libaio()
    layout = {"zero_stage": 3, "offload_optimizer": Offload.NVME, "offload_param": offload_param}
    plan = dataclasses.replace(parity_plan(gradient_accumulation_steps=4, **layout), shape=SHAPE)
    nvme = {"device": "nvme", "nvme_path": str(tmp_path), "pin_memory": False}
    zero = {"stage": 3, "reduce_bucket_size": 20_000, "stage3_param_persistence_threshold": 0}
    zero["offload_optimizer"] = dict(nvme)
    if offload_param is Offload.NVME:
        zero["offload_param"] = {**nvme, "buffer_size": 1_000_000}
    found = difference(trained(plan, timeout_s=TIMEOUT_S, zero_optimization=zero), reference(plan), plan)
    assert found.loss < 1e-5
    assert found.grad_norm < 1e-5
    other_seed = dataclasses.replace(plan, seed=7)
    assert difference(reference(other_seed), reference(plan), plan).loss > 1e-3
    kinds = {path.parent.parent.name for path in tmp_path.rglob("*.swp")}
    assert kinds == ({"optimizer", "float32params"} if offload_param is Offload.NVME else {"optimizer"})
