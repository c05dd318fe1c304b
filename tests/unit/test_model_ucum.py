"""Units of measure. Expected values: ucumvert with pint, another implementation; and the tables of UCUM 2.1."""

from fractions import Fraction
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ucumvert import PintUcumRegistry

from fhir_server.model.ucum import parse
from imaging.errors import AppError, Category

# Pairs of units of one dimension, as medicine and imaging write them.
PAIRS = [
    *[("kg", "g"), ("mg", "g"), ("ug", "kg"), ("[lb_av]", "kg"), ("[oz_av]", "g"), ("t", "kg")],
    *[("cm", "m"), ("mm", "um"), ("[in_i]", "cm"), ("[ft_i]", "m"), ("[mi_i]", "km"), ("Ao", "nm")],
    *[("L", "mL"), ("dL", "L"), ("cm3", "mL"), ("[foz_us]", "mL"), ("[gal_us]", "L"), ("[pt_us]", "L")],
    *[("min", "s"), ("h", "min"), ("d", "h"), ("wk", "d"), ("a", "d"), ("ms", "us")],
    *[("mg/dL", "g/L"), ("ug/mL", "mg/L"), ("ng/(8.h)", "ng/h"), ("ug/kg/min", "mg/kg/h"), ("kg/m2", "g/cm2")],
    *[("kV", "V"), ("mA.s", "C"), ("uA", "A"), ("keV", "J"), ("MBq", "Bq"), ("Ci", "GBq"), ("mCi", "MBq")],
    *[("mGy", "Gy"), ("mSv", "uSv"), ("RAD", "Gy"), ("REM", "mSv"), ("mGy.cm", "Gy.m"), ("uGy.m2", "mGy.cm2")],
    *[("kPa", "Pa"), ("cm[H2O]", "Pa"), ("bar", "Pa"), ("[psi]", "kPa"), ("N", "kg.m/s2"), ("MHz", "Hz")],
    *[
        ("mmol/L", "mol/m3"),
        ("U/L", "kat/m3"),
        ("10*3/uL", "10*9/L"),
        ("%", "[ppth]"),
        ("/min", "/s"),
        ("m/s2", "cm/s2"),
    ],
    *[("deg", "rad"), ("kcal", "J"), ("m[iU]/mL", "[iU]/L"), ("mL/min/{1.73_m2}", "mL/s"), ("{beats}/min", "/min")],
]


@pytest.fixture(scope="module")
def peer() -> PintUcumRegistry:
    return PintUcumRegistry()


@pytest.mark.parametrize(
    ("value", "code", "measured"),
    [("1e308", "kg", inf), ("-1e308", "kg", -inf), ("1e308", "m", 1e308), ("2", "kg", 2000.0), (inf, "kg", inf)],
)
def test_what_no_double_can_hold_is_infinite(value: str | float, code: str, measured: float) -> None:
    assert parse(code).measured(value) == measured


@pytest.mark.parametrize(("code", "other"), PAIRS)
def test_conversions_agree_with_another_implementation(peer: PintUcumRegistry, code: str, other: str) -> None:
    ours, theirs = parse(code), parse(other)

    expected = peer.from_ucum(code).to(peer.from_ucum(other).units) / peer.from_ucum(other).magnitude
    assert ours.dimension == theirs.dimension
    assert float(ours.factor / theirs.factor) == pytest.approx(float(expected.magnitude), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "code", "kelvin"),
    [
        (0, "Cel", "273.15"),
        (37, "Cel", "310.15"),
        (212, "[degF]", "373.15"),
        (-40, "[degF]", "233.15"),
        (5, "mK", "0.005"),
    ],
)
def test_temperatures_have_an_offset(value: int, code: str, kelvin: str) -> None:
    assert parse(code).canonical(value) == Fraction(kelvin)


@pytest.mark.parametrize(
    ("code", "other"), [("mg", "mL"), ("mmol/L", "mg/dL"), ("[iU]", "mg"), ("mGy", "s"), ("Cel", "1")]
)
def test_units_of_different_kinds_are_not_compared(code: str, other: str) -> None:
    assert parse(code).dimension != parse(other).dimension


@pytest.mark.parametrize(
    "code",
    ["", "nonsense", "mg/", "Cel/min", "k[in_i]", "m" * 101, "((((((((m))))))))", "m99", "mg dL", "dB", "5x", "$m"],
)
def test_what_is_no_unit_is_refused(code: str) -> None:
    with pytest.raises(AppError) as raised:
        parse(code)

    assert raised.value.category is Category.INVALID


@given(st.text(alphabet="mgLkdu[]()./10*{}%'^-_iU", max_size=20))
def test_any_text_is_a_unit_or_refused(code: str) -> None:
    try:
        is_unit = parse(code).factor > 0
    except AppError as error:
        is_unit = error.category is Category.INVALID

    assert is_unit
