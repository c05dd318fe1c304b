"""From the DICOM JSON model to a pydicom dataset, quickly: a series has thousands of instances.

Values are taken as they are, since they were checked when the instance came in; bulk data and pixels are left out.
pydicom's own reader checks every value, which takes twenty times as long. Source: PS3.18 annex F.
"""

from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import DSfloat, PersonName

from imaging.layout import PIXEL_KEYWORDS

_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_BINARY: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


def dataset_from_json(text: bytes) -> Dataset:
    """Return the dataset of one DICOM JSON object, as `imaging.dicom_json` writes it, without bulk data."""
    return dataset_of(orjson.loads(text))


def datasets_from_json(texts: Iterable[bytes]) -> Iterator[Dataset]:
    """Yield the datasets of the instances of a series, say, in less time: what is alike in them is read once.

    Elements that are alike are the same objects, so that a change of one's value is a change of all; put another in its
    place instead.
    """
    known: dict[str, tuple[Mapping[str, Any], BaseTag, DataElement]] = {}
    for text in texts:
        elements: dict[BaseTag, DataElement | RawDataElement] = {}
        for name, given in orjson.loads(text).items():
            before = known.get(name)
            if before is not None and before[0] == given:
                elements[before[1]] = before[2]
            elif element := _element(name, given):
                known[name] = given, element.tag, element
                elements[element.tag] = element
        yield Dataset(elements)


def dataset_of(model: Mapping[str, Any]) -> Dataset:
    """Return the dataset of a DICOM JSON object that was read already; see `dataset_from_json`."""
    found = (_element(name, given) for name, given in model.items())
    elements: dict[BaseTag, DataElement | RawDataElement] = {each.tag: each for each in found if each}
    return Dataset(elements)


def _element(name: str, given: Mapping[str, Any]) -> DataElement | None:
    """Return an element; None for pixels and bulk data."""
    tag = BaseTag(int(name, 16))
    if "BulkDataURI" in given or tag in PIXEL_KEYWORDS:
        return None
    return DataElement(tag, given["vr"], _value(given), already_converted=True)


def _value(given: Mapping[str, Any]) -> Any:
    vr = given["vr"]
    if vr == "SQ":
        return Items([dataset_of(each or {}) for each in given.get("Value", [])])
    if vr in _BINARY:
        return b64decode(given["InlineBinary"]) if "InlineBinary" in given else None
    convert = _CONVERTED.get(vr, _same)
    values = [convert(each) for each in given.get("Value", [])]
    return MultiValue(_same, values) if len(values) > 1 else values[0] if values else _EMPTY.get(vr)


def _same(value: Any) -> Any:
    return "" if value is None else value


def _decimal(value: Any) -> Any:
    return DSfloat(value, auto_format=True) if isinstance(value, int | float) else _same(value)


def _name(value: Any) -> PersonName:
    return PersonName("=".join((value or {}).get(part, "") for part in _PARTS).rstrip("="))


_CONVERTED: Final[dict[str, Callable[[Any], Any]]] = {
    "DS": _decimal,
    "PN": _name,
    "UI": lambda value: UID(value or ""),
    "AT": lambda value: BaseTag(int(value, 16)),
}
_EMPTY: Final = dict.fromkeys(
    ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"), ""
)
