"""What the conformance statement of the DICOMweb door says is tried, row by row."""

import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pymongo import MongoClient

from fhir_server.dicomweb_page import RESOURCES, matching
from fhir_server.web.dicom_forms import NATIVE, Pixels, written_syntaxes
from imaging.archive import query
from imaging.codecs import codecs
from imaging.dicomweb import Level, Offer
from tests.support.dicomweb import Site, address_of, ct, files_of, parts_of, sample, site_of_a_module

STUDY, SERIES = "/studies/1.2.3", "/studies/1.2.3/series/1.2.3.1"
INSTANCE = f"{SERIES}/instances/1.2.3.1.1"
PATHS = {
    "study, series": [STUDY, SERIES],
    "instance": [INSTANCE],
    "metadata of an instance": [f"{INSTANCE}/metadata"],
    "metadata of a study or series": [f"{each}/metadata" for each in (STUDY, SERIES)],
    "one frame": [f"{INSTANCE}/frames/1"],
    "bulk data": [f"{INSTANCE}/bulkdata/7FE00010"],
    "all bulk data": [f"{each}/bulkdata" for each in (STUDY, SERIES, INSTANCE)],
    "all pixel data": [f"{each}/pixeldata" for each in (STUDY, SERIES, INSTANCE)],
    "rendered instance or frame": [f"{INSTANCE}/rendered", f"{INSTANCE}/frames/1/rendered"],
    "rendered series": [f"{SERIES}/rendered"],
    "rendered study": [f"{STUDY}/rendered"],
    "thumbnail": [f"{each}/thumbnail" for each in (STUDY, SERIES, INSTANCE, f"{INSTANCE}/frames/1")],
    "work item": ["/workitems/1.2.3.99"],
    "work items found": ["/workitems"],
    "search results": ["/studies", "/series", "/instances", f"{STUDY}/series", f"{SERIES}/instances"],
}
MADE = (*NATIVE, *written_syntaxes(Pixels.USUAL))
HTJ2K, JPEG_LS, ENCAPSULATED = "1.2.840.10008.1.2.4.20", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.1.98"
REAL_FILES = {
    # transfer syntax            a file of pydicom's wheel in it
    "1.2.840.10008.1.2":         "MR_small_implicit.dcm",
    "1.2.840.10008.1.2.1":       "CT_small.dcm",
    "1.2.840.10008.1.2.1.99":    "image_dfl.dcm",
    "1.2.840.10008.1.2.2":       "MR_small_bigendian.dcm",
    "1.2.840.10008.1.2.4.50":    "SC_rgb_small_odd_jpeg.dcm",
    "1.2.840.10008.1.2.4.51":    "JPEG-lossy.dcm",
    "1.2.840.10008.1.2.4.70":    "SC_rgb_jpeg_gdcm.dcm",
    "1.2.840.10008.1.2.4.80":    "MR_small_jpeg_ls_lossless.dcm",
    "1.2.840.10008.1.2.4.90":    "MR_small_jp2klossless.dcm",
    "1.2.840.10008.1.2.4.91":    "JPEG2000.dcm",
    "1.2.840.10008.1.2.5":       "MR_small_RLE.dcm",
}  # fmt: skip
KEYS = [(level, tag) for level in Level for tag in sorted(query.matched(level)) if matching(level, tag)]
PEOPLE_AND_CODES = {
    "ReferringPhysicianName": "Ref^Physician", "TimezoneOffsetFromUTC": "+0100", "StudyDescription": "Chest",
    "IssuerOfPatientID": "Issuer", "PatientAge": "056Y", "SeriesDate": "20260102", "SeriesTime": "101600",
    "Manufacturer": "Maker", "SeriesDescription": "Thin", "StationName": "CT1", "ManufacturerModelName": "Model",
    "BodyPartExamined": "CHEST", "Laterality": "L", "PerformedProcedureStepStartDate": "20260102",
    "PerformedProcedureStepStartTime": "101400", "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY"], "AcquisitionDate": "20260102", "ContentDate": "20260102",
    "ContentTime": "101700", "NumberOfFrames": 1, "AdmissionID": "ADM-1", "InstitutionName": "Hospital",
    "PerformingPhysicianName": "Per^Former", "ProtocolName": "Routine", "AcquisitionTime": "101600",
    "CompletionFlag": "COMPLETE", "VerificationFlag": "VERIFIED", "DocumentTitle": "Title", "ContentLabel": "LABEL",
}  # fmt: skip
SEQUENCES = (
    "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence", "RequestAttributesSequence",
    "IssuerOfPatientIDQualifiersSequence", "OtherPatientIDsSequence", "ConceptNameCodeSequence",
)  # fmt: skip
OTHERS = {"DA": "19000101", "TM": "0001", "UI": "9.9", "IS": "98765", "US": "60000"}


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    item = Dataset()
    item.CodeValue = item.LocalNamespaceEntityID = item.AccessionNumber = "X"
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as made:
        answer = made.store(ct(1, **PEOPLE_AND_CODES, **{name: Sequence([item]) for name in SEQUENCES}))
        assert answer.status_code == 200, answer.get_data()
        made.place("1.2.3.99")
        yield made


