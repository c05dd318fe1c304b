"""Every form in which images are given without names. PS3.15 annex E, PS3.18 10.4, PS3.5 8.1.2.

The oracle is the other view of the same door: copies that are de-identified file by file and stored here are given by
name in the same forms, under the same UIDs.
"""

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pymongo import MongoClient

from fhir_server.deidentified import secret_name
from fhir_server.web.capabilities import RESOURCES
from imaging.deidentify import Options, deidentify
from tests.support.deidentified import BASE, SCANNED, Recipient, named_in, secrets_of, value
from tests.support.deidentified_forms import BYTES, FORMS, PIXELS, address, content, everything
from tests.support.dicomweb import EXPLICIT_LE, Site, ct, parts_of, sample, site_of_a_module

CAPTURE, STATES = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.11.1"
REMARK = b"Odette Quimby, seen by Grey"
TABLE = bytes(range(256)) * 8


def changed(data: bytes, **more: Any) -> bytes:
    ds = dcmread(io.BytesIO(data))
    for keyword, each in more.items():
        setattr(ds, keyword, each)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def overlaid() -> bytes:
    """An old overlay, with the name as it may be: its bits are bits 12 to 15 of the words of the pixels."""
    ds = dcmread(io.BytesIO(ct(2, **SCANNED)))
    words = np.frombuffer(ds.PixelData, "<u2") | (np.arange(32 * 32, dtype="<u2") % 16 << 12)
    ds.PixelData = words.astype("<u2").tobytes()
    for element, vr, given in (
        (0x10, "US", 32), (0x11, "US", 32), (0x22, "LO", "Quimby"), (0x40, "CS", "G"), (0x50, "SS", [1, 1]),
        (0x100, "US", 16), (0x102, "US", 12),
    ):  # fmt: skip
        ds.add_new(0x60000000 | element, vr, given)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def photograph() -> bytes:
    """Colours under a profile, and a comment in the codestream."""
    ds = dcmread(io.BytesIO(sample("SC_rgb_small_odd_jpeg.dcm")))
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    comment = b"\xff\xfe" + (len(REMARK) + 2).to_bytes(2) + REMARK
    commented = frame[:2] + comment + frame[2:]
    ds.PixelData = encapsulate([commented + b"\0" * (len(commented) % 2)])
    for keyword, each in SCANNED.items():
        setattr(ds, keyword, each)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.3", "1.2.3.3", "1.2.3.3.1"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PatientID, ds.SeriesNumber, ds.InstanceNumber, ds.BurnedInAnnotation = "PAT-1", 3, 1, "NO"
    ds.ICCProfile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def state() -> bytes:
    ds = dcmread(io.BytesIO(ct(1, series=4, **SCANNED)))
    for keyword in ("PixelData", "Rows", "Columns", "WindowCenter", "WindowWidth"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = STATES
    ds.Modality, ds.PresentationLUTShape, ds.ImageRotation, ds.ImageHorizontalFlip = "PR", "IDENTITY", 90, "N"
    image, series, window = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.1.1"
    series.SeriesInstanceUID, series.ReferencedImageSequence = "1.2.3.1", Sequence([image])
    window.WindowCenter, window.WindowWidth = 2048, 4096
    ds.ReferencedSeriesSequence, ds.SoftcopyVOILUTSequence = Sequence([series]), Sequence([window])
    ds.PresentationCreationDate, ds.PresentationCreationTime, ds.ContentLabel = "20260102", "101500", "A"
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


FILES = {
    "1.2.3.1.1": ct(1, **SCANNED),
    "1.2.3.1.2": overlaid(),
    "1.2.3.2.1": ct(1, series=2, frames=3, side=16, RedPaletteColorLookupTableData=TABLE, **SCANNED),
    "1.2.3.3.1": photograph(),
    "1.2.3.4.1": state(),
}
REFUSED = [
    ct(9, BurnedInAnnotation="YES", **SCANNED),
    ct(3, series=2, SOPClassUID=CAPTURE, **SCANNED),
]
SECRETS = secrets_of(*FILES.values(), *REFUSED) | {REMARK}


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        assert one.store(*FILES.values(), *REFUSED).status_code == 200
        yield one


@pytest.fixture(scope="module")
def registry(here: Site) -> Recipient:
    recipient = Recipient(here, "registry")
    recipient.found("/studies")
    key = here.server.secret(secret_name(recipient.organization))
    copies = [deidentify(each, key, Options()) for each in FILES.values()]
    recipient.copies = dict(zip(FILES, map(dcmread, map(io.BytesIO, copies)), strict=True))
    assert here.store(*copies).status_code == 200
    return recipient


# ---- the same as of copies


LEVELS = {"1.2.3.1.1": 1, "1.2.3.1.2": 3, "1.2.3.2.1": 2, "1.2.3.3.1": 2, "1.2.3.4.1": 2}
"""The widest level at which what holds an instance is asked for: the study and each series once."""


@pytest.mark.parametrize("uid", FILES)
@pytest.mark.parametrize("end", sorted({end for _, end, _ in [*FORMS, *PIXELS]}))
def test_every_form_is_that_of_a_copy_that_was_ordered_and_names_nobody(
    here: Site, registry: Recipient, uid: str, end: str
) -> None:
    asked = [(level, offer) for level, each, offer in [*FORMS, *PIXELS] if each == end and level >= LEVELS[uid]]

    given = 0
    for level, offer in asked:
        path = f"{address(registry, uid, level=min(level, 3))}{end}"
        by_name, unnamed = here.get(path, str(offer)), registry.get(path, str(offer))
        assert (unnamed.status_code, unnamed.mimetype) == (by_name.status_code, by_name.mimetype), (path, str(offer))
        assert not named_in(everything(unnamed), SECRETS), (path, str(offer))
        if by_name.status_code == 200:
            assert content(unnamed) == content(by_name), (path, str(offer))
            given += 1

    assert given or "PixelData" not in registry.copies[uid]


@pytest.mark.parametrize("uid", ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1", "1.2.3.3.1"])
def test_every_transfer_syntax_is_that_of_a_copy(here: Site, registry: Recipient, uid: str) -> None:
    path = address(registry, uid)
    syntaxes = RESOURCES["one frame"][0].transfer_syntaxes

    for syntax in (*syntaxes, "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "*", "1.2.840.10008.1.2.4.70", "9.9"):
        for end, kind in (("", "application/dicom"), ("/frames/1", BYTES), ("/pixeldata", BYTES)):
            accept = f'multipart/related; type="{kind}"; transfer-syntax={syntax}'
            by_name, unnamed = here.get(f"{path}{end}", accept), registry.get(f"{path}{end}", accept)
            assert unnamed.status_code == by_name.status_code, accept
            if by_name.status_code == 200 and not (syntax == "*" and uid == "1.2.3.1.2"):
                assert content(unnamed) == content(by_name), accept
            elif by_name.status_code == 406:
                assert unnamed.json == by_name.json


# ---- what must not be in there


def test_errors_and_marked_pictures_name_nobody(registry: Recipient) -> None:
    assert {b"Grey", b"Quimby", b"1.2.3", b"1.2.3.1.1", b"Seattle Grace", b"ACC-1", b"PAT-1"} <= SECRETS
    path = address(registry, "1.2.3.1.2")
    asked = {
        f"{path}/frames/99": 404, f"{path}/frames/x": 400, f"{path}/bulkdata/00081030": 404, f"{path}/bulkdata/x": 400,
        f"{path}?accept=text/html": 406, f"{path}/rendered?window=x": 400, f"{path}/received": 404,
        f"{path}/rendered?annotation=patient,technique": 200, f"{path}/frames/1/rendered?charset=utf-8": 200,
    }  # fmt: skip

    for each, status in asked.items():
        answer = registry.get(each)
        assert answer.status_code == status, each
        assert not named_in(everything(answer), SECRETS), each


def test_an_annotation_burns_in_the_pseudonym(here: Site, registry: Recipient) -> None:
    path = f"{address(registry, '1.2.3.1.1')}/rendered?annotation=patient&viewport=512,512"
    original = "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1/rendered?annotation=patient&viewport=512,512"

    unnamed = registry.get(path, "image/png").get_data()

    assert unnamed == here.get(path, "image/png").get_data()
    assert unnamed != here.get(original, "image/png").get_data()


def test_old_overlays_are_gone_from_the_bits_of_pixels_in_every_form(registry: Recipient) -> None:
    original = np.frombuffer(dcmread(io.BytesIO(FILES["1.2.3.1.2"])).PixelData, "<u2")
    path = address(registry, "1.2.3.1.2")

    frames = [
        registry.get(f"{path}/frames/1", f"{BYTES}; transfer-syntax={EXPLICIT_LE}").get_data(),
        registry.get(f"{path}/frames/1", f"{BYTES}; transfer-syntax=*").get_data(),
        parts_of(registry.get(f"{path}/pixeldata"))[0][1],
        registry.get(f"{path}/bulkdata/7FE00010", BYTES).get_data(),
        dcmread(io.BytesIO(registry.get(path, "application/dicom; transfer-syntax=*").get_data())).PixelData,
    ]

    assert original.max() > 0xFFF
    assert {frame for frame in frames} == {(original & 0xFFF).astype("<u2").tobytes()}


def test_comments_are_gone_from_codestreams_that_stay_as_they_are(registry: Recipient) -> None:
    path = address(registry, "1.2.3.3.1")
    accept = "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"

    frame = registry.get(f"{path}/frames/1", accept).get_data()
    (part,) = parts_of(registry.get(f"{path}/pixeldata", f"multipart/related; type={accept}"))

    assert frame == part[1]
    assert REMARK not in frame
    original = next(generate_frames(dcmread(io.BytesIO(FILES["1.2.3.3.1"])).PixelData, number_of_frames=1))
    assert REMARK in original
    assert frame.rstrip(b"\0") in original.replace(b"\xff\xfe" + (len(REMARK) + 2).to_bytes(2) + REMARK, b"")


def test_bulk_data_is_what_the_metadata_points_to_and_no_more(registry: Recipient) -> None:
    path = address(registry, "1.2.3.2.1")
    (document,) = registry.get(f"{path}/metadata").json
    table = document["00281201"]["BulkDataURI"]
    below = table[table.index("/dicom-web") :]

    assert below == f"{BASE}{path}/bulkdata/00281201"
    assert registry.get(below, BYTES).get_data() == TABLE
    part = registry.get(below, BYTES, Range="bytes=256-511")
    assert (part.status_code, part.get_data(), part.headers["Content-Range"]) == (
        206,
        TABLE[:256],
        "bytes 256-511/2048",
    )
    assert (
        registry.get(f"{path}/bulkdata/00100010", BYTES).get_data().strip()
        == value(document, "00100010")["Alphabetic"].encode()
    )
    assert registry.get(f"{path}/bulkdata/00104000", BYTES).status_code == 404
    frames = registry.get(f"{path}/bulkdata/7FE00010", BYTES, Range="bytes=512-1023")
    assert frames.get_data() == dcmread(io.BytesIO(FILES["1.2.3.2.1"])).PixelData[512:1024]


# ---- who gets what


def test_what_cannot_be_cleaned_is_refused_in_every_form_with_its_reason(here: Site, registry: Recipient) -> None:
    study = address(registry, "1.2.3.1.1", level=1)
    rows = registry.found(f"{study}/instances")
    kept = {str(each.SOPInstanceUID) for each in registry.copies.values()}
    refused = [each for each in rows if value(each, "00080018") not in kept]
    assert len(refused) == len(REFUSED)

    for row in refused:
        path = f"{study}/series/{value(row, '0020000E')}/instances/{value(row, '00080018')}"
        for end in sorted({end for level, end, _ in [*FORMS, *PIXELS] if level > 2}):
            answer = registry.get(f"{path}{end}")
            assert answer.status_code == 403, end
            assert "burned in" in answer.json["issue"][0]["diagnostics"]


@pytest.mark.parametrize(("level", "left_out"), [(1, 2), (2, 1)])
def test_what_is_left_out_is_said_in_every_form(registry: Recipient, level: int, left_out: int) -> None:
    path = address(registry, "1.2.3.2.1", level=level)

    for end, accept in (
        ("", None), ("", "application/zip"), ("/metadata", None), ("/rendered", None), ("/pixeldata", None),
        ("/bulkdata", None), ("/metadata", 'multipart/related; type="application/dicom+xml"'), ("/thumbnail", None),
    ):  # fmt: skip
        answer = registry.get(f"{path}{end}", accept)
        assert answer.status_code == 200, (end, answer.get_data())
        assert f"{left_out} instances are left out" in answer.headers["Warning"], end


def test_a_zip_holds_a_file_set_under_pseudonyms(registry: Recipient) -> None:
    study = str(registry.copies["1.2.3.1.1"].StudyInstanceUID)

    answer = registry.get(f"/studies/{study}", "application/zip")

    packed = zipfile.ZipFile(io.BytesIO(answer.get_data()))
    directory = dcmread(io.BytesIO(packed.read("DICOMDIR")))
    records = {each.DirectoryRecordType: each for each in directory.DirectoryRecordSequence}
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{study}.zip"'
    assert records["PATIENT"].PatientID == registry.copies["1.2.3.1.1"].PatientID
    assert records["STUDY"].StudyInstanceUID == study
    assert {
        each.ReferencedSOPInstanceUIDInFile for each in directory.DirectoryRecordSequence if "ReferencedFileID" in each
    } == {each.SOPInstanceUID for each in registry.copies.values()}


def test_a_presentation_state_is_named_and_followed_by_replaced_uids(here: Site, registry: Recipient) -> None:
    path, shown = address(registry, "1.2.3.4.1"), registry.copies["1.2.3.4.1"]
    named = f"presentationUID={shown.SOPInstanceUID}&presentationSeriesUID={shown.SeriesInstanceUID}"
    image = f"{address(registry, '1.2.3.1.1')}/rendered"

    under = registry.get(f"{image}?{named}", "image/png").get_data()

    assert under == registry.get(f"{path}/rendered", "image/png").get_data()
    assert np.array_equal(
        np.rot90(np.asarray(Image.open(io.BytesIO(under))), 1),
        np.asarray(Image.open(io.BytesIO(registry.get(f"{image}?window=2048,4096,linear", "image/png").get_data()))),
    )
    assert registry.get(f"{image}?presentationUID=1.2.3.4.1&presentationSeriesUID=1.2.3.4").status_code == 404


def test_two_recipients_have_no_address_and_no_validator_in_common(here: Site, registry: Recipient) -> None:
    other = Recipient(here, "other")
    other.found("/studies")
    (study,) = {other.alias("1.2.3")}
    rows = other.found(f"/studies/{study}/instances")
    theirs = {f"/studies/{study}/series/{value(each, '0020000E')}/instances/{value(each, '00080018')}" for each in rows}
    ours = {address(registry, uid) for uid in FILES}

    tags = [
        {answer.headers["ETag"] for path in paths for end in ("", "/frames/1", "/rendered", "/thumbnail")
         if (answer := recipient.get(f"{path}{end}")).status_code == 200}
        for recipient, paths in ((registry, ours), (other, theirs))
    ]  # fmt: skip

    assert theirs.isdisjoint(ours)
    assert len(tags[0]) > 10
    assert tags[0].isdisjoint(tags[1])


def test_what_the_client_has_already_is_not_sent_again(registry: Recipient) -> None:
    path = address(registry, "1.2.3.1.1")

    for end in (
        "",
        "/frames/1",
        "/rendered",
        "/thumbnail",
        "/bulkdata",
        "/pixeldata",
        "/bulkdata/7FE00010",
        "/metadata",
    ):
        answer = registry.get(f"{path}{end}")
        again = registry.get(f"{path}{end}", **{"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.get_data()) == (304, b""), end
        assert again.headers["Cache-Control"] == "private, no-cache"
