"""The device of this process: a GPU if there is one, otherwise, or on request, the CPU.

A GPU that torch cannot use (an old driver, a build without CUDA, CUDA_VISIBLE_DEVICES that names none) is an error:
otherwise the run would silently use FP32 on the CPU, a thousand times slower.
"""

import os
import warnings
from pathlib import Path

from chinchilla_ds.errors import LayoutError

_NO_GPU = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that request no GPU; SLURM sets the last for a job without GPUs."""
_ON_CPU = "to train on the CPU anyway, set DS_ACCELERATOR=cpu"


def device_type() -> str:
    """Return `cuda` or `cpu`.

    Raises:
        LayoutError: this machine has a GPU that torch cannot use, and the CPU was not requested.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that torch and everything that asks it agree
        return "cpu"
    import torch

    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return "cuda"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in _NO_GPU:
        return "cpu"
    if seen := seen_gpus():
        why = _why_not([str(warning.message) for warning in recorded])
        raise LayoutError(
            f"this machine has a GPU ({seen[0]}) that torch {torch.__version__} cannot use: {why}; {_ON_CPU}"
        )
    return "cpu"


def seen_gpus(root: Path = Path("/")) -> list[str]:
    """Return the NVIDIA devices that the kernel lists, whether or not torch can use them."""
    patterns = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*")
    return sorted(str(path) for pattern in patterns for path in root.glob(pattern))


def _why_not(messages: list[str]) -> str:
    import torch

    if torch.version.cuda is None:
        return "it was built without CUDA; install a build for this driver's CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        messages = [*messages, str(error)]
    reason = messages[-1].splitlines()[0] if messages else "it finds no device"
    return f"{reason}{named}"
