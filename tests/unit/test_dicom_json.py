"""The DICOM JSON model: like pydicom's on real files, and by PS3.18 annex F where pydicom differs."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from imaging.dataset import read
from imaging.dicom_json import bulkdata, dicom_json, inserted
from imaging.errors import AppError, Category
from tests.support import dicom_builder
from tests.support.corpus import corpus
from tests.support.dicom_builder import instance

ONE_PIXEL = np.zeros((1, 1), np.uint16)


def _json(data: bytes) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(dicom_json(read(data)))
    return result


def _readable(path: Path) -> bool:
    try:
        read(path.read_bytes())
    except AppError:
        return False
    return True


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return DICOM JSON without what we and pydicom give differently on purpose.

    Bulk data is ours to place; group lengths are retired; an empty value among others is null (PS3.18 F.2.5) where
    pydicom says ""; padding is no part of a value (PS3.5 6.2); little endian is what InlineBinary holds (F.2.7).
    """
    result = {}
    for tag, element in values.items():
        binary = element["vr"] in ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
        if not binary and tag[4:] != "0000":
            result[tag] = [_plain_value(value) for value in element.get("Value", [])]
    return result


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict) and not set(value) <= {"Alphabetic", "Ideographic", "Phonetic"}:
        return _plain(value)
    return value.rstrip() or None if isinstance(value, str) else value


