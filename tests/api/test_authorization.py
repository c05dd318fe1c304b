"""SMART App Launch: from discovery to tokens, through the pages that a person sees."""

import json
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import pyotp
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.browser import PASSWORD, Browser, TestApp, answer, proof, registered
from tests.support.doors import BASE_URL, FHIR, Caller, Doors, new_study, opened

SCOPE = "launch openid fhirUser offline_access online_access patient/*.rs user/*.rs launch/patient"


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db, smart__registration="subscribers") as made:
        rights = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES]
        made.server.principals.add("radiology", rights)
        made.server.principals.add("elsewhere", rights)
        yield made


@pytest.fixture(scope="module")
def ehr(doors: Doors) -> Caller:
    return Caller(doors.flask, doors.server.principals.mint("radiology"), doors.clock)


@pytest.fixture(scope="module")
def patient(ehr: Caller) -> str:
    made = ehr.post("/fhir/Patient", {"resourceType": "Patient", "name": [{"family": "Roe", "given": ["Ann"]}]})
    return str(made.json["id"])


@pytest.fixture(scope="module", autouse=True)
def people(doors: Doors, patient: str) -> None:
    organization = doors.server.principals.named("radiology")
    shared = {"organization": organization, "password": PASSWORD}
    doors.server.sign_on.add_person("jones", name="Dr. Jones", role="practitioner", fhir_user="", **shared)
    doors.server.sign_on.add_person("ann", name="Ann", role="patient", fhir_user=f"Patient/{patient}", **shared)


@pytest.fixture
def browser(doors: Doors) -> Browser:
    doors.clock.forward(seconds=1)
    return Browser(doors.flask.application.test_client())


@pytest.fixture(scope="module")
def app(doors: Doors) -> TestApp:
    return registered(doors, "radiology", SCOPE, launch_uri="https://app.example.org/launch")


class TestDiscovery:
    def test_configuration_names_the_addresses_and_what_is_supported(self, doors: Doors) -> None:
        found = doors.stranger.get("/fhir/.well-known/smart-configuration", headers={"Accept": "text/html"})

        assert found.mimetype == "application/json"
        assert found.headers["Access-Control-Allow-Origin"] == "*"
        assert found.json["token_endpoint"] == f"{BASE_URL}/auth/token"
        assert found.json["code_challenge_methods_supported"] == ["S256"]
        assert {"launch-ehr", "launch-standalone", "smart-imaging-access"} <= set(found.json["capabilities"])

    def test_statement_has_the_oauth_uris(self, doors: Doors) -> None:
        statement = doors.stranger.get("/fhir/metadata").json

        extension = statement["rest"][0]["security"]["extension"][0]
        assert extension["url"].endswith("oauth-uris")
        assert {"url": "token", "valueUri": f"{BASE_URL}/auth/token"} in extension["extension"]
        assert statement["rest"][0]["security"]["service"][0]["coding"][0]["code"] == "SMART-on-FHIR"

    def test_page_of_an_app_may_call_from_its_origin_and_no_other(self, doors: Doors, app: TestApp) -> None:
        assert app.app.origins == ("https://app.example.org",)

        for call in (doors.stranger.get, doors.stranger.post):
            for path in ("/fhir/Patient", "/auth/token"):
                mine = call(path, headers={"Origin": "https://app.example.org"})
                other = call(path, headers={"Origin": "https://evil.example.org"})
                assert mine.headers["Access-Control-Allow-Origin"] == "https://app.example.org"
                assert "Access-Control-Allow-Origin" not in other.headers
        public = doors.stranger.get("/fhir/metadata", headers={"Origin": "https://evil.example.org"})
        assert public.headers["Access-Control-Allow-Origin"] == "https://evil.example.org"