@pytest.fixture(scope="module")
def other(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("other")) as made:
        yield made


@pytest.fixture
def empty(other: Site) -> Iterator[Site]:
    yield other
    other.forget_images()


@pytest.mark.parametrize(
    ("path", "offer"),
    [(path, offer) for resource, paths in PATHS.items() for path in paths for offer in RESOURCES[resource]],
    ids=str,
)
def test_every_media_type_is_given(here: Site, path: str, offer: Offer) -> None:
    answer = here.get(path, str(offer))

    assert answer.status_code == 200, answer.get_data()
    if offer.multipart:
        assert {headers["content-type"].split(";")[0] for headers, _ in parts_of(answer)} == {offer.media_type}
    else:
        assert answer.mimetype == offer.media_type


@pytest.mark.parametrize("resource", PATHS)
def test_the_first_media_type_is_the_default(here: Site, resource: str) -> None:
    for path in PATHS[resource]:
        assert here.get(path).headers["Content-Type"].startswith(str(RESOURCES[resource][0]))


def pixels(ds: Dataset) -> Any:
    syntax = str(ds.file_meta.TransferSyntaxUID)
    if not syntax.startswith((HTJ2K, JPEG_LS, ENCAPSULATED)):
        return ds.pixel_array
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    if syntax == ENCAPSULATED:
        return np.frombuffer(frame, "<u2").reshape(ds.Rows, ds.Columns)
    return imagecodecs.jpeg2k_decode(frame) if syntax.startswith(HTJ2K) else imagecodecs.jpegls_decode(frame)


