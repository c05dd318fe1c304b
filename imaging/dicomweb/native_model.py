"""DICOM JSON -> the Native DICOM Model in XML, the other form of metadata that DICOMweb asks for.

Sources: PS3.18 F.2 (JSON), PS3.19 A.1 (XML).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pydicom.datadict import keyword_for_tag

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

_NAME_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
# What XML 1.0 cannot hold at all, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def native_model(document: Mapping[str, Any]) -> bytes:
    """Return a DICOM JSON object as an XML document in UTF-8; characters that XML cannot hold become U+FFFD."""
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
    return "".join([head, *_attributes(document), "</NativeDicomModel>"]).encode()


def _attributes(document: Mapping[str, Any]) -> Iterator[str]:
    for tag, element in sorted(document.items()):
        creator = _private_creator(document, tag)
        names = f" keyword={quoteattr(keyword)}" if (keyword := keyword_for_tag(int(tag, 16))) else ""
        names += f" privateCreator={quoteattr(_text(creator))}" if creator else ""
        yield f'<DicomAttribute tag="{tag}" vr="{element["vr"]}"{names}>'
        if "BulkDataURI" in element:
            yield f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
        elif "InlineBinary" in element:
            yield f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
        for number, value in enumerate(element.get("Value", ()), start=1):
            yield from _value(element["vr"], number, value)
        yield "</DicomAttribute>"


def _value(vr: str, number: int, value: Any) -> Iterator[str]:
    if vr == "SQ":
        yield f'<Item number="{number}">'
        yield from _attributes(value or {})
        yield "</Item>"
    elif value is None:  # the numbers of the others say that there is one missing
        return
    elif vr == "PN":
        yield f'<PersonName number="{number}">'
        yield from _name(value)
        yield "</PersonName>"
    else:
        yield f'<Value number="{number}">{_escaped(value)}</Value>'


def _name(name: Mapping[str, str]) -> Iterator[str]:
    for group in _NAME_GROUPS:
        if name.get(group):
            components = zip(_NAME_COMPONENTS, name[group].split("^"), strict=False)
            inner = "".join(f"<{tag}>{_escaped(text)}</{tag}>" for tag, text in components if text)
            yield f"<{group}>{inner}</{group}>"


def _private_creator(document: Mapping[str, Any], tag: str) -> str:
    """Return who defined a private attribute (PS3.5 7.8.1); "" for others and for the reservations themselves."""
    if int(tag[3], 16) % 2 == 0 or tag[4:6] == "00":
        return ""
    values = document.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value", [])
    return str(values[0]) if values else ""


def _escaped(value: Any) -> str:
    # A carriage return as it is would be read as a line feed (XML 1.0 2.11).
    return escape(_text(value), {"\r": "&#13;"})


def _text(value: Any) -> str:
    return _NOT_XML.sub("\ufffd", str(value))