class TestStandaloneLaunch:
    def test_patients_of_one_name_are_told_apart_by_birth_and_number(
        self, browser: Browser, app: TestApp, ehr: Caller
    ) -> None:
        for number, born in (("4711", "1970-01-01"), ("4712", "1980-01-01")):
            ehr.post(
                "/fhir/Patient",
                {
                    "resourceType": "Patient",
                    "name": [{"family": "Smith", "given": ["John"]}],
                    "identifier": [{"value": number}],
                    "birthDate": born,
                },
            )

        page = browser.open(app.request("launch/patient patient/*.rs"))
        page = browser.submit(page, login="jones", password=PASSWORD)

        words = " ".join(page.text.split())
        assert "John Smith, born 1970-01-01, number 4711<" in words
        assert "John Smith, born 1980-01-01, number 4712<" in words

    def test_a_patient_whose_images_have_just_come_can_be_picked(self, doors, app, browser):
        _, files = new_study(PatientName="Just^Arrived", PatientID="just-arrived")
        principals = doors.server.principals
        list(doors.server.studies.ingest(files, principals.authenticate(principals.mint("radiology"))))

        page = browser.open(app.request("launch/patient patient/*.rs"))
        page = browser.submit(page, login="jones", password=PASSWORD)

        assert "Arrived" in page.text

    def test_practitioner_signs_in_picks_a_patient_and_agrees(
        self, browser: Browser, app: TestApp, patient: str, doors: Doors
    ) -> None:
        page = browser.open(app.request("openid fhirUser launch/patient patient/*.rs", nonce="n-1"))
        page = browser.submit(page, login="jones", password=PASSWORD)
        assert "Which patient?" in page.text
        page = browser.submit(page, "/auth/patient", patient=patient)
        assert "Growth charts" in page.text
        assert "Ann Roe" in page.text
        left = answer(browser.submit(page, "/auth/decision", decision="allow"))
        assert left["state"] == "a-state-of-the-app"
        assert left["iss"] == BASE_URL
        token = app.redeem(left["code"])

        assert token.headers["Cache-Control"] == "no-store"
        assert token.headers["Pragma"] == "no-cache"
        assert token.json["token_type"] == "Bearer"
        assert token.json["patient"] == patient
        assert set(token.json["scope"].split()) == {"openid", "fhirUser", "launch/patient", "patient/*.rs"}
        reader = Caller(doors.flask, token.json["access_token"], doors.clock)
        assert reader.get(f"/fhir/Patient/{patient}").status_code == 200
        assert_id_token(doors, token.json["id_token"], app, nonce="n-1")

    def test_patient_is_asked_about_nobody_else(self, browser: Browser, app: TestApp, patient: str) -> None:
        token = app.through(browser, "patient/*.rs", login="ann")

        assert token.json["patient"] == patient

    def test_scopes_that_were_unticked_are_not_granted(self, browser: Browser, app: TestApp) -> None:
        browser.sign_in("jones")
        page = browser.open(app.request("openid user/Patient.rs user/ImagingStudy.rs"))
        left = answer(browser.submit(page, "/auth/decision", decision="allow", agreed=["user/ImagingStudy.rs"]))

        assert app.redeem(left["code"]).json["scope"] == "user/ImagingStudy.rs"

    def test_who_does_not_agree_gives_nothing(self, browser: Browser, app: TestApp) -> None:
        browser.sign_in("jones")
        left = answer(browser.submit(browser.open(app.request("user/*.rs")), "/auth/decision", decision="deny"))

        assert left["error"] == "access_denied"
        assert left["iss"] == BASE_URL
        assert "code" not in left

    def test_request_may_be_posted(self, browser: Browser, app: TestApp) -> None:
        address, _, query = app.request("user/*.rs").partition("?")
        page = browser._settled(
            browser.flask.post(address, data=query, content_type="application/x-www-form-urlencoded", base_url=BASE_URL)
        )

        assert "Sign in" in page.text


ALL_SAID = "launch/patient launch/encounter launch/imagingstudy patient/*.rs"


@pytest.fixture(scope="module")
def picking(doors: Doors) -> TestApp:
    return registered(doors, "radiology", ALL_SAID)


@pytest.fixture(scope="module")
def visit(ehr: Caller, patient: str) -> str:
    kind = {"code": "AMB", "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode"}
    made = {"resourceType": "Encounter", "status": "finished", "class": kind,
            "subject": {"reference": f"Patient/{patient}"}, "period": {"start": "2026-03-04T09:00:00Z"},
            "reasonCode": [{"text": "Cough <since> May"}]}  # fmt: skip
    return str(ehr.post("/fhir/Encounter", made).json["id"])


