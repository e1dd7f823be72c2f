"""Published configurations of families that can be imported: the published parameters, and out as they came in."""

from typing import Any

import pytest

from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.exporting.config_json import config_of, family_of, shape_of
from chinchilla_ds.run_plan import Precision

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B = {
    **QWEN3,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
}
QWEN3_8B = {
    **QWEN3,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_window_layers": 36,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "total", "non_embedding_billions"),
    [(QWEN3_0_6B, 596_049_920, 0.44), (QWEN3_8B, 8_190_735_360, 6.95)],
    ids=["0.6B", "8B"],
)
def test_parameters_of_qwen3_are_the_published_ones(config, total, non_embedding_billions):
    # Totals by the safetensors headers of the released models; non-embedding parameters by their model cards.
    counted = count_parameters(shape=shape_of(config, place="config.json"))
    assert counted.total == total
    assert round(counted.non_embedding / 1e9, 2) == non_embedding_billions


@pytest.mark.parametrize("config", [QWEN3_0_6B, QWEN3_8B], ids=["0.6B", "8B"])
def test_a_configuration_goes_out_as_it_came(config):
    shape = shape_of(config, place="config.json")
    assert shape.qk_norm
    assert family_of(shape).architecture == "Qwen3ForCausalLM"
    written = config_of(shape, vocab_size=config["vocab_size"], token_ids={}, dtype=Precision.BF16)
    different = {name for name in written.keys() & config.keys() if written[name] != config[name]}
    assert different == set()


def test_sizes_that_are_left_out_are_the_family_s_own():
    config = {name: value for name, value in QWEN3_0_6B.items() if name not in ("head_dim", "num_key_value_heads")}
    shape = shape_of({**config, "num_attention_heads": 64}, place="config.json")
    assert (shape.kv_channels, shape.num_query_groups) == (128, 32), "what transformers' Qwen3Config says"
    llama = {**config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    shape = shape_of(llama, place="config.json")
    assert (shape.kv_channels, shape.num_query_groups, shape.qk_norm) == (64, 16, False)