@pytest.mark.parametrize("syntax", MADE)
def test_every_transfer_syntax_is_made_of_files(here: Site, syntax: str) -> None:
    (file,) = files_of(here.get(INSTANCE, f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'))

    assert file.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(pixels(file), dcmread(io.BytesIO(ct(1))).pixel_array)


@pytest.mark.parametrize("syntax", RESOURCES["one frame"][0].transfer_syntaxes)
def test_every_transfer_syntax_is_made_of_frames(here: Site, syntax: str) -> None:
    accept = 'multipart/related; type="application/octet-stream"; transfer-syntax='

    ((headers, frame),) = parts_of(here.get(f"{INSTANCE}/frames/1", accept + syntax))

    (file,) = files_of(here.get(INSTANCE, f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'))
    encapsulated = file.file_meta.TransferSyntaxUID.is_encapsulated
    # A fragment is padded to an even length.
    expected = get_frame(file.PixelData, 0, number_of_frames=1) if encapsulated else file.PixelData
    assert headers["content-type"].endswith(f"transfer-syntax={syntax}")
    assert expected[: len(frame)] == frame
    assert len(expected) - len(frame) in (0, 1)


@pytest.mark.parametrize("syntax", REAL_FILES)
def test_a_real_file_in_every_common_transfer_syntax_is_taken_and_rendered(empty: Site, syntax: str) -> None:
    data = sample(REAL_FILES[syntax])
    assert dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax

    stored = empty.store(data)
    address = address_of(data)

    assert stored.status_code == 200
    assert empty.get(f"{address}/rendered", "image/png").status_code == 200
    assert empty.get(f"{address}/received").get_data() == data


@pytest.mark.parametrize("syntax", [uid for uid in codecs if uid not in REAL_FILES])
def test_a_made_file_in_every_other_transfer_syntax_is_taken_and_rendered(empty: Site, syntax: str) -> None:
    data = in_syntax(syntax)

    stored = empty.store(data)
    address = address_of(data)

    assert stored.status_code == 200, stored.get_data()
    assert empty.get(f"{address}/rendered", "image/png").status_code == 200
    assert empty.get(f"{address}/received").get_data() == data


NOT_OFFERED = [
    "/commitment-requests/1.2.3", "/color-palettes", "/defined-procedure-protocols", "/hanging-protocols",
    "/implant-templates", "/inventories",
]  # fmt: skip
"""Storage Commitment (PS3.18 13.4) and the categories of Non-Patient Instances (table 12.1.1-1)."""


@pytest.mark.parametrize("path", NOT_OFFERED)
def test_services_that_are_not_offered_are_not_there(here: Site, path: str) -> None:
    assert here.get(path).status_code == 404
    assert here.web.post(f"/dicom-web{path}", headers=here.hospital).status_code == 404


LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")


@pytest.mark.parametrize("syntax", LOSSY)
def test_a_lossy_version_is_no_form_of_an_instance(here: Site, syntax: str) -> None:
    for end, kind in (("", "application/dicom"), ("/frames/1", "application/octet-stream"), ("/frames/1", "image/jls")):
        answer = here.get(f"{INSTANCE}{end}", f'multipart/related; type="{kind}"; transfer-syntax={syntax}')
        assert answer.status_code == 406
        assert "1.2.840.10008.1.2.4.80" in answer.json["issue"][0]["diagnostics"]


def test_what_came_near_lossless_is_given_so(empty: Site) -> None:
    data = in_syntax(LOSSY[2])
    assert empty.store(data).status_code == 200

    answer = empty.get(address_of(data), f"application/dicom; transfer-syntax={LOSSY[2]}")

    assert answer.get_data() == data


def in_syntax(syntax: str) -> bytes:
    """Return a file in a syntax that no file of pydicom with all its UIDs is in, encoded by imagecodecs."""
    sop_uid = f"1.2.7.1.{syntax[-3:].strip('.')}"
    ds = dcmread(io.BytesIO(ct(1, study="1.2.7", SOPInstanceUID=sop_uid)))
    frame = ds.pixel_array
    encoders = {
        "1.2.840.10008.1.2.1.98": lambda: frame.tobytes(),
        "1.2.840.10008.1.2.4.57": lambda: imagecodecs.jpeg8_encode(frame, lossless=True, predictor=2, bitspersample=16),
        "1.2.840.10008.1.2.4.81": lambda: imagecodecs.jpegls_encode(frame, level=2),
        "1.2.840.10008.1.2.4.201": lambda: imagecodecs.htj2k_encode(frame, reversible=True),
        "1.2.840.10008.1.2.4.202": lambda: imagecodecs.htj2k_encode(frame, reversible=True),
        "1.2.840.10008.1.2.4.203": lambda: imagecodecs.htj2k_encode(frame, reversible=True),
    }
    ds.file_meta.MediaStorageSOPInstanceUID = sop_uid
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([encoders[syntax]()])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize(("level", "tag"), KEYS)
def test_every_key_finds_what_has_the_value_and_nothing_else(here: Site, level: Level, tag: str) -> None:
    found = result_of_first(here, level)[tag]
    vr, value = found["vr"], found["Value"][0]
    if vr == "SQ":
        inside, held = next(iter(value.items()))
        tag, vr, value = f"{tag}.{inside}", held["vr"], held["Value"][0]
    text = value["Alphabetic"] if vr == "PN" else str(value)

    hit = here.get(f"/{level}?{tag}={quote(text)}")
    miss = here.get(f"/{level}?{tag}={OTHERS.get(vr, 'nobody-else')}")

    assert "1.2.3" in [each["0020000D"]["Value"][0] for each in hit.json]
    assert miss.status_code == 204


@pytest.mark.parametrize(("level", "tag"), [(level, tag) for level in Level for tag in sorted(query.returned(level))])
def test_every_attribute_that_the_instance_has_is_returned(here: Site, level: Level, tag: str) -> None:
    assert result_of_first(here, level)[tag]["Value"]


@pytest.mark.parametrize("level", Level)
def test_a_key_that_is_not_on_the_list_is_refused(here: Site, level: Level) -> None:
    assert here.get(f"/{level}?WindowCenter=40").status_code == 400


def result_of_first(here: Site, level: Level) -> dict[str, Any]:
    (found,) = here.get(f"/{level}?StudyInstanceUID=1.2.3&includefield=StudyDate").json
    return found


def test_a_series_and_an_instance_are_deleted(empty: Site) -> None:
    empty.store(ct(1), ct(2), ct(1, series=2))

    deleted = [
        empty.web.delete(f"/dicom-web{path}", headers=empty.hospital).status_code
        for path in (f"{STUDY}/series/1.2.3.2", INSTANCE)
    ]

    left = [dcm.SOPInstanceUID for dcm in files_of(empty.get(STUDY))]
    assert deleted == [204, 204]
    assert left == ["1.2.3.1.2"]


def test_other_methods_are_told_which_are_taken(here: Site) -> None:
    answer = here.web.put("/dicom-web/studies", headers=here.clinic)

    assert answer.status_code == 405
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))


@pytest.mark.parametrize("path", [path for paths in PATHS.values() for path in paths])
def test_what_cannot_be_given_is_406(here: Site, path: str) -> None:
    assert here.get(path, "application/pdf").status_code == 406


@pytest.mark.parametrize("path", ["/studies", STUDY, f"{STUDY}/metadata", f"{INSTANCE}/received"])
def test_head_is_get_without_a_body(here: Site, path: str) -> None:
    answer = here.web.head(f"/dicom-web{path}", headers=here.clinic)

    assert answer.status_code == 200
    assert answer.get_data() == b""