@pytest.fixture(scope="module")
def study(ehr: Caller, patient: str) -> str:
    made = {"resourceType": "ImagingStudy", "status": "available", "started": "2026-03-04",
            "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3.4"}], "description": "Chest",
            "modality": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}],
            "subject": {"reference": f"Patient/{patient}"}, "numberOfInstances": 1}  # fmt: skip
    return str(ehr.post("/fhir/ImagingStudy", made).json["id"])


class TestWhatThePersonSays:
    """SMART 2.2, launch context of apps that are started by themselves: a visit and a study, where somebody says so."""

    def test_visit_is_said_by_the_person(
        self, browser: Browser, picking: TestApp, patient: str, visit: str, study: str
    ) -> None:
        browser.sign_in("jones")
        page = browser.open(picking.request("launch/patient launch/encounter patient/*.rs"))
        page = browser.submit(page, "/auth/patient", patient=patient)
        assert "Which visit?" in page.text
        assert "2026-03-04, outpatient visit, Cough &lt;since&gt; May" in page.text
        page = browser.submit(page, "/auth/context", picked=visit)
        assert "It is started about" in page.text
        token = picking.redeem(answer(browser.submit(page, "/auth/decision", decision="allow"))["code"]).json

        assert (token["patient"], token["encounter"]) == (patient, visit)
        assert "fhirContext" not in token
        assert set(token["scope"].split()) == {"launch/patient", "launch/encounter", "patient/*.rs"}

    def test_study_is_said_by_the_person(
        self, browser: Browser, picking: TestApp, patient: str, visit: str, study: str
    ) -> None:
        page = browser.open(picking.request(ALL_SAID))
        page = browser.submit(page, login="ann", password=PASSWORD)
        page = browser.submit(page, "/auth/context", picked=visit)
        assert "Which images?" in page.text
        assert "2026-03-04, CT, Chest, 1 image" in page.text
        page = browser.submit(page, "/auth/context", picked=study)
        token = picking.redeem(answer(browser.submit(page, "/auth/decision", decision="allow"))["code"]).json

        assert token["fhirContext"] == [{"reference": f"ImagingStudy/{study}", "type": "ImagingStudy"}]
        assert token["encounter"] == visit

    def test_who_says_nothing_is_told_on_as_nothing(
        self, browser: Browser, picking: TestApp, patient: str, visit: str, study: str
    ) -> None:
        page = browser.open(picking.request(ALL_SAID))
        page = browser.submit(page, login="ann", password=PASSWORD)
        page = browser.submit(browser.submit(page, "/auth/context", picked=""), "/auth/context", picked="")
        assert "It is started about" not in page.text
        token = picking.redeem(answer(browser.submit(page, "/auth/decision", decision="allow"))["code"]).json

        assert not {"encounter", "fhirContext"} & token.keys()
        assert set(token["scope"].split()) == {"launch/patient", "patient/*.rs"}

    def test_what_is_unticked_is_not_told(
        self, browser: Browser, picking: TestApp, patient: str, visit: str, study: str
    ) -> None:
        page = browser.open(picking.request(ALL_SAID))
        page = browser.submit(page, login="ann", password=PASSWORD)
        page = browser.submit(browser.submit(page, "/auth/context", picked=visit), "/auth/context", picked=study)
        left = browser.submit(page, "/auth/decision", decision="allow", agreed=["launch/patient", "patient/*.rs"])

        assert not {"encounter", "fhirContext"} & picking.redeem(answer(left)["code"]).json.keys()

    @pytest.mark.parametrize("picked", ["1.2.3", "../Patient/1", "nobody"])
    def test_only_what_is_shown_can_be_picked(self, browser: Browser, picking: TestApp, picked: str) -> None:
        page = browser.open(picking.request(ALL_SAID))
        page = browser.submit(page, login="ann", password=PASSWORD)

        assert browser.submit(page, "/auth/context", picked=picked).status_code == 400

    def test_visit_of_another_patient_cannot_be_picked(
        self, browser: Browser, picking: TestApp, ehr: Caller, visit: str
    ) -> None:
        other = ehr.post("/fhir/Patient", {"resourceType": "Patient", "name": [{"family": "Poe"}]}).json["id"]
        browser.sign_in("jones")
        page = browser.open(picking.request(ALL_SAID))
        page = browser.submit(page, "/auth/patient", patient=other)
        assert "There is none that you may see" in page.text

        assert browser.submit(page, "/auth/context", picked=visit).status_code == 400

    def test_page_of_another_site_cannot_say_it(self, browser: Browser, picking: TestApp, visit: str) -> None:
        page = browser.open(picking.request(ALL_SAID))
        page = browser.submit(page, login="ann", password=PASSWORD)

        assert browser.submit(page, "/auth/context", picked=visit, csrf_token="guessed").status_code == 403

    def test_what_nobody_can_say_is_not_granted(self, browser: Browser, doors: Doors) -> None:
        app = registered(doors, "radiology", "launch/diagnosticreport patient/*.rs")

        token = app.through(browser, "launch/diagnosticreport patient/*.rs", login="ann").json

        assert token["scope"] == "patient/*.rs"


