"""WADO-RS over the whole server. Expected answers are those of PS3.18 10.4; pydicom is the second opinion on pixels."""

import base64
import gzip
import hashlib
import io
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pymongo import MongoClient

from imaging.archive import Archive
from imaging.dicomweb import iter_parts
from imaging.errors import AppError, Category
from tests.support.dicomweb import (
    EXPLICIT_LE,
    HTJ2K_RPCL,
    IMPLICIT_LE,
    Site,
    address_of,
    ct,
    decoded,
    files_of,
    parts_of,
    sample,
    site_of_a_module,
)

RLE, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
FILES = 'multipart/related; type="application/dicom"'
BYTES = 'multipart/related; type="application/octet-stream"'


@pytest.fixture(scope="module")
def made(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        yield one


@pytest.fixture
def here(made: Site) -> Iterator[Site]:
    yield made
    made.forget_images()


def pixels(data: bytes) -> Any:
    return dcmread(io.BytesIO(data)).pixel_array


# ---- files


def test_a_study_comes_in_reading_order_as_explicit_vr_little_endian(here: Site) -> None:
    here.store(ct(2), ct(1, series=2), ct(1))

    answer = here.get("/studies/1.2.3", FILES)

    assert [ds.SOPInstanceUID for ds in files_of(answer)] == ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1"]
    assert {headers["content-type"] for headers, _ in parts_of(answer)} == {
        f"application/dicom; transfer-syntax={EXPLICIT_LE}"
    }


def test_a_series_holds_its_own_instances(here: Site) -> None:
    here.store(ct(1), ct(1, series=2))

    answer = here.get("/studies/1.2.3/series/1.2.3.2", FILES)

    assert [ds.SOPInstanceUID for ds in files_of(answer)] == ["1.2.3.2.1"]


@pytest.mark.parametrize("kind", ["application/dicom", '"application/dicom"'])
def test_any_transfer_syntax_means_the_stored_file(here: Site, kind: str) -> None:
    data = ct()
    here.store(data)

    answer = here.get(address_of(data), f"multipart/related; type={kind}; transfer-syntax=*")

    ((headers, body),) = parts_of(answer)
    assert headers["content-type"] == f"application/dicom; transfer-syntax={HTJ2K_RPCL}"
    assert np.array_equal(decoded(dcmread(io.BytesIO(body))), pixels(data))


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, RLE, JPEG_LS, JPEG_2000, HTJ2K_RPCL])
def test_an_instance_comes_in_the_syntax_that_is_asked(here: Site, syntax: str) -> None:
    data = ct()
    here.store(data)

    answer = here.get(address_of(data), f"application/dicom; transfer-syntax={syntax}")

    assert answer.status_code == 200
    assert answer.content_type == f"application/dicom; transfer-syntax={syntax}"
    ds = dcmread(io.BytesIO(answer.get_data()))
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(decoded(ds), pixels(data))


def test_the_received_syntax_means_the_received_bytes(here: Site) -> None:
    data = sample("MR_small_implicit.dcm")
    here.store(data)

    answer = here.get(address_of(data), f"application/dicom; transfer-syntax={IMPLICIT_LE}")

    assert answer.get_data() == data


def test_the_received_file_carries_its_digest(here: Site) -> None:
    data = sample("CT_small.dcm")
    here.store(data)

    answer = here.get(f"{address_of(data)}/received")

    assert answer.get_data() == data
    assert answer.content_length == len(data)
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_a_study_with_objects_without_pixels_comes_in_any_syntax(here: Site) -> None:
    image = ct()
    report = dcmread(io.BytesIO(sample("test-SR.dcm")))
    report.StudyInstanceUID, report.SeriesInstanceUID = "1.2.3", "1.2.3.9"
    out = io.BytesIO()
    report.save_as(out)
    here.store(image, out.getvalue())

    answer = here.get("/studies/1.2.3", f"{FILES}; transfer-syntax={JPEG_2000}")

    assert {ds.file_meta.TransferSyntaxUID for ds in files_of(answer)} == {JPEG_2000, EXPLICIT_LE}


