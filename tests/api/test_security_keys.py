"""Security keys and passkeys as a second factor (WebAuthn), and who has to have a second factor."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.database import Database
from werkzeug.test import TestResponse

from fhir_server.access.contracts import Right
from fhir_server.access.people import MOST_KEYS
from fhir_server.access.security_keys import SecurityKeys
from imaging.errors import AppError, Category
from tests.support.authenticator import PRESENT, Authenticator
from tests.support.browser import PASSWORD, Browser
from tests.support.doors import Doors, opened

ORIGIN = "http://localhost:8000"


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db, web__base_url=ORIGIN, smart__second_factor_roles="operator,auditor") as made:
        made.server.principals.add("radiology", [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES])
        yield made


@pytest.fixture
def browser(doors: Doors) -> Browser:
    return another(doors)


@pytest.fixture
def login(doors: Doors, request: pytest.FixtureRequest) -> str:
    """Somebody new, with a password only."""
    return person(doors, re.sub(r"[^a-z0-9]", "-", request.node.name.lower())[:100])


def another(doors: Doors) -> Browser:
    doors.clock.forward(seconds=1)
    return Browser(doors.flask.application.test_client())


def person(doors: Doors, login: str, role: str = "practitioner") -> str:
    organization = doors.server.principals.named("radiology")
    given = {"name": "Dr. Key", "role": role, "fhir_user": "", "password": PASSWORD}
    doors.server.sign_on.add_person(login, organization=organization, **given)
    return login


def options(page: TestResponse) -> dict[str, Any]:
    """What the page hands to the browser."""
    return dict(json.loads(html.unescape(re.search(r'data-options="([^"]*)"', page.text)[1])))


def authenticator(**changes: Any) -> Authenticator:
    return Authenticator(**{"origin": ORIGIN, "rp_id": "localhost", **changes})


def add(browser: Browser, key: Authenticator, name: str = "", **client_data: Any) -> TestResponse:
    page = browser.open("/auth/keys")
    answer = key.create(options(page), **client_data)
    return browser.submit(page, "/auth/keys", answer=answer, name=name)


def with_key(browser: Browser, login: str, **changes: Any) -> Authenticator:
    """Sign somebody in who adds a key, and return it."""
    key = authenticator(**changes)
    browser.sign_in(login)
    add(browser, key, "Blue key")
    return key


def proving(browser: Browser, login: str, key: Authenticator, **client_data: Any) -> TestResponse:
    page = browser.sign_in(login)
    return browser.submit(page, "/auth/key", answer=key.get(options(page), **client_data))


def failures(doors: Doors) -> list[dict[str, Any]]:
    """What the record has of those who failed with a second factor, newest first."""
    auditor = doors.caller(Right.AUDIT, name="watch")
    found = auditor.get("/fhir/AuditEvent?outcome=8&subtype=110122&_sort=-date&_count=50").json
    return [each["resource"] for each in found.get("entry", [])]


class TestAdding:
    def test_key_is_added_and_then_asked_for(self, doors: Doors, browser: Browser, login: str) -> None:
        key = authenticator()
        browser.sign_in(login)
        shown = add(browser, key, "Blue key")

        assert len(re.findall(r"<li>([0-9a-f-]{13})</li>", shown.text)) == 8, "recovery codes, shown once"
        assert "Blue key" in browser.open("/auth/keys").text
        later = another(doors)
        page = later.sign_in(login)
        assert "Sign in" in later.open("/auth/").text, "half a sign-in opens nothing"
        assert "Your account" in later.submit(page, "/auth/key", answer=key.get(options(page))).text
        kept = doors.server.sign_on.people.find(login).keys[0]
        assert (kept.name, kept.counter) == ("Blue key", 2)
        assert kept.used is not None

    def test_browser_is_asked_for_a_key_of_this_server_with_a_name_that_tells_nobody(
        self, browser: Browser, login: str
    ) -> None:
        browser.sign_in(login)
        page = browser.open("/auth/keys")
        asked = options(page)

        assert asked["rp"]["id"] == "localhost"
        assert asked["attestation"] == "none"
        assert len(asked["challenge"]) >= 22, "16 bytes or more: WebAuthn Level 2, 13.4.3"
        assert login not in asked["user"]["id"]
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        assert "<script>" not in page.text
        assert "onclick" not in page.text

    def test_recovery_code_and_authenticator_app_work_beside_it(
        self, doors: Doors, browser: Browser, login: str
    ) -> None:
        browser.sign_in(login)
        codes = re.findall(r"<li>([0-9a-f-]{13})</li>", add(browser, authenticator()).text)

        later = another(doors)
        assert "Your account" in later.submit(later.sign_in(login), "/auth/code", code=codes[0]).text
        third = another(doors)
        page = third.sign_in(login)
        assert "wrong" in third.submit(page, "/auth/code", code=codes[0]).text
        assert "wrong" in third.submit(page, "/auth/code", code="328482").text, "RFC 4226 of an empty secret, count 0"

    def test_same_key_is_added_once_by_one_person(self, doors: Doors, browser: Browser, login: str) -> None:
        key = with_key(browser, login)

        assert "registered already" in add(browser, key, "Again").text
        other = another(doors)
        other.sign_in(person(doors, f"{login}-2"))
        assert "registered already" in add(other, key).text
        assert [each["id"] for each in options(browser.open("/auth/keys"))["excludeCredentials"]]

    @pytest.mark.parametrize(
        ("changes", "client_data"),
        [
            ({}, {"origin": "http://localhost:8001"}),
            ({}, {"origin": "https://evil.example.org"}),
            ({}, {"type": "webauthn.get"}),
            ({}, {"challenge": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
            ({"rp_id": "evil.example.org"}, {}),
            ({"flags": 0}, {}),
            ({"algorithm": b"\x39\xff\xfe"}, {}),  # RS1, -65535
            ({"id": b""}, {}),
            ({"id": b"x" * 1024}, {}),
        ],
        ids=["port", "origin", "type", "challenge", "relying party", "nobody there", "SHA-1", "no id", "long id"],
    )
    def test_answer_that_is_not_right_adds_nothing(
        self, doors: Doors, browser: Browser, login: str, changes: dict[str, Any], client_data: dict[str, Any]
    ) -> None:
        browser.sign_in(login)

        refused = add(browser, authenticator(**changes), **client_data)

        assert refused.status_code == 400
        assert "Nothing was changed" in refused.text
        assert doors.server.sign_on.people.find(login).keys == ()

    def test_challenge_is_good_once_for_a_while_and_in_one_browser(
        self, doors: Doors, browser: Browser, login: str
    ) -> None:
        browser.sign_in(login)
        page = browser.open("/auth/keys")
        late = authenticator().create(options(page))
        doors.clock.forward(seconds=299)
        other = another(doors)
        other.sign_in(login)
        theirs = other.open("/auth/keys")

        assert "Nothing was changed" in other.submit(theirs, "/auth/keys", answer=late).text, "of another browser"
        doors.clock.forward(seconds=2)
        assert "prove again" in browser.submit(page, "/auth/keys", answer=late).text, "the sign-in is old as well"
        assert doors.server.sign_on.people.find(login).keys == ()

    def test_names_and_numbers_have_bounds(self, doors: Doors, browser: Browser, login: str) -> None:
        browser.sign_in(login)

        assert "60 characters" in add(browser, authenticator(), "x" * 61).text
        assert "60 characters" in add(browser, authenticator(), "a\u202eb").text
        for _ in range(MOST_KEYS):
            add(browser, authenticator())
        assert "at most 10 keys" in browser.open("/auth/keys").text
        assert "this name" not in browser.open("/auth/keys").text
        assert len({each.name for each in doors.server.sign_on.people.find(login).keys}) == MOST_KEYS

    def test_old_session_has_to_prove_again_that_it_is_its_owner(
        self, doors: Doors, browser: Browser, login: str
    ) -> None:
        with_key(browser, login)
        doors.clock.forward(minutes=5, seconds=1)

        assert "prove again" in browser.open("/auth/keys").text
        assert "prove again" in browser.open("/auth/second-factor").text
        assert "Your account" in browser.open("/auth/").text

    def test_page_of_another_site_changes_nothing(self, doors: Doors, browser: Browser, login: str) -> None:
        with_key(browser, login)
        kept = doors.server.sign_on.people.find(login).keys[0]

        for path, data in (("/auth/remove-key", {"key": kept.id}), ("/auth/remove-code", {})):
            assert browser.flask.post(path, data=data, base_url="http://images.test").status_code == 403
        assert doors.server.sign_on.people.find(login).keys == (kept,)


class TestSigningIn:
    @pytest.mark.parametrize(
        ("changes", "client_data"),
        [
            ({"origin": "https://localhost:8000"}, {}),
            ({"origin": "http://localhost.evil.example.org:8000"}, {}),
            ({"rp_id": "evil.example.org"}, {}),
            ({"flags": 0}, {}),
            ({}, {"type": "webauthn.create"}),
            ({}, {"challenge": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
            ({"id": b"unknown"}, {}),
            ({"handle": b"somebody else"}, {}),
        ],
        ids=["scheme", "host", "relying party", "nobody there", "type", "challenge", "unknown key", "handle"],
    )
    def test_answer_that_is_not_right_lets_nobody_in(
        self, doors: Doors, browser: Browser, login: str, changes: dict[str, Any], client_data: dict[str, Any]
    ) -> None:
        key = with_key(browser, login)
        vars(key).update(changes)

        refused = proving(another(doors), login, key, **client_data)

        assert refused.status_code == 401
        assert "You are not signed in" in refused.text

    def test_key_of_somebody_else_lets_nobody_in(self, doors: Doors, browser: Browser, login: str) -> None:
        with_key(browser, login)
        theirs = with_key(another(doors), person(doors, f"{login}-2"))

        assert proving(another(doors), login, theirs).status_code == 401

    def test_answer_is_good_once_even_with_the_cookie_of_then(self, doors: Doors, browser: Browser, login: str) -> None:
        key = with_key(browser, login, counts=False)
        later = another(doors)
        page = later.sign_in(login)
        answer = key.get(options(page))
        cookie = later.flask.get_cookie("session", domain="images.test").value
        assert "Your account" in later.submit(page, "/auth/key", answer=answer).text

        thief = another(doors)
        thief.flask.set_cookie("session", cookie, domain="images.test")
        again = thief.submit(page, "/auth/key", answer=answer)

        assert again.status_code == 401
        assert "sent twice" in again.text

    def test_challenge_ends_after_five_minutes(self, doors: Doors, browser: Browser, login: str) -> None:
        key = with_key(browser, login)
        later = another(doors)
        page = later.sign_in(login)
        answer = key.get(options(page))
        doors.clock.forward(minutes=5, seconds=1)

        assert "Your account" not in later.submit(page, "/auth/key", answer=answer).text

    def test_key_that_counts_back_is_refused_and_the_record_names_whose_it_is(
        self, doors: Doors, browser: Browser, login: str
    ) -> None:
        """WebAuthn Level 2, 6.1.1: a counter that does not go on is a sign of a copy."""
        key = with_key(browser, login)
        key.counter = 50
        assert "Your account" in proving(another(doors), login, key).text
        key.counter = 20

        refused = proving(another(doors), login, key)

        assert refused.status_code == 401
        assert "there may be a copy" in refused.text
        event = failures(doors)[0]
        assert event["agent"][0]["altId"] == login
        assert "counter" in event["outcomeDesc"]
        key.counter = 51  # the honest key goes on
        assert "Your account" in proving(another(doors), login, key).text

    def test_key_that_does_not_count_is_taken_and_one_that_counted_must_not_stop(
        self, doors: Doors, browser: Browser, login: str
    ) -> None:
        key = with_key(browser, login, counts=False)
        for _ in range(2):
            assert "Your account" in proving(another(doors), login, key).text
        key.counter = 5
        assert "Your account" in proving(another(doors), login, key).text
        key.counter = 0

        assert proving(another(doors), login, key).status_code == 401

    def test_keys_cannot_be_tried_out(self, doors: Doors, browser: Browser, login: str) -> None:
        key = with_key(browser, login)
        later = another(doors)
        page = later.sign_in(login)
        for _ in range(5):
            page = later.submit(page, "/auth/key", answer="{}")

        assert "too often" in later.submit(page, "/auth/key", answer=key.get(options(page))).text

    def test_answer_is_bounded(self, doors: Doors, browser: Browser, login: str) -> None:
        key = with_key(browser, login)
        later = another(doors)
        page = later.sign_in(login)
        answer = key.get(options(page))

        assert later.submit(page, "/auth/key", answer=answer + " " * 16_000).status_code == 401


class TestRemoving:
    def test_key_is_removed_and_with_the_last_one_the_recovery_codes(
        self, doors: Doors, browser: Browser, login: str
    ) -> None:
        with_key(browser, login)
        browser.submit(browser.open("/auth/keys"), "/auth/remove-key")

        left = doors.server.sign_on.people.find(login)
        assert (left.keys, left.recovery_codes) == ((), ())
        assert "Your account" in another(doors).sign_in(login).text

    def test_operator_takes_a_lost_factor_away(self, doors: Doors, browser: Browser, login: str) -> None:
        with_key(browser, login)
        doors.server.sign_on.people.forget_second_factor(login)

        assert "Your account" in another(doors).sign_in(login).text

    def test_record_tells_of_what_changed(self, doors: Doors, browser: Browser, login: str) -> None:
        with_key(browser, login)
        browser.submit(browser.open("/auth/keys"), "/auth/remove-key")
        auditor = doors.caller(Right.AUDIT, name="watch")

        events = auditor.get("/fhir/AuditEvent?subtype=110137&_sort=-date&_count=2").json["entry"]

        assert {each["resource"]["outcomeDesc"] for each in events} == {"key removed", "key added"}
        assert {each["resource"]["agent"][0]["altId"] for each in events} == {login}


class TestRolesThatNeedOne:
    def test_operator_sets_one_up_before_the_first_session(self, doors: Doors, browser: Browser) -> None:
        login = person(doors, "new-operator", "operator")
        page = browser.sign_in(login)
        assert "Your role needs one" in page.text
        assert "Sign in" in browser.open("/auth/").text, "no session yet"

        key = authenticator()
        assert "set up" in add(browser, key).text

        assert "Your account" in browser.open("/auth/").text
        assert "Your account" in proving(another(doors), login, key).text

    def test_last_factor_stays(self, doors: Doors, browser: Browser) -> None:
        login = person(doors, "last-operator", "operator")
        browser.sign_in(login)
        add(browser, authenticator())
        refused = browser.submit(browser.open("/auth/keys"), "/auth/remove-key")

        assert "your role needs a second factor" in refused.text
        assert doors.server.sign_on.people.find(login).keys

    def test_session_without_one_is_none_any_more(self, doors: Doors) -> None:
        """As after the setting was changed."""
        login = person(doors, "old-auditor", "auditor")
        sign_in = doors.server.sign_on.sign_in
        somebody = doors.server.sign_on.people.find(login)

        assert sign_in.of_browser(sign_in.begin(somebody, "", factor="")) is None
        assert sign_in.of_browser(sign_in.begin(somebody, "", factor="key")) is not None

    def test_who_has_one_sets_none_up_with_the_password_alone(self, doors: Doors, browser: Browser) -> None:
        login = person(doors, "careful-operator", "operator")
        browser.sign_in(login)
        add(browser, authenticator())
        thief = another(doors)
        thief.sign_in(login)

        assert "Sign in" in thief.open("/auth/keys").text
        assert "Sign in" in thief.open("/auth/second-factor").text


def keys_at(base_url: str, verification: str = "preferred") -> SecurityKeys:
    return SecurityKeys(
        None, Tickets(), base_url=base_url, user_verification=verification, handle_key=b"k" * 32, clock=None
    )


class Tickets:
    """Takes every challenge for a good one."""


@pytest.mark.parametrize(
    ("base_url", "is_possible"),
    [
        ("https://images.example.org", True),
        ("https://images.example.org:8443", True),
        ("http://localhost:8000", True),
        ("http://images.example.org", False),
        ("https://192.0.2.7", False),
        ("http://127.0.0.1:8000", False),
        ("https://[2001:db8::1]", False),
    ],
)
def test_keys_work_where_browsers_allow_them(base_url: str, is_possible: bool) -> None:
    """WebAuthn Level 2, 5.1.3 step 7: the effective domain is a domain. Secure Contexts: https or localhost."""
    assert keys_at(base_url).is_possible is is_possible


def test_where_a_key_has_to_know_its_owner_presence_is_not_enough(db: Database[dict[str, Any]]) -> None:
    with opened(db, web__base_url=ORIGIN, smart__user_verification="required") as doors:
        doors.server.principals.add("radiology", [Right.RECEIVE_IMAGES])
        browser, login = another(doors), person(doors, "ann")
        browser.sign_in(login)
        page = add(browser, authenticator(flags=PRESENT))
        assert page.status_code == 400
        key = authenticator()
        add(browser, key)
        key.flags = PRESENT

        assert proving(another(doors), login, key).status_code == 401


@given(st.binary(max_size=300), st.booleans())
def test_no_answer_of_whatever_kind_is_a_fault(noise: bytes, is_object: bool) -> None:
    """What is no answer is refused as such, however it is broken."""
    answer = Authenticator(ORIGIN, "localhost").create({"user": {"id": ""}, "challenge": "AAAA"})
    whole = json.loads(answer)
    if is_object:
        whole["response"]["attestationObject"] = Authenticator("", "")._answer(x=noise)
    broken = json.dumps(whole) if is_object else noise.decode("latin-1")

    with pytest.raises(AppError) as caught:
        keys_at(ORIGIN)._made("AAAA", broken)
    assert caught.value.category is Category.INVALID