class TestLaunchFromAnEhr:
    def test_launch_brings_its_context(
        self, browser: Browser, app: TestApp, ehr: Caller, patient: str, doors: Doors
    ) -> None:
        subject = {"reference": f"Patient/{patient}"}
        kind = {"code": "AMB", "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode"}
        visit = {"resourceType": "Encounter", "status": "finished", "class": kind, "subject": subject}
        report = {"resourceType": "DiagnosticReport", "status": "final", "code": {"text": "x"}, "subject": subject}
        encounter = ehr.post("/fhir/Encounter", visit).json["id"]
        reference = f"DiagnosticReport/{ehr.post('/fhir/DiagnosticReport', report).json['id']}"
        context = [{"reference": reference, "type": "DiagnosticReport"}]
        about = {
            "patient": patient,
            "encounter": encounter,
            "fhirContext": context,
            "intent": "review",
            "tenant": "t-1",
        }
        asked = {"client_id": app.client_id, **about, "need_patient_banner": False}
        made = ehr.post("/auth/launch", asked)
        assert made.json["url"].startswith("https://app.example.org/launch?iss=")

        token = app.through(browser, "launch launch/encounter patient/*.rs", login="jones", launch=made.json["launch"])

        assert token.json["patient"] == patient
        assert token.json["encounter"] == encounter
        assert token.json["fhirContext"] == context
        assert token.json["need_patient_banner"] is False
        assert (token.json["intent"], token.json["tenant"]) == ("review", "t-1")
        asking = registered(doors, "radiology", "system/*.rs", method="private_key_jwt", backend=True)
        known = ask(asking, "introspect", token.json["access_token"])
        assert {name: known[name] for name in about} == about

    def test_launch_about_what_is_not_here_is_refused(self, app: TestApp, ehr: Caller) -> None:
        context = [{"reference": "ImagingStudy/1.2.3", "type": "ImagingStudy"}]
        refused = ehr.post("/auth/launch", {"client_id": app.client_id, "fhirContext": context})

        assert refused.status_code == 400
        assert "ImagingStudy" in refused.text

    def test_launch_is_good_once(self, browser: Browser, app: TestApp, ehr: Caller, patient: str) -> None:
        value = ehr.post("/auth/launch", {"client_id": app.client_id, "patient": patient}).json["launch"]
        app.through(browser, "launch patient/*.rs", login="jones", launch=value)

        again = browser.open(app.request("launch patient/*.rs", launch=value))

        assert answer(again)["error"] == "invalid_request"

    def test_launch_of_another_app_is_refused(
        self, browser: Browser, app: TestApp, doors: Doors, ehr: Caller, patient: str
    ) -> None:
        other = registered(doors, "radiology", SCOPE)
        value = ehr.post("/auth/launch", {"client_id": other.client_id, "patient": patient}).json["launch"]
        browser.sign_in("jones")

        assert answer(browser.open(app.request("launch patient/*.rs", launch=value)))["error"] == "invalid_request"

    def test_person_starts_an_app_from_the_page(self, browser: Browser, app: TestApp, patient: str) -> None:
        page = browser.sign_in("jones")
        left = browser.submit(page, "/auth/start", app=app.client_id, patient=patient)

        assert left.location.startswith("https://app.example.org/launch?iss=")


