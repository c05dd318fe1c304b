"""Resources of every type, with any of their elements: for laws that hold of all of them. They need not be valid."""

import string
from typing import Any

from hypothesis import strategies as st

from fhir_server.model.definitions import elements, resource_types
from fhir_server.model.json import ExactDecimal
from fhir_server.model.primitives import is_primitive
from fhir_server.model.properties import choices
from tests.support.least import VALUES

Json = dict[str, Any]

DIV = '<div xmlns="http://www.w3.org/1999/xhtml"><p class="a>b">x &amp; <br /></p></div>'
# What both JSON and XML can hold.
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1
)
WHITE = st.text("\n\r\t a", min_size=1, max_size=5)
DIGITS = st.text(string.digits, min_size=1, max_size=25)
DECIMALS = st.builds(
    lambda sign, whole, fraction, exponent: ExactDecimal(f"{sign}{whole}{fraction}{exponent}"),
    st.sampled_from(["", "-"]),
    st.integers(0, 10**30).map(str),
    DIGITS.map(lambda digits: f".{digits}"),
    st.sampled_from(["", "e5", "E-3"]),
)


def resources(kind: str, *, depth: int = 3) -> st.SearchStrategy[Json]:
    """Return resources of a type; `depth` bounds how deep their elements are nested."""
    return _objects(kind, depth).map(lambda content: {"resourceType": kind, **content})


@st.composite
def _objects(draw: st.DrawFn, kind: str, depth: int) -> Json:
    known = list(elements(kind).values())
    chosen = draw(st.lists(st.sampled_from(known), max_size=4, unique_by=lambda each: each.name)) if known else []
    made: Json = {"url": "http://e.test"} if kind == "Extension" else {}
    for element in chosen:
        key, inner = draw(st.sampled_from(choices(element)))
        if inner == "xhtml":
            made[key] = DIV
        elif is_primitive(inner):
            made |= draw(_primitives(key, inner, is_array=element.is_array, is_attribute=_is_attribute(kind, key)))
        elif depth > 0 or inner == "Resource":
            one = resources("Basic", depth=0) if inner == "Resource" else _filled(inner, depth - 1)
            made[key] = draw(st.lists(one, min_size=1, max_size=2) if element.is_array else one)
    return made


def _filled(kind: str, depth: int) -> st.SearchStrategy[Json]:
    return _objects(kind, depth).filter(bool)


def _is_attribute(kind: str, key: str) -> bool:
    return (key == "id" and kind not in resource_types()) or (key == "url" and kind == "Extension")


@st.composite
def _primitives(draw: st.DrawFn, key: str, kind: str, *, is_array: bool, is_attribute: bool) -> Json:
    """A value, or what is beside it, or both; lists keep both aligned."""
    values = _values(kind)
    if is_attribute:
        return {key: draw(values)}
    beside = st.fixed_dictionaries({"id": st.sampled_from("abc")})
    pair = st.one_of(st.tuples(values, st.none()), st.tuples(values, beside), st.tuples(st.none(), beside))
    pairs = draw(st.lists(pair, min_size=1, max_size=3) if is_array else pair.map(lambda each: [each]))
    columns = {key: [value for value, _ in pairs], f"_{key}": [other for _, other in pairs]}
    there = {name: column for name, column in columns.items() if any(each is not None for each in column)}
    return there if is_array else {name: column[0] for name, column in there.items()}


def _values(kind: str) -> st.SearchStrategy[Any]:
    if kind == "boolean":
        return st.booleans()
    if kind in ("integer", "positiveInt", "unsignedInt"):
        return st.integers(-(2**31), 2**31)
    if kind == "decimal":
        return DECIMALS | st.integers(-(10**9), 10**9)
    return TEXT | WHITE | st.just(VALUES.get(kind, "12:00:00"))
