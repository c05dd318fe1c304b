"""From DICOM JSON to the bytes of a data set. The other way is `dicom_json`; pydicom is the second opinion."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from imaging.compose import BulkValue, compose
from imaging.dataset import read
from imaging.dataset_from_model import elements, uris
from imaging.dicom_json import bulkdata, dicom_json
from imaging.dicomweb.native_model import native_model
from imaging.dicomweb.native_reader import document
from imaging.errors import AppError, Category

NOW = datetime(2026, 1, 2, 10, 15, tzinfo=UTC)
FILES = [
    "CT_small.dcm", "MR_small_implicit.dcm", "rtplan.dcm", "rtdose.dcm", "reportsi.dcm", "test-SR.dcm",
    "liver_1frame.dcm", "SC_rgb_small_odd.dcm", "color-px.dcm", "eCT_Supplemental.dcm",
]  # fmt: skip


def model_of(data: Any) -> dict[str, Any]:
    return orjson.loads(dicom_json(read(data)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["json", "xml"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_taken_apart_comes_together_again(name: str, form: str) -> None:
    received = read(Path(str(get_testdata_file(name))).read_bytes())
    model = orjson.loads(dicom_json(received))
    bulk = {uri: BulkValue("", "", (bulkdata(received, uri[2:])[0],)) for _, uri in uris(model)}
    told = model if form == "json" else document(native_model(model))

    made = compose(told, bulk, at=NOW, system="x")

    again = model_of(made.data)
    # JSON is UTF-8: the character set may be another one, the text is the same.
    assert {tag: again[tag] for tag in again if tag != "00080005"} == {
        tag: model[tag] for tag in model if tag != "00080005"
    }
    assert made.original == {}
    dcmread(io.BytesIO(bytes(made.data)), force=True).walk(lambda ds, element: element.value)


def encoded(element: Any, tag: str = "00200013") -> bytes:
    ((_, pieces),) = elements({tag: element}, lambda uri: b"")
    return b"".join(bytes(piece) for piece in pieces)


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ({"vr": "IS", "Value": [7, -3]}, b"IS\4\x007\\-3"),
        ({"vr": "IS", "Value": ["7"]}, b"IS\2\x007 "),
        ({"vr": "DS", "Value": [0.1, 1e-30, 2]}, b"DS\x0c\x000.1\\1e-30\\2 "),
        ({"vr": "DS", "Value": [1 / 3]}, b"DS\x10\x000.33333333333333"),
        ({"vr": "UI", "Value": ["1.2.3"]}, b"UI\6\x001.2.3\0"),
        ({"vr": "PN", "Value": [{"Alphabetic": "A^B", "Phonetic": "C"}]}, b"PN\6\0A^B==C"),
        ({"vr": "LO", "Value": ["a", None, "b"]}, b"LO\4\0a\\\\b"),
        ({"vr": "LT", "Value": ["a\\b"]}, b"LT\4\0a\\b "),
        ({"vr": "AT", "Value": ["00181063"]}, b"AT\4\0\x18\0\x63\x10"),
        ({"vr": "FD", "Value": ["NaN"]}, b"FD\x08\0\0\0\0\0\0\0\xf8\x7f"),
        ({"vr": "US", "Value": [65535]}, b"US\2\0\xff\xff"),
        ({"vr": "OB", "InlineBinary": "AQI="}, b"OB\0\0\2\0\0\0\1\2"),
        ({"vr": "SQ", "Value": [{}, None]}, b"SQ\0\0\x10\0\0\0" + b"\xfe\xff\x00\xe0\0\0\0\0" * 2),
        ({"vr": "LO"}, b"LO\0\0"),
    ],
)
def test_values_are_written_by_their_representation(element: Any, expected: bytes) -> None:
    assert encoded(element)[4:] == expected


def test_text_beyond_ascii_makes_the_data_set_utf_8() -> None:
    found = dict(elements({"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller"}]}}, lambda uri: b""))

    assert b"ISO_IR 192" in b"".join(bytes(piece) for piece in found[0x00080005])
    assert "Müller".encode() in b"".join(bytes(piece) for piece in found[0x00100010])


@pytest.mark.parametrize(
    "element",
    [
        "text",
        {},
        {"vr": "XX", "Value": []},
        {"vr": "IS", "Value": 7},
        {"vr": "IS", "Value": ["seven"]},
        {"vr": "IS", "Value": [1.5]},
        {"vr": "IS", "Value": [True]},
        {"vr": "US", "Value": [65536]},
        {"vr": "FL", "Value": [1e300]},
        {"vr": "AT", "Value": ["18"]},
        {"vr": "LO", "Value": ["a\\b"]},
        {"vr": "LO", "Value": [7]},
        {"vr": "LT", "Value": ["a", "b"]},
        {"vr": "PN", "Value": [{"Family": "A"}]},
        {"vr": "OB", "Value": [1]},
        {"vr": "OB", "InlineBinary": "%%"},
        {"vr": "LO", "InlineBinary": "AQI="},
        {"vr": "SQ", "Value": ["item"]},
        {"vr": "SQ", "BulkDataURI": "x"},
        {"vr": "OB", "InlineBinary": "AQI=", "BulkDataURI": "x"},
        {"vr": "SQ", "Value": [{"patient": {"vr": "LO"}}]},
    ],
)
def test_what_is_no_value_is_invalid(element: Any) -> None:
    with pytest.raises(AppError) as caught:
        encoded(element)

    assert caught.value.category is Category.INVALID


def test_nesting_is_bounded() -> None:
    nested: dict[str, Any] = {"vr": "SQ"}
    for _ in range(70):
        nested = {"vr": "SQ", "Value": [{"00400275": nested}]}

    with pytest.raises(AppError) as caught:
        encoded(nested, "00400275")

    assert caught.value.category is Category.TOO_LARGE