def test_what_cannot_be_decoded_comes_as_it_is(here: Site) -> None:
    data = video()
    assert here.store(data).status_code == 200

    assert here.get(address_of(data), FILES).status_code == 200
    assert here.get(address_of(data), f"{FILES}; transfer-syntax={EXPLICIT_LE}").status_code == 406


def test_damaged_pixels_come_as_stored_and_in_no_other_way(here: Site) -> None:
    data = sample("JPEG2000-embedded-sequence-delimiter.dcm")
    assert here.store(data).status_code == 200
    address = address_of(data)

    stored = here.get(f"{address}/frames/1", "application/octet-stream; transfer-syntax=*")
    others = [here.get(address), here.get(f"{address}/frames/1"), here.get(f"{address}/rendered")]

    assert stored.status_code == 200
    assert [answer.status_code for answer in others] == [406, 406, 406]
    assert b"transfer-syntax=*" in others[0].get_data()


def video() -> bytes:
    ds = dcmread(io.BytesIO(ct()))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.NumberOfFrames = 8, 8, 7, 2
    ds.PixelData = encapsulate([bytes(16)], has_bot=False)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("path", ["", "/series/1.2.3.1"])
def test_several_instances_are_not_a_single_part(here: Site, path: str) -> None:
    here.store(ct())

    answer = here.get(f"/studies/1.2.3{path}", "application/dicom")

    assert answer.status_code == 406
    assert b"multipart/related" in answer.get_data()


@pytest.mark.parametrize(
    "path",
    [
        "/studies/9.9",
        "/studies/9.9/metadata",
        "/studies/1.2.3/series/9.9",
        "/studies/1.2.3/series/1.2.3.1/instances/9.9",
        "/studies/1.2.3/series/1.2.3.2/instances/1.2.3.1.1",
        "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1/frames/2",
        "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1/bulkdata/00420011",
        "/studies/hello",
    ],
)
def test_what_is_not_here_is_not_found(here: Site, path: str) -> None:
    here.store(ct())

    assert here.get(path).status_code == 404


# ---- frames


def test_a_frame_is_the_stored_codestream_when_any_syntax_is_taken(here: Site) -> None:
    data = ct()
    here.store(data)

    answer = here.get(f"{address_of(data)}/frames/1", f"{BYTES}; transfer-syntax=*".replace('"', ""))

    ((headers, body),) = parts_of(answer)
    assert headers["content-type"] == f"application/octet-stream; transfer-syntax={HTJ2K_RPCL}"
    assert body.startswith(b"\xff\x4f\xff\x51")  # SOC and SIZ of a JPEG 2000 codestream


def test_frames_are_native_by_default_and_come_in_the_order_asked(here: Site) -> None:
    data = ct(frames=3)
    here.store(data)

    answer = here.get(f"{address_of(data)}/frames/3,1", BYTES)

    expected = pixels(data)
    assert [body for _, body in parts_of(answer)] == [expected[2].tobytes(), expected[0].tobytes()]


def test_one_frame_may_be_a_single_part(here: Site) -> None:
    data = ct(frames=2)
    here.store(data)

    answer = here.get(f"{address_of(data)}/frames/2", "application/octet-stream")

    assert answer.get_data() == pixels(data)[1].tobytes()
    assert here.get(f"{address_of(data)}/frames/1,2", "application/octet-stream").status_code == 406


@pytest.mark.parametrize(
    ("accept", "kind", "start"),
    [
        ("image/jphc", f"image/jphc; transfer-syntax={HTJ2K_RPCL}", b"\xff\x4f"),
        ("image/jphc; transfer-syntax=*", f"image/jphc; transfer-syntax={HTJ2K_RPCL}", b"\xff\x4f"),
        ("image/jp2", f"image/jp2; transfer-syntax={JPEG_2000}", b"\xff\x4f"),
        ("image/jp2; transfer-syntax=*", f"image/jp2; transfer-syntax={JPEG_2000}", b"\xff\x4f"),
        ("image/jls", f"image/jls; transfer-syntax={JPEG_LS}", b"\xff\xd8"),
        ("image/dicom-rle", f"image/dicom-rle; transfer-syntax={RLE}", b"\x02\x00\x00\x00"),
    ],
)
def test_a_frame_comes_in_the_image_type_that_is_asked(here: Site, accept: str, kind: str, start: bytes) -> None:
    data = ct()
    here.store(data)

    answer = here.get(f"{address_of(data)}/frames/1", accept)

    if accept != "image/jphc":
        assert answer.content_type == kind
    assert answer.content_type.startswith(accept.partition(";")[0])
    assert answer.get_data().startswith(start)


