"""Loads a tokenizer in a child process first, since the libraries for these formats crash on some inputs.

`tokenizers` panics on a `continuing_subword_prefix` that is longer than a merge, SentencePiece is native code that was
not written for forged models, and either can be kept busy for hours. The child receives the content through a pipe,
with limited time and memory; it reports success or a problem, or crashes. Starting it with its libraries takes
about 0.2 s.
"""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from chinchilla_ds.data.tokenizing.files import TokenizerFiles
from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import parse_json

_CPU_S = 4
"""Processor time for a small tokenizer; the largest known ones, 33 MB of tokenizer.json, take about 5 s in all."""
_CPU_S_PER_MIB = 1
_MEMORY_BYTES = 8 << 30
"""Bytes of address space; the largest tokenizers take a tenth."""
_REFUSED = 3
"""Exit code of the child when it reports a problem."""
_TEXTS = (
    "",
    " ",
    "  a  b\n\n\tif x:\r\n        return 0x1F  # 1234567890 -- === ",
    "Gr\u00fc\u00dfe, cafe\u0301 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u4e16\u754c\uff0c\u4f60\u597d\u3002",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2581\u2585\ufeff\ufffd\x00\x07\x7f\u0378\U0010ffff",
    "<s></s><unk><|endoftext|><0x0A>[CLS]##a",
    "a" * 300,
)
"""Texts that the child encodes and decodes, in addition to every token and code points of all planes."""
_PLANE_STEP = 61

_tried: set[str] = set()
"""Hashes of the tokenizers that this process has already accepted."""


def check_in_child(files: TokenizerFiles, /) -> None:
    """Load and use a tokenizer in a child process.

    Raises:
        DataError: the problem that the child reported, or that its input crashed it.
    """
    names, sizes = list(files.contents), [len(content) for content in files.contents.values()]
    header = json.dumps({"place": files.place, "names": names, "sizes": sizes}).encode() + b"\n"
    sent = header + b"".join(files.contents.values())
    digest = hashlib.sha256(sent).hexdigest()
    if digest in _tried:
        return
    seconds = _CPU_S + _CPU_S_PER_MIB * (len(sent) >> 20)
    child = subprocess.run(
        [sys.executable, "-P", "-m", "chinchilla_ds.data.tokenizing.child", str(seconds)],
        input=sent,
        capture_output=True,
        env=_environment(),
        check=False,
    )
    if child.returncode == _REFUSED:
        raise DataError([line for line in child.stdout.decode().split("\0") if line])
    if child.returncode != 0:
        raise DataError(f"{files.place} cannot be read: {_fate(child, seconds=seconds)}")
    _tried.add(digest)


def _environment() -> dict[str, str]:
    """Return the child's environment: this package can be imported, and libraries use one thread."""
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}


def _fate(child: "subprocess.CompletedProcess[bytes]", *, seconds: int) -> str:
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"its library was still processing it after {seconds} s"
    if child.returncode < 0:
        return f"it crashes the library that reads it ({signal.Signals(-child.returncode).name})"
    lines = [line.strip() for line in child.stderr.decode(errors="replace").splitlines() if line.strip()]
    last_line = lines[-1] if lines else f"exit code {child.returncode}"
    return f"the library that reads it fails ({last_line:.200})"


# ---- in the child ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Read the input from `check_in_child` and load it."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    header = parse_json(sys.stdin.buffer.readline(), where="what the parent sends")
    contents = {name: sys.stdin.buffer.read(size) for name, size in zip(header["names"], header["sizes"], strict=True)}
    try:
        _try(TokenizerFiles(contents=contents, place=header["place"]))
    except DataError as error:
        sys.stdout.write("\0".join(error.problems))
        return _REFUSED
    return 0


def _try(files: TokenizerFiles) -> None:
    from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer

    tokenizer = Tokenizer.of(files)
    points = (point for point in range(0x20, 0x110000, _PLANE_STEP) if not 0xD800 <= point < 0xE000)
    for text in (*_TEXTS, "".join(map(chr, points))):
        tokenizer.decode(tokenizer.encode(text))
    for token in range(tokenizer.vocab_size):
        tokenizer.decode([token])


if __name__ == "__main__":
    sys.exit(main())
