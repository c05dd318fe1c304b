"""Metadata and bulk data that come apart. Expected answers are those of PS3.18 10.5, pixels those of other decoders."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import av
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pymongo import MongoClient
from werkzeug.test import TestResponse

from imaging.dicomweb import multipart_related
from imaging.dicomweb.native_model import native_model
from tests.support.dicomweb import BOUNDARY, CT, Site, address_of, ct, decoded, files_of, site_of_a_module

JSON, XML = "application/dicom+json", "application/dicom+xml"
SC = "1.2.840.10008.5.1.4.1.1.7"
BULK = "https://elsewhere.example/bulk/1"

Part = tuple[Mapping[str, str], bytes]


@pytest.fixture(scope="module")
def made(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        yield one


@pytest.fixture
def here(made: Site) -> Iterator[Site]:
    yield made
    made.forget_images()


def send(here: Site, kind: str, *parts: Part, path: str = "/studies", **headers: str) -> TestResponse:
    body = b"".join(multipart_related(((head, [data]) for head, data in parts), BOUNDARY))
    return here.web.post(
        f"/dicom-web{path}",
        data=body,
        headers={**here.hospital, **headers},
        content_type=f'multipart/related; type="{kind}"; boundary={BOUNDARY}',
    )


def bulk(data: bytes, media_type: str = "application/octet-stream", uri: str = BULK) -> Part:
    return {"Content-Type": media_type, "Content-Location": uri}, data


def metadata(*models: Any) -> Part:
    return {"Content-Type": JSON}, json.dumps(list(models)).encode()


def model(number: int = 1, uri: str = BULK, **changes: Any) -> dict[str, Any]:
    """Metadata of a Secondary Capture that leave its pixels to the bulk data."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SC, f"1.2.3.1.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.PatientID, ds.PatientName, ds.Modality, ds.ConversionType = "PAT-1", "Müller^Anna", "OT", "WSD"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return {**ds.to_json_dict(), "7FE00010": {"vr": "OB", "BulkDataURI": uri}}


def stored(here: Site, number: int = 1) -> Dataset:
    """The file as it comes out in the transfer syntax in which it came in."""
    answer = here.get(f"/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.{number}/received")
    return dcmread(io.BytesIO(answer.get_data()))


def failure(answer: TestResponse) -> dict[str, Any]:
    (item,) = answer.json["00081198"]["Value"]
    return {"reason": item["00081197"]["Value"][0], "text": item["00000902"]["Value"][0]}


@pytest.mark.parametrize("form", [JSON, XML])
def test_what_the_server_gave_apart_it_takes_apart(here: Site, form: str) -> None:
    files = [ct(1, PatientName="Müller^Anna", SpecificCharacterSet="ISO_IR 192"), ct(2, frames=3)]
    here.store(*files)
    parts: list[Part] = []
    models = here.get("/studies/1.2.3/metadata").json
    for each in models:
        uri = each["7FE00010"]["BulkDataURI"]
        value = here.get(uri[uri.index("/studies") :], "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1")
        parts.append(bulk(value.get_data(), uri=uri))
    roots = [metadata(*models)] if form == JSON else [({"Content-Type": XML}, native_model(each)) for each in models]
    here.forget_images()

    answer = send(here, form, *roots, *parts)

    assert answer.status_code == 200, answer.get_data()
    for data in files:
        back = dcmread(io.BytesIO(here.get(f"{address_of(data)}/received").get_data()))
        assert back == dcmread(io.BytesIO(data))


def test_bulk_data_may_come_before_the_metadata(here: Site) -> None:
    pixels = bytes(range(12)) + bytes(4)
    told = model(Rows=4, Columns=4, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", BitsAllocated=8,
                 BitsStored=8, HighBit=7, PixelRepresentation=0)  # fmt: skip

    assert send(here, JSON, bulk(pixels), metadata(told)).status_code == 200

    assert stored(here).PixelData == pixels


def picture(channels: int = 1, dtype: str = "u1") -> Any:
    random = np.random.default_rng(5)
    shape = (24, 40, 3) if channels == 3 else (24, 40)
    return random.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


GREY, GREY_16, COLOUR = picture(), picture(dtype="u2"), picture(3)