@pytest.mark.parametrize(("frames", "status"), [("0", 404), ("4", 404), ("1,x", 400), ("-1", 400), ("1,,2", 400)])
def test_frame_lists_are_checked(here: Site, frames: str, status: int) -> None:
    data = ct(frames=3)
    here.store(data)

    assert here.get(f"{address_of(data)}/frames/{frames}").status_code == status


# ---- metadata and bulk data


def test_metadata_is_the_dataset_with_addresses_of_its_bulk_data(here: Site) -> None:
    data = ct()
    here.store(data)

    (document,) = here.get(f"{address_of(data)}/metadata").json

    assert document["00100020"] == {"vr": "LO", "Value": ["PAT-1"]}
    uri = document["7FE00010"]["BulkDataURI"]
    assert uri == f"{here.server.dicomweb_url}{address_of(data)}/bulkdata/7FE00010"
    ((_, body),) = parts_of(here.get(f"{address_of(data)}/bulkdata/7FE00010", BYTES))
    assert body == pixels(data).tobytes()


def test_metadata_of_a_study_is_one_array(here: Site) -> None:
    here.store(ct(2), ct(1), ct(1, series=2))

    found = here.get("/studies/1.2.3/metadata", "application/json")

    assert found.content_type == "application/json"
    assert [each["00080018"]["Value"][0] for each in found.json] == ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1"]


def test_metadata_comes_in_xml(here: Site) -> None:
    here.store(ct(1), ct(2))

    parts = parts_of(here.get("/studies/1.2.3/metadata", 'multipart/related; type="application/dicom+xml"'))

    assert len(parts) == 2
    assert b"<NativeDicomModel" in parts[0][1]


def test_metadata_of_one_instance_is_xml_by_itself(here: Site) -> None:
    data = ct(1)
    here.store(data)

    answer = here.get(f"{address_of(data)}/metadata", "application/dicom+xml")

    assert answer.content_type == "application/dicom+xml"
    model = ElementTree.fromstring(answer.get_data())
    names = {each.get("keyword"): each for each in model}
    assert names["PatientID"].findtext("{*}Value") == "PAT-1"
    assert here.get("/studies/1.2.3/metadata", "application/dicom+xml").status_code == 406


def test_texts_come_in_utf_8_only(here: Site) -> None:
    data = ct(1)
    here.store(data)
    path = f"{address_of(data)}/metadata"

    assert here.get(path, "application/dicom+json; charset=utf-8").status_code == 200
    assert here.get(path, "application/dicom+json; charset=iso-8859-1").status_code == 406
    assert here.get(f"{address_of(data)}/rendered", "image/png; charset=iso-8859-1").status_code == 200
    assert here.get(f"{path}?charset=utf-8").status_code == 200
    assert here.get(f"{path}?charset=iso-8859-1,*").status_code == 200
    assert here.get(f"{path}?charset=iso-8859-1").status_code == 406


def test_several_accept_parameters_are_one_list(here: Site) -> None:
    data = ct(1)
    here.store(data)
    path = f"{address_of(data)}/rendered"

    assert here.get(f"{path}?accept=image/bmp&accept=image/png", "image/jpeg").mimetype == "image/png"
    assert here.get(f"{path}?accept=image/bmp,image/png;q=0.5,image/gif", "image/jpeg").mimetype == "image/gif"


def test_nothing_is_given_when_it_cannot_be_put_on_record(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ct()
    here.store(data)

    def failing(*_: Any, **__: Any) -> None:
        raise AppError(Category.BUSY, "the database is not available")

    monkeypatch.setattr(type(here.server.audit), "record", failing)
    for path in ("", "/frames/1", "/rendered", "/thumbnail", "/metadata", "/received"):
        assert here.get(address_of(data) + path).status_code == 503


def test_metadata_is_compressed_for_those_who_take_it(here: Site) -> None:
    here.store(*(ct(number) for number in range(1, 9)))
    plain = here.get("/studies/1.2.3/metadata")

    packed = here.get("/studies/1.2.3/metadata", Accept_Encoding="gzip")

    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.get_data()) < len(plain.get_data()) / 2
    assert gzip.decompress(packed.get_data()) == plain.get_data()


