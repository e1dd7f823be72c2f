import pytest

from chinchilla_ds.units import format_bytes, format_count, format_duration, parse_quantity, parse_share


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("1e21", "FLOPs", 1e21),
        ("1e21 FLOPs", "FLOPs", 1e21),
        ("1ZFLOPs", "FLOPs", 1e21),
        ("1zflop", "FLOPs", 1e21),
        ("2 eflops", "FLOPs", 2e18),
        ("300 gib", "bytes", 300.0),
        ("7B", "parameters", 7e9),
        ("7b", "parameters", 7e9),
        ("1.5T tokens", "tokens", 1.5e12),
        ("5000h", "GPU-hours", 5000.0),
        ("1_000", None, 1000.0),
        (" .5 ", None, 0.5),
    ],
)
def test_what_people_type(text: str, unit: str | None, value: float) -> None:
    assert parse_quantity(text, unit=unit) == value


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "-inf", "1e400", "-0.0"])
def test_no_positive_finite_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a positive finite number"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["", "seven", "7Bq", "1,000", "1e21 bananas", "1..2", "B"])
def test_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number such as"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["1z", "1 zettaflop", "many"])
def test_what_is_not_a_number_of_flops_is_shown_the_unit(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of FLOPs such as 1e21, 5E or 1 ZFLOP"):
        parse_quantity(text, unit="FLOPs")


@pytest.mark.parametrize(("text", "value"), [("0.4", 0.4), ("40%", 0.4), (" 62.5 % ", 0.625), ("1", 1.0)])
def test_shares(text: str, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "half", "-40%", "40%%"])
def test_no_share(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a share such as 0\.4 or 40%"):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("1e21 tokens", "FLOPs", "is in tokens, and FLOPs are asked for"),
        ("300 TFLOP/s", "FLOPs", "is in FLOP/s, and FLOPs are asked for"),
        ("7B params", "tokens", "is in parameters, and tokens are asked for"),
        ("80 GiB", "parameters", "is in bytes, and parameters are asked for"),
        ("8 GPUs", None, "is in GPUs, and a plain number is asked for"),
    ],
)
def test_another_unit(text: str, unit: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_quantity(text, unit=unit)


def test_formats() -> None:
    assert [format_count(n) for n in (6.34e9, 472e3, 12, 999.6e9, 999.4e9)] == ["6.34B", "472K", "12", "1T", "999B"]
    assert [format_bytes(n) for n in (1.5 * 2**30, 512)] == ["1.50 GiB", "512 B"]
    assert [format_duration(n) for n in (4.2, 185, 7800, 273600)] == ["4.2 s", "3 min 05 s", "2 h 10 min", "3 d 4 h"]