def gif() -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(GREY // 8 * 8), Image.fromarray(GREY.T[:24, :24].repeat(2, 1)[:, :40] // 8 * 8)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


MEDIA = [
    # media type       bytes                                                     transfer syntax            pixels
    ("image/png",      imagecodecs.png_encode(GREY),                             "1.2.840.10008.1.2.1",     GREY),
    ("image/png",      imagecodecs.png_encode(GREY_16),                          "1.2.840.10008.1.2.1",     GREY_16),
    ("image/png",      imagecodecs.png_encode(COLOUR),                           "1.2.840.10008.1.2.1",     COLOUR),
    ("image/jpeg",     imagecodecs.jpeg8_encode(GREY, level=95),                 "1.2.840.10008.1.2.4.50",  None),
    ("image/jpeg",     imagecodecs.jpeg8_encode(COLOUR, level=95),               "1.2.840.10008.1.2.4.50",  None),
    ("image/jpeg",     imagecodecs.jpeg8_encode(GREY, lossless=True, predictor=1), "1.2.840.10008.1.2.4.70", GREY),
    ("image/jpeg",     imagecodecs.jpeg8_encode(GREY, lossless=True, predictor=2), "1.2.840.10008.1.2.4.57", GREY),
    ("image/jls",      imagecodecs.jpegls_encode(GREY_16),                       "1.2.840.10008.1.2.4.80",  GREY_16),
    ("image/jls",      imagecodecs.jpegls_encode(GREY, level=3),                 "1.2.840.10008.1.2.4.81",  None),
    ("image/jp2",      imagecodecs.jpeg2k_encode(GREY_16, codecformat="J2K", reversible=True, level=0),
                                                                                 "1.2.840.10008.1.2.4.90",  GREY_16),
    ("image/jp2",      imagecodecs.jpeg2k_encode(COLOUR, codecformat="JP2", reversible=True, level=0),
                                                                                 "1.2.840.10008.1.2.4.90",  COLOUR),
    ("image/jp2",      imagecodecs.jpeg2k_encode(GREY, codecformat="J2K", level=30),
                                                                                 "1.2.840.10008.1.2.4.91",  None),
    ("image/jphc",     imagecodecs.htj2k_encode(GREY_16, reversible=True),       None,                      GREY_16),
    ("image/gif",      gif(),                                                    "1.2.840.10008.1.2.1",     None),
]  # fmt: skip


@pytest.mark.parametrize(("media_type", "data", "syntax", "pixels"), MEDIA, ids=lambda value: str(value)[:12])
def test_pictures_become_instances_that_describe_themselves(
    here: Site, media_type: str, data: bytes, syntax: str | None, pixels: Any
) -> None:
    answer = send(here, JSON, metadata(model()), bulk(data, media_type))

    assert answer.status_code == 200, answer.get_data()
    ds = stored(here)
    assert (ds.Rows, ds.Columns) == (24, 40)
    assert syntax in (None, str(ds.file_meta.TransferSyntaxUID))
    assert str(ds.PatientName) == "Müller^Anna"
    assert (ds.get("LossyImageCompression", "00") == "01") == (
        syntax is not None and syntax[-3:] in (".50", ".81", ".91", "4.50")
    )
    (explicit,) = files_of(here.get("/studies/1.2.3/series/1.2.3.1"))
    if pixels is not None:
        assert np.array_equal(explicit.pixel_array, pixels)
    assert here.get("/studies/1.2.3/rendered", 'multipart/related; type="image/png"').status_code == 200


def test_frames_come_as_parts_of_their_own_in_any_order(here: Site) -> None:
    frames = [imagecodecs.jpegls_encode(GREY + number) for number in range(3)]
    numbered = [bulk(frames[n], "image/jls", f"{BULK}/frames/{n + 1}") for n in (2, 0, 1)]

    answer = send(here, JSON, metadata(model(NumberOfFrames=3)), *numbered)

    assert answer.status_code == 200, answer.get_data()
    (explicit,) = files_of(here.get("/studies/1.2.3"))
    assert np.array_equal(explicit.pixel_array, np.stack([GREY + number for number in range(3)]))


def test_frames_may_come_under_one_name_in_their_order(here: Site) -> None:
    frames = [bulk(imagecodecs.jpegls_encode(GREY + number), "image/jls") for number in range(2)]

    assert send(here, JSON, metadata(model(NumberOfFrames=2)), *frames).status_code == 200

    (explicit,) = files_of(here.get("/studies/1.2.3"))
    assert np.array_equal(explicit.pixel_array[1], GREY + 1)


def mp4(codec: str = "h264", **options: str) -> bytes:
    """A film of ten frames, 25 a second, written by FFmpeg."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 20, "u1"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize(
    ("codec", "options", "syntax", "method"),
    [
        *(("h264", {"profile": each}, ".102", "ISO_14496_10") for each in ("high", "main", "baseline")),
        ("libx265", {"x265-params": "log-level=none"}, ".107", "ISO_23008_2"),
    ],
)
def test_a_film_becomes_an_instance_with_its_frames(
    here: Site, codec: str, options: dict[str, str], syntax: str, method: str
) -> None:
    film = mp4(codec, **options)

    answer = send(here, JSON, metadata(model(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.4.1")), bulk(film, "video/mp4"))

    assert answer.status_code == 200, answer.get_data()
    ds = stored(here)
    assert str(ds.file_meta.TransferSyntaxUID) == f"1.2.840.10008.1.2.4{syntax}"
    assert (ds.Rows, ds.Columns, ds.NumberOfFrames, float(ds.FrameTime)) == (48, 64, 10, 40.0)
    assert (ds.PhotometricInterpretation, ds.LossyImageCompressionMethod) == ("YBR_PARTIAL_420", method)
    # The items of encapsulated pixel data: an empty table, then the film.
    assert ds.PixelData[16 : 16 + len(film)] == film


def test_a_document_becomes_an_instance(here: Site) -> None:
    told = model(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Modality="DOC")
    told["00420011"] = {"vr": "OB", "BulkDataURI": told.pop("7FE00010")["BulkDataURI"]}

    answer = send(here, JSON, metadata(told), bulk(b"%PDF-1.7 odd", "application/pdf"))

    assert answer.status_code == 200, answer.get_data()
    ds = stored(here)
    assert (ds.MIMETypeOfEncapsulatedDocument, ds.EncapsulatedDocumentLength) == ("application/pdf", 12)
    assert ds.EncapsulatedDocument == b"%PDF-1.7 odd"


@pytest.mark.parametrize("kind", [JSON, "application/json", XML])
def test_metadata_alone_may_be_the_body(here: Site, kind: str) -> None:
    told = model(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    del told["7FE00010"]
    body = native_model(told) if kind == XML else json.dumps(told).encode()

    answer = here.web.post("/dicom-web/studies", data=body, headers=here.hospital, content_type=kind)

    assert answer.status_code == 200, answer.get_data()
    assert stored(here).Modality == "SR"


def test_colours_that_the_codestream_has_not_are_corrected_and_told(here: Site) -> None:
    data = imagecodecs.jpeg8_encode(COLOUR, level=95)

    answer = send(here, JSON, metadata(model(PhotometricInterpretation="RGB")), bulk(data, "image/jpeg"))

    assert answer.status_code == 202
    (item,) = answer.json["00081199"]["Value"]
    (original,) = item["04000561"]["Value"]
    assert item["00081196"] == {"vr": "US", "Value": [0xB000]}
    assert original["04000550"]["Value"] == [{"00280004": {"vr": "CS", "Value": ["RGB"]}}]
    ds = stored(here)
    assert ds.PhotometricInterpretation == "YBR_FULL_422"
    (kept,) = ds.OriginalAttributesSequence
    assert kept.ModifiedAttributesSequence[0].PhotometricInterpretation == "RGB"
    assert (kept.ReasonForTheAttributeModification, kept.ModifyingSystem) == ("COERCE", "fhir-imaging-server")


@pytest.mark.parametrize(
    ("changes", "data", "media_type", "reason", "word"),
    [
        ({"Rows": 99}, imagecodecs.png_encode(GREY), "image/png", 0xC000, "Rows is 99"),
        ({"NumberOfFrames": 2}, gif()[:-20], "image/gif", 0xC000, ""),
        ({"SamplesPerPixel": 3}, imagecodecs.jpegls_encode(GREY), "image/jls", 0xC000, "Samples per Pixel"),
        ({"BitsAllocated": 8}, imagecodecs.jpegls_encode(GREY_16), "image/jls", 0xC000, "Bits Allocated"),
        ({}, b"no picture at all", "image/png", 0xC000, "PNG"),
        ({}, b"no codestream", "image/jp2", 0xC000, "codestream"),
        ({}, b"no film", "video/mp4", 0xC000, "MP4"),
        ({}, b"RIFF", "image/webp", 0xC122, "media type"),
        ({}, b"12", "application/octet-stream", 0xC000, "bytes"),
        ({}, imagecodecs.png_encode(np.zeros((4, 4, 4), "u1")), "image/png", 0xC122, "transparent"),
        ({}, imagecodecs.jpegls_encode(GREY), "image/jls; transfer-syntax=1.2.840.10008.1.2.4.50", 0xC122, ""),
        ({}, imagecodecs.jpegls_encode(GREY, level=3), "image/jls; transfer-syntax=1.2.840.10008.1.2.4.80", 0xC000, ""),
        ({"StudyInstanceUID": ""}, imagecodecs.png_encode(GREY), "image/png", 0xC000, "Study Instance UID"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(
    here: Site, changes: dict[str, Any], data: bytes, media_type: str, reason: int, word: str
) -> None:
    answer = send(here, JSON, metadata(model(**changes)), bulk(data, media_type))

    assert answer.status_code == 409
    items = answer.json.get("00081198", answer.json.get("0008119A"))["Value"]
    assert [item["00081197"]["Value"][0] for item in items] == [reason]
    assert word in items[0]["00000902"]["Value"][0]


def test_each_instance_is_answered_for_itself(here: Site) -> None:
    good, bad = model(1, uri="a"), model(2, uri="b")

    answer = send(here, JSON, metadata(good, bad), bulk(imagecodecs.png_encode(GREY), "image/png", "a"))

    assert answer.status_code == 202
    assert [item["00081155"]["Value"] for item in answer.json["00081199"]["Value"]] == [["1.2.3.1.1"]]
    assert answer.json["00081198"]["Value"][0]["00081155"]["Value"] == ["1.2.3.1.2"]
    assert failure(answer)["text"].startswith("1 bulk data that its metadata refers to")


def test_bulk_data_without_metadata_is_told(here: Site) -> None:
    png = imagecodecs.png_encode(GREY)

    answer = send(here, JSON, metadata(model()), bulk(png, "image/png"), bulk(png, "image/png", "nobody's"))

    assert answer.status_code == 202
    assert answer.json["0008119A"]["Value"][0]["00081197"]["Value"] == [0xC000]


def test_metadata_of_another_study_than_the_address_are_refused(here: Site) -> None:
    parts = metadata(model()), bulk(imagecodecs.png_encode(GREY), "image/png")

    answer = send(here, JSON, *parts, path="/studies/9.9")

    assert answer.status_code == 409
    assert failure(answer)["reason"] == 0xC409


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"[1]", b'["x"]', b"{}x", b'[{"a":', b'[{"a":"b]', b"[" * 300, b'{"a":' * 250 + b"1" + b"}" * 250],
)
def test_what_is_no_metadata_is_invalid(here: Site, body: bytes) -> None:
    answer = send(here, JSON, ({"Content-Type": JSON}, body))

    assert answer.status_code in (400, 413)
    assert answer.json["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize(
    "body",
    [
        b"<NativeDicomModel>",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><NativeDicomModel>&a;</NativeDicomModel>",
        b"<NativeDicomModel><Value/></NativeDicomModel>",
        b'<NativeDicomModel><DicomAttribute tag="00100020" vr="LO"><Value number="9999999"/></DicomAttribute>',
        b"<html/>",
    ],
)
def test_xml_that_is_no_native_model_is_refused(here: Site, body: bytes) -> None:
    answer = send(here, XML, ({"Content-Type": XML}, body))

    assert answer.status_code == 409
    assert answer.json["0008119A"]["Value"][0]["00081197"]["Value"] == [0xC000]


def test_the_class_of_a_plain_ct_may_come_apart_as_well(here: Site) -> None:
    told = dcmread(io.BytesIO(ct(1))).to_json_dict(bulk_data_threshold=64, bulk_data_element_handler=lambda _: BULK)
    pixels = dcmread(io.BytesIO(ct(1))).PixelData

    assert send(here, JSON, metadata(told), bulk(pixels)).status_code == 200
    (explicit,) = files_of(here.get("/studies/1.2.3"))
    assert explicit.SOPClassUID == CT
    assert np.array_equal(decoded(explicit), dcmread(io.BytesIO(ct(1))).pixel_array)
