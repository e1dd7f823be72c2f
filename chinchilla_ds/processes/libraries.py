"""Settings of the libraries behind training, `export` and `import`, made before they are imported."""

import logging
import os
import warnings


def quieten_training() -> None:
    """Hide developers' messages of torch, Megatron and DeepSpeed from the user; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def use_cores(num_ranks: int, /) -> None:
    """Share the machine's cores between its ranks, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // num_ranks))


def quieten() -> None:
    """Hide developers' messages of the libraries from the user; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(megatron|torchao|torch)\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|torchao)\.")
    for name in ("torchao", "torch.utils._pytree", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def hide_progress_bars() -> None:
    """Keep transformers from drawing a bar for every model that it loads."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