class TestRefresh:
    @pytest.fixture
    def token(self, browser: Browser, app: TestApp) -> dict[str, Any]:
        return dict(app.through(browser, "offline_access patient/*.rs openid", login="ann").json)

    def test_each_refresh_token_is_good_once_and_a_second_use_ends_all(
        self, app: TestApp, token: dict[str, Any], doors: Doors
    ) -> None:
        second = app.refresh(token["refresh_token"])
        assert second.status_code == 200
        assert second.json["patient"] == token["patient"]
        assert second.json["scope"] == token["scope"]

        stolen = app.refresh(token["refresh_token"])

        assert stolen.json["error"] == "invalid_grant"
        assert app.refresh(second.json["refresh_token"]).json["error"] == "invalid_grant"
        doors.clock.forward(seconds=2)
        for each in (token, second.json):
            caller = Caller(doors.flask, each["access_token"], doors.clock)
            assert caller.get(f"/fhir/Patient/{token['patient']}").status_code == 401

    def test_less_may_be_asked_and_never_more(self, app: TestApp, token: dict[str, Any]) -> None:
        less = app.refresh(token["refresh_token"], scope="patient/ImagingStudy.rs")
        assert less.json["scope"] == "patient/ImagingStudy.rs"

        more = app.refresh(less.json["refresh_token"], scope="patient/*.cruds")

        assert more.json["error"] == "invalid_scope"

    def test_another_client_cannot_use_it(self, doors: Doors, app: TestApp, token: dict[str, Any]) -> None:
        other = registered(doors, "radiology", SCOPE)

        assert other.refresh(token["refresh_token"]).json["error"] == "invalid_grant"

    def test_online_access_ends_with_the_session(self, browser: Browser, app: TestApp) -> None:
        token = app.through(browser, "online_access patient/*.rs", login="ann").json
        second = app.refresh(token["refresh_token"]).json
        browser.submit(browser.open("/auth/"), "/auth/sign-out")

        assert app.refresh(second["refresh_token"]).json["error"] == "invalid_grant"

    def test_person_who_was_shut_out_gets_no_more(self, doors: Doors, app: TestApp, token: dict[str, Any]) -> None:
        doors.server.sign_on.people.disable("ann")
        try:
            assert app.refresh(token["refresh_token"]).json["error"] == "invalid_grant"
        finally:
            doors.server.sign_on.people.disable("ann", is_disabled=False)

    def test_what_apps_have_for_a_person_who_is_shut_out_ends_at_once(
        self, doors: Doors, app: TestApp, token: dict[str, Any]
    ) -> None:
        caller = Caller(doors.flask, token["access_token"], doors.clock)
        before = caller.get(f"/fhir/Patient/{token['patient']}").status_code

        doors.server.sign_on.shut_out("ann")
        after = caller.get(f"/fhir/Patient/{token['patient']}").status_code
        doors.server.sign_on.people.disable("ann", is_disabled=False)

        assert (before, after) == (200, 401)
        assert caller.get(f"/fhir/Patient/{token['patient']}").status_code == 401

    def test_what_was_got_with_another_password_ends_with_it(
        self, doors: Doors, app: TestApp, token: dict[str, Any]
    ) -> None:
        doors.server.sign_on.set_password("ann", PASSWORD)

        caller = Caller(doors.flask, token["access_token"], doors.clock)
        assert caller.get(f"/fhir/Patient/{token['patient']}").status_code == 401
        assert app.refresh(token["refresh_token"]).json["error"] == "invalid_grant"

    def test_without_asking_for_it_there_is_none(self, browser: Browser, app: TestApp) -> None:
        assert "refresh_token" not in app.through(browser, "patient/*.rs", login="ann").json


