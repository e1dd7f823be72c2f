"""Next-token cross entropy, also over tensor-parallel ranks: the default objective's tensors.

Shapes, TP-local: s sequence, b micro-batch, v padded vocabulary.
"""

import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor


def token_losses(logits: Tensor, labels: Tensor, *, overwrites_logits: bool = False) -> Tensor:
    """Return the cross entropy of every token, [b, s] in fp32 nats, equal on all tensor-parallel ranks.

    Without tensor parallelism it is torch's fused kernel.

    Args:
        logits: [s, b, v/tp], in the model's precision.
        labels: [b, s], the tokens that follow.
        overwrites_logits: Whether nothing else reads the logits: megatron-core's kernel turns its input
            into probabilities, in place. Otherwise it gets a copy.
    """
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        own = logits.float()
        if own is logits and not overwrites_logits:
            own = logits.clone()
        losses: Tensor = vocab_parallel_cross_entropy(own, labels.transpose(0, 1).contiguous())
        return losses.transpose(0, 1)
    s, b, v = logits.shape
    flat = F.cross_entropy(logits.view(s * b, v).float(), labels.transpose(0, 1).reshape(-1), reduction="none")
    return flat.view(s, b).transpose(0, 1)
