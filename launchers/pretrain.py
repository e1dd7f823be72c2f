"""Train a compute-optimal decoder: `deepspeed launchers/pretrain.py --ds_config ds_configs/zero3.json`."""

from chinchilla_ds.cli.pretrain import run

if __name__ == "__main__":
    run()
