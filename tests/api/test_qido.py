"""QIDO-RS over the whole server. Expected answers are those of PS3.18 10.6."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from tests.support.dicomweb import Site, ct, parts_of, site, site_of_a_module


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as made:
        made.store(
            ct(1, study="1.2.3", StudyDate="20260101", PatientID="A", PatientName="Müller^Anna"),
            ct(2, study="1.2.3", StudyDate="20260101", PatientID="A", PatientName="Müller^Anna"),
            ct(
                1,
                study="1.2.3",
                series=2,
                StudyDate="20260101",
                PatientID="A",
                PatientName="Müller^Anna",
                Modality="PR",
            ),
            ct(1, study="1.2.4", StudyDate="20260201", PatientID="B", AccessionNumber="X-7"),
        )
        yield made


def values(found: Any, tag: str) -> list[Any]:
    return [each[tag]["Value"][0] for each in found.json]


def studies(here: Site, query: str) -> list[str]:
    answer = here.get(f"/studies?{query}")
    if answer.status_code == 204:
        return []
    assert answer.status_code == 200, answer.get_data()
    return values(answer, "0020000D")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["1.2.4", "1.2.3"]),
        ("PatientID=A", ["1.2.3"]),
        ("00100020=A", ["1.2.3"]),
        ("PatientName=muller*", ["1.2.3"]),
        ("PatientName=M%C3%BCller%5EAnna", ["1.2.3"]),
        ("fuzzymatching=true&PatientName=anna", ["1.2.3"]),
        ("StudyDate=20260115-", ["1.2.4"]),
        ("StudyDate=20260101-20260131", ["1.2.3"]),
        ("StudyInstanceUID=1.2.3,1.2.4", ["1.2.4", "1.2.3"]),
        ("ModalitiesInStudy=PR", ["1.2.3"]),
        ("AccessionNumber=X*", ["1.2.4"]),
        ("StudyTime=1015", ["1.2.4", "1.2.3"]),
        ("StudyTime=11-", []),
        ("PatientID=nobody", []),
        ("StudyDescription=", ["1.2.4", "1.2.3"]),
    ],
)
def test_studies_are_found_by_their_attributes(here: Site, query: str, expected: list[str]) -> None:
    assert studies(here, query) == expected


def test_a_study_carries_its_address_and_what_was_counted(here: Site) -> None:
    (study,) = here.get("/studies?PatientID=A").json

    assert study["00081190"] == {"vr": "UR", "Value": [f"{here.server.dicomweb_url}/studies/1.2.3"]}
    assert study["00080061"]["Value"] == ["CT", "PR"]
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([2], [3])
    assert list(study) == sorted(study)


def test_pages_follow_one_another_without_loss(here: Site) -> None:
    first, second = here.get("/studies?limit=1"), here.get("/studies?limit=1&offset=1")

    assert values(first, "0020000D") + values(second, "0020000D") == ["1.2.4", "1.2.3"]
    assert first.headers["Warning"].startswith("299 ")
    assert "Warning" not in second.headers


def test_a_page_has_the_default_size_of_the_settings(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    with site(db, tmp_path, limits__search_count_default="2", limits__search_count="3") as small:
        small.store(*(ct(1, study=f"1.2.{number}") for number in range(5)))

        assert len(small.get("/studies").json) == 2
        assert len(small.get("/studies?limit=100").json) == 3


def test_inside_a_study_everything_is_given(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    with site(db, tmp_path, limits__search_count_default="2", limits__search_count="3") as small:
        small.store(*(ct(number) for number in range(1, 6)))

        assert len(small.get("/studies/1.2.3/instances").json) == 5
        assert len(small.get("/studies/1.2.3/series/1.2.3.1/instances?limit=4").json) == 4


@pytest.mark.parametrize(
    ("path", "tag", "expected"),
    [
        ("/studies/1.2.3/series", "0020000E", ["1.2.3.1", "1.2.3.2"]),
        ("/studies/1.2.3/series?Modality=PR", "0020000E", ["1.2.3.2"]),
        ("/studies/1.2.3/instances", "00080018", ["1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1"]),
        ("/studies/1.2.3/series/1.2.3.2/instances", "00080018", ["1.2.3.2.1"]),
        ("/studies/1.2.3/instances?InstanceNumber=2", "00080018", ["1.2.3.1.2"]),
        ("/series?Modality=PR", "0020000E", ["1.2.3.2"]),
        ("/series?PatientID=B", "0020000E", ["1.2.4.1"]),
        ("/instances?PatientID=B", "00080018", ["1.2.4.1.1"]),
        ("/instances?SOPInstanceUID=1.2.3.1.2", "00080018", ["1.2.3.1.2"]),
    ],
)
def test_series_and_instances_are_found_at_every_level(here: Site, path: str, tag: str, expected: list[str]) -> None:
    found = here.get(path)

    assert found.status_code == 200, found.get_data()
    assert values(found, tag) == expected
    assert all(each["00081190"]["Value"][0].startswith(here.server.dicomweb_url) for each in found.json)


def test_an_instance_carries_its_own_address(here: Site) -> None:
    (instance,) = here.get("/instances?SOPInstanceUID=1.2.3.1.2").json

    address = "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.2"
    assert instance["00081190"]["Value"] == [here.server.dicomweb_url + address]


def test_further_fields_are_included_when_asked(here: Site) -> None:
    (plain,) = here.get("/studies?PatientID=A").json
    (more,) = here.get("/studies?PatientID=A&includefield=00281050,WindowWidth").json
    (everything,) = here.get("/studies?PatientID=A&includefield=all").json

    assert "00281050" not in plain
    assert (more["00281050"]["Value"], more["00281051"]["Value"]) == ([512], [1024])
    assert set(more) <= set(everything)


def test_results_come_in_xml(here: Site) -> None:
    parts = parts_of(here.get("/studies", 'multipart/related; type="application/dicom+xml"'))

    assert len(parts) == 2
    assert b"1.2.4" in parts[0][1]


def test_new_images_are_found_at_once(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    with site(db, tmp_path) as new:
        new.store(ct(1))
        assert studies(new, "") == ["1.2.3"]

        new.store(ct(1, study="1.2.5", StudyDate="20260301"), ct(2))

        assert studies(new, "") == ["1.2.5", "1.2.3"]
        assert new.get("/studies?StudyInstanceUID=1.2.3").json[0]["00201208"]["Value"] == [2]


@pytest.mark.parametrize("query", ["nonsense=1", "StudyDate=yesterday", "limit=-1", "Rows=512&$where=1", "PixelData=x"])
def test_what_cannot_be_matched_is_refused_and_not_ignored(here: Site, query: str) -> None:
    answer = here.get(f"/studies?{query}")

    assert answer.status_code == 400
    assert answer.json["resourceType"] == "OperationOutcome"


def test_a_search_in_a_study_that_is_not_here_is_not_found(here: Site) -> None:
    assert here.get("/studies/9.9/series").status_code == 404


def test_only_who_may_receive_may_search(here: Site) -> None:
    assert here.web.get("/dicom-web/studies").status_code == 401
    assert here.web.get("/dicom-web/studies", headers=here.hospital).status_code == 403


def test_the_audit_record_has_names_of_parameters_and_no_values(here: Site) -> None:
    here.get("/studies?PatientName=Secret*")

    (event,) = here.server.database.resources.find({"type": "AuditEvent"}).sort("lastUpdated", -1).limit(1)
    assert b"PatientName" in bytes(event["body"])
    assert b"Secret" not in bytes(event["body"])
