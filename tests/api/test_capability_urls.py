"""Capability URLs: one study for a while, without a token. Expected values: SMART Imaging Access 0.1.0, RFC 9110."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from fhir_server.access import capability_urls
from fhir_server.access.contracts import Limits, Right
from fhir_server.access.grants import Grant, Role
from fhir_server.access.scopes import Scopes
from fhir_server.model.validation import findings
from fhir_server.web.dicomweb import READING, ROUTES
from tests.api.test_grants_at_doors import Scene
from tests.support.doors import BASE_URL, FHIR, Caller, Doors, new_study, opened

REQUIRES = "http://fhir.org/argonaut/smart-imaging/StructureDefinition/requires-access-token"
RIGHTS = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.RECEIVE_BY_URL]
WHOLE = {"Accept": "multipart/related; type=application/dicom; transfer-syntax=*"}
JSON = {"Accept": "application/dicom+json"}
INCLUDING = "/fhir/ImagingStudy?_include=ImagingStudy:endpoint"
LIFE_S = 600
WRONG = "/dicom-web/capability/fic_" + "A" * 43


@dataclass
class Given(Scene):
    """The scene of two patients, whose contract lets capability URLs be had."""

    def search(self, caller: Caller, path: str = INCLUDING):
        answer = caller.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json

    def urls(self, caller: Caller, path: str = INCLUDING) -> dict[str, str]:
        """Return by study where its images are said to be, in a path of the test's server."""
        bundle = self.search(caller, path)
        endpoints = {each["fullUrl"].removeprefix(f"{FHIR}/"): each["resource"] for each in bundle["entry"]}
        names = {uid: name for name, uid in self.studies.items()}
        found = {}
        for each in (one["resource"] for one in bundle["entry"] if one["resource"]["resourceType"] == "ImagingStudy"):
            (reference,) = [one["reference"] for one in each["endpoint"]]
            found[names[each["id"]]] = endpoints[reference]["address"].removeprefix(BASE_URL)
        return found

    def url(self, name: str, **grant) -> str:
        caller = self.caller(grant.pop("scopes", "patient/ImagingStudy.rs"), grant.pop("patient", "anna"), **grant)
        return self.urls(caller)[name]


def filled(doors: Doors, rights=RIGHTS) -> Given:
    made = Given(doors, doors.server.principals.add("apps", rights).clients[0])
    for name, patient, modality in (("ct", "anna", "CT"), ("mr", "anna", "MR"), ("other", "bert", "CT")):
        made.studies[name], files = new_study(PatientID=patient, PatientName="", Modality=modality, instances=2)
        doors.ingest(*files, name="apps")
        doors.server.studies.project(made.studies[name])
        subject = doors.server.own.read("ImagingStudy", made.studies[name]).json()["subject"]
        made.patients[patient] = subject["reference"]
    return made


@pytest.fixture(scope="module")
def scene(module_db) -> Iterator[Given]:
    with opened(module_db, access__capability_s=str(LIFE_S), smart__requests_per_minute="20") as doors:
        yield filled(doors)


def within(scene: Given, name: str) -> dict[str, str]:
    """Return what the places in the table of routes stand for, in one study."""
    (first, *_) = scene.doors.server.archive.instances(scene.studies[name])
    return {"uid:study_uid": first.study_uid, "uid:series_uid": first.series_uid, "uid:sop_uid": first.sop_uid,
            "frames": "1", "path:path": "7FE00010"}  # fmt: skip


def addresses(scene: Given, name: str) -> list[str]:
    places = within(scene, name)
    query = {"/wado": "?requestType=WADO&studyUID={uid:study_uid}&seriesUID={uid:series_uid}&objectUID={uid:sop_uid}"}
    rules = [rule + query.get(rule, "") for _, rule, _ in READING]
    return [re.sub(r"[<{]([^>}]+)[>}]", lambda match: places[match[1]], rule) for rule in rules]


