"""transformers' Llama, or Qwen3, with weights given under Megatron's names: a second implementation of the decoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from chinchilla_ds.run_plan import ModelShape

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def llama_of(weights: Any) -> "LlamaForCausalLM":
    """Return the model of a plan and a state, in fp32."""
    return llama_from_megatron(weights.plan.shape, weights.state)


def llama_from_megatron(shape: ModelShape, state: Mapping[str, torch.Tensor]) -> "LlamaForCausalLM":
    """Build the model from Megatron's weights, head by head: not the way the reference or the export splits them."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_class, model_class = (Qwen3Config, Qwen3ForCausalLM) if shape.qk_norm else (LlamaConfig, LlamaForCausalLM)
    config = config_class(
        vocab_size=shape.padded_vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        head_dim=shape.kv_channels,
        max_position_embeddings=shape.seq_length,
        rms_norm_eps=shape.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rotary_base},
        tie_word_embeddings=shape.tied_embeddings,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,  # with one, its row of the embedding would get no gradient
    )
    left = dict(state)
    embedding = left.pop("embedding.word_embeddings.weight")
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": left.pop("decoder.final_layernorm.weight"),
        "lm_head.weight": embedding if shape.tied_embeddings else left.pop("output_layer.weight"),
    }
    for number in range(shape.num_layers):
        theirs, ours = f"model.layers.{number}.", f"decoder.layers.{number}."
        rows = left.pop(ours + "self_attention.linear_qkv.weight").split(shape.kv_channels)
        per_group = len(rows) // shape.num_query_groups
        groups = [rows[start : start + per_group] for start in range(0, len(rows), per_group)]
        fc1 = left.pop(ours + "mlp.linear_fc1.weight")
        if shape.qk_norm:
            weights |= {
                theirs + "self_attn.q_norm.weight": left.pop(ours + "self_attention.q_layernorm.weight"),
                theirs + "self_attn.k_norm.weight": left.pop(ours + "self_attention.k_layernorm.weight"),
            }
        weights |= {
            theirs + "input_layernorm.weight": left.pop(ours + "input_layernorm.weight"),
            theirs + "self_attn.q_proj.weight": torch.cat([head for group in groups for head in group[:-2]]),
            theirs + "self_attn.k_proj.weight": torch.cat([group[-2] for group in groups]),
            theirs + "self_attn.v_proj.weight": torch.cat([group[-1] for group in groups]),
            theirs + "self_attn.o_proj.weight": left.pop(ours + "self_attention.linear_proj.weight"),
            theirs + "post_attention_layernorm.weight": left.pop(ours + "pre_mlp_layernorm.weight"),
            theirs + "mlp.gate_proj.weight": fc1[: shape.ffn_hidden_size],
            theirs + "mlp.up_proj.weight": fc1[shape.ffn_hidden_size :],
            theirs + "mlp.down_proj.weight": left.pop(ours + "mlp.linear_fc2.weight"),
        }
    assert not left, f"weights without a place: {sorted(left)}"
    model = model_class(config).float().eval()
    model.load_state_dict(weights)
    return model
