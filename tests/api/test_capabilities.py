"""OPTIONS at the DICOMweb door. Expected values: PS3.18 8.9 and annex H, W3C WADL."""

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from pymongo import MongoClient

from fhir_server.web import dicomweb
from fhir_server.web.capabilities import INTERACTIONS, WADL, address_of
from tests.support.dicomweb import Site, site_of_a_module

NS = {"w": "http://wadl.dev.java.net/2009/02"}
STUDY = "/studies/1.2.3"


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as made:
        yield made


def test_every_route_is_described() -> None:
    assert set(INTERACTIONS) == {(method, address_of(rule)) for method, rule, _ in dicomweb.ROUTES}
    assert len({each.name for each in INTERACTIONS.values()}) == len(INTERACTIONS)


@pytest.mark.parametrize("path", ["", "/"])
def test_the_base_describes_the_whole_service(here: Site, path: str) -> None:
    answer = here.web.options(f"/dicom-web{path}")

    assert (answer.status_code, answer.content_type) == (200, WADL)
    document = ElementTree.fromstring(answer.get_data())
    assert document.tag == f"{{{NS['w']}}}application"
    (resources,) = document.findall("w:resources", NS)
    assert resources.get("base") == here.server.dicomweb_url
    assert {each.get("id") for each in document.iter(f"{{{NS['w']}}}method")} == {
        each.name for each in INTERACTIONS.values()
    }


def test_a_resource_describes_itself_and_what_is_below(here: Site) -> None:
    answer = here.web.options(f"/dicom-web{STUDY}")

    (resource,) = ElementTree.fromstring(answer.get_data()).findall("w:resources/w:resource", NS)
    assert resource.get("path") == "studies/{StudyInstanceUID}"
    assert {each.get("name") for each in resource.findall("w:method", NS)} == {"GET", "POST", "DELETE"}
    assert {each.get("path") for each in resource.findall("w:resource", NS)} >= {"series", "metadata", "rendered"}
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}


def test_a_method_tells_what_it_takes_and_gives(here: Site) -> None:
    document = ElementTree.fromstring(here.web.options("/dicom-web/studies").get_data())

    search, store = document.findall("w:resources/w:resource/w:method", NS)
    parameters = {each.get("name") for each in search.findall("w:request/w:param[@style='query']", NS)}
    assert {"limit", "offset", "includefield", "fuzzymatching", "00100020", "00080061"} <= parameters
    taken = {each.get("mediaType") for each in store.findall("w:request/w:representation", NS)}
    assert 'multipart/related; type="application/dicom"' in taken
    given = [each.get("mediaType") for each in search.findall("w:response/w:representation", NS)]
    assert given[0] == "application/dicom+json"


def test_it_comes_in_json_too(here: Site) -> None:
    answer = here.web.options("/dicom-web/studies", headers={"Accept": "application/json"})

    assert answer.content_type == "application/json"
    (resource,) = answer.json["application"]["resources"]["resource"]
    assert [each["id"] for each in resource["method"]] == ["SearchForStudies", "StoreInstances"]


@pytest.mark.parametrize(("method", "rule"), sorted({(m, r) for m, r, _ in dicomweb.ROUTES}))
def test_every_address_answers_options_without_a_token(here: Site, method: str, rule: str) -> None:
    named = {"<uid:study_uid>": "1.2", "<uid:series_uid>": "1.3", "<uid:sop_uid>": "1.4", "<frames>": "1"}
    named["<uid:workitem_uid>"] = "1.5"
    path = rule.replace("<path:path>", "00091001")
    for variable, value in named.items():
        path = path.replace(variable, value)

    answer = here.web.options(f"/dicom-web{path}")

    assert answer.status_code == 200
    assert method in answer.headers["Allow"].split(", ")


def test_what_is_not_accepted_is_406_and_where_nothing_is_404(here: Site) -> None:
    assert here.web.options("/dicom-web/studies", headers={"Accept": "text/html"}).status_code == 406
    assert here.web.options("/dicom-web/nothing").status_code == 404
