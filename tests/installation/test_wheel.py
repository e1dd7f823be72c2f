"""The wheel, in environments of its own far from the checkout: planning with nothing else, and the whole product.

Nothing is downloaded: where dependencies are needed, they are those of the environment that runs the tests.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from importlib import metadata
from pathlib import Path

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import shipped_configs, to_json
from chinchilla_ds.structured import read_json
from tests.launching import ROOT, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RUNS = "num_params,num_tokens,loss\n" + "".join(
    f"{n:g},{d:g},{1.8 + 480 / n**0.35 + 2000 / d**0.37:.6f}\n"
    for n in (1e7, 3e7, 1e8, 3e8, 1e9) for d in (2e8, 1e9, 5e9, 2e10)
)  # fmt: skip
TINY = ("--flops", "1e10", "--seq-length", "64", "--vocab-size", "512", "--global-batch-size", "8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: setuptools leaves folders where it builds."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("chinchilla_ds", "ds_configs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def python(wheel: Path, tmp_path: Path) -> Path:
    """Return the Python of an environment that holds the wheel alone."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    _run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    return python


@pytest.fixture
def far(tmp_path: Path) -> Path:
    (tmp_path / "far").mkdir()
    return tmp_path / "far"


def _run(*command: object, cwd: Path | None = None, exit_code: int = 0, **env: str) -> str:
    outside = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    clean = {name: value for name, value in os.environ.items() if name not in outside}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean | env, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_planning_alone(python: Path, far: Path) -> None:
    packages = _run(python, "-m", "pip", "list", "--format", "freeze").split()
    assert {line.split("==")[0] for line in packages} <= {"chinchilla-ds", "pip", "setuptools"}
    command = python.with_name("chinchilla-ds")
    _run(command, "plan", "--flops", "1e21", "--gpus", "64", "--gpu", "h100", "--out", "plan.json", cwd=far)
    assert "per device" in _run(command, "memory", "plan.json", cwd=far)
    assert "train_batch_size" in _run(command, "ds-config", "plan.json", cwd=far)
    assert "besiroglu2024" in _run(command, "laws", "--flops", "1e21", cwd=far)
    assert "needs numpy" in _run(command, "fit", "runs.csv", cwd=far, exit_code=2)
    assert _run(python, "-m", "chinchilla_ds", "--version", cwd=far).startswith("chinchilla-ds ")
    imported = _run(python, "-X", "importtime", command, "plan", "--flops", "1e21", cwd=far)
    modules = {line.rpartition("|")[2].strip() for line in imported.splitlines() if line.startswith("import time:")}
    assert "chinchilla_ds.budget.planner" in modules
    assert not {name.partition(".")[0] for name in modules} & {"torch", "numpy", "deepspeed", "megatron", "pydantic"}
    seconds = []
    for _ in range(5):
        started_s = time.perf_counter()
        _run(command, "plan", "--flops", "1e21", cwd=far)
        seconds.append(time.perf_counter() - started_s)
    assert min(seconds) <= 0.4, f"plan took {seconds} s; the machine may be busy"


def test_fitting_needs_three_packages(python: Path, far: Path, tmp_path: Path) -> None:
    places = tmp_path / "packages"
    places.mkdir()
    for name in _with_requirements("numpy", "scipy", "matplotlib"):
        tops = {file.parts[0] for file in metadata.files(name) or ()} - {"..", "__pycache__"}
        for top in tops:
            (places / top).symlink_to(Path(sysconfig.get_path("purelib"), top))
    (far / "runs.csv").write_text(RUNS)
    command = python.with_name("chinchilla-ds")
    words = ("fit", "runs.csv", "--out", "law.json", "--picture", "fit.png")
    said = _run(command, *words, cwd=far, PYTHONPATH=str(places))
    assert "alpha" in said
    assert (far / "fit.png").stat().st_size > 10_000
    law = read_json(far / "law.json", what="law")
    assert abs(law["E"] - 1.8) < 0.02, law
    assert "by law" in _run(command, "plan", "--flops", "1e20", "--law", "law.json", cwd=far)  # without any package


def _with_requirements(*names: str) -> set[str]:
    """Return the distributions that some need, and theirs, without extras."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            lines = [line for line in metadata.requires(name) or () if "extra ==" not in line]
            left += [
                line.split(";")[0].split(">")[0].split("<")[0].split("=")[0].split("!")[0].strip(" (") for line in lines
            ]
    return found


def test_the_whole_product(python: Path, far: Path) -> None:
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    where = _run(python, "-c", "import chinchilla_ds; print(chinchilla_ds.__file__)", cwd=far)
    assert where.startswith(site), where
    command = python.with_name("chinchilla-ds")
    write_corpus(far / "text.txt")
    (far / "runs.csv").write_text(RUNS)
    env = {"OMP_NUM_THREADS": "1"}
    assert "predicted" in _run(command, "plan", "--flops", "1e21", cwd=far, **env)
    assert "alpha" in _run(command, "fit", "runs.csv", "--prior", "none", "--bootstrap", "0", cwd=far, **env)
    words = ("pretrain", "--ds_config", "zero3", "--data", "text.txt", "--run-name", "first", *TINY)
    before = sorted(far.iterdir())
    dry = _run(command, *words, "--dry-run", cwd=far, **env)
    assert "nothing was written" in dry
    assert "per device" in dry
    assert sorted(far.iterdir()) == before
    assert "held-out loss" in _run(command, *words, cwd=far, **env)
    assert read_json(far / "runs/first/status.json", what="status")["state"] == "finished"
    assert "wrote model" in _run(command, "export", "runs/first", "--out", "model", cwd=far, **env)
    assert read_json(far / "model/config.json", what="config")["architectures"] == ["LlamaForCausalLM"]


def test_shipped_files_are_in_the_wheel(python: Path, far: Path) -> None:
    folder = _run(python, "-c", "import chinchilla_ds; print(chinchilla_ds.__path__[0])", cwd=far).strip()
    shipped = {path.stem: path.read_text() for path in Path(folder, "ds_configs").glob("*.json")}
    assert shipped == {name: to_json(ds) for name, ds in shipped_configs().items()}
    assert not Path(folder, "ds_configs").is_symlink()