# ---- what is given


def test_a_search_that_includes_endpoints_gives_one_for_each_study(scene):
    bundle = scene.search(scene.caller("patient/ImagingStudy.rs", "anna"))

    studies = [each["resource"] for each in bundle["entry"] if each["search"]["mode"] == "match"]
    found = {each["fullUrl"]: each["resource"] for each in bundle["entry"] if each["search"]["mode"] == "include"}
    assert len(studies) == len(found) == 2
    assert [[each["reference"]] for study in studies for each in study["endpoint"]] == [[url] for url in found]
    for url, each in found.items():
        assert url == f"urn:uuid:{each['id']}"
        assert each["connectionType"]["code"] == "dicom-wado-rs"
        assert [one["valueBoolean"] for one in each["extension"] if one["url"] == REQUIRES] == [False]
        assert re.fullmatch(rf"{BASE_URL}/dicom-web/capability/fic_[\w-]{{43}}", each["address"])
        assert not findings(each, "Endpoint")
    assert len({each["address"] for each in found.values()}) == 2


def test_an_answer_that_has_some_is_kept_by_nobody(scene):
    answer = scene.caller("patient/ImagingStudy.rs", "anna").get(INCLUDING)

    assert answer.headers["Cache-Control"] == "no-store"


def test_a_token_has_so_many_at_a_time_and_no_more(scene, monkeypatch):
    monkeypatch.setattr(capability_urls, "MOST", 3)
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    answers = [caller.get(INCLUDING) for _ in range(2)]  # two studies each

    scene.doors.clock.forward(seconds=LIFE_S)
    later = scene.caller("patient/ImagingStudy.rs", "anna").get(INCLUDING)

    assert [each.status_code for each in (*answers, later)] == [200, 503, 200]
    assert "capability URLs" in answers[1].json["issue"][0]["diagnostics"]


def test_a_subscriber_may_come_with_a_token_of_an_operators_command(scene):
    caller = Caller(scene.doors.flask, scene.doors.server.principals.mint("apps"), scene.doors.clock)

    url = scene.urls(caller)["other"]

    assert not refused(scene, url, "other")
    assert scene.doors.stranger.get(f"{url}/studies/{scene.studies['ct']}/metadata").status_code == 404


def test_nobody_is_given_one_without_the_right(scene):
    scene.doors.server.principals.add("apps", RIGHTS[:2])
    scene.doors.clock.forward(seconds=1)

    found = scene.urls(scene.caller("patient/ImagingStudy.rs", "anna"))

    scene.doors.server.principals.add("apps", RIGHTS)
    scene.doors.clock.forward(seconds=1)
    assert set(found.values()) == {"/dicom-web"}


def test_a_search_that_does_not_include_endpoints_gives_none(scene):
    found = scene.search(scene.caller("patient/ImagingStudy.rs", "anna"), "/fhir/ImagingStudy")

    assert {each["reference"] for one in found["entry"] for each in one["resource"]["endpoint"]} == {
        "Endpoint/dicomweb"
    }


def test_who_may_find_a_study_and_not_retrieve_it_is_given_none(scene):
    caller = scene.caller("patient/ImagingStudy.s patient/ImagingStudy.r?modality=CT", "anna")

    found = scene.urls(caller)

    assert found.pop("ct") != "/dicom-web"
    assert found == {"mr": "/dicom-web"}
    assert scene.urls(scene.caller("patient/ImagingStudy.s", "anna")) == dict.fromkeys(("ct", "mr"), "/dicom-web")


