"""The decoder: megatron-core's GPTModel from our own layer spec, one pipeline stage per rank.

Shapes, TP-local: s sequence, b micro-batch, h hidden, v padded vocabulary; under sequence parallelism [s/tp, b, h].
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.model.core_attention import SdpaCoreAttention, document_mask
from chinchilla_ds.model.dtypes import DTYPES
from chinchilla_ds.model.layer_spec import block_spec
from chinchilla_ds.run_plan import Precision, RunPlan
from chinchilla_ds.weights import chunk_layers


def _leave(_weight: Tensor) -> None:
    """Initialise nothing; megatron-core marks a weight as tensor-parallel only if it initialises it."""


def transformer_config(plan: RunPlan) -> TransformerConfig:
    """Return megatron-core's configuration for the plan's shape, layout and precision."""
    shape, layout, dtype = plan.shape, plan.layout, DTYPES[plan.precision]
    virtual = layout.virtual_pipeline_model_parallel_size
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        layernorm_epsilon=shape.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        pipeline_model_parallel_layout=_uneven_layout(chunk_layers_of(plan)),
        sequence_parallel=layout.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        fp16=plan.precision is Precision.FP16,
        bf16=plan.precision is Precision.BF16,
        use_cpu_initialization=not torch.cuda.is_available(),
        init_method=_leave,  # `initialization.initialize` writes every weight
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        gradient_accumulation_fusion=False,  # these fusions need Apex or write to main_grad, which ZeRO does not have
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        batch_p2p_comm=torch.cuda.is_available(),
        deallocate_pipeline_outputs=True,
    )


def chunk_layers_of(plan: RunPlan) -> tuple[int, ...]:
    """Return the layers of every model chunk of the plan's layout, in the order of the computation."""
    layout = plan.layout
    return chunk_layers(
        num_layers=plan.shape.num_layers,
        pipeline=layout.pipeline_model_parallel_size,
        virtual=layout.virtual_pipeline_model_parallel_size,
    )


def _uneven_layout(layers: tuple[int, ...]) -> list[list[str]] | None:
    """Return megatron-core's words for the contents of unequal chunks; None where they are equal."""
    if len(set(layers)) == 1:
        return None
    chunks = [["decoder"] * count for count in layers]
    return [["embedding", *chunks[0]], *chunks[1:-1], [*chunks[-1], "loss"]]


MakeLoss = Callable[[Tensor], Tensor]
"""From the last stage's logits [s, b, v/tp] to a micro-batch's loss, a scalar."""


class Decoder(GPTModel):  # type: ignore[misc]
    """One model chunk; the object passed as labels computes the loss of its logits."""

    def compute_language_model_loss(self, labels: MakeLoss, logits: Tensor) -> Tensor:
        """Return the loss; GPTModel passes the labels of its `forward` on untouched."""
        return labels(logits)


class PipelineStage(nn.Module):
    """This rank's part of the model: one chunk, or several under interleaved scheduling."""

    def __init__(self, chunks: list[Decoder], *, masked_eod_id: int | None = None) -> None:
        """Store the chunks, and the end-of-document token if attention stays within documents."""
        super().__init__()
        self.chunks = nn.ModuleList(chunks)
        self._masked_eod_id = masked_eod_id

    @property
    def decoders(self) -> list[Decoder]:
        """The model chunks, in order."""
        return cast(list[Decoder], list(self.chunks))

    def forward(self, tokens: Tensor, make_loss: MakeLoss | None = None, chunk: int = 0) -> Tensor:
        """Run one chunk.

        Args:
            tokens: [b, s]; embedded by the first chunk of the first stage, while others use the tensor they received.
                Document masks are derived from them on every stage.
            make_loss: Computes the loss from the logits, on the last chunk of the last stage; None to get logits.
            chunk: Index of the model chunk.

        Returns:
            The result of `make_loss`, logits [b, s, v/tp], or hidden states [s, b, h] for the next stage.
        """
        model = self.decoders[chunk]
        mask = None
        if self._masked_eod_id is not None:  # one for all layers, kept until this micro-batch's backward pass
            mask = document_mask(tokens, eod_id=self._masked_eod_id, dtype=model.config.params_dtype)
        output: Tensor = model(input_ids=tokens, position_ids=None, attention_mask=mask, labels=make_loss)
        return output

    def set_input_tensor(self, tensor: Any, *, chunk: int) -> None:
        """Give `chunk` the hidden states [s, b, h] received from the previous stage."""
        self.decoders[chunk].set_input_tensor(tensor)


def build_stage(
    plan: RunPlan, *, partition: AbstractContextManager[Any] | None = None, eod_id: int | None = None
) -> PipelineStage:
    """Build this rank's pipeline stage; weights are placeholders until `initialization.initialize`.

    Args:
        plan: The run's plan; its process groups must be initialised.
        partition: Context under which modules are built: `deepspeed.zero.Init` for ZeRO-3, so that no rank ever holds
            the full model.
        eod_id: The end-of-document token, which document masks need.

    Raises:
        ConfigError: the plan masks documents and this machine's attention cannot.
    """
    assert eod_id is not None or not plan.document_mask, "document masks need eod_id"
    config = transformer_config(plan)
    virtual = plan.layout.virtual_pipeline_model_parallel_size
    pipeline, rank = plan.layout.pipeline_model_parallel_size, parallel_state.get_pipeline_model_parallel_rank()
    layers = chunk_layers_of(plan)[rank::pipeline]
    with partition or nullcontext():
        chunks = [
            _build_chunk(plan, config, count, index if virtual > 1 else None) for index, count in enumerate(layers)
        ]
    for chunk in chunks:
        chunk.rotary_pos_emb = _rotary(plan)
        if plan.document_mask:
            _check_takes_masks(chunk)
    return PipelineStage(chunks, masked_eod_id=eod_id if plan.document_mask else None)


def _check_takes_masks(chunk: Decoder) -> None:
    kinds = {type(layer.self_attention.core_attention) for layer in chunk.decoder.layers}
    if others := kinds - {SdpaCoreAttention}:
        raise ConfigError(
            f"document_mask is on and attention is {', '.join(sorted(kind.__name__ for kind in others))}, which is"
            " called without document masks here; use `layout.recompute=selective`, which uses torch's attention, or"
            " `document_mask=false`"
        )


def _build_chunk(plan: RunPlan, config: TransformerConfig, num_layers: int, vp_stage: int | None) -> Decoder:
    ignore_virtual = vp_stage is None
    return Decoder(
        config=config,
        transformer_layer_spec=block_spec(plan.shape, num_layers=num_layers, recompute=plan.layout.recompute),
        vocab_size=plan.shape.padded_vocab_size,
        max_sequence_length=plan.shape.seq_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=ignore_virtual, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=ignore_virtual, vp_stage=vp_stage),
        share_embeddings_and_output_weights=plan.shape.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=plan.shape.rotary_base,
        vp_stage=vp_stage,
    )


def _rotary(plan: RunPlan) -> RotaryEmbedding:
    """Return rotary frequencies in fp32; under zero.Init in bf16 every tensor created in a constructor is bf16."""
    return RotaryEmbedding(
        kv_channels=plan.shape.kv_channels,
        rotary_percent=1.0,
        rotary_base=plan.shape.rotary_base,
        use_cpu_initialization=not torch.cuda.is_available(),
    )
