"""docs/add-a-model-variant.md lists the files that know of QK-norm, and what it points to is there."""

import re
from pathlib import Path

from chinchilla_ds.run_plan import DecoderSwitches
from chinchilla_ds.weights import TABLE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/add-a-model-variant.md").read_text()
MOST_FILES = 7
ABOUT_OTHERS = {"import_.py", "hyperparameter_rules.py", "hyperparameters.py", "published.py", "published_recipes.py"}
"""Modules that name released models with QK-norm; a variant needs nothing there."""


def test_the_page_lists_every_file_that_knows_of_qk_norm():
    knows = re.compile(r"qk[-_]norm|[qk]_layernorm|qwen3", re.IGNORECASE)
    package = (ROOT / "chinchilla_ds").rglob("*.py")
    files = {
        str(path.relative_to(ROOT))
        for path in package
        if knows.search(path.read_text()) and path.name not in ABOUT_OTHERS
    }
    listed = re.findall(r"^\| `(chinchilla_ds/\S+\.py)` \|", PAGE, flags=re.MULTILINE)
    assert set(listed) == files
    assert len(listed) == len(files) <= MOST_FILES


def test_what_it_names_is_there():
    assert DecoderSwitches().qk_norm is False, "earlier plans had none"
    [kind] = [kind for kind in TABLE if kind.name == "self_attention.q_layernorm.weight"]
    fields = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, flags=re.MULTILINE)
    named = {name for group in fields for name in re.findall(r"`(\w+)`", group)}
    assert named == set(kind.__dataclass_fields__)
    paths = re.findall(r"`((?:tests|docs)/\S+)`", PAGE)
    assert len(paths) >= 8
    assert all((ROOT / path).exists() for path in paths)
    assert len(PAGE.splitlines()) < 60
