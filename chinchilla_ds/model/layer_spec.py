"""The decoder layer as a megatron-core spec: RMSNorm, grouped-query attention, SwiGLU, no biases.

Shapes, TP-local: s sequence, b micro-batch, h hidden, n heads, d channels of a head; under sequence parallelism norms
of the residual stream get [s/tp, b, h].
"""

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.distributed.recompute import recomputed, recomputed_but_for_matmuls
from chinchilla_ds.model.core_attention import SdpaCoreAttention
from chinchilla_ds.run_plan import ModelShape, Recompute


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467). Megatron-core's torch norm refuses sequence parallelism; here
    the weight passes through a region whose backward sums its gradient over the tensor-parallel ranks, where each of
    them sees a part of what is normed. ZeRO's hooks run afterwards, on the sum.
    """

    def sees_a_part(self, config: TransformerConfig) -> bool:
        """Return whether tensor-parallel ranks norm different values: their parts of the sequence."""
        return bool(config.sequence_parallel)

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        """Create the weight, as ones.

        Args:
            config: megatron-core's configuration.
            hidden_size: values that are normalised together.
            eps: added to the mean square.
            **_: other arguments of megatron-core's norms; unused.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=cpu_backend.device()))
        self.eps = eps
        self.sums_gradient = self.sees_a_part(config)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [s, b, h] (or [s/tp, b, h]), or heads of it, [s, b, n, d]."""
        weight = copy_to_tensor_model_parallel_region(self.weight) if self.sums_gradient else self.weight
        return F.rms_norm(x, (x.size(-1),), weight, self.eps)


class HeadNorm(RMSNorm):
    """RMSNorm of each head's queries or keys [s, b, n, d], with one weight [d] for all heads.

    Every tensor-parallel rank has the weight and sees only its own heads, with or without sequence parallelism.
    Megatron-core sums the gradient in finalize_model_grads, which ZeRO does not call.

    Source: Qwen Team 2025 (arXiv:2505.09388), section 2; Henry et al. 2020 (arXiv:2010.04245) for the idea.
    """

    def sees_a_part(self, config: TransformerConfig) -> bool:
        """Return whether tensor-parallel ranks norm different values: always, their heads."""
        return True


class RecomputedTransformerLayer(TransformerLayer):  # type: ignore[misc]
    """A transformer layer that saves only its input and recomputes the rest in the backward pass."""

    recomputed = staticmethod(recomputed)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """Run the layer on [s, b, h], saving nothing else for the backward pass."""
        if not torch.is_grad_enabled():
            return super().forward(hidden_states, **kwargs)  # type: ignore[no-any-return]

        def run(states: Tensor) -> Tensor:
            output: Tensor = super(RecomputedTransformerLayer, self).forward(states, **kwargs)[0]
            return output

        return self.recomputed(run, hidden_states), None


class OpRecomputedTransformerLayer(RecomputedTransformerLayer):
    """A transformer layer that also saves the outputs of attention and of every second matmul."""

    recomputed = staticmethod(recomputed_but_for_matmuls)


_LAYERS = {Recompute.FULL: RecomputedTransformerLayer, Recompute.SELECTIVE_OP: OpRecomputedTransformerLayer}


def _add_residual(_training: bool, _fused: bool) -> Any:
    """Return what megatron calls bias-dropout-add, for a layer with neither bias nor dropout."""

    def add(output_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, _dropout: float) -> Tensor:
        return residual + output_with_bias[0]

    return add


def _core_attention(recompute: Recompute) -> ModuleSpec:
    """Return Transformer Engine's attention if it is installed and there is CUDA, otherwise torch's fused kernel.

    Transformer Engine's module does not recompute itself, and torch does not see its kernels as operations, so both
    kinds of selective recomputation stay with torch's kernel.
    """
    has_te = cpu_backend.has_cuda() and importlib.util.find_spec("transformer_engine") is not None
    if has_te and recompute not in (Recompute.SELECTIVE, Recompute.SELECTIVE_OP):
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        return ModuleSpec(module=TEDotProductAttention)
    return ModuleSpec(module=SdpaCoreAttention, params={"recompute": recompute is Recompute.SELECTIVE})


def decoder_layer_spec(shape: ModelShape, /, *, recompute: Recompute) -> ModuleSpec:
    """Return the spec of one decoder layer."""
    head_norm = HeadNorm if shape.qk_norm else None
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=_core_attention(recompute),
            linear_proj=RowParallelLinear,
            q_layernorm=head_norm,
            k_layernorm=head_norm,
        ),
    )
    mlp = ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    )
    return ModuleSpec(
        module=_LAYERS.get(recompute, TransformerLayer),
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=_add_residual,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=_add_residual,
        ),
    )


def block_spec(shape: ModelShape, /, *, num_layers: int, recompute: Recompute) -> TransformerBlockSubmodules:
    """Return the spec of this rank's layers and the final norm.

    Args:
        shape: The decoder's shape.
        num_layers: Layers of this rank's model chunk.
        recompute: What the backward pass recomputes.
    """
    return TransformerBlockSubmodules(
        layer_specs=[decoder_layer_spec(shape, recompute=recompute)] * num_layers, layer_norm=RMSNorm
    )
