"""transformers' LlamaForCausalLM with weights given under Megatron's names: a second implementation of the decoder."""

from typing import TYPE_CHECKING, Any

from tests.parity.reference_llama import split_qkv

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def llama_of(weights: Any) -> "LlamaForCausalLM":
    """Return the model of a plan and a state, in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, state = weights.plan.shape, dict(weights.state)
    config = LlamaConfig(
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
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config).float().eval()
    named = {
        "model.embed_tokens.weight": state.pop("embedding.word_embeddings.weight"),
        "model.norm.weight": state.pop("decoder.final_layernorm.weight"),
    }
    if not shape.tied_embeddings:
        named["lm_head.weight"] = state.pop("output_layer.weight")
    for number in range(shape.num_layers):
        ours, theirs = f"decoder.layers.{number}.", f"model.layers.{number}."
        parts = split_qkv(state.pop(ours + "self_attention.linear_qkv.weight"), shape)
        parts += state.pop(ours + "mlp.linear_fc1.weight").chunk(2)
        names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        named |= {f"{theirs}{name}.weight": part for name, part in zip(names, parts, strict=True)}
        for name, own in (
            ("input_layernorm", "input_layernorm"),
            ("self_attn.o_proj", "self_attention.linear_proj"),
            ("post_attention_layernorm", "pre_mlp_layernorm"),
            ("mlp.down_proj", "mlp.linear_fc2"),
        ):
            named[f"{theirs}{name}.weight"] = state.pop(f"{ours}{own}.weight")
    assert not state, f"weights without a place: {sorted(state)}"
    missing = model.load_state_dict(named, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    return model
