"""Tokens of an authorization server that is another process: Authlib's. Expected values: RFC 7662, RFC 7009."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from fhir_server.access.contracts import Right
from tests.api.test_foreign_tokens import EHR, SYSTEM, filled
from tests.support.doors import Caller, Doors, opened
from tests.support.issuer import Issuer, issuing

SCOPE = "patient/ImagingStudy.rs"


@dataclass(frozen=True)
class Scene:
    doors: Doors
    issuer: Issuer
    studies: dict[str, str]

    def status(self, token: str, *, at: str = "192.0.2.1") -> int:
        caller = Caller(self.doors.flask, token, self.doors.clock)
        return caller.get("/fhir/ImagingStudy", environ_base={"REMOTE_ADDR": at}).status_code

    def token(self, **claims: str) -> str:
        return self.issuer.token(**{"patient": "E1", "scope": SCOPE, **claims})


@pytest.fixture(scope="module")
def scene(module_db) -> Iterator[Scene]:
    with issuing() as issuer:
        settings = {
            "issuer__url": EHR, "issuer__subscriber": "ehr", "issuer__patient_system": SYSTEM,
            "issuer__introspection_url": f"{issuer.address}/introspect", "issuer__client_id": "images",
            "issuer__client_secret": "secret", "outbound__private_networks": "127.0.0.0/8",
        }  # fmt: skip
        with opened(module_db, **settings) as doors:
            yield Scene(doors, issuer, filled(doors))


def test_a_token_of_the_issuer_opens_the_images_until_it_is_withdrawn_there(scene: Scene) -> None:
    token = scene.token()
    caller = Caller(scene.doors.flask, token, scene.doors.clock)
    before = caller.get(f"/dicom-web/studies/{scene.studies['E1']}/metadata").status_code

    scene.issuer.revoke(token)
    scene.doors.clock.forward(seconds=1)

    assert before == 200
    assert caller.get(f"/dicom-web/studies/{scene.studies['E1']}/metadata").status_code == 401


def test_a_capability_url_ends_with_the_token_of_the_issuer(scene: Scene) -> None:
    rights = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.RECEIVE_BY_URL]
    scene.doors.server.principals.add("ehr", rights)
    token = scene.token()
    path = "/fhir/ImagingStudy?_include=ImagingStudy:endpoint"
    found = Caller(scene.doors.flask, token, scene.doors.clock).get(path).json
    url = found["entry"][1]["resource"]["address"].removeprefix("http://images.test")
    before = scene.doors.stranger.get(f"{url}/studies/{scene.studies['E1']}/metadata").status_code

    scene.issuer.revoke(token)
    scene.doors.clock.forward(seconds=1)

    assert before == 200
    assert scene.doors.stranger.get(f"{url}/studies/{scene.studies['E1']}/metadata").status_code == 401


def test_what_the_issuer_refused_it_is_not_asked_again(scene: Scene) -> None:
    elsewhere = scene.token(aud="https://another.example.org/fhir")
    before = scene.issuer.asked()

    found = {scene.status(each, at="192.0.2.2") for each in ["nonsense", elsewhere] for _ in range(5)}

    assert found == {401}
    assert scene.issuer.asked() - before == 2


def test_nonsense_does_not_make_this_server_ask_and_ask(scene: Scene) -> None:
    known, before = scene.token(), scene.issuer.asked()
    assert scene.status(known, at="192.0.2.3") == 200
    scene.doors.clock.forward(seconds=1)

    found = [scene.status(uuid4().hex, at="192.0.2.3") for _ in range(60)]

    assert found[0] == 401
    assert found[-1] == 503
    assert scene.issuer.asked() - before <= 50  # 30 at once, one every two seconds, and the good one
    assert scene.status(known, at="192.0.2.3") == 200  # was good before
    assert scene.status(scene.token(), at="192.0.2.4") == 200  # comes from elsewhere


def test_good_tokens_use_nothing_up(scene: Scene) -> None:
    assert {scene.status(scene.token(), at="192.0.2.5") for _ in range(40)} == {200}