def test_other_bulk_data_comes_whole_or_in_ranges(here: Site) -> None:
    value = bytes(range(256)) * 20
    data = ct(EncapsulatedDocument=value)
    here.store(data)
    (document,) = here.get(f"{address_of(data)}/metadata").json
    path = document["00420011"]["BulkDataURI"].removeprefix(here.server.dicomweb_url)

    whole = here.get(path, "application/octet-stream")
    part = here.get(path, "application/octet-stream", Range="bytes=10-19")
    ((_, body),) = parts_of(here.get(path, BYTES))

    assert whole.get_data() == body == value
    assert (part.status_code, part.get_data()) == (206, value[10:20])


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("", f"application/dicom; transfer-syntax={HTJ2K_RPCL}"),
        ("/received", None),
        ("/frames/2", "application/octet-stream"),
        ("/bulkdata/7FE00010", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize(
    ("asked", "place"), [("2-9", slice(2, 10)), ("100-", slice(100, None)), ("-5", slice(-5, None))]
)
def test_every_value_by_itself_comes_in_ranges(
    here: Site, path: str, accept: str | None, asked: str, place: slice
) -> None:
    data = ct(frames=3)
    here.store(data)
    address = address_of(data) + path
    whole = here.get(address, accept).get_data()

    part = here.get(address, accept, Range=f"bytes={asked}")

    assert (part.status_code, part.get_data()) == (206, whole[place])
    assert part.headers["Content-Range"].endswith(f"/{len(whole)}")
    assert here.get(address, accept).headers["Accept-Ranges"] == "bytes"


def test_a_range_within_pixel_data_decodes_its_frames_only(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ct(frames=9)
    here.store(data)
    decoded_frames = []
    plain = Archive.frame
    monkeypatch.setattr(
        Archive, "frame", lambda self, instance, number, syntax: decoded_frames.append(number)
        or plain(self, instance, number, syntax),
    )  # fmt: skip

    frame_bytes = 32 * 32 * 2
    asked = f"bytes={7 * frame_bytes + 10}-{7 * frame_bytes + 19}"
    part = here.get(f"{address_of(data)}/bulkdata/7FE00010", "application/octet-stream", Range=asked)

    assert part.get_data() == pixels(data)[7].tobytes()[10:20]
    assert decoded_frames == [1, 8]  # the first tells how long they are


def test_a_range_beyond_the_end_is_told_the_length_and_several_are_answered_whole(here: Site) -> None:
    data = ct()
    here.store(data)
    address = f"{address_of(data)}/received"

    beyond = here.get(address, Range=f"bytes={len(data)}-")
    several = here.get(address, Range="bytes=0-1,4-5")

    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(data)}")
    assert (several.status_code, several.get_data()) == (200, data)


def test_a_range_of_another_version_is_answered_whole(here: Site) -> None:
    data = ct()
    here.store(data)
    address = f"{address_of(data)}/received"
    tag = here.get(address).headers["ETag"]

    same, other = (here.get(address, Range="bytes=0-9", If_Range=each) for each in (tag, '"another"'))

    assert (same.status_code, other.status_code) == (206, 200)


def test_pixel_data_as_bulk_data_comes_by_frame_or_in_one_piece(here: Site) -> None:
    data = ct(frames=3)
    here.store(data)
    path = f"{address_of(data)}/bulkdata/7FE00010"
    expected = pixels(data)

    assert [body for _, body in parts_of(here.get(path))] == [frame.tobytes() for frame in expected]
    assert here.get(path, "application/octet-stream").get_data() == expected.tobytes()


# ---- caching


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("", "application/dicom"),
        ("", FILES),
        ("/received", None),
        ("/metadata", None),
        ("/frames/1", BYTES),
        ("/rendered", None),
        ("/thumbnail", None),
        ("/bulkdata/7FE00010", BYTES),
    ],
)
def test_what_the_client_has_already_is_not_sent_again(here: Site, path: str, accept: str | None) -> None:
    data = ct()
    here.store(data)
    first = here.get(address_of(data) + path, accept)

    again = here.get(address_of(data) + path, accept, If_None_Match=first.headers["ETag"])
    other = here.get(address_of(data) + path, accept, If_None_Match='"something-else"')

    assert (again.status_code, again.get_data()) == (304, b"")
    assert again.headers["ETag"].removeprefix("W/") == first.headers["ETag"].removeprefix("W/")
    assert "private" in first.headers["Cache-Control"]
    assert (other.status_code, other.get_data()) == (200, first.get_data())


