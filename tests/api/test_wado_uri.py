"""WADO-URI, PS3.18 section 9. What it gives is what WADO-RS gives for the same question."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pymongo import MongoClient

from fhir_server.access.contracts import Right
from tests.api.test_rendered import UNDER, state
from tests.support.dicomweb import EXPLICIT_LE, HTJ2K_RPCL, Site, bearer, ct, sample, site_of_a_module

OBJECT = "studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1"
CINE = "studyUID=1.2.3&seriesUID=1.2.3.2&objectUID=1.2.3.2.1"
SLICE, FRAMES = "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1", "/studies/1.2.3/series/1.2.3.2/instances/1.2.3.2.1"


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        files = [ct(1, side=64), ct(2, side=64), ct(1, series=2, frames=3), state(), sample("test-SR.dcm")]
        assert one.store(*files).status_code == 200
        yield one


def ask(here: Site, query: str, accept: str | None = None, **headers: str) -> Any:
    return here.get(f"/wado?requestType=WADO&{query}", accept, **headers)


def greys_of(answer: Any) -> Any:
    assert answer.status_code == 200, answer.get_data()
    return np.asarray(Image.open(io.BytesIO(answer.get_data()))).astype(int)


# ---- what comes


def test_an_image_of_one_frame_is_a_jpeg(here: Site) -> None:
    answer = ask(here, OBJECT)

    assert answer.content_type == "image/jpeg"
    assert answer.get_data() == here.get(f"{SLICE}/rendered", "image/jpeg").get_data()


def test_an_image_of_several_frames_is_a_dicom_file(here: Site) -> None:
    assert ask(here, CINE).content_type == f"application/dicom; transfer-syntax={EXPLICIT_LE}"


def test_a_report_is_a_page(here: Site) -> None:
    report = dcmread(io.BytesIO(sample("test-SR.dcm")))
    uids = f"studyUID={report.StudyInstanceUID}&seriesUID={report.SeriesInstanceUID}&objectUID={report.SOPInstanceUID}"

    assert ask(here, uids).mimetype == "text/html"
    assert ask(here, f"{uids}&contentType=text/plain").mimetype == "text/plain"
    assert ask(here, f"{uids}&contentType=application/dicom").mimetype == "application/dicom"
    assert ask(here, f"{uids}&contentType=image/jpeg").status_code == 406


def test_a_frame_of_several_is_a_picture(here: Site) -> None:
    asked = ask(here, f"{CINE}&frameNumber=3")

    assert asked.get_data() == here.get(f"{FRAMES}/frames/3/rendered", "image/jpeg").get_data()
    assert ask(here, f"{CINE}&frameNumber=4").status_code == 404


@pytest.mark.parametrize(
    ("more", "accept", "kind"),
    [
        ("&contentType=application/dicom", None, "application/dicom"),
        ("&contentType=application%2Fdicom", "text/html,*/*;q=0.8", "application/dicom"),
        ("&contentType=image/png", None, "image/png"),
        ("&contentType=image/bmp,image/gif", None, "image/gif"),
        ("", "image/webp,*/*;q=0.1", "image/webp"),
        ("", "application/dicom", "application/dicom"),
    ],
)
def test_the_content_type_goes_before_the_accept_header(here: Site, more: str, accept: str | None, kind: str) -> None:
    assert ask(here, OBJECT + more, accept).mimetype == kind


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, HTJ2K_RPCL, "1.2.840.10008.1.2.4.90"])
def test_a_file_comes_in_the_transfer_syntax_that_is_asked(here: Site, syntax: str) -> None:
    answer = ask(here, f"{OBJECT}&contentType=application/dicom&transferSyntax={syntax}")

    assert dcmread(io.BytesIO(answer.get_data())).file_meta.TransferSyntaxUID == syntax


def test_what_cannot_be_made_is_406(here: Site) -> None:
    assert ask(here, f"{OBJECT}&contentType=text/plain").status_code == 406
    assert ask(here, f"{OBJECT}&contentType=application/dicom&transferSyntax=1.2.3").status_code == 406


# ---- how it looks


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("windowCenter=101&windowWidth=200", "window=101,200"),
        ("rows=32&columns=16", "viewport=16,32"),
        ("rows=32", "viewport=16384,32"),
        ("columns=20", "viewport=20,16384"),
        ("region=0.25,0.5,0.75,1", "viewport=32,32,16,32,32,32"),
        ("region=0.25,0.5,0.75,1&rows=8", "viewport=16384,8,16,32,32,32"),
        ("annotation=patient,technique", "annotation=patient,technique"),
        (UNDER, UNDER),
    ],
)  # fmt: skip
def test_parameters_mean_what_those_of_wado_rs_mean(here: Site, query: str, same: str) -> None:
    asked = greys_of(ask(here, f"{OBJECT}&contentType=image/png&{query}"))

    assert np.array_equal(asked, greys_of(here.get(f"{SLICE}/rendered?{same}", "image/png")))


def test_quality_makes_files_smaller(here: Site) -> None:
    sizes = [len(ask(here, f"{OBJECT}&imageQuality={quality}").get_data()) for quality in (10, 90)]

    assert sizes[0] < sizes[1]


def test_several_frames_move_where_the_media_type_can(here: Site) -> None:
    answer = ask(here, f"{CINE}&contentType=image/gif&windowCenter=1500&windowWidth=3000")

    assert Image.open(io.BytesIO(answer.get_data())).n_frames == 3


def test_a_character_set_changes_nothing(here: Site) -> None:
    assert ask(here, f"{OBJECT}&charset=utf-8").get_data() == ask(here, OBJECT).get_data()


# ---- what is refused


@pytest.mark.parametrize(
    "query",
    [
        f"{OBJECT}&windowCenter=40",
        f"{OBJECT}&windowCenter=40&windowWidth=0",
        f"{OBJECT}&rows=0",
        f"{OBJECT}&columns=many",
        f"{OBJECT}&region=0,0,1",
        f"{OBJECT}&region=0.5,0,0.5,1",
        f"{OBJECT}&region=0,0,2,1",
        f"{OBJECT}&region=nan,0,1,1",
        f"{OBJECT}&imageQuality=0",
        f"{OBJECT}&annotation=all",
        f"{OBJECT}&transferSyntax={EXPLICIT_LE}",
        f"{OBJECT}&contentType=application/dicom&rows=5",
        f"{OBJECT}&contentType=application/dicom&frameNumber=1",
        f"{OBJECT}&presentationUID=1.2.3.4.1",
        "studyUID=1.2.3&seriesUID=1.2.3.1",
        "studyUID=x&seriesUID=1.2.3.1&objectUID=1.2.3.1.1",
    ],
)
def test_parameters_are_checked(here: Site, query: str) -> None:
    assert ask(here, query).status_code == 400


def test_another_request_type_is_not_known(here: Site) -> None:
    assert here.get(f"/wado?requestType=XDS&{OBJECT}").status_code == 400
    assert here.get(f"/wado?{OBJECT}").status_code == 400


def test_identified_images_are_never_given_as_anonymous(here: Site) -> None:
    assert ask(here, f"{OBJECT}&anonymize=yes").status_code == 403


def test_what_is_not_here_is_not_found(here: Site) -> None:
    assert ask(here, "studyUID=1.2.3&seriesUID=1.2.3.2&objectUID=1.2.3.1.1").status_code == 404
    assert ask(here, "studyUID=9.9&seriesUID=1.2.3.2&objectUID=1.2.3.1.1").status_code == 404


def test_it_is_for_those_who_may_receive(here: Site) -> None:
    address = f"/dicom-web/wado?requestType=WADO&{OBJECT}"

    assert here.web.get(address).status_code == 401
    assert here.web.get(address, headers=here.hospital).status_code == 403


# ---- caching


@pytest.mark.parametrize("more", ["", "&contentType=application/dicom"])
def test_what_the_client_has_already_is_not_sent_again(here: Site, more: str) -> None:
    first = ask(here, OBJECT + more)

    assert ask(here, OBJECT + more, If_None_Match=first.headers["ETag"]).status_code == 304


def test_the_bytes_of_a_file_that_are_asked_for_are_sent(here: Site) -> None:
    answer = ask(here, f"{OBJECT}&contentType=application/dicom", Range="bytes=128-131")

    assert (answer.status_code, answer.get_data()) == (206, b"DICM")


def test_a_retrieval_leaves_an_audit_event_of_its_own_kind(here: Site) -> None:
    auditor = bearer(here.server, "Auditor", Right.AUDIT)

    def count() -> int:
        return int(here.web.get("/fhir/AuditEvent?subtype=RAD-55", headers=auditor).json["total"])

    before = count()
    ask(here, OBJECT)

    assert count() == before + 1