def test_an_answer_that_is_fetched_later_has_none(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")

    accepted = caller.get(INCLUDING, headers={"Prefer": "respond-async"})
    answer = caller.get(accepted.headers["Content-Location"].removeprefix(BASE_URL))

    assert answer.status_code in (200, 202)
    assert b"fic_" not in answer.data


def test_the_secret_is_nowhere_in_the_database_nor_is_the_token(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    secret = scene.urls(caller)["ct"].rpartition("/")[2]

    database = scene.doors.server.database
    kept = repr([[*database[name].find()] for name in database.list_collection_names() if "chunks" not in name])

    assert secret not in kept
    assert caller.token not in kept


# ---- what it opens


def test_every_way_to_search_and_retrieve_works_below_it_without_a_token(scene):
    url = scene.url("ct")

    found = {path: scene.doors.stranger.get(url + path) for path in addresses(scene, "ct")}

    assert {path: each.status_code for path, each in found.items()} == dict.fromkeys(found, 200)
    for each in found.values():
        assert each.headers["Referrer-Policy"] == "no-referrer"
        assert each.headers["Cache-Control"].startswith("private")
        age = each.cache_control.max_age
        assert age is None or age <= LIFE_S


def test_a_token_is_not_looked_at(scene):
    bad = Caller(scene.doors.flask, "fis_nobody", scene.doors.clock)

    answer = bad.get(f"{scene.url('ct')}/studies/{scene.studies['ct']}", headers=WHOLE)

    assert answer.status_code == 200
    assert answer.data.count(b"Content-Type: application/dicom") == 2


def test_every_address_within_answers_begins_with_it(scene):
    url, uid = scene.url("ct"), scene.studies["ct"]
    get = scene.doors.stranger.get
    texts = [get(url + path, headers=JSON).text for path in ("/studies", "/series", "/instances")]
    texts += [get(f"{url}/studies/{uid}/{each}", headers=JSON).text for each in ("metadata", "series", "instances")]
    place = within(scene, "ct")
    instance = f"{url}/studies/{uid}/series/{place['uid:series_uid']}/instances/{place['uid:sop_uid']}"
    for path, kind in (("frames/1", "application/octet-stream"), ("bulkdata/7FE00010", "*/*")):
        answer = get(f"{instance}/{path}", headers={"Accept": f"multipart/related; type={kind}"})
        texts.append(answer.data.decode("latin-1"))

    for text in texts:
        told = re.findall(rf"{BASE_URL}[^\"\s]*", text)
        assert told
        assert {each[: len(BASE_URL + url)] for each in told} == {BASE_URL + url}


def test_a_search_finds_the_one_study(scene):
    url = scene.url("ct")

    for path in ("/studies", "/series", "/instances", "/studies?StudyInstanceUID=" + scene.studies["mr"]):
        found = scene.doors.stranger.get(url + path, headers=JSON)
        assert {each["0020000D"]["Value"][0] for each in found.json or []} <= {scene.studies["ct"]}
    assert len(scene.doors.stranger.get(f"{url}/studies", headers=JSON).json) == 1


@pytest.mark.parametrize("name", ["mr", "other"])
def test_no_other_study_is_opened_by_it(scene, name):
    url = scene.url("ct")
    paths = [path for path in addresses(scene, name) if scene.studies[name] in path]

    assert {scene.doors.stranger.get(url + path).status_code for path in paths} == {404}


@pytest.mark.parametrize(
    ("method", "rule"), sorted({(method, rule) for method, rule, _ in ROUTES} - {row[:2] for row in READING})
)
def test_nothing_else_of_the_door_is_below_it(scene, method, rule):
    places = within(scene, "ct") | {"uid:workitem_uid": "1.2", "title": "A"}
    path = re.sub(r"<([^>]+)>", lambda match: places.get(match[1], "1"), rule)

    assert scene.doors.stranger.call(method, scene.url("ct") + path).status_code in (404, 405)


@pytest.mark.parametrize("path", ["/fhir/ImagingStudy", "/../../fhir/Patient", "/%2e%2e/studies", "", "/"])
def test_nothing_is_beside_it(scene, path):
    assert scene.doors.stranger.get(scene.url("ct") + path).status_code == 404


def test_images_without_names_are_not_had_by_it(scene):
    scene.doors.server.principals.add("apps", [*RIGHTS, Right.RECEIVE_DEIDENTIFIED])
    (wado,) = [path for path in addresses(scene, "ct") if path.startswith("/wado")]

    answer = scene.doors.stranger.get(f"{scene.url('ct')}{wado}&anonymize=yes")

    scene.doors.server.principals.add("apps", RIGHTS)
    assert answer.status_code == 403


# ---- until when


def refused(scene: Given, url: str, name: str = "ct") -> bool:
    answer = scene.doors.stranger.get(f"{url}/studies/{scene.studies[name]}/metadata")
    assert answer.status_code in (200, 401), answer.text
    assert url.rpartition("/")[2] not in answer.text or answer.status_code == 200
    return answer.status_code == 401


def test_it_ends_after_its_time(scene):
    url = long_lived(scene)
    scene.doors.clock.forward(seconds=LIFE_S - 5)
    before = refused(scene, url)
    scene.doors.clock.forward(seconds=6)

    assert (before, refused(scene, url)) == (False, True)


def long_lived(scene: Given, **more) -> str:
    """Return the address for a token that lasts for an hour."""
    return scene.urls(Caller(scene.doors.flask, long_token(scene, **more), scene.doors.clock))["ct"]


def long_token(scene: Given, **more) -> str:
    grant = Grant(scene.client, Scopes.parse("patient/ImagingStudy.rs"), scene.doors.clock() + timedelta(hours=1),
                  patient=scene.patients["anna"], **more)  # fmt: skip
    return scene.doors.server.principals.issue(grant)


def test_it_ends_with_the_token_at_the_latest(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    issued = scene.doors.clock() + timedelta(minutes=5)  # when its token ends
    bundle = scene.search(caller)
    ends = {each["resource"]["period"]["end"] for each in bundle["entry"] if each["search"]["mode"] == "include"}
    url = scene.urls(caller)["ct"]
    scene.doors.clock.forward(minutes=5, seconds=1)

    assert [datetime.fromisoformat(each) for each in ends] == [pytest.approx(issued, abs=timedelta(seconds=1))]
    assert refused(scene, url)


def test_it_ends_with_a_token_that_is_withdrawn(scene):
    token = long_token(scene)
    url = scene.urls(Caller(scene.doors.flask, token, scene.doors.clock))["ct"]
    before = refused(scene, url)

    scene.doors.server.principals.revoke(token)

    assert (before, refused(scene, url)) == (False, True)


def test_it_ends_with_the_authorisation(scene):
    url = long_lived(scene, family="one")
    before = refused(scene, url)

    scene.doors.server.principals.revoke_family("one")

    assert (before, refused(scene, url)) == (False, True)


def test_it_ends_when_the_subscriber_is_suspended(scene):
    url = long_lived(scene)
    before = refused(scene, url)

    scene.doors.server.principals.suspend("apps")
    scene.doors.clock.forward(seconds=1)
    after = refused(scene, url)

    scene.doors.server.principals.add("apps", RIGHTS)
    assert (before, after) == (False, True)


def test_it_ends_when_the_contract_does_not_give_the_right_any_more(scene):
    url = long_lived(scene)
    before = refused(scene, url)

    scene.doors.server.principals.add("apps", RIGHTS[:2])
    scene.doors.clock.forward(seconds=1)
    after = refused(scene, url)

    scene.doors.server.principals.add("apps", RIGHTS)
    assert (before, after) == (False, True)


def test_it_opens_nothing_that_the_contract_does_not_show_any_more(scene):
    url = long_lived(scene)
    scene.doors.server.principals.add("apps", RIGHTS, limits=Limits(modalities=frozenset({"MR"})))
    scene.doors.clock.forward(seconds=1)

    answer = scene.doors.stranger.get(f"{url}/studies/{scene.studies['ct']}/metadata")

    scene.doors.server.principals.add("apps", RIGHTS)
    assert answer.status_code == 404


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR])
def test_a_role_that_receives_no_images_is_given_none(scene, role):
    caller = scene.caller("user/ImagingStudy.rs", user="Practitioner/1", role=role)

    assert caller.get(INCLUDING).status_code in (200, 403)
    assert b"fic_" not in caller.get(INCLUDING).data


@pytest.mark.parametrize("role", [Role.PATIENT, Role.PRACTITIONER, Role.TECHNOLOGIST])
def test_a_role_that_receives_images_is(scene, role):
    caller = scene.caller("user/ImagingStudy.rs", "anna", user="Practitioner/1", role=role)

    url = scene.urls(caller)["ct"]

    assert not refused(scene, url)


# ---- guessing, and what is on record


def test_what_was_never_given_out_opens_nothing(scene):
    paths = addresses(scene, "ct")

    found = [scene.doors.stranger.get(WRONG + path, environ_base={"REMOTE_ADDR": f"192.0.2.{number}"})
             for number, path in enumerate(paths)]  # fmt: skip

    assert [each.status_code for each in found] == [401] * len(paths)
    assert {each.headers["WWW-Authenticate"] for each in found} == {'Bearer realm="fhir"'}
    assert scene.doors.stranger.get("/dicom-web/capability/guess/studies/1.2.3").status_code == 404


def test_guessing_is_slowed_down_and_others_at_the_same_address_are_not(scene):
    good, here = scene.url("ct"), {"environ_base": {"REMOTE_ADDR": "198.51.100.1"}}

    found = [scene.doors.stranger.get(f"{WRONG}/studies/1.2.3", **here) for _ in range(45)]

    assert found[0].status_code == 401
    slowed = [each for each in found if each.status_code == 429]
    assert len(slowed) >= 5  # of 45, at 20 in each of the at most two minutes
    assert int(slowed[0].headers["Retry-After"]) > 0
    assert scene.doors.stranger.get(f"{good}/studies/{scene.studies['ct']}/metadata", **here).status_code == 200


def test_the_record_says_that_one_was_used_and_by_which_token_it_was_had(scene):
    caller = scene.caller("patient/ImagingStudy.rs", "anna")
    url, uid = scene.urls(caller)["ct"], scene.studies["ct"]
    scene.doors.stranger.get(f"{url}/studies/{uid}", headers=WHOLE)

    events = [each["resource"] for each in auditor(scene).get("/fhir/AuditEvent?_count=1000").json["entry"]]
    given, used = (next(each["agent"][0] for each in events if each["subtype"][0]["code"] == code)
                   for code in ("give-capability-urls", "RAD-107"))  # fmt: skip

    (token,) = given["policy"]
    assert re.fullmatch(r"urn:fhir-imaging:token:[0-9a-f]{16}", token)
    assert used["policy"][1:] == [token]
    assert re.fullmatch(r"urn:fhir-imaging:capability:[0-9a-f]{16}", used["policy"][0])
    assert used["who"] == given["who"]
    assert "fic_" not in repr(events)


def auditor(scene: Given) -> Caller:
    return scene.doors.caller(Right.AUDIT)


def test_no_log_line_has_it(scene, caplog):
    url, uid = scene.url("ct"), scene.studies["ct"]
    caplog.set_level(logging.INFO, logger="fhir_server.access_log")

    for path in (f"/studies/{uid}", "/studies/1.2.3", f"/studies/{uid}/nothing", f"/studies/{uid}/metadata?a=b"):
        answer = scene.doors.stranger.get(url + path)
        assert answer.status_code == 200 or url.rpartition("/")[2] not in answer.text
        answer.close()

    told = repr([vars(each) for each in caplog.records if not each.name.startswith("pymongo")])
    assert "/dicom-web/capability/<capability:secret>/studies/<uid:study_uid>" in told
    assert url.rpartition("/")[2] not in told
