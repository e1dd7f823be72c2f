"""launchers/pretrain.py with a fault: from step HOT_STEP on the learning rate is ten times what is planned."""

import os
from typing import Any

from chinchilla_ds.cli.pretrain import run
from chinchilla_ds.training import loop


def main() -> None:
    planned, hot_step = loop.learning_rate, int(os.environ["HOT_STEP"])

    def learning_rate(iteration: int, **how: Any) -> float:
        return planned(iteration, **how) * (10 if iteration + 1 >= hot_step else 1)

    loop.learning_rate = learning_rate  # type: ignore[assignment]
    run()


if __name__ == "__main__":
    main()
