"""FHIR resources as XML and back, along the definitions: order of elements, attributes, how values are written.

Decimals keep their digits, narratives their bytes. Read by expat, which gives places in the input, with document types,
and so entities, refused; depth is bounded while reading. Source: FHIR R4 xml 2.6.1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from typing import Any, NamedTuple, NoReturn
from xml.parsers import expat

from fhir_server.model import narrative
from fhir_server.model.definitions import elements, resource_types
from fhir_server.model.json import ExactDecimal, exact
from fhir_server.model.narrative import XHTML
from fhir_server.model.primitives import is_primitive
from fhir_server.model.properties import Property, choices, properties
from imaging.errors import AppError, Category

Json = dict[str, Any]

FHIR = "http://hl7.org/fhir"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_INTEGERS = frozenset({"integer", "positiveInt", "unsignedInt"})
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
# In an attribute, white space would come back as spaces.
_ESCAPES = {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
_SPECIAL = re.compile(r'[&<"\n\r\t]')
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


# ---- JSON to XML


def to_xml(resource: Json, *, indent: bool = False) -> bytes:
    """Return a resource as an XML document in UTF-8; `indent` puts each element on a line of its own."""
    kind = resource["resourceType"]
    out = ['<?xml version="1.0" encoding="UTF-8"?>']
    _Writer(out, indent=indent).resource(resource, kind, f' xmlns="{FHIR}"', 0)
    return "".join(out).encode()


class _Writer:
    """Writes elements one after another."""

    def __init__(self, out: list[str], *, indent: bool) -> None:
        self._out = out
        self._indent = indent

    def resource(self, value: Json, kind: str, attributes: str, level: int) -> None:
        self._new_line(level)
        self._element(kind, attributes, value, kind, level)

    def _element(self, tag: str, attributes: str, value: Json, kind: str, level: int) -> None:
        """Write an element with the children that the kind has, in their order."""
        out = self._out
        for name in _attributes(kind):
            if name in value:
                attributes += f' {name}="{_escaped(str(value[name]))}"'
        out.append(f"<{tag}{attributes}>")
        begun = len(out)
        for name, key, beside, inner in _children(kind):
            if key in value or (beside and beside in value):
                self._child(name, value.get(key), value.get(beside), inner, level + 1)
        if len(out) == begun:
            out[-1] = f"<{tag}{attributes}/>"
            return
        self._new_line(level)
        out.append(f"</{tag}>")

    def _child(self, name: str, value: Any, beside: Any, kind: str, level: int) -> None:
        if not isinstance(value, list) and not isinstance(beside, list):
            self._one(name, value, beside, kind, level)
            return
        values, others = value or [], beside or []
        for position in range(max(len(values), len(others))):
            one = values[position] if position < len(values) else None
            other = others[position] if position < len(others) else None
            self._one(name, one, other, kind, level)

    def _one(self, name: str, value: Any, beside: Any, kind: str, level: int) -> None:
        if value is None and beside is None:
            return
        self._new_line(level)
        if kind == "xhtml":
            self._out.append(_narrative(str(value)))
        elif is_primitive(kind):
            attributes = "" if value is None else f' value="{_escaped(_text(value))}"'
            self._element(name, attributes, beside or {}, "Element", level)
        elif kind == "Resource":
            self._out.append(f"<{name}>")
            self.resource(value, value["resourceType"], "", level + 1)
            self._new_line(level)
            self._out.append(f"</{name}>")
        else:
            self._element(name, "", value, kind, level)

    def _new_line(self, level: int) -> None:
        if self._indent:
            self._out.append("\n" + "  " * level)


@cache
def _children(kind: str) -> tuple[tuple[str, str, str, str], ...]:
    """Return (element, JSON name, JSON name of what is beside it, data type) of each child element, in order."""
    attributes = _attributes(kind)
    found = []
    for element in elements(kind).values():
        if element.name not in attributes:
            for key, inner in choices(element):
                found.append((key, key, f"_{key}" if is_primitive(inner) else "", inner))
    return tuple(found)


@cache
def _attributes(kind: str) -> tuple[str, ...]:
    """Return what XML has as attributes: the id of an element, which is none of a resource, and an extension's url."""
    if kind in resource_types():
        return ()
    return ("id", "url") if kind == "Extension" else ("id",)


def _narrative(div: str) -> str:
    """Return a narrative as it is; one from before they were checked as text, if it would break the document."""
    return f'<div xmlns="{XHTML}"><pre>{_escaped(div)}</pre></div>' if narrative.problem(div) else div


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.text if isinstance(value, ExactDecimal) else str(value)


def _escaped(text: str) -> str:
    # JSON can hold characters that no XML document can.
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], _NOT_XML.sub("\ufffd", text))


# ---- XML to JSON


def from_xml(data: bytes, *, most_levels: int) -> Json:
    """Return the resource in an XML document. Raises INVALID, saying where, without repeating the content."""
    reader = _Reader(data, most_levels)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise _invalid("the body is not well-formed XML", error.lineno, error.offset) from None
    return reader.found


@dataclass(slots=True)
class _Frame:
    """An element that has begun."""

    name: str
    kind: str  # data type; `Resource`: a resource is inside
    is_array: bool = False
    content: Json = field(default_factory=dict)
    value: str | None = None
    lists: dict[str, tuple[list[Any], list[Any]]] = field(default_factory=dict)  # of primitives: values, what is beside


