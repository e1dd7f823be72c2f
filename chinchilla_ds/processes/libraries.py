"""What the libraries behind `export` and `import` are told before they are imported."""

import logging
import os
import warnings


def quieten() -> None:
    """Keep what concerns the developers of the libraries off the user's screen; errors still show."""
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
