"""All pixel data and all bulk data of a study, a series or an instance. PS3.18 tables 10.4.1-4 and 10.4.1-5."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import dcmread
from pymongo import MongoClient

from tests.support.dicomweb import HTJ2K_RPCL, Site, ct, parts_of, sample, site_of_a_module

STUDY, SERIES = "/studies/1.2.3", "/studies/1.2.3/series/1.2.3.2"
INSTANCE = f"{SERIES}/instances/1.2.3.2.1"
VALUE = bytes(range(256)) * 8
BYTES = 'multipart/related; type="application/octet-stream"'


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        assert (
            one.store(ct(1), ct(2), ct(1, series=2, frames=3, EncapsulatedDocument=VALUE), report()).status_code == 200
        )
        yield one


def report() -> bytes:
    ds = dcmread(io.BytesIO(sample("test-SR.dcm")))
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = "1.2.3", "1.2.3.9", 9
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def frames_of(number: int, **more: Any) -> list[bytes]:
    pixels = dcmread(io.BytesIO(ct(number, **more))).pixel_array
    return [frame.tobytes() for frame in pixels.reshape(-1, 32, 32)]


FRAMES = {
    STUDY: [*frames_of(1), *frames_of(2), *frames_of(1, series=2, frames=3)],
    SERIES: frames_of(1, series=2, frames=3),
    INSTANCE: frames_of(1, series=2, frames=3),
}


@pytest.mark.parametrize("level", FRAMES)
def test_all_frames_come_in_order_each_with_its_address(here: Site, level: str) -> None:
    parts = parts_of(here.get(f"{level}/pixeldata"))

    assert [body for _, body in parts] == FRAMES[level]
    first, last = (headers["content-location"] for headers, _ in (parts[0], parts[-1]))
    assert last == f"{here.server.dicomweb_url}{INSTANCE}/frames/3"
    assert here.get(first.removeprefix(here.server.dicomweb_url), "application/octet-stream").get_data() == parts[0][1]


def test_frames_come_in_the_form_that_is_asked(here: Site) -> None:
    parts = parts_of(here.get(f"{STUDY}/pixeldata", f"{BYTES}; transfer-syntax=*"))

    assert {headers["content-type"] for headers, _ in parts} == {
        f"application/octet-stream; transfer-syntax={HTJ2K_RPCL}"
    }
    assert parts_of(here.get(f"{STUDY}/pixeldata", "multipart/related; type=image/jls"))[0][1][:2] == b"\xff\xd8"
    assert here.get(f"{STUDY}/pixeldata", "multipart/related; type=image/bmp").status_code == 406
    assert here.get(f"{STUDY}/pixeldata", "application/octet-stream").status_code == 406


@pytest.mark.parametrize("level", FRAMES)
def test_all_values_come_with_the_addresses_that_the_metadata_gives(here: Site, level: str) -> None:
    parts = {headers["content-location"]: body for headers, body in parts_of(here.get(f"{level}/bulkdata"))}

    documents = here.get(f"{level}/metadata").json
    told = [element["BulkDataURI"] for each in documents for element in each.values() if "BulkDataURI" in element]
    others = [uri for uri in told if not uri.endswith("7FE00010")]
    assert [parts[uri] for uri in others] == [VALUE]
    assert len(parts) == len(FRAMES[level]) + len(others)


def test_what_the_client_has_already_is_not_sent_again(here: Site) -> None:
    for path in (f"{STUDY}/pixeldata", f"{INSTANCE}/pixeldata", f"{STUDY}/bulkdata"):
        first = here.get(path)

        assert here.get(path, If_None_Match=first.headers["ETag"]).status_code == 304


def test_what_has_no_pixels_is_not_found(here: Site) -> None:
    assert here.get(f"{STUDY}/series/1.2.3.9/pixeldata").status_code == 404


def test_they_are_for_those_who_may_receive(here: Site) -> None:
    for path in (f"{STUDY}/pixeldata", f"{STUDY}/bulkdata"):
        assert here.web.get(f"/dicom-web{path}", headers=here.hospital).status_code == 403
