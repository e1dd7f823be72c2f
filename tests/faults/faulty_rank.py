"""launchers/pretrain.py with a rank that fails: FAULT is where, FAULT_RANK which, at the third step.

`forward`, `backward` and `all_reduce` kill it (SIGKILL), `stop` freezes it (SIGSTOP), `memory` runs it out of memory,
`nan` makes its next micro-batch's numbers none.

Or in the second save: `save_before` and `save_after` kill it before and after its own file is written, `save_commit`
and `save_named` before and after the checkpoint has its name; `save_disk` fills the disk of the file FAULT_FILL;
`save_permission` takes away the right to write.
"""

import ctypes
import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import torch

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.cli.pretrain import run
from chinchilla_ds.engine import checkpoint, zero
from chinchilla_ds.engine.rehearsal import FOLDER_NAME
from chinchilla_ds.engine.zero import TrainingEngine

STEP = 3
SAVE = 2
_CAP_DAC_OVERRIDE = 1
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


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
        zero.means_and_votes = _die  # type: ignore[assignment]
    elif fault == "stop":
        print("FAULT stop", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "nan":
        _break_once(engine.stage.decoders[0].decoder.layers[0].mlp)
    else:
        _no_memory()


def _fill(path: Path) -> None:
    """Take all the space that is left."""
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                continue


def _obey_permissions() -> None:
    """Give up root's right to write where nobody may."""
    header = (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << _CAP_DAC_OVERRIDE)  # of the effective ones
    assert libc.capset(header, sets) == 0


def _arm_save(fault: str) -> None:
    """Let the second save fail."""
    real_save, real_replace, saves = checkpoint.save_blocks, folders.write_durably, 0

    def save_blocks(blocks: Any, *, folder: Path, group: Any) -> None:
        nonlocal saves
        saves += FOLDER_NAME not in folder.parts  # the rehearsal is not a save
        if saves == SAVE:
            if fault == "save_before":
                _die()
            elif fault == "save_disk":
                print("FAULT save_disk", flush=True)
                _fill(Path(os.environ["FAULT_FILL"]))
            elif fault == "save_permission":
                print("FAULT save_permission", flush=True)
                _obey_permissions()
                folder.chmod(0o500)
        real_save(blocks, folder=folder, group=group)
        if saves == SAVE and fault == "save_after":
            _die()

    def write_durably(path: Path, text: str) -> None:
        if saves == SAVE and (fault, path.name) == ("save_commit", folders.MANIFEST_NAME):
            _die()
        if saves == SAVE and (fault, path.name) == ("save_named", folders.LATEST_NAME):
            _die()
        real_replace(path, text)

    checkpoint.save_blocks = save_blocks
    folders.write_durably = write_durably


def main() -> None:
    fault = os.environ.get("FAULT")
    if fault and os.environ["RANK"] == os.environ["FAULT_RANK"]:
        _arm_save(fault) if fault.startswith("save_") else _arm_step()
    run()


def _arm_step() -> None:
    real_step, taken = TrainingEngine.train_step, 0

    def train_step(self: TrainingEngine, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == STEP:
            _arm(self)
        return real_step(self, *args, **kwargs)

    TrainingEngine.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