def test_another_representation_has_another_validator(here: Site) -> None:
    data = ct()
    here.store(data)
    syntaxes = (EXPLICIT_LE, RLE, HTJ2K_RPCL)

    tags = {here.get(address_of(data), f"application/dicom; transfer-syntax={uid}").headers["ETag"] for uid in syntaxes}

    assert len(tags) == 3


# ---- rendered


def image_of(answer: Any) -> Image.Image:
    assert answer.status_code == 200, answer.get_data()
    return Image.open(io.BytesIO(answer.get_data()))


@pytest.mark.parametrize(("accept", "kind"), [(None, "JPEG"), ("image/png", "PNG"), ("image/gif", "GIF")])
def test_an_instance_is_rendered_in_the_type_that_is_asked(here: Site, accept: str | None, kind: str) -> None:
    data = ct()
    here.store(data)

    image = image_of(here.get(f"{address_of(data)}/rendered", accept))

    assert (image.format, image.size) == (kind, (32, 32))


def test_the_window_of_the_request_goes_before_that_of_the_file(here: Site) -> None:
    data = ct()  # a ramp from 1
    here.store(data)

    answer = here.get(f"{address_of(data)}/rendered?window=101,200,linear-exact", "image/png")

    shown = np.asarray(image_of(answer)).ravel()
    assert [shown[0], shown[100], shown[200]] == [0, 128, 255]


def test_a_viewport_bounds_the_image(here: Site) -> None:
    data = ct(side=256, PixelSpacing=[1.0, 0.5])
    here.store(data)

    image = image_of(here.get(f"{address_of(data)}/rendered?viewport=100,100", "image/png"))

    assert image.size == (50, 100)


def test_a_frame_is_rendered(here: Site) -> None:
    data = ct(frames=3)
    here.store(data)
    path = f"{address_of(data)}/frames/3/rendered?window=2560,1024,linear-exact"

    shown = np.asarray(image_of(here.get(path, "image/png")))

    assert (shown[0, 0], shown[-1, -1]) == (0, 255)


def test_several_images_are_rendered_as_multipart(here: Site) -> None:
    here.store(ct(1), ct(2, frames=2))

    parts = parts_of(here.get("/studies/1.2.3/rendered", "multipart/related; type=image/jpeg"))

    assert [body[:2] for _, body in parts] == [b"\xff\xd8"] * 3
    assert here.get("/studies/1.2.3/rendered", "image/jpeg").status_code == 406


@pytest.mark.parametrize("level", ["/studies/1.2.3", "/studies/1.2.3/series/1.2.3.1", None])
def test_every_level_has_a_thumbnail(here: Site, level: str | None) -> None:
    data = ct(1, side=256)
    here.store(data, ct(2, side=256), ct(3, side=256))

    assert image_of(here.get(f"{level or address_of(data)}/thumbnail")).size == (128, 128)
    assert image_of(here.get(f"{level or address_of(data)}/thumbnail?viewport=64,32", "image/png")).size == (32, 32)


@pytest.mark.parametrize(
    "query",
    [
        "window=1", "window=1,0", "viewport=0,0", "viewport=x", "quality=0", "quality=101", "viewport=9,9,99,99",
        "annotation=everything", "iccprofile=cmyk", "presentationUID=1.2.3",
    ],
)  # fmt: skip
def test_unreadable_rendering_parameters_are_invalid(here: Site, query: str) -> None:
    data = ct()
    here.store(data)

    answer = here.get(f"{address_of(data)}/rendered?{query}")

    assert answer.status_code == 400


