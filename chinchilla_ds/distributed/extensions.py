"""Where DeepSpeed's C++ ops are built: a folder used only by this environment.

DeepSpeed compiles its CPU ops at run time, by default into a cache shared by all environments on the host, where two
versions overwrite each other.
"""

import hashlib
import os
import sys
from importlib.metadata import version
from pathlib import Path


def use_private_extensions_folder() -> Path:
    """Point TORCH_EXTENSIONS_DIR into this environment, unless the user has set it, and return it.

    Must run before deepspeed is imported.
    """
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _default_folder())
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    return folder


def _default_folder() -> Path:
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    versions = f"{python}-torch{version('torch')}-deepspeed{version('deepspeed')}"
    prefix = Path(sys.prefix)
    if os.access(prefix, os.W_OK):
        return prefix / "torch_extensions" / versions
    environment = hashlib.blake2b(str(prefix).encode(), digest_size=6).hexdigest()
    return Path.home() / ".cache" / "chinchilla_ds" / "torch_extensions" / f"{versions}-{environment}"
