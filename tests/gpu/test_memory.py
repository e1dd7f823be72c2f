"""The memory model against torch.cuda.max_memory_allocated, on one GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.10


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["zero1", "zero3", "zero1-recompute_full", "zero2-offload"])
def test_a_gpu_allocates_what_is_expected(case: str, tmp_path: Path) -> None:
    # a process of its own: the allocator's peak and DeepSpeed's hooks outlive an engine
    report = tmp_path / "memory.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--cuda", case, "--json", str(report)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=280)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["allocated"] == pytest.approx(found["expected"], rel=TOLERANCE)