class _Start(NamedTuple):
    """Where a narrative began."""

    at: int
    depth: int


class _Reader:
    """What the parser meets, put together from the leaves."""

    def __init__(self, data: bytes, most_levels: int) -> None:
        self.found: Json = {}
        self._data = data
        self._most_levels = most_levels
        self._depth = 0
        self._stack: list[_Frame] = []
        self._narrative: _Start | None = None
        # The encoding that FHIR demands, whatever the document says of itself.
        self.parser = expat.ParserCreate("utf-8", namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _refuse(self, *_: object) -> NoReturn:
        raise self._wrong("the document has a document type, which is not accepted")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > self._most_levels:
            raise self._wrong(f"the XML is nested deeper than {self._most_levels} levels")
        if self._narrative:
            return
        namespace, _, local = name.rpartition(" ")
        if not self._stack:
            self._begin_resource(namespace, local)
            self._take_attributes(self._stack[-1], attributes)
            return
        parent = self._stack[-1]
        kind = "Element" if is_primitive(parent.kind) else parent.kind
        if namespace == XHTML and local == "div" and properties(kind).get("div"):
            self._narrative = _Start(self.parser.CurrentByteIndex, self._depth)
            return
        if parent.kind == "Resource":
            if parent.content:
                raise self._wrong("an element holds two resources")
            self._begin_resource(namespace, local)
        else:
            found = properties(kind).get(local) if namespace == FHIR and not local.startswith("_") else None
            if found is None or local in _attributes(kind) or found.kind == "xhtml":
                raise self._wrong(f"{kind} has no such element")
            self._begin(local, found, parent)
        self._take_attributes(self._stack[-1], attributes)

    def _begin_resource(self, namespace: str, local: str) -> None:
        if namespace != FHIR or local not in resource_types():
            raise self._wrong(f'a resource of FHIR R4 is wanted here, in xmlns="{FHIR}"')
        self._stack.append(_Frame(local, local, content={"resourceType": local}))

    def _begin(self, local: str, found: Property, parent: _Frame) -> None:
        is_array = found.element.is_array
        if not is_array and (local in parent.content or f"_{local}" in parent.content):
            raise self._wrong("an element that occurs once is there twice")
        self._stack.append(_Frame(local, found.kind, is_array))

    def _take_attributes(self, frame: _Frame, attributes: Mapping[str, str]) -> None:
        for name, value in attributes.items():
            if name == "value" and is_primitive(frame.kind):
                frame.value = value
            elif name in _attributes("Element" if is_primitive(frame.kind) else frame.kind):
                frame.content[name] = value
            elif not name.startswith(f"{_XSI} "):
                raise self._wrong("an attribute is not one of FHIR")

    def _end(self, _: str) -> None:
        if self._narrative:
            if self._depth == self._narrative.depth:
                end = self._data.index(b">", self.parser.CurrentByteIndex) + 1
                self._stack[-1].content["div"] = self._data[self._narrative.at : end].decode()
                self._narrative = None
            self._depth -= 1
            return
        self._depth -= 1
        frame = self._stack.pop()
        _close_lists(frame)
        if not self._stack:
            self.found = frame.content
            return
        parent = self._stack[-1]
        if parent.kind == "Resource":
            parent.content = frame.content
        elif is_primitive(frame.kind):
            self._put_primitive(parent, frame)
        elif frame.is_array:
            parent.content.setdefault(frame.name, []).append(frame.content)
        else:
            parent.content[frame.name] = frame.content

    def _put_primitive(self, parent: _Frame, frame: _Frame) -> None:
        value = None if frame.value is None else _value(frame.kind, frame.value)
        if frame.is_array:
            values, beside = parent.lists.setdefault(frame.name, ([], []))
            parent.content.setdefault(frame.name, None)  # the place among its siblings
            values.append(value)
            beside.append(frame.content or None)
            return
        if value is None and not frame.content:
            raise self._wrong("an element has neither a value nor an extension")
        if value is not None:
            parent.content[frame.name] = value
        if frame.content:
            parent.content[f"_{frame.name}"] = frame.content

    def _characters(self, text: str) -> None:
        if not self._narrative and not text.isspace():
            raise self._wrong("there is text between elements")

    def _wrong(self, reason: str) -> AppError:
        return _invalid(reason, self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber)


def _close_lists(frame: _Frame) -> None:
    for name, (values, beside) in frame.lists.items():
        if any(value is not None for value in values):
            frame.content[name] = values
        else:
            del frame.content[name]
        if any(each is not None for each in beside):
            frame.content[f"_{name}"] = beside


def _value(kind: str, text: str) -> Any:
    """Return a value as JSON has it; what has the wrong form stays a text, of which validation speaks."""
    if kind == "boolean":
        return _BOOLEANS.get(text, text)
    if kind in _INTEGERS and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "decimal" and _DECIMAL.fullmatch(text):
        return int(text) if _INTEGER.fullmatch(text) else _decimal(text)
    return text


def _decimal(text: str) -> Any:
    """Return the number, or the text of one that JSON could not hold."""
    try:
        return exact(text) if isfinite(float(text)) else text
    except ValueError:
        return text


def _invalid(reason: str, line: int, column: int) -> AppError:
    return AppError(Category.INVALID, reason, where=f"line {line} column {column}")
