"""A structured report as text that people read, plain or HTML, from its DICOM JSON model.

Everything in the content tree comes out, in its order: a report is not shortened. Images and other objects are named by
their UIDs. Sources: PS3.3 C.17.2, C.17.3 (content tree), C.18 (value types); PS3.18 8.7.4 (text/html, text/plain).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from imaging.display import items_of, values_of
from imaging.errors import AppError, Category

Document = Mapping[str, Any]

MOST_DEPTH: Final = 50  # of the content tree
MOST_ITEMS: Final = 100_000
_VALUE_TYPE, _NAME, _CONTENT, _MEANING = "0040A040", "0040A043", "0040A730", "00080104"


@dataclass(frozen=True, slots=True)
class Line:
    """A content item: how deep it is in the tree, from 0, what it is about, and its value ("" for a heading)."""

    depth: int
    name: str
    value: str


def is_report(document: Document) -> bool:
    """Say whether an instance is a structured report."""
    return _text(document, _VALUE_TYPE) == "CONTAINER" and _CONTENT in document


def as_plain(document: Document) -> str:
    """Return a report as plain text, indented by two spaces a level. Raises TOO_LARGE."""
    head = [*(f"{name}: {value}" for name, value in _head(document) if value), "", _title(document), ""]
    return "\n".join([*head, *(_plain(line) for line in _lines(document))]) + "\n"


def as_html(document: Document) -> str:
    """Return a report as one HTML page without script and without anything from elsewhere. Raises TOO_LARGE."""
    title = escape(_title(document))
    head = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _head(document) if value
    )
    body = "\n".join(_html(line) for line in _lines(document))
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>\n'
        f"<body><table>{head}</table>\n<h1>{title}</h1>\n{body}\n</body></html>\n"
    )


_STYLE = (
    "body{font-family:sans-serif;max-width:50em;margin:1em auto;line-height:1.4}"
    "th{text-align:left;padding-right:1em;font-weight:normal;color:#555}p{margin:.2em 0;white-space:pre-line}"
)


def _head(document: Document) -> Iterator[tuple[str, str]]:
    """Yield what stands above a report: whose it is, of which study, and how far it is."""
    for name, tag in (
        ("Patient", "00100010"), ("Patient ID", "00100020"), ("Birth date", "00100030"), ("Sex", "00100040"),
        ("Accession number", "00080050"), ("Study date", "00080020"), ("Study", "00081030"),
        ("Content date", "00080023"), ("State", "0040A491"), ("Verification", "0040A493"),
    ):  # fmt: skip
        value = _text(document, tag)
        yield name, f"{value[:4]}-{value[4:6]}-{value[6:]}" if "date" in name and len(value) == 8 else value
    for item in items_of(document, "0040A073"):
        yield "Verified by", ", ".join(filter(None, (_text(item, "0040A075"), _text(item, "0040A030"))))


def _title(document: Document) -> str:
    return _coded(document, _NAME) or "Report"


def _lines(document: Document) -> Iterator[Line]:
    for count, line in enumerate(_inside(document, 0), start=1):
        if count > MOST_ITEMS:
            raise AppError(Category.TOO_LARGE, f"a report of more than {MOST_ITEMS} items", where="rendered")
        yield line


def _inside(item: Document, depth: int) -> Iterator[Line]:
    if depth > MOST_DEPTH:
        raise AppError(Category.TOO_LARGE, f"a report of more than {MOST_DEPTH} levels", where="rendered")
    for each in items_of(item, _CONTENT):
        value = _VALUES.get(_text(each, _VALUE_TYPE), _unknown)(each)
        yield Line(depth, _coded(each, _NAME), value)
        yield from _inside(each, depth + 1)


def _plain(line: Line) -> str:
    first, *more = f"{line.name}{': ' if line.name and line.value else ''}{line.value}".splitlines() or [""]
    indent = "  " * line.depth
    return "\n".join([f"{indent}{first}", *(f"{indent}  {each}" for each in more)])


def _html(line: Line) -> str:
    indent = f' style="margin-left:{1.5 * line.depth:g}em"'
    if not line.value:
        level = min(line.depth + 2, 6)
        return f"<h{level}{indent}>{escape(line.name)}</h{level}>"
    name = f"<b>{escape(line.name)}:</b> " if line.name else ""
    return f"<p{indent}>{name}{escape(line.value)}</p>"


def _number(item: Document) -> str:
    for measured in items_of(item, "0040A300"):
        unit = next((_text(each, "00080100") for each in items_of(measured, "004008EA")), "")
        return " ".join(filter(None, (_text(measured, "0040A30A"), unit if unit != "1" else "")))
    return _coded(item, "0040A301") or "no value"  # Numeric Value Qualifier


def _reference(item: Document) -> str:
    told = []
    for each in items_of(item, "00081199"):
        frames = ", ".join(str(number) for number in values_of(each, "00081160"))
        told.append(_text(each, "00081155") + (f" frames {frames}" if frames else ""))
    return f"{_text(item, _VALUE_TYPE).lower()} {'; '.join(told)}"


def _coordinates(item: Document) -> str:
    kind = _text(item, "00700023") or _text(item, "0040A130")
    points = ", ".join(f"{value:g}" for value in values_of(item, "00700022") if isinstance(value, int | float))
    return f"{kind} ({points})" if points else kind


def _value_of(tag: str) -> Callable[[Document], str]:
    return lambda item: _text(item, tag)


def _unknown(item: Document) -> str:
    """Return what is said of an item by reference to another, or of a type that is not known here."""
    place = ".".join(str(each) for each in values_of(item, "0040DB73"))
    return f"see item {place}" if place else _text(item, _VALUE_TYPE) or "item"


_VALUES: Final[dict[str, Callable[[Document], str]]] = {
    "CONTAINER": lambda _: "",
    "TEXT": _value_of("0040A160"),
    "CODE": lambda item: _coded(item, "0040A168"),
    "NUM": _number,
    "DATETIME": _value_of("0040A120"),
    "DATE": _value_of("0040A121"),
    "TIME": _value_of("0040A122"),
    "PNAME": _value_of("0040A123"),
    "UIDREF": _value_of("0040A124"),
    "IMAGE": _reference,
    "COMPOSITE": _reference,
    "WAVEFORM": _reference,
    "SCOORD": _coordinates,
    "SCOORD3D": _coordinates,
    "TCOORD": _coordinates,
}


def _coded(item: Document, tag: str) -> str:
    return next((_text(each, _MEANING) for each in items_of(item, tag)), "")


def _text(item: Document, tag: str) -> str:
    values = values_of(item, tag)
    if not values or values[0] is None:
        return ""
    if isinstance(values[0], Mapping):  # a person's name
        return " ".join(part for part in str(values[0].get("Alphabetic", "")).split("^") if part)
    return str(values[0]).strip()
