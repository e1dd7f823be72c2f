"""Compile the DeepSpeed kernel that optimizer offload needs, so that no run waits for it.

DeepSpeed compiles it at first use otherwise. It lands in the folder that runs look in.
"""

import contextlib
import io
import shutil
import sys

from chinchilla_ds.distributed.extensions import use_private_extensions_folder


def main() -> int:
    """Compile, and return 2 with a message where there is no compiler."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        print("build_ops: no C++ compiler found: install one (on Debian and Ubuntu: g++)", file=sys.stderr)
        return 2
    use_private_extensions_folder()
    with contextlib.redirect_stdout(io.StringIO()):  # ninja's commands
        from chinchilla_ds.distributed import build_lock

        build_lock.install()
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
