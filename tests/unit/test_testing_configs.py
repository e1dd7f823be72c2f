import pytest
import torch

from chinchilla_ds.run_plan import Recompute, RunPlan
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.reference_llama import ReferenceLlama


def test_sizes_follow_from_the_layout():
    plan = tiny_plan(gradient_accumulation_steps=4, data_parallel_size=2, zero_stage=3, recompute=Recompute.FULL)
    assert plan.batch.global_batch_size == 16
    assert plan.num_tokens == 5 * 16 * 32
    assert plan.layout.recompute is Recompute.FULL


def test_round_trip_through_json():
    plan = tiny_plan(tensor_model_parallel_size=2, sequence_parallel=True)
    assert RunPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("tied", [False, True])
def test_num_params_is_what_the_reference_has(tied):
    shape = tiny_shape(tied_embeddings=tied)
    with torch.device("meta"):
        model = ReferenceLlama(shape)
    assert tiny_plan(shape=shape).num_params == sum(p.numel() for p in model.parameters())


def test_num_params_by_hand():
    # 2 x 256 x 64 embeddings; per layer 64 x (64 + 2 x 32) + 64 x 64 + 3 x 64 x 128 + 2 x 64; the last norm
    assert tiny_plan().num_params == 2 * 16384 + 4 * (8192 + 4096 + 24576 + 128) + 64
