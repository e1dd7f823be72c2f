"""Train a compute-optimal decoder: `deepspeed launchers/pretrain.py --ds_config ds_configs/zero3.json`."""

import sys

from chinchilla_ds.cli.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
