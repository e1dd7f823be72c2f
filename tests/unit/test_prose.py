"""The prose of the code base: phrases that read as translated, and the idiom to use instead.

Checked are comments, docstrings and messages of the package, the launchers and the benchmarks, and the documentation.
"""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PHRASES = {
    r"(?<!there )(?<!There )\b(is|are|was|were|been) no numbers?\b": "is non-finite; is not a number",
    r"(?<!there )(?<!There )\b(is|are|was|were) no (?!longer|more|less|better|larger|smaller|older|slower|other|such"
    r"|need|one|further|way|room|number)[a-z]+": "is not a ...",
    r"\b(go|goes|went|going|gone) on\b": "resume, continue",
    r"[,;] else\b(?! [\w.]+\(|:)": "otherwise",
    r"\bor else\b": "otherwise",
    r"\bfor ever\b|\bfor good\b": "permanently",
    r"\bends with (exit code )?\d": "exits with",
    r"\banew\b": "again, afresh; start from scratch",
    r"\b(taken|takes|took) (it |them |this |that )?for (a|an|the|granted|hung)\b|\btaken for\b": "treated as, assumed",
    r"\bst(ands|and|ood) (in for|still|beside|for itself|at the (top|end))\b": "is; replaces",
    r"\bstands? (twice|once|alone|in the (way|file|manifest|table))\b": "occurs; is",
    r"\bthe user's care\b|\bas it is told\b|\bwhat there is to say\b|\bis said once\b": "(rephrase)",
    r"\bput right\b": "fix",
    r"\bcomes? again\b|\bcame again\b": "recurs, is repeated",
    r"\bsigns? of life\b": "heartbeat",
    r"\bcut off\b": "truncated",
    r"\bhanded on\b|\bhands? (it|them)? ?on\b": "pass on",
    r"\bmeans? nothing\b": "invalid, meaningless",
    r"\bin silence\b": "silently",
    r"\bdoubled (key|column|name)s?\b": "duplicate",
    r"\bheld (against|to) (the|an|a|its|torch|them|what)\b": "compared with",
    r"\bhow sure\b": "uncertainty",
    r"\bnobody (says|said|has said|knows|reads|looks|listens|meets)\b": "(use the passive)",
    r"\b(is|are|be) told\b(?! apart)|\btold (the|how|at|together)\b": "is reported; receives",
    r"\b(no|not any) use to\b|\bof no avail\b": "does not help",
    r"\bwhat is wrong with\b": "the problem of",
    r"\bwhoever\b": "the process that ..., anyone who",
    r"\bTold\b": "Called with; receives",
    r"\bknows no\b": "lacks, does not support, is independent of",
    r"\b[Aa]nother [a-z ]{1,30} than\b": "a different ... from",
    r"\b(bug|file|patch|export|value|module|law|optimizer|dataclass|callback) of (ours|yours)\b(?! is)": "our own",
    r"\b(has|have) gone\b(?! (back|through))": "no longer exists",
    r"\bable to say\b": "represent",
    r"\bnewest whole\b": "newest intact",
    r"\bbehind (an?|the|its|their) (prompt|text|token|word)s?\b|\bspaces behind\b": "after",
    r"\bbeside (--|a recipe|other paths)": "cannot be combined with",
    r"\*{4}": "** (an empty emphasis)",
    r"\b[a-z_]+: Of (?=[a-z])": "begin the line of an argument with a noun: its dtype, the number of tokens",
    r"\bis none of [A-Za-z`x]": "is not one of",
    r", about[.;]": "approximately, approximate number of",
    r"\b(plays?|played) no part\b|\bhas no say\b": "is ignored, is independent of",
    r"\bwhat is whole\b": "what is complete",
    r"\bas of `": "as for, see",
    r"\bin vain\b|\bwithout end\b": "without effect; without limit",
    r"\bthe one of the (smallest|largest|lowest|highest|first|last)\b": "the one with the",
    r"\bso many (of|bits|tokens|steps|ranks)\b": "that number of",
    r"\b(asks?|asked) for (N|a smaller|less)\b": "calls for, requires",
    r"\blet go\b|\bgiven back\b": "freed",
}
"""Regular expressions, and what to write instead."""

