"""What every test stands on."""

import os
import signal

import pytest

from chinchilla_ds.distributed.extensions import use_private_extensions_folder


def pytest_configure(config: pytest.Config) -> None:
    """Without the gpu tests, hide the GPUs, before torch is imported: the CPU tests mean the same on every machine."""
    if "not gpu" in config.getoption("markexpr", default=""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores; tests send it
    use_private_extensions_folder()
    from chinchilla_ds.distributed import build_lock

    build_lock.install()  # ranks are forks of this process: one that a test kills must leave no lock behind


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the gpu tests where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _nothing_leaves_this_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep trackers and hubs offline and out of the home folder."""
    home = tmp_path_factory.mktemp("home")
    os.environ["HF_HOME"] = str(home / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
