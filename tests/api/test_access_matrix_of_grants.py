"""Every door of the matrix with those who may see less: none tells them of what is not theirs, or changes it.

Who they are: a neighbour with every right to its own images, apps of the very subscriber with narrow tokens, a patient
and an operator. What each door needs is told by the matrix itself, so that a new route is tried here as well.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant, Role
from fhir_server.access.scopes import Scopes
from tests.api.test_access_matrix import DOORS, PATIENT, VALUE_SET, Door, Scene, hard_copy, names_of_new_study
from tests.support.doors import Caller, opened

EVERY = "patient/*.cruds user/*.cruds system/*.cruds"
# Grants of an app of the subscriber whose images they are; its contract has every right.
GRANTS = {
    "app of another patient": {"scopes": "patient/*.cruds", "patient": "Patient/{other}"},
    "another patient": {"scopes": EVERY, "patient": "Patient/{other}", "user": "Patient/{other}", "role": Role.PATIENT},
    "emergency of another patient": {
        "scopes": EVERY,
        "patient": "Patient/{other}",
        "user": "Practitioner/1",
        "role": Role.PRACTITIONER,
        "emergency": "f00d",
    },
    "app without a patient": {"scopes": "patient/*.cruds user/*.cruds openid launch/patient"},
    "app for something else": {"scopes": "system/Communication.cruds"},
    "operator": {"scopes": EVERY, "user": "Practitioner/1", "role": Role.OPERATOR},
    "nothing": {"scopes": ""},
}
KINDS = ["neighbour", *GRANTS]
OURS = ("{patient}", "{study}", "{order}", "{group}")
# Who is in the images of the scene: pydicom's CT_small.
SECRETS = (b"1CT1", b"CompressedSamples")


@pytest.fixture(scope="module")
def scene(module_db, tmp_path_factory) -> Iterator[Scene]:
    with opened(module_db, bulk__exports="1000") as doors:
        doors.server.principals.add("all", list(Right))
        names, file = names_of_new_study(doors)
        order = hard_copy(doors, names["study"], str(tmp_path_factory.mktemp("films")))
        owner = doors.server.principals.named("all")
        own = {name: doors.server.own.update({**resource, "id": str(uuid4())}, create=True, owner=owner).id
               for name, resource in (("group", {"resourceType": "Group", "type": "person", "actual": True}),
                                      ("patient", PATIENT), ("other", PATIENT))}  # fmt: skip
        valueset = doors.server.own.create(VALUE_SET).id
        yield Scene(doors, {**names, **own, "valueset": valueset, "order": order}, file)


@pytest.fixture(scope="module")
def callers(scene: Scene) -> dict[str, Caller]:
    doors, found = scene.doors, {}
    # Not the record: that is one for the whole server.
    doors.server.principals.add("neighbour", set(Right) - {Right.AUDIT}, is_own=True)
    found["neighbour"] = Caller(doors.flask, doors.server.principals.mint("neighbour"), doors.clock)
    (client,) = [each.clients[0] for each in doors.server.principals.subscribers() if each.name == "all"]
    for kind, given in GRANTS.items():
        filled = {name: it.format(**scene.names) if isinstance(it, str) else it for name, it in given.items()}
        grant = Grant(client, Scopes.parse(filled.pop("scopes")), doors.clock() + timedelta(days=1), **filled)
        found[kind] = Caller(doors.flask, doors.server.principals.issue(grant), doors.clock)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entrance", DOORS, ids=lambda each: f"{each.method} {each.path}")
def test_no_door_tells_of_what_is_not_theirs(scene: Scene, callers: dict[str, Caller], entrance: Door, kind: str):
    response = scene.come(callers[kind], entrance)

    assert not [each for each in SECRETS if each in response.data]
    if any(each in entrance.path for each in OURS) and entrance.method != "DELETE":
        is_empty = entrance.path.partition("_search")[0].rstrip("/").endswith("*") and not response.json.get("entry")
        assert is_empty or response.status_code in (400, 403, 404, 409), response.text
    elif entrance.send != "stow":  # who sent the images knows their UIDs
        sent = entrance.path.format_map(defaultdict(str, scene.names))
        ids = [scene.names[each] for each in ("study", "instance", "patient", "order")]
        assert not [each for each in ids if each in response.text.replace(sent, "")]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_and_what_is_not_theirs_look_alike(scene: Scene, callers: dict[str, Caller], kind: str):
    caller, nobody = callers[kind], {**scene.names, "study": "1.2.3", "patient": "nobody", "order": "nobody"}
    paths = [
        *("/fhir/Patient/{patient}", "/fhir/Patient/{patient}/_history", "/fhir/Patient/{patient}/_history/1"),
        *("/fhir/Patient/{patient}/$everything", "/fhir/Patient/{patient}/$meta", "/fhir/ImagingStudy/{study}"),
        *("/fhir/Task/{order}", "/dicom-web/studies/{study}", "/dicom-web/studies/{study}/metadata"),
        "/dicom-web/studies/{study}/series",
    ]

    for path in paths:
        there, nowhere = (caller.get(path.format(**names)) for names in (scene.names, nobody))
        assert there.status_code == nowhere.status_code, path
        assert [each["code"] for each in there.json["issue"]] == [each["code"] for each in nowhere.json["issue"]]
        assert set(there.headers.keys()) == set(nowhere.headers.keys())


def test_and_nothing_was_changed(scene: Scene):
    """Runs last: after every door was tried by all of them."""
    server = scene.doors.server

    assert server.own.read("Patient", scene.names["patient"]).version == 1
    assert server.own.read("Task", scene.names["order"]).version == 1
    assert len(server.archive.instances(scene.names["study"])) == 1