class TestClients:
    def test_confidential_client_needs_its_secret(self, browser: Browser, doors: Doors) -> None:
        app = registered(doors, "radiology", SCOPE, method="client_secret_basic")
        code = answer(agree(browser, app, "user/*.rs"))["code"]
        app.secret, right = "wrong", app.secret
        refused = app.redeem(code)
        app.secret = right

        assert (refused.status_code, refused.json["error"]) == (401, "invalid_client")
        assert app.redeem(code).status_code == 200

    @pytest.mark.parametrize("kind", ["RS384", "ES384"])
    def test_confidential_client_proves_itself_with_a_key(self, browser: Browser, doors: Doors, kind: str) -> None:
        key = (
            RSAKey.generate_key(2048, auto_kid=True) if kind == "RS384" else ECKey.generate_key("P-384", auto_kid=True)
        )
        app = registered(doors, "radiology", SCOPE, method="private_key_jwt", key=key)

        token = app.redeem(answer(agree(browser, app, "user/*.rs"))["code"])

        assert token.json["scope"] == "user/*.rs"

    def test_program_by_itself_gets_a_short_token_of_what_was_agreed(self, doors: Doors, patient: str) -> None:
        app = registered(doors, "radiology", "system/Patient.rs", method="private_key_jwt", backend=True)
        token = app.token(grant_type="client_credentials", scope="system/*.rs")

        assert token.json["scope"] == "system/Patient.rs"
        assert token.json["expires_in"] == 300
        assert "refresh_token" not in token.json
        caller = Caller(doors.flask, token.json["access_token"], doors.clock)
        assert caller.get(f"/fhir/Patient/{patient}").status_code == 200
        doors.clock.forward(seconds=301)
        assert caller.get(f"/fhir/Patient/{patient}").status_code == 401

    def test_program_gets_nothing_beyond_what_was_agreed(self, doors: Doors) -> None:
        app = registered(doors, "radiology", "system/Patient.rs", method="private_key_jwt", backend=True)

        assert app.token(grant_type="client_credentials", scope="user/*.rs").json["error"] == "invalid_scope"
        assert app.token(grant_type="authorization_code", code="x").json["error"] == "invalid_grant"


class TestIntrospectionAndRevocation:
    def test_client_of_the_same_subscriber_learns_what_a_token_is_good_for(
        self, browser: Browser, doors: Doors, app: TestApp, patient: str
    ) -> None:
        token = app.through(browser, "openid offline_access patient/*.rs", login="ann").json
        asking = registered(doors, "radiology", "system/*.rs", method="private_key_jwt", backend=True)
        foreign = registered(doors, "elsewhere", "system/*.rs", method="private_key_jwt", backend=True)

        known = ask(asking, "introspect", token["access_token"])

        assert known["active"] is True
        assert (known["patient"], known["scope"], known["client_id"]) == (patient, token["scope"], app.client_id)
        said = jwt.decode(token["id_token"], published(doors), algorithms=["RS256"]).claims
        assert (known["iss"], known["sub"]) == (said["iss"], said["sub"])
        assert known["exp"] - said["iat"] == token["expires_in"]
        assert ask(asking, "introspect", token["refresh_token"])["active"] is True
        assert ask(foreign, "introspect", token["access_token"]) == {"active": False}
        assert ask(asking, "introspect", "nonsense") == {"active": False}

    def test_program_may_ask_with_its_own_bearer_token_and_an_app_of_a_person_may_not(
        self, browser: Browser, doors: Doors, app: TestApp
    ) -> None:
        token = app.through(browser, "patient/*.rs", login="ann").json["access_token"]
        asking = registered(doors, "radiology", "system/*.rs", method="private_key_jwt", backend=True)
        own = asking.token(grant_type="client_credentials", scope="system/*.rs").json["access_token"]

        def asked_with(bearer: str) -> Any:
            headers = {"Authorization": f"Bearer {bearer}"}
            return doors.flask.post("/auth/introspect", data={"token": token}, headers=headers)

        assert asked_with(own).json["active"] is True
        assert asked_with(token).status_code == 403
        assert asked_with("nonsense").status_code == 401

    def test_revoked_token_is_over_and_so_is_its_family(self, browser: Browser, doors: Doors, app: TestApp) -> None:
        token = app.through(browser, "offline_access patient/*.rs", login="ann").json
        other = registered(doors, "radiology", SCOPE)
        revoke = {"token": token["refresh_token"]}
        doors.flask.post("/auth/revoke", data={"client_id": other.client_id, **revoke})
        caller = Caller(doors.flask, token["access_token"], doors.clock)
        assert caller.get(f"/fhir/Patient/{token['patient']}").status_code == 200, "another client ends nothing"

        done = doors.flask.post("/auth/revoke", data={"client_id": app.client_id, **revoke})

        assert done.status_code == 200
        assert caller.get(f"/fhir/Patient/{token['patient']}").status_code == 401
        assert app.refresh(token["refresh_token"]).json["error"] == "invalid_grant"


