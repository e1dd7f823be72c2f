import sys
from importlib import metadata
from pathlib import Path

import pytest

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.plugins import Kind, PluginSpec, load, make, names, parse_spec


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own."""
    (tmp_path / "mine_of_outside.py").write_text(
        "class Early:\n    def __init__(self, *, patience=3):\n        self.patience = patience\nvalue = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_of_outside", None)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("adamw", "adamw", {}),
        ("a.b:C", "a.b:C", {}),
        (
            "a.b:C,x=1,y=0.5,z=true,w=null,v=text,u=1e-4",
            "a.b:C",
            {"x": 1, "y": 0.5, "z": True, "w": None, "v": "text", "u": 1e-4},
        ),
        ("n,path=a=b", "n", {"path": "a=b"}),
        ('n,name="5"', "n", {"name": "5"}),
    ],
)
def test_a_spec_is_read_from_one_word(text: str, name: str, arguments: dict) -> None:
    spec = parse_spec(text)
    assert (spec.name, dict(spec.arguments)) == (name, arguments)
    assert [type(value) for value in spec.arguments.values()] == [type(value) for value in arguments.values()]


@pytest.mark.parametrize("text", ["adamw", "a.b:C,x=1,y=0.5,z=true,w=null,v=text", 'n,name="5"'])
def test_what_is_printed_is_read_back(text: str) -> None:
    assert parse_spec(str(parse_spec(text))) == parse_spec(text)


@pytest.mark.parametrize(
    "text", ["", "a b", "n,x", "n,x=1,x=2", "n,X=1", "n,=1", "a:b:c", "../x:y", ".a:b", "a..b:c", ":b"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the messages differ)
        parse_spec(text)


def test_an_object_of_a_module_of_the_user_s_own(outside: Path) -> None:
    assert make(Kind.CALLBACK, parse_spec("mine_of_outside:Early,patience=9")).patience == 9


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_at_all:X", "cannot be imported"),
        ("mine_of_outside:Erly", "did you mean 'Early'"),
        ("Early", "is unknown"),
    ],
)
def test_what_cannot_be_loaded_is_named(outside: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(Kind.CALLBACK, name)


@pytest.mark.parametrize(
    ("text", "said"), [("mine_of_outside:Early,patient=9", "patience"), ("mine_of_outside:value", "not a class")]
)
def test_what_cannot_be_made_is_named(outside: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(Kind.CALLBACK, parse_spec(text))


def test_an_installed_package_announces_names(outside: Path) -> None:
    folder = outside / "mine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[chinchilla_ds.callbacks]\nearly = mine_of_outside:Early\n")
    assert metadata.version("mine") == "1.0"
    assert "early" in names(Kind.CALLBACK)
    assert make(Kind.CALLBACK, PluginSpec(name="early", arguments={"patience": 1})).patience == 1
    with pytest.raises(ConfigError, match="did you mean 'early'"):
        load(Kind.CALLBACK, "erly")


def test_our_own_come_first() -> None:
    assert load(Kind.OPTIMIZER, "ours", ours={"ours": "math:pi"}) == pytest.approx(3.14159, abs=1e-5)
