"""DeepSpeed's interface to a Megatron client, implemented by megatron-core's parallel state.

DeepSpeed sums the squared gradient norm over the model-parallel *group* and counts replicated parameters (norms) only
where the model-parallel *rank* is 0. With pipeline stages the group must span TP x PP, but every stage holds its own
norms, so the rank must be the tensor-parallel rank alone.
"""

from typing import Any

from megatron.core import parallel_state


class Mpu:
    """The model-parallel unit for `deepspeed.initialize(mpu=...)`."""

    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_pipeline_model_parallel_rank = staticmethod(parallel_state.get_pipeline_model_parallel_rank)
    get_pipeline_model_parallel_world_size = staticmethod(parallel_state.get_pipeline_model_parallel_world_size)
    get_pipeline_model_parallel_group = staticmethod(parallel_state.get_pipeline_model_parallel_group)

    @staticmethod
    def get_model_parallel_group() -> Any:
        """Return the group of all ranks that hold one replica of the model: TP x PP."""
        return parallel_state.get_model_parallel_group()

    @staticmethod
    def get_model_parallel_rank() -> int:
        """Return the tensor-parallel rank (see the module's docstring)."""
        return int(parallel_state.get_tensor_model_parallel_rank())

    @staticmethod
    def get_model_parallel_world_size() -> int:
        """Return TP: DeepSpeed writes it into checkpoints, and a stage has one file per tensor-parallel rank."""
        return int(parallel_state.get_tensor_model_parallel_world_size())
