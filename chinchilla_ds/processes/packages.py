"""Messages about packages that are not installed: `pip install --no-deps chinchilla-ds` installs none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from chinchilla_ds.errors import ChinchillaError

DISTRIBUTIONS = {
    "charset_normalizer": "charset-normalizer",
    "megatron": "megatron-core",
    "yaml": "pyyaml",
    **{
        name: name
        for name in (
            "datasets", "deepspeed", "ftfy", "matplotlib", "mlflow", "numpy", "psutil", "pyarrow", "pydantic", "rensa",
            "rich", "safetensors", "scipy", "sentencepiece", "shtab", "tokenizers", "torch", "xxhash", "zstandard",
        )
    },
}  # fmt: skip
"""pip's name of the package of each module in pyproject.toml's dependencies."""


class MissingPackageError(ChinchillaError):
    """A command needs a package that is not installed."""


@contextmanager
def missing_packages(command: str, *, needed: Sequence[str] = ()) -> Iterator[None]:
    """Raise MissingPackageError for a dependency that cannot be found; any other module that is missing is a bug.

    Args:
        command: The command, such as `fit`.
        needed: The modules of all packages that it needs, if these are few.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in DISTRIBUTIONS or find_spec(module) is not None:
            raise
        absent = [DISTRIBUTIONS[name] for name in needed if find_spec(name) is None]
        advice = (
            f"`pip install {' '.join(absent)}` installs all that it needs"
            if module in needed
            else "install chinchilla-ds without --no-deps, which installs all that training needs"
        )
        raise MissingPackageError(
            f"chinchilla-ds {command} needs {DISTRIBUTIONS[module]}, which is not installed: {advice}"
        ) from None
