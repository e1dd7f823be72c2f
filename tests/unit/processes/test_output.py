"""A process that continues when the reader of its output has exited."""

import subprocess
import sys

import pytest

LINES = """
import sys
from chinchilla_ds.processes.output import outlast_readers
outlast_readers()
print("first", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("lost", flush=True)
    print("lost too", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_it_continues_without_a_reader(tmp_path, stream):
    done = tmp_path / "done"
    with subprocess.Popen(
        [sys.executable, "-c", LINES, done], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"first\n"
        getattr(process, stream).close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert done.read_text() == "done"


def test_control_python_itself_fails(tmp_path):
    lines = LINES.replace("outlast_readers()\n", "", 1)
    with subprocess.Popen(
        [sys.executable, "-c", lines, tmp_path / "done"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 1
        assert b"BrokenPipeError" in process.stderr.read()
    assert not (tmp_path / "done").exists()
