"""STOW-RS over the whole server. Expected answers are those of PS3.18 10.5 and annex I."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from imaging.dicomweb.native_model import NAMESPACE
from tests.support.dicomweb import BOUNDARY, CT, Site, address_of, ct, related, sample, site, site_of_a_module


@pytest.fixture(scope="module")
def made(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        yield one


@pytest.fixture
def here(made: Site) -> Iterator[Site]:
    yield made
    made.forget_images()


def reasons(report: dict[str, Any], sequence: str = "00081198") -> list[int]:
    return [item["00081197"]["Value"][0] for item in report[sequence]["Value"]]


def test_what_was_stored_is_named_with_its_address(here: Site) -> None:
    data = ct()

    answer = here.store(data)

    assert answer.status_code == 200
    assert answer.content_type == "application/dicom+json"
    base = here.server.dicomweb_url
    assert answer.json == {
        "00081190": {"vr": "UR", "Value": [f"{base}/studies/1.2.3"]},
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [CT]},
                    "00081155": {"vr": "UI", "Value": ["1.2.3.1.1"]},
                    "00081190": {"vr": "UR", "Value": [base + address_of(data)]},
                }
            ],
        },
    }


def test_the_same_request_again_is_the_same_success(here: Site) -> None:
    first = here.store(ct(1), ct(2))

    again = here.store(ct(1), ct(2))

    assert (again.status_code, again.json) == (200, first.json)
    assert here.server.archive.count() == 2


def test_several_studies_have_no_common_address(here: Site) -> None:
    answer = here.store(ct(study="1.2.3"), ct(study="1.2.4"))

    assert answer.json["00081190"] == {"vr": "UR"}


def test_some_failures_are_told_one_by_one(here: Site) -> None:
    here.store(ct(1))

    answer = here.store(ct(1, PatientComments="other"), ct(2))

    assert answer.status_code == 202
    assert reasons(answer.json) == [0x0111]
    assert answer.json["00081198"]["Value"][0]["00081155"]["Value"] == ["1.2.3.1.1"]
    assert len(answer.json["00081199"]["Value"]) == 1


def test_nothing_stored_is_a_conflict(here: Site) -> None:
    answer = here.store(b"no DICOM at all")

    assert answer.status_code == 409
    assert "00081199" not in answer.json
    # What has no UIDs cannot be referenced; PS3.18 has another sequence for it.
    assert reasons(answer.json, "0008119A") == [0xC000]


def test_instances_of_another_study_than_the_address_are_refused(here: Site) -> None:
    answer = here.store(ct(1, study="1.2.3"), ct(1, study="1.2.4"), path="/studies/1.2.3")

    assert answer.status_code == 202
    assert reasons(answer.json) == [0xC409]
    assert here.server.archive.count() == 1


def test_a_file_without_preamble_is_stored_and_can_be_retrieved(here: Site) -> None:
    data = ct()

    assert here.store(data[128:]).status_code == 200
    assert here.get(f"{address_of(data)}/received").get_data() == data[128:]


def test_one_instance_may_come_as_the_body(here: Site) -> None:
    answer = here.web.post("/dicom-web/studies", data=ct(), headers=here.hospital, content_type="application/dicom")

    assert answer.status_code == 200
    assert here.server.archive.count() == 1


@pytest.mark.parametrize(
    "content_type",
    [
        f"multipart/related; type=application/dicom; boundary={BOUNDARY}",
        f'Multipart/Related;boundary="{BOUNDARY}";type="application/dicom"',
        f"multipart/related; boundary={BOUNDARY}",
    ],
)
def test_the_content_type_may_be_spelled_as_clients_do(here: Site, content_type: str) -> None:
    answer = here.web.post("/dicom-web/studies", data=related(ct()), headers=here.hospital, content_type=content_type)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("multipart/form-data; boundary=x", 415),
        ('multipart/related; type="image/png"; boundary=x', 415),
        ("image/png", 415),
        ("application/json", 400),
        ("multipart/related; type=application/dicom", 400),
        ("", 400),
        ("multipart/related; type=application/dicom; boundary=another", 400),
    ],
)
def test_other_bodies_are_refused(here: Site, content_type: str, status: int) -> None:
    answer = here.web.post("/dicom-web/studies", data=related(ct()), headers=here.hospital, content_type=content_type)

    assert answer.status_code == status
    assert answer.json["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
def test_compressed_bodies_are_stored(here: Site, encoding: str, packed: Callable[[bytes], bytes]) -> None:
    answer = compressed(here, packed(related(ct(1), ct(2))), encoding)

    assert answer.status_code == 200
    assert len(answer.json["00081199"]["Value"]) == 2


def test_an_encoding_that_is_not_known_is_refused(here: Site) -> None:
    assert compressed(here, b"", "br").status_code == 415


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:-12] + b"!" * 12, lambda data: b"no"])
def test_a_damaged_compressed_body_is_invalid(here: Site, damage: Callable[[bytes], bytes]) -> None:
    answer = compressed(here, damage(gzip.compress(related(ct(1)))), "gzip")

    assert answer.status_code in (202, 400)


def test_limits_count_what_is_inflated(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    bomb = gzip.compress(related(bytes(8 << 20)))
    with site(db, tmp_path, limits__request_bytes="2 MiB", limits__instance_bytes="1 MiB") as small:
        answer = compressed(small, bomb, "gzip")

    assert len(bomb) < 20_000
    assert answer.status_code == 413


def compressed(here: Site, body: bytes, encoding: str) -> Any:
    headers = {**here.hospital, "Content-Encoding": encoding}
    kind = f"multipart/related; type=application/dicom; boundary={BOUNDARY}"
    return here.web.post("/dicom-web/studies", data=body, headers=headers, content_type=kind)


def test_an_empty_body_is_invalid(here: Site) -> None:
    assert here.store().status_code == 400


def test_what_came_before_a_broken_end_is_stored_and_told(here: Site) -> None:
    answer = here.web.post(
        "/dicom-web/studies",
        data=related(ct(1), ct(2))[:-400],
        headers=here.hospital,
        content_type=f"multipart/related; boundary={BOUNDARY}",
    )

    assert answer.status_code == 202
    assert len(answer.json["00081199"]["Value"]) == 1
    assert reasons(answer.json, "0008119A") == [0xC000]


def test_the_answer_comes_in_xml_where_it_is_asked(here: Site) -> None:
    answer = here.store(ct(), accept="application/dicom+xml")

    assert answer.content_type == "application/dicom+xml"
    values = ElementTree.fromstring(answer.get_data()).findall(f".//{{{NAMESPACE}}}Item//{{{NAMESPACE}}}Value")
    assert "1.2.3.1.1" in [value.text for value in values]


def test_an_answer_that_cannot_be_given_is_refused_before_anything_is_stored(here: Site) -> None:
    assert here.store(ct(), accept="text/html").status_code == 406
    assert here.server.archive.count() == 0


def test_nobody_stores_without_a_token(here: Site) -> None:
    answer = here.web.post("/dicom-web/studies", data=related(ct()))

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_receiving_subscriber_cannot_store(here: Site) -> None:
    answer = here.web.post(
        "/dicom-web/studies",
        data=related(ct()),
        headers=here.clinic,
        content_type=f"multipart/related; boundary={BOUNDARY}",
    )

    assert answer.status_code == 403
    assert here.server.archive.count() == 0


def test_an_instance_beyond_the_limit_is_refused(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    with site(db, tmp_path, limits__instance_bytes="2 KiB") as small:
        answer = small.store(ct(1, side=8), ct(2, side=64))

    assert answer.status_code == 202
    assert reasons(answer.json, "0008119A") == [0xA700]


def test_too_many_parts_are_refused(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    with site(db, tmp_path, limits__parts="2") as small:
        answer = small.store(ct(1), ct(2), ct(3))

    assert answer.status_code == 202
    assert reasons(answer.json, "0008119A") == [0xA700]


def test_messages_hold_no_patient_data(here: Site) -> None:
    here.store(ct(1))

    answer = here.store(ct(1, PatientName="Doe^Jane"), sample("CT_small.dcm")[:3000])

    assert b"Doe" not in answer.get_data()
    assert answer.status_code == 409
