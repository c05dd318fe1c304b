"""Many sign in at once: one password is looked at at a time, some wait, the rest comes again, and images go out."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any

import pytest
from argon2 import PasswordHasher
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.browser import PASSWORD, Browser
from tests.support.doors import Caller, Doors, new_study, opened

THREADS = 8
WAITING = THREADS // 2
CALLERS = 12


class Held:
    """Holds whoever looks at a password, until it is let go; counts how many do so at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go, self.has_begun = threading.Event(), threading.Event()
        self.at_work = self.most_at_work = 0
        verify = PasswordHasher.verify

        def held(hasher: PasswordHasher, known: str, password: str) -> bool:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            self.has_begun.set()
            assert self.let_go.wait(20)
            self.at_work -= 1
            return verify(hasher, known, password)

        monkeypatch.setattr(PasswordHasher, "verify", held)


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db, web__threads=str(THREADS)) as made:
        made.server.principals.add("radiology", [Right.RECEIVE_IMAGES])
        given = {"organization": made.server.principals.named("radiology"), "name": "Dr. Jones", "fhir_user": ""}
        made.server.sign_on.add_person("jones", role="practitioner", password=PASSWORD, **given)
        yield made


@pytest.fixture
def reader(doors: Doors) -> Caller:
    return doors.caller(Right.RECEIVE_IMAGES, name="radiology")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.let_go.set()


def test_storm_of_sign_ins_is_bounded_and_images_are_answered(doors: Doors, reader: Caller, held: Held) -> None:
    study, files = new_study()
    doors.ingest(*files)
    browsers = [Browser(doors.flask.application.test_client()) for _ in range(CALLERS)]
    pages = [browser.open("/auth/sign-in") for browser in browsers]

    with ThreadPoolExecutor(CALLERS) as crowd:
        asked = [
            crowd.submit(browser.submit, page, login="jones", password=PASSWORD)
            for browser, page in zip(browsers, pages, strict=True)
        ]
        turned_away = [each.result() for each in islice(as_completed(asked, timeout=20), CALLERS - WAITING)]
        assert held.has_begun.wait(20)
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        image = reader.get(f"/dicom-web/studies/{study}", headers=accept)
        late = browsers[0].submit(pages[0], login="jones", password=PASSWORD)
        held.let_go.set()
        let_in = [each.result() for each in asked if each.result() not in turned_away]

    assert image.status_code == 200
    assert {each.status_code for each in turned_away} == {503}
    assert all(int(each.headers["Retry-After"]) > 0 for each in (*turned_away, late))
    assert "too many people sign in" in late.text
    assert "frame-ancestors 'none'" in late.headers["Content-Security-Policy"]
    assert [each.status_code for each in let_in] == [200] * WAITING
    assert held.most_at_work == 1
    image.close()


def test_who_comes_again_later_is_let_in(doors: Doors) -> None:
    page = Browser(doors.flask.application.test_client()).sign_in("jones")

    assert page.status_code == 200
    assert "Dr. Jones" in page.text


def test_address_that_asks_too_often_is_told_when_to_come_again(module_db: Database[dict[str, Any]]) -> None:
    with opened(module_db, smart__requests_per_minute="2") as doors:
        browser = Browser(doors.flask.application.test_client())
        answers = [browser.sign_in("nobody", "wrong by a word") for _ in range(3)]

    assert [each.status_code for each in answers] == [401, 401, 429]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 61
