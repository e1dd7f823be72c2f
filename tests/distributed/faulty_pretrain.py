"""launchers/pretrain.py with a fault: FAULT is what goes wrong at the third step, FAULT_RANK on which rank."""

import errno
import os
from typing import Any

from chinchilla_ds.cli.pretrain import run
from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.errors import OutputError

STEP = 3
_FAULTS = {
    "bug": RuntimeError("a bug of ours"),
    "user": OutputError("this folder is read-only"),
    "disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}


def main() -> None:
    real_step, taken = TrainingEngine.train_step, 0

    def train_step(self: TrainingEngine, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == STEP and os.environ["RANK"] == os.environ["FAULT_RANK"]:
            raise _FAULTS[os.environ["FAULT"]]
        return real_step(self, *args, **kwargs)

    TrainingEngine.train_step = train_step  # type: ignore[method-assign]
    run()


if __name__ == "__main__":
    main()