def test_ignored_parameters_are_said_to_be_ignored(here: Site) -> None:
    data = ct()
    here.store(data)

    answer = here.get(f"{address_of(data)}/rendered?charset=utf-8")

    assert answer.status_code == 200
    assert "charset" in answer.headers["Warning"]


def test_what_is_no_image_cannot_be_rendered(here: Site) -> None:
    data = sample("rtplan.dcm")
    here.store(data)

    assert here.get(f"{address_of(data)}/rendered").status_code == 404
    assert here.get(f"{address_of(data)}/thumbnail").status_code == 404
    assert here.get(f"{address_of(data)}/frames/1").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small_jp2klossless.dcm", "JPEG-lossy.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_16bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm", "rtdose.dcm", "liver_1frame.dcm",
        "SC_rgb_rle_32bit.dcm", "JPGExtended.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm",
    ],
)  # fmt: skip
def test_real_images_of_every_kind_are_rendered(here: Site, name: str) -> None:
    data = sample(name)
    here.store(data)

    image = image_of(here.get(f"{address_of(data)}/rendered", "image/png"))

    ds = dcmread(io.BytesIO(data))
    assert image.size == (ds.Columns, ds.Rows)
    assert len(np.unique(np.asarray(image))) > 1


def test_lossy_colour_is_shown_in_its_true_colours(here: Site) -> None:
    data = sample("SC_rgb_jpeg_dcmtk.dcm")
    here.store(data)

    shown = np.asarray(image_of(here.get(f"{address_of(data)}/rendered", "image/png"))).astype(int)

    expected = dcmread(io.BytesIO(data)).pixel_array  # pydicom gives RGB
    assert np.abs(shown - expected).max() <= 3


# ---- who may


@pytest.mark.parametrize(
    "path", ["", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/received", "/bulkdata/7FE00010"]
)
def test_nothing_is_given_without_the_right_to_receive(here: Site, path: str) -> None:
    data = ct()
    here.store(data)
    address = f"/dicom-web{address_of(data)}{path}"

    assert here.web.get(address).status_code == 401
    assert here.web.get(address, headers=here.hospital).status_code == 403


def test_every_retrieval_leaves_an_audit_event(here: Site) -> None:
    data = ct()
    here.store(data)
    before = audit_events(here)

    here.get(f"{address_of(data)}/frames/1")
    here.get(f"{address_of(data)}/rendered")

    assert audit_events(here) == before + 2


def audit_events(here: Site) -> int:
    return here.server.database.resources.count_documents({"type": "AuditEvent"})


def test_who_registered_a_study_may_delete_it(here: Site) -> None:
    data = ct()
    here.store(data)
    address = "/dicom-web/studies/1.2.3"

    assert here.web.delete(address, headers=here.clinic).status_code == 403
    assert here.web.delete(address, headers=here.hospital).status_code == 204
    assert here.get("/studies/1.2.3").status_code == 404


def test_a_failure_after_the_first_byte_breaks_the_answer_off(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here.store(ct(1), ct(2))
    archive = here.server.archive
    files = type(archive).files

    def failing(self: Any, *args: Any) -> Iterator[Any]:
        yield next(iter(files(self, *args)))
        raise OSError("the disk is gone")

    monkeypatch.setattr(type(archive), "files", failing)
    monkeypatch.setattr("imaging.dicomweb.multipart.PIECE_BYTES", 1)

    with pytest.raises(OSError, match="disk"):
        here.get("/studies/1.2.3", FILES).get_data()


def test_the_sent_file_has_no_hidden_preamble_but_the_received_one_has(here: Site) -> None:
    data = b"MZ" + bytes(126) + ct()[128:]
    here.store(data)

    ((_, stored),) = parts_of(here.get(address_of(data), f"{FILES}; transfer-syntax=*"))

    assert stored[:128] == bytes(128)
    assert here.get(f"{address_of(data)}/received").get_data() == data


def test_parts_follow_the_boundary_that_was_announced(here: Site) -> None:
    here.store(ct(1), ct(2))

    answer = here.get("/studies/1.2.3", FILES)

    boundary = answer.mimetype_params["boundary"]
    body = io.BytesIO(answer.get_data())
    assert len(list(iter_parts(body.read, boundary))) == 2
    assert isinstance(files_of(answer)[0], Dataset)
