"""Where DeepSpeed's C++ ops are built: a folder of this environment alone.

DeepSpeed compiles its CPU ops at run time, by default into a cache that every environment on the host shares, where two
versions overwrite each other.
"""

import hashlib
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

from chinchilla_ds.errors import ConfigError

STALE_LOCK_S = 1200.0
"""A build takes one or two minutes; a lock older than this belongs to a build that was killed."""


def use_private_extensions_folder() -> Path:
    """Point TORCH_EXTENSIONS_DIR into this environment, unless the user has set it, and return it.

    Must run before deepspeed is imported.

    Raises:
        ConfigError: a killed build left a lock, for which the next build would wait for ever.
    """
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _default_folder())
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    stale = [lock for lock in folder.glob("*/lock") if time.time() - lock.stat().st_mtime > STALE_LOCK_S]
    if stale:
        raise ConfigError([f"{lock} was left by a build that was killed; remove it and run again" for lock in stale])
    return folder


def _default_folder() -> Path:
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    versions = f"{python}-torch{version('torch')}-deepspeed{version('deepspeed')}"
    prefix = Path(sys.prefix)
    if os.access(prefix, os.W_OK):
        return prefix / "torch_extensions" / versions
    environment = hashlib.blake2b(str(prefix).encode(), digest_size=6).hexdigest()
    return Path.home() / ".cache" / "chinchilla_ds" / "torch_extensions" / f"{versions}-{environment}"