FIELD = re.compile(r"\s*Of\b")
"""A dangling "Of" in place of a noun: `The run's seed.`, not `Of the run.`"""

EXEMPT: dict[str, tuple[str, ...]] = {}
"""By file, what is right there all the same: quoted output of other programs, and phrases in their literal sense."""


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the comments and strings of Python source, pieces of one string together."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    tree = ast.parse(source)
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield node.lineno, node.value


def field_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of fields and constants."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for before, item in itertools.pairwise(body) if isinstance(body, list) else ():
            is_text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
            if is_text and isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(item.value.value, str):
                yield item.lineno, item.value.value


def problems(text: str, *, where: str, exempt: tuple[str, ...] = ()) -> list[str]:
    """Return the phrases in a text, of which line ends count as spaces, that are not exempt."""
    flat = " ".join(text.split())
    return [
        f"{where}: {match.group()!r} in {flat[max(0, match.start() - 30) : match.end() + 30]!r}; write: {instead}"
        for phrase, instead in PHRASES.items()
        for match in re.finditer(phrase, flat)
        if not any(words in flat[max(0, match.start() - 60) : match.end() + 60] for words in exempt)
    ]


def python_problems(path: Path) -> Iterator[str]:
    """Yield the problems of a Python file."""
    source, name = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
    for line, text in prose_of(source):
        yield from problems(text, where=f"{name}:{line}", exempt=EXEMPT.get(name, ()))
    for line, text in field_docstrings(source):
        if FIELD.match(text):
            yield f"{name}:{line}: the docstring of a field begins with 'Of': {text[:60]!r}"


def markdown_problems(path: Path) -> Iterator[str]:
    """Yield the problems of a page, paragraph by paragraph."""
    name, line = path.relative_to(ROOT).as_posix(), 1
    for paragraph in re.split(r"(\n\s*\n)", path.read_text("utf-8")):
        yield from problems(paragraph, where=f"{name}:{line}", exempt=EXEMPT.get(name, ()))
        line += paragraph.count("\n")


def test_code_is_written_in_the_idiom_of_the_field() -> None:
    files = [path for folder in ("chinchilla_ds", "launchers", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert [problem for path in sorted(files) for problem in python_problems(path)] == []


def test_documentation_is_written_in_the_idiom_of_the_field() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert [problem for path in sorted(pages) for problem in markdown_problems(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "the loss is no number",
        "a folder that is no run",
        "training goes on",
        "the name, else the path",
        "it waits for ever",
        "the run ends with 2",
        "begins anew",
        "a word taken for a number",
        "something you can put\n    right",
        "Told the name of a stage",
        "a kernel that knows no groups",
        "another number of ranks than the layout has",
        "that is a bug of ours",
        "the text has gone",
        "the newest whole checkpoint",
        "what stands there behind a prompt",
        "--json beside --stream",
        "'int3' is none of int4, int8",
        "****What counts.**",
        "precision: Of the weights.",
        "'int8' is none of fp32, bf16",
        "Pairs compared at a time, about.",
        "the document of a component, the one of the smallest hash",
    ],
)
def test_translated_phrases_are_found(text: str) -> None:
    assert len(problems(text, where="x")) == 1


@pytest.mark.parametrize("text", ["there is no number", "it is no longer there", "x if y else z", "it is one of many"])
def test_idiomatic_phrases_are_not(text: str) -> None:
    assert problems(text, where="x") == []


def test_a_field_whose_docstring_begins_with_of_is_found() -> None:
    assert list(field_docstrings('class A:\n    seed: int\n    """Of the run."""\n')) == [(3, "Of the run.")]
    assert FIELD.match("Of the run.")
    assert not FIELD.match("Offset.")
