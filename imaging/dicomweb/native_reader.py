"""The Native DICOM Model in XML -> DICOM JSON: metadata that a client sends.

Read by expat, with document types refused, so nothing outside is ever fetched and nothing inside expands.
Sources: PS3.19 A.1 (XML), PS3.18 F.2 (JSON).
"""

from collections.abc import Mapping
from typing import Any, NoReturn
from xml.parsers import expat

from imaging.dicomweb.native_model import NAMESPACE
from imaging.errors import AppError, Category
from imaging.layout import Buffer

MAX_LEVELS = 256
MOST_VALUES = 1_000_000  # a number of a value or item beyond it is no position
_PIECE_BYTES = 1 << 20
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_GROUPS = frozenset({"Alphabetic", "Ideographic", "Phonetic"})
_INSIDE: Mapping[str, frozenset[str]] = {
    # element             what may stand in it; PS3.19 A.1.6
    "":                   frozenset({"NativeDicomModel"}),
    "NativeDicomModel":   frozenset({"DicomAttribute"}),
    "Item":               frozenset({"DicomAttribute"}),
    "DicomAttribute":     frozenset({"Value", "Item", "PersonName", "BulkData", "InlineBinary"}),
    "PersonName":         _GROUPS,
    **dict.fromkeys(_GROUPS, frozenset(_COMPONENTS)),
}  # fmt: skip


def document(xml: Buffer) -> dict[str, Any]:
    """Return the DICOM JSON object that a Native DICOM Model holds. Raises INVALID, telling the line."""
    reader = _Reader()
    try:
        for start in range(0, len(xml), _PIECE_BYTES):
            reader.parser.Parse(bytes(xml[start : start + _PIECE_BYTES]), False)
        reader.parser.Parse(b"", True)
    except expat.ExpatError as error:
        message = f"the XML is not well-formed at line {error.lineno}: {expat.ErrorString(error.code)}"
        raise AppError(Category.INVALID, message, where="metadata") from None
    return reader.found


class _Open:
    """An element that is being read."""

    def __init__(self, name: str, attributes: Mapping[str, str]) -> None:
        self.name = name
        self.attributes = attributes
        self.text: list[str] = []
        self.content: dict[str, Any] = {}
        self.values: dict[int, Any] = {}


class _Reader:
    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._stack = [_Open("", {})]
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _refuse(self, *_: object) -> NoReturn:
        raise self._wrong("the document has a document type, which is not accepted")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, local = name.rpartition(" ")
        if len(self._stack) > MAX_LEVELS:
            raise AppError(Category.TOO_LARGE, f"the XML is nested deeper than {MAX_LEVELS} levels", where="metadata")
        # Some writers leave the namespace out.
        if namespace not in ("", NAMESPACE) or local not in _INSIDE.get(self._stack[-1].name, ()):
            raise self._wrong("an element does not belong where it stands in the Native DICOM Model")
        self._stack.append(_Open(local, attributes))

    def _characters(self, text: str) -> None:
        if self._stack[-1].name not in _INSIDE:
            self._stack[-1].text.append(text)

    def _end(self, _: str) -> None:
        done = self._stack.pop()
        parent = self._stack[-1]
        _ENDINGS.get(done.name, _Reader._component)(self, done, parent)

    def _model(self, done: _Open, _: _Open) -> None:
        self.found = done.content

    def _attribute(self, done: _Open, parent: _Open) -> None:
        tag, vr = done.attributes.get("tag", "").upper(), done.attributes.get("vr", "")
        if tag in parent.content:
            raise self._wrong("an attribute is there twice")
        last = max(done.values, default=0)
        values = {"Value": [done.values.get(n) for n in range(1, last + 1)]} if last else {}
        parent.content[tag] = {"vr": vr, **values, **done.content}

    def _value(self, done: _Open, parent: _Open) -> None:
        self._place(done, parent, "".join(done.text))

    def _item(self, done: _Open, parent: _Open) -> None:
        self._place(done, parent, done.content)

    def _group(self, done: _Open, parent: _Open) -> None:
        name = "^".join(done.content.get(each, "") for each in _COMPONENTS)
        parent.content[done.name] = name.rstrip("^")

    def _component(self, done: _Open, parent: _Open) -> None:
        parent.content[done.name] = "".join(done.text)

    def _bulk(self, done: _Open, parent: _Open) -> None:
        parent.content["BulkDataURI"] = done.attributes.get("uri") or done.attributes.get("uuid", "")

    def _inline(self, done: _Open, parent: _Open) -> None:
        parent.content["InlineBinary"] = "".join("".join(done.text).split())

    def _place(self, done: _Open, parent: _Open, value: Any) -> None:
        text = done.attributes.get("number", "1")
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else 0
        # Positions that are left out are empty: they must not be many more than those that are written.
        if not 0 < number <= min(MOST_VALUES, 1_000 + 100 * (len(parent.values) + 1)) or number in parent.values:
            raise self._wrong("a value has no number of its own")
        parent.values[number] = value

    def _wrong(self, message: str) -> AppError:
        line = self.parser.CurrentLineNumber
        return AppError(Category.INVALID, f"{message} (line {line})", where="metadata")


_ENDINGS = {
    "NativeDicomModel": _Reader._model,
    "DicomAttribute": _Reader._attribute,
    "Value": _Reader._value,
    "Item": _Reader._item,
    "PersonName": _Reader._item,
    "BulkData": _Reader._bulk,
    "InlineBinary": _Reader._inline,
    **dict.fromkeys(_GROUPS, _Reader._group),
}