class TestRegistration:
    METADATA: ClassVar[dict[str, Any]] = {
        "client_name": "Bone age",
        "redirect_uris": ["https://bones.example.org/"],
        "token_endpoint_auth_method": "none",
        "grant_types": ["authorization_code", "refresh_token"],
        "scope": "openid patient/*.rs",
    }

    def test_app_registers_changes_and_ends_itself(self, ehr: Caller, doors: Doors) -> None:
        made = ehr.post("/auth/register", self.METADATA)
        assert made.status_code == 201
        address = made.json["registration_client_uri"].removeprefix(BASE_URL)
        own = Caller(doors.flask, made.json["registration_access_token"], doors.clock)

        assert own.get(address).json["client_name"] == "Bone age"
        assert own.put(address, {**self.METADATA, "client_name": "Bones"}).json["client_name"] == "Bones"
        assert ehr.get(address).status_code == 401
        assert own.delete(address).status_code == 204
        assert own.get(address).status_code == 401

    def test_stranger_registers_nothing(self, doors: Doors) -> None:
        assert doors.stranger.post("/auth/register", self.METADATA).status_code == 401

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"redirect_uris": ["http://app.example.org/"]}, "invalid_redirect_uri"),
            ({"redirect_uris": ["https://*.example.org/"]}, "invalid_redirect_uri"),
            ({"redirect_uris": ["https://app.example.org/#x"]}, "invalid_redirect_uri"),
            ({"redirect_uris": ["javascript:alert(1)"]}, "invalid_redirect_uri"),
            ({"redirect_uris": []}, "invalid_redirect_uri"),
            ({"grant_types": ["password"]}, "invalid_client_metadata"),
            ({"grant_types": ["client_credentials"], "redirect_uris": []}, "invalid_client_metadata"),
            ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
            ({"jwks_uri": "http://app.example.org/jwks"}, "invalid_client_metadata"),
            ({"client_name": 7}, "invalid_client_metadata"),
        ],
    )
    def test_what_cannot_be_registered_is_named(self, ehr: Caller, changes: dict[str, Any], code: str) -> None:
        refused = ehr.post("/auth/register", {**self.METADATA, **changes})

        assert (refused.status_code, refused.json["error"]) == (400, code)

    def test_private_key_is_refused(self, ehr: Caller) -> None:
        key = ECKey.generate_key("P-384", auto_kid=True).as_dict(private=True)
        given = {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [key]}}

        assert "private key" in ehr.post("/auth/register", {**self.METADATA, **given}).json["error_description"]


