"""Rendered reports and encapsulated documents. PS3.18 8.7.4; what a report says is read by pydicom."""

import html
import io
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pymongo import MongoClient

from tests.support.dicomweb import Site, address_of, ct, sample, site_of_a_module

REPORT, OTHER_REPORT = sample("reportsi.dcm"), sample("test-SR.dcm")
FILM = b"\0\0\0\x18ftypisom" + bytes(range(256)) * 10
PDF = b"%PDF-1.7 not much of one" + b"\n" * 4001


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        answer = one.store(REPORT, OTHER_REPORT, enclosed(1, "application/pdf"), enclosed(2, "text/html"))
        assert answer.status_code == 200, answer.get_data()
        yield one


def enclosed(number: int, media_type: str) -> bytes:
    ds = dcmread(io.BytesIO(ct(number, study="1.2.5")))
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    ds.MIMETypeOfEncapsulatedDocument, ds.EncapsulatedDocumentLength = media_type, len(PDF)
    ds.EncapsulatedDocument = PDF + bytes(len(PDF) % 2)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def values_in(item: Dataset) -> Iterator[str]:
    for each in item.get("ContentSequence", []):
        if "ConceptNameCodeSequence" in each:
            yield each.ConceptNameCodeSequence[0].CodeMeaning
        if "TextValue" in each:
            yield from each.TextValue.split()
        for code in each.get("ConceptCodeSequence", []):
            yield code.CodeMeaning
        for number in each.get("MeasuredValueSequence", []):
            yield str(number.NumericValue)
        yield from values_in(each)


@pytest.mark.parametrize("report", [REPORT, OTHER_REPORT], ids=["reportsi", "test-SR"])
@pytest.mark.parametrize("accept", [None, "text/html", "text/plain"])
def test_a_report_is_given_whole_as_text(here: Site, report: bytes, accept: str | None) -> None:
    answer = here.get(f"{address_of(report)}/rendered", accept)

    assert answer.content_type == f"{accept or 'text/html'}; charset=utf-8"
    text = html.unescape(answer.get_data(as_text=True))
    ds = dcmread(io.BytesIO(report))
    wanted = list(values_in(ds))
    assert len(wanted) > 5
    assert [each for each in wanted if each not in text] == []
    assert str(ds.PatientID) in text


def test_what_a_report_says_is_never_markup(here: Site) -> None:
    ds = dcmread(io.BytesIO(REPORT))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.6"
    ds.PatientName = "<script>alert(1)</script>"
    out = io.BytesIO()
    ds.save_as(out)
    here.store(out.getvalue())

    answer = here.get(f"{address_of(out.getvalue())}/rendered", "text/html")

    assert b"<script>" not in answer.get_data()
    assert b"&lt;script&gt;" in answer.get_data()
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_an_encapsulated_document_is_what_it_is(here: Site) -> None:
    address = "/studies/1.2.5/series/1.2.5.1/instances/1.2.5.1.1/rendered"

    answer = here.get(address)
    part = here.get(address, "application/pdf", Range="bytes=0-3")

    assert (answer.content_type, answer.get_data()) == ("application/pdf", PDF)
    assert (part.status_code, part.get_data()) == (206, b"%PDF")
    assert here.get(address, "image/jpeg").status_code == 406
    assert here.get(address, If_None_Match=answer.headers["ETag"]).status_code == 304


def test_a_type_that_the_standard_does_not_name_is_not_given_to_a_browser(here: Site) -> None:
    assert here.get("/studies/1.2.5/series/1.2.5.1/instances/1.2.5.1.2/rendered").status_code == 404


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.107", "1.2.840.10008.1.2.4.100"])
def test_a_video_is_its_stream(here: Site, syntax: str) -> None:
    data = video(syntax)
    assert here.store(data).status_code == 200
    kind = "video/mpeg" if syntax.endswith(".100") else "video/mp4"

    answer = here.get(f"{address_of(data)}/rendered", kind)

    assert (answer.content_type, answer.get_data()) == (kind, FILM)
    part = here.get(f"{address_of(data)}/rendered", "video/*", Range="bytes=3-9")
    assert (part.status_code, part.get_data()) == (206, FILM[3:10])
    assert here.get(f"{address_of(data)}/rendered", "image/gif").status_code == 406


def video(syntax: str) -> bytes:
    ds = dcmread(io.BytesIO(ct(1, study=f"1.2.8.{syntax[-3:]}", NumberOfFrames=25)))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = encapsulate([FILM[:1000], FILM[1000:]], has_bot=False)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_documents_have_no_thumbnail(here: Site) -> None:
    assert here.get(f"{address_of(REPORT)}/thumbnail").status_code == 404
