"""What must not work at the authorization server. Source: RFC 9700, RFC 6819; SMART App Launch 2.2."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.browser import CALLBACK, PASSWORD, Browser, TestApp, answer, forms, registered
from tests.support.doors import BASE_URL, Caller, Doors, opened

SCOPE = "launch openid fhirUser offline_access patient/*.rs user/*.rs"


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        made.server.principals.add("radiology", [Right.RECEIVE_IMAGES])
        made.server.principals.add("elsewhere", [Right.RECEIVE_IMAGES])
        for login, subscriber in (("jones", "radiology"), ("smith", "elsewhere")):
            made.server.sign_on.add_person(
                login,
                organization=made.server.principals.named(subscriber),
                name=login,
                role="practitioner",
                fhir_user="",
                password=PASSWORD,
            )
        yield made


@pytest.fixture(scope="module")
def app(doors: Doors) -> TestApp:
    return registered(doors, "radiology", SCOPE)


@pytest.fixture(scope="module")
def browser(doors: Doors) -> Browser:
    """One browser in which Dr. Jones is signed in."""
    made = Browser(doors.flask.application.test_client())
    made.sign_in("jones")
    return made


def code_of(browser: Browser, app: TestApp, scope: str = "user/*.rs", **changes: str) -> str:
    page = browser.open(app.request(scope, **changes))
    return answer(browser.submit(page, "/auth/decision", decision="allow"))["code"]


class TestCodes:
    def test_code_that_comes_twice_ends_what_it_gave(self, browser: Browser, app: TestApp, doors: Doors) -> None:
        code = code_of(browser, app, "offline_access user/*.rs")
        token = app.redeem(code).json

        again = app.redeem(code)

        assert (again.status_code, again.json["error"]) == (400, "invalid_grant")
        caller = Caller(doors.flask, token["access_token"], doors.clock)
        assert caller.get("/fhir/ImagingStudy").status_code == 401
        assert app.refresh(token["refresh_token"]).json["error"] == "invalid_grant"

    def test_code_of_another_client_is_no_good_and_is_over(self, browser: Browser, app: TestApp, doors: Doors) -> None:
        thief = registered(doors, "radiology", SCOPE)
        code = code_of(browser, app)

        assert thief.redeem(code, code_verifier=app.verifier).json["error"] == "invalid_grant"
        assert app.redeem(code).json["error"] == "invalid_grant"

    def test_code_ends_after_a_minute(self, browser: Browser, app: TestApp, doors: Doors) -> None:
        code = code_of(browser, app)
        doors.clock.forward(seconds=61)

        assert app.redeem(code).json["error"] == "invalid_grant"

    @pytest.mark.parametrize("redirect", ["", CALLBACK + "/", "https://evil.example.org/"])
    def test_redirect_has_to_be_the_one_of_the_request(self, browser: Browser, app: TestApp, redirect: str) -> None:
        assert app.redeem(code_of(browser, app), redirect_uri=redirect).json["error"] == "invalid_grant"


class TestPkce:
    """PKCE downgrade: RFC 9700 4.8."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"code_challenge": ""},
            {"code_challenge_method": ""},
            {"code_challenge_method": "plain"},
            {"code_challenge": "short"},
            {"code_challenge": "x" * 43 + "="},
        ],
    )
    def test_request_without_s256_is_refused(self, browser: Browser, app: TestApp, changes: dict[str, str]) -> None:
        assert answer(browser.open(app.request("user/*.rs", **changes)))["error"] == "invalid_request"

    def test_confidential_client_needs_it_too(self, browser: Browser, doors: Doors) -> None:
        app = registered(doors, "radiology", SCOPE, method="client_secret_basic")

        assert answer(browser.open(app.request("user/*.rs", code_challenge="")))["error"] == "invalid_request"
        assert app.redeem(code_of(browser, app), code_verifier="").json["error"] == "invalid_grant"

    def test_wrong_verifier_is_refused(self, browser: Browser, app: TestApp) -> None:
        assert app.redeem(code_of(browser, app), code_verifier="v" * 43).json["error"] == "invalid_grant"

    def test_challenge_is_no_verifier(self, browser: Browser, app: TestApp) -> None:
        code = code_of(browser, app)
        digest = hashlib.sha256(app.verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

        assert app.redeem(code, code_verifier=challenge).json["error"] == "invalid_grant"


class TestRedirects:
    @pytest.mark.parametrize(
        "uri",
        [
            "https://evil.example.org/callback",
            f"{CALLBACK}?next=x",
            f"{CALLBACK}/../evil",
            f"{CALLBACK}#fragment",
            CALLBACK.upper(),
            "https://app.example.org@evil.example.org/callback",
            "https://app.example.org.evil.example.org/callback",
            "javascript:alert(1)",
            "",
        ],
    )
    def test_nobody_is_sent_to_an_address_that_is_not_registered(
        self, browser: Browser, app: TestApp, uri: str
    ) -> None:
        shown = browser.open(app.request("user/*.rs", redirect_uri=uri))

        assert shown.status_code == 400
        assert "Location" not in shown.headers
        assert "cannot be let in" in shown.text

    def test_unknown_app_sends_nobody_anywhere(self, browser: Browser, app: TestApp) -> None:
        shown = browser.open(app.request("user/*.rs", client_id="app-unknown"))

        assert shown.status_code == 400
        assert "Location" not in shown.headers

    @pytest.mark.parametrize("wanted", ["https://evil.example.org/", "//evil.example.org/", "/\\evil.example.org", "x"])
    def test_signing_in_leads_nowhere_else(self, doors: Doors, wanted: str) -> None:
        browser = Browser(doors.flask.application.test_client())
        page = browser.open("/auth/sign-in")
        form = forms(page)[0]
        values = {**form.values, "login": "jones", "password": PASSWORD, "next": wanted}
        left = browser.flask.post("/auth/sign-in", data=values, base_url=BASE_URL)

        assert left.location == "/auth/"


class TestRequests:
    @pytest.mark.parametrize("name", ["state", "aud", "scope"])
    def test_what_protects_the_app_has_to_be_there(self, browser: Browser, app: TestApp, name: str) -> None:
        changes = {name: ""} if name != "scope" else {}
        left = answer(browser.open(app.request("user/*.rs" if name != "scope" else "", **changes)))

        assert left["error"] == ("invalid_scope" if name == "scope" else "invalid_request")
        assert left["iss"] == BASE_URL

    def test_token_is_for_this_server_and_no_other(self, browser: Browser, app: TestApp) -> None:
        left = answer(browser.open(app.request("user/*.rs", aud="https://other.example.org/fhir")))

        assert left["error"] == "invalid_request"

    @pytest.mark.parametrize("name", ["client_id", "redirect_uri", "scope", "state", "response_type"])
    def test_parameter_given_twice_is_refused(self, browser: Browser, app: TestApp, name: str) -> None:
        shown = browser.open(app.request("user/*.rs") + f"&{name}=x")

        assert shown.status_code == 400

    @pytest.mark.parametrize("kind", ["token", "id_token", "code token", "none"])
    def test_implicit_answers_are_not_given(self, browser: Browser, app: TestApp, kind: str) -> None:
        left = browser.open(app.request("user/*.rs", response_type=kind))

        assert "access_token" not in left.headers.get("Location", "")
        assert "unsupported_response_type" in left.headers.get("Location", "") or left.status_code == 400

    def test_request_objects_are_not_fetched(self, browser: Browser, app: TestApp) -> None:
        left = answer(browser.open(app.request("user/*.rs", request_uri="http://169.254.169.254/")))

        assert left["error"] == "invalid_request"

    def test_huge_request_is_refused(self, browser: Browser, app: TestApp) -> None:
        assert browser.open(app.request("user/*.rs", state="s" * 13_000)).status_code == 413

    def test_password_grant_does_not_exist(self, doors: Doors, app: TestApp) -> None:
        refused = app.token(grant_type="password", username="jones", password=PASSWORD)

        assert refused.json["error"] == "unsupported_grant_type"

    def test_scope_beyond_what_was_registered_is_left_out(self, browser: Browser, app: TestApp) -> None:
        code = code_of(browser, app, "user/*.cruds system/*.cruds")

        assert app.redeem(code).json["scope"] == "user/*.rs"

    def test_person_cannot_agree_to_more_than_is_shown(self, browser: Browser, app: TestApp) -> None:
        page = browser.open(app.request("user/ImagingStudy.rs"))
        agreed = ["user/ImagingStudy.rs", "user/*.cruds", "system/*.rs"]
        left = answer(browser.submit(page, "/auth/decision", decision="allow", agreed=agreed))

        assert app.redeem(left["code"]).json["scope"] == "user/ImagingStudy.rs"


class TestPages:
    def test_consent_needs_a_form_that_was_shown(self, browser: Browser, app: TestApp) -> None:
        """CSRF on consent."""
        page = browser.open(app.request("user/*.rs"))
        form = next(each for each in forms(page) if "/auth/decision" in each.action)
        forged = {**form.values, "decision": "allow", "csrf_token": "forged"}

        refused = browser.flask.post(form.action, data=forged, base_url=BASE_URL)

        assert refused.status_code == 403

    @pytest.mark.parametrize(
        "path", ["/auth/sign-in", "/auth/code", "/auth/sign-out", "/auth/sessions", "/auth/start", "/auth/patient"]
    )
    def test_every_form_is_protected(self, browser: Browser, path: str) -> None:
        assert browser.flask.post(path, data={"x": "y"}, base_url=BASE_URL).status_code == 403

    def test_session_is_new_after_signing_in(self, doors: Doors) -> None:
        """Session fixation."""
        browser = Browser(doors.flask.application.test_client())
        browser.open("/auth/sign-in")
        before = browser.flask.get_cookie("session", domain="images.test").value
        browser.sign_in("jones")
        after = browser.flask.get_cookie("session", domain="images.test")

        assert after.value != before
        assert after.http_only
        assert after.same_site == "Lax"
        planted = Browser(doors.flask.application.test_client())
        planted.flask.set_cookie("session", before, domain="images.test")
        assert "Sign in" in planted.open("/auth/").text

    def test_person_of_another_subscriber_is_turned_away(self, doors: Doors, app: TestApp) -> None:
        browser = Browser(doors.flask.application.test_client())
        browser.sign_in("smith")

        assert answer(browser.open(app.request("user/*.rs")))["error"] == "access_denied"

    def test_silent_request_is_never_answered_with_a_page(self, doors: Doors, browser: Browser, app: TestApp) -> None:
        stranger = Browser(doors.flask.application.test_client())

        assert answer(stranger.open(app.request("user/*.rs", prompt="none")))["error"] == "login_required"
        assert answer(browser.open(app.request("user/*.rs", prompt="none")))["error"] == "consent_required"

    def test_what_an_app_calls_itself_is_text(self, doors: Doors, browser: Browser) -> None:
        app = registered(doors, "radiology", SCOPE, name="<script>alert(1)</script>")

        assert "<script>" not in browser.open(app.request("user/*.rs")).text

    def test_failures_to_sign_in_leave_a_record_without_the_login(self, doors: Doors) -> None:
        Browser(doors.flask.application.test_client()).sign_in("jones.typo", "not the password")
        auditor = doors.caller(Right.AUDIT, name="auditor")
        found = auditor.get("/fhir/AuditEvent", query_string={"type": "110114", "outcome": "8"}).json

        event = found["entry"][0]["resource"]
        assert event["outcome"] == "8"
        assert "jones.typo" not in str(event)


class TestRegistrationIsOff:
    def test_nothing_is_there(self, doors: Doors) -> None:
        refused = doors.caller(Right.RECEIVE_IMAGES).post("/auth/register", {"client_name": "x"})

        assert refused.status_code == 404
        assert "registration_endpoint" not in doors.stranger.get("/fhir/.well-known/smart-configuration").json


@pytest.mark.parametrize(
    ("address", "header"), [("https://images.test", "max-age=31536000; includeSubDomains"), (BASE_URL, None)]
)
def test_who_came_by_tls_is_told_to_stay_with_it(
    db: Database[dict[str, Any]], address: str, header: str | None
) -> None:
    with opened(db, web__base_url=address) as doors:
        cookie = doors.stranger.get("/auth/sign-in").headers["Set-Cookie"]
        for path in ("/fhir/metadata", "/fhir/Patient", "/auth/sign-in", "/nowhere"):
            assert doors.stranger.get(path).headers.get("Strict-Transport-Security") == header

        assert ("Secure" in cookie) is (header is not None)
        assert cookie.startswith("__Host-") is (header is not None)


def test_network_address_that_tries_too_often_waits_and_images_go_on(db: Database[dict[str, Any]]) -> None:
    with opened(db, smart__requests_per_minute="3") as doors:
        tried = [doors.stranger.post("/auth/token", data={"grant_type": "x"}) for _ in range(4)]
        reader = doors.caller(Right.RECEIVE_IMAGES)

        assert [each.status_code for each in tried] == [400, 400, 400, 429]
        assert 0 < int(tried[-1].headers["Retry-After"]) <= 61
        assert reader.get("/dicom-web/studies").status_code < 300
        assert doors.stranger.get("/auth/sign-in").status_code == 200