class TestPeople:
    def test_session_ends_everywhere_when_the_password_changes(self, doors: Doors, browser: Browser) -> None:
        assert "Your account" in browser.sign_in("jones").text
        doors.server.sign_on.people.set_password("jones", PASSWORD)

        assert "Sign in" in browser.open("/auth/").text

    def test_session_elsewhere_can_be_ended(self, doors: Doors, browser: Browser) -> None:
        other = Browser(doors.flask.application.test_client())
        other.sign_in("jones")
        page = browser.sign_in("jones")
        browser.submit(page, "/auth/sessions")

        assert "Sign in" in other.open("/auth/").text
        assert "Your account" in browser.open("/auth/").text

    def test_after_five_failures_even_the_right_password_waits(self, doors: Doors, browser: Browser) -> None:
        for _ in range(5):
            assert browser.sign_in("ann", "not the password").status_code == 401
        held = browser.sign_in("ann")
        assert "too often" in held.text
        doors.clock.forward(seconds=31)

        assert "Your account" in browser.sign_in("ann").text

    def test_second_factor_is_asked_for_and_each_code_is_good_once(self, doors: Doors, browser: Browser) -> None:
        """Codes of RFC 6238, as an authenticator app makes them."""
        add_person(doors, "lee")
        browser.sign_in("lee")
        page = browser.open("/auth/second-factor")
        app = pyotp.TOTP(re.search(r"<strong>([A-Z2-7]{32})</strong>", page.text)[1])
        page = browser.submit(page, "/auth/second-factor", code=app.at(doors.clock()))
        recovery = re.findall(r"<li>([0-9a-f-]{13})</li>", page.text)
        assert len(recovery) == 8

        again = Browser(doors.flask.application.test_client())
        asked = again.sign_in("lee")
        assert "Prove that it is you" in asked.text
        assert "Sign in" in again.open("/auth/").text, "half a sign-in opens nothing"
        assert "wrong" in again.submit(asked, "/auth/code", code=app.at(doors.clock())).text, "used to set it up"
        doors.clock.forward(seconds=30)
        assert "Your account" in again.submit(asked, "/auth/code", code=app.at(doors.clock())).text

        lost = Browser(doors.flask.application.test_client())
        assert "Your account" in lost.submit(lost.sign_in("lee"), "/auth/code", code=recovery[0]).text
        twice = Browser(doors.flask.application.test_client())
        assert "wrong" in twice.submit(twice.sign_in("lee"), "/auth/code", code=recovery[0]).text

    def test_codes_cannot_be_tried_out(self, doors: Doors) -> None:
        add_person(doors, "kim")
        secret = pyotp.random_base32()
        doors.server.sign_on.people.set_second_factor("kim", secret, 0, [])
        browser = Browser(doors.flask.application.test_client())
        asked = browser.sign_in("kim")
        for _ in range(5):
            assert "wrong" in browser.submit(asked, "/auth/code", code="000000").text

        held = browser.submit(asked, "/auth/code", code=pyotp.TOTP(secret).at(doors.clock()))

        assert "too often" in held.text

    def test_unknown_login_reads_like_a_wrong_password(self, browser: Browser) -> None:
        wrong, unknown = browser.sign_in("jones", "not the password"), browser.sign_in("nobody-at-all", "x")

        assert wrong.status_code == unknown.status_code == 401
        assert "the login or the password is wrong" in wrong.text
        assert "the login or the password is wrong" in unknown.text

    def test_pages_allow_no_scripts_and_no_frames(self, browser: Browser) -> None:
        page = browser.open("/auth/sign-in")

        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy


def add_person(doors: Doors, login: str) -> None:
    organization = doors.server.principals.named("radiology")
    given = {"name": login, "role": "practitioner", "fhir_user": "", "password": PASSWORD}
    doors.server.sign_on.add_person(login, organization=organization, **given)


def agree(browser: Browser, app: TestApp, scope: str) -> Any:
    browser.sign_in("jones")
    return browser.submit(browser.open(app.request(scope)), "/auth/decision", decision="allow")


def ask(app: TestApp, address: str, token: str) -> dict[str, Any]:
    form = {**proof(app.assertion()), "token": token}
    return dict(app.doors.flask.post(f"/auth/{address}", data=form).json)


def assert_id_token(doors: Doors, token: str, app: TestApp, *, nonce: str) -> None:
    """Verify it as an app would: with the published keys. Source: OpenID Connect Core 1.0, 3.1.3.7."""
    claims = jwt.decode(token, published(doors), algorithms=["RS256"]).claims
    assert (claims["iss"], claims["aud"], claims["nonce"]) == (BASE_URL, app.client_id, nonce)
    assert claims["fhirUser"].startswith(f"{FHIR}/Practitioner/")
    assert claims["exp"] > claims["iat"]
    assert "jones" not in json.dumps(claims)


def published(doors: Doors) -> KeySet:
    """The keys as an app fetches them: bare public JWKs."""
    keys = doors.stranger.get("/auth/jwks").json
    assert all(set(key) <= {"kty", "kid", "n", "e", "use", "alg"} for key in keys["keys"])
    return KeySet.import_key_set(keys)