def _missing(expected: Any, found: Any) -> list[Any]:
    """Return what pydicom says and we do not; what it leaves out for being invalid is no difference."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [miss for tag, value in expected.items() for miss in _missing(value, found.get(tag))]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [miss for a, b in zip(expected, found, strict=True) for miss in _missing(a, b)]
    return [] if expected == found else [(expected, found)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("path", [path for path in corpus() if _readable(path)], ids=lambda path: path.name)
def test_a_real_file_says_what_pydicom_says(path: Path) -> None:
    ds = pydicom.dcmread(path, force=True)
    expected = json.loads(
        json.dumps(ds.to_json_dict(bulk_data_element_handler=lambda _: "", suppress_invalid_tags=True))
    )

    found = _json(path.read_bytes())

    assert _missing(_plain(expected), _plain(found)) == []


def test_numbers_are_numbers_and_what_is_none_stays_text() -> None:
    def change(ds: Dataset) -> None:
        ds.SliceThickness, ds.EchoTrainLength, ds.WindowCenter = "1.50", "7", ["40", "-1e3"]
        ds.PixelSpacing = ["0.5", "0.25"]
        ds["PixelSpacing"]._value = "0.5\\wide"

    found = _json(instance(change=change))

    assert found["00180050"] == {"vr": "DS", "Value": [1.5]}
    assert found["00180091"] == {"vr": "IS", "Value": [7]}
    assert found["00281050"] == {"vr": "DS", "Value": [40.0, -1000.0]}
    assert found["00280030"] == {"vr": "DS", "Value": [0.5, "wide"]}


def test_person_names_have_their_component_groups() -> None:
    data = instance(
        attributes={"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"}
    )

    assert _json(data)["00100010"]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    ]


def test_items_inherit_the_character_set() -> None:
    item = Dataset()
    item.CodeMeaning = "Röntgen"
    data = instance(attributes={"SpecificCharacterSet": "ISO_IR 100", "ProcedureCodeSequence": Sequence([item])})

    assert _json(data)["00081032"]["Value"][0]["00080104"]["Value"] == ["Röntgen"]


def test_not_finite_floats_are_text_because_json_has_no_such_numbers() -> None:
    data = instance(attributes={"RealWorldValueSlope": float("nan"), "DopplerCorrectionAngle": float("-inf")})

    assert _json(data)["00409225"]["Value"] == ["NaN"]
    assert _json(data)["00186034"]["Value"] == ["-inf"]


def test_empty_elements_have_no_value() -> None:
    assert _json(instance(attributes={"StudyDescription": ""}))["00081030"] == {"vr": "LO"}


def test_sequences_without_items_have_no_value() -> None:
    assert _json(instance(attributes={"ReferencedStudySequence": Sequence()}))["00081110"] == {"vr": "SQ"}


def test_us_or_ss_is_decided_by_pixel_representation() -> None:
    frames = np.zeros((2, 2), np.int16)
    data = instance(frames, transfer_syntax_uid=ImplicitVRLittleEndian, attributes={"SmallestImagePixelValue": -5})

    assert _json(data)["00280106"] == {"vr": "SS", "Value": [-5]}


def test_pixel_data_is_a_bulk_data_uri_however_small() -> None:
    assert _json(instance(ONE_PIXEL))["7FE00010"] == {"vr": "OW", "BulkDataURI": "@/bulkdata/7FE00010"}


def test_binary_values_are_inline_up_to_one_kibibyte() -> None:
    found = _json(instance(attributes={"ICCProfile": b"\1" * 1024, "EncapsulatedDocument": b"\2" * 1026}))

    assert len(found["00282000"]["InlineBinary"]) == 1368
    assert found["00420011"] == {"vr": "OB", "BulkDataURI": "@/bulkdata/00420011"}


def test_bulk_data_deep_in_sequences_is_found_by_its_path() -> None:
    inner, outer = Dataset(), Dataset()
    inner.ICCProfile = bytes(range(250)) * 8
    outer.OpticalPathSequence = Sequence([Dataset(), inner])
    data = instance(attributes={"SharedFunctionalGroupsSequence": Sequence([outer])})
    items = _json(data)["52009229"]["Value"][0]["00480105"]["Value"]

    path = items[1]["00282000"]["BulkDataURI"].removeprefix("@/")

    assert path == "bulkdata/52009229/0/00480105/1/00282000"
    assert bulkdata(read(data), path) == (bytes(range(250)) * 8, "OB")


def test_bulk_data_of_big_endian_files_is_little_endian() -> None:
    frames = np.array([[1, 2], [3, 258]], np.uint16)

    value, vr = bulkdata(read(instance(frames, transfer_syntax_uid=ExplicitVRBigEndian)), "bulkdata/7FE00010")

    assert (value, vr) == (frames.astype("<u2").tobytes(), "OW")


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("bulkdata/", Category.INVALID),
        ("bulkdata/../../etc/passwd", Category.INVALID),
        ("bulkdata/7FE00010/0", Category.INVALID),
        ("bulkdata/00189999", Category.NOT_FOUND),
        ("bulkdata/00081032/7/00080104", Category.NOT_FOUND),
        ("bulkdata/00081032/x/00080104", Category.NOT_FOUND),
    ],
)
def test_a_path_to_nothing_is_refused(path: str, category: Category) -> None:
    with pytest.raises(AppError) as caught:
        bulkdata(read(instance()), path)

    assert caught.value.category is category


def with_references(sop_uid: str, count: int = 500) -> bytes:
    """Return an instance that refers to many others, some by frame."""
    references = []
    for number in range(count):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dicom_builder.CT_IMAGE, f"1.2.3.{number}"
        if number % 7 == 0:
            item.ReferencedFrameNumber = number
        references.append(item)
    return instance(
        np.zeros((2, 2), np.uint8), attributes={"SOPInstanceUID": sop_uid, "SourceImageSequence": Sequence(references)}
    )


def test_what_many_instances_refer_to_is_read_the_same_for_each() -> None:
    # The second one has its sequence elsewhere, the third at the same place.
    files = [with_references(uid) for uid in ("1.2.9", "1.2.9.1234567", "1.2.9.1234567")]

    made = [_json(file)["00082112"] for file in files]

    assert made == [pydicom.dcmread(BytesIO(file)).to_json_dict()["00082112"] for file in files]


def test_damage_in_a_long_sequence_is_told_where_it_is() -> None:
    file = bytearray(with_references("1.2.9"))
    start = file.index(b"1.2.3.77")
    item = file.rindex(b"\xfe\xff\x00\xe0", 0, start)
    file[item : item + 4] = b"\xfe\xff\x07\xe0"

    with pytest.raises(AppError, match=f"byte {item}"):
        read(bytes(file))


URL = {"vr": "UR", "Value": ["http://images.test/1"]}
PLAIN = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00081030": {"vr": "LO", "Value": ['says ,"0020000D":{"vr":"UI"}']},
    "0020000D": {"vr": "UI", "Value": ["1.2"]},
}


@pytest.mark.parametrize(
    "document",
    [
        PLAIN,
        {tag: PLAIN[tag] for tag in ("00080005", "00081030")},
        {"00080005": PLAIN["00080005"], "00081032": {"vr": "SQ", "Value": [PLAIN]}, "0020000D": PLAIN["0020000D"]},
        {"00081032": {"vr": "SQ", "Value": [PLAIN]}},
        {**PLAIN, "00400275": {"vr": "SQ", "Value": [PLAIN, {}]}},
        dict(sorted({**PLAIN, "00081190": {"vr": "UR", "Value": ["of the file"]}}.items())),
        {"00080005": PLAIN["00080005"], "0008119A": {"vr": "LO"}},
        {"00080005": PLAIN["00080005"], "0008118F": {"vr": "LO"}, "FFFEFFFE": {"vr": "LO"}},
    ],
)
def test_an_attribute_is_inserted_in_its_place(document: dict[str, Any]) -> None:
    found = inserted(orjson.dumps(document), "00081190", orjson.dumps(URL))

    assert found == orjson.dumps(dict(sorted({**document, "00081190": URL}.items())))
