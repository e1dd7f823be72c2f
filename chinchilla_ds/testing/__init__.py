"""What tests of chinchilla-ds and of its plugins stand on: ranks on one machine, and small plans."""

from chinchilla_ds.testing.configs import tiny_plan
from chinchilla_ds.testing.run_on_ranks import RankError, RankTimeoutError, run_on_ranks

__all__ = ["RankError", "RankTimeoutError", "run_on_ranks", "tiny_plan"]
