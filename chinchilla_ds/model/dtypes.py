"""The precisions of a plan as torch dtypes."""

import torch

from chinchilla_ds.run_plan import Precision

DTYPES: dict[Precision, torch.dtype] = {precision: getattr(torch, precision.dtype_name) for precision in Precision}
