"""launchers/pretrain.py with a rank that fails: FAULT is where, FAULT_RANK which, at the third step.

`forward`, `backward` and `all_reduce` kill it (SIGKILL), `stop` freezes it (SIGSTOP), `memory` runs it out of memory,
`nan` makes its next micro-batch's numbers none.
"""

import os
import signal
from typing import Any, NoReturn

import torch

from chinchilla_ds.cli.pretrain import run
from chinchilla_ds.engine import zero
from chinchilla_ds.engine.zero import TrainingEngine

STEP = 3


def _die(*_: Any, **__: Any) -> None:
    print(f"FAULT {os.environ['FAULT']}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _no_memory() -> NoReturn:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )


def _break_once(module: torch.nn.Module) -> None:
    def spoil(_module: Any, _inputs: Any, output: Any) -> Any:
        hook.remove()
        return output[0] * torch.nan, *output[1:]

    hook = module.register_forward_hook(spoil)


def _arm(engine: TrainingEngine) -> None:
    fault = os.environ["FAULT"]
    if fault == "forward":
        engine.stage.decoders[0].decoder.layers[0].register_forward_hook(_die)
    elif fault == "backward":
        engine.stage.decoders[0].decoder.layers[0].mlp.linear_fc1.weight.register_hook(_die)
    elif fault == "all_reduce":
        zero.mean_loss_and_votes = _die  # type: ignore[assignment]
    elif fault == "stop":
        print("FAULT stop", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "nan":
        _break_once(engine.stage.decoders[0].decoder.layers[0].mlp)
    else:
        _no_memory()


def main() -> None:
    real_step, taken = TrainingEngine.train_step, 0

    def train_step(self: TrainingEngine, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == STEP and os.environ["RANK"] == os.environ["FAULT_RANK"]:
            _arm(self)
        return real_step(self, *args, **kwargs)

    TrainingEngine.train_step = train_step  # type: ignore[method-assign]
    run()


if __name__ == "__main__":
    main()
