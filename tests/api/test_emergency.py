"""Emergency access: to whom, to what, for how long, and that nobody misses it."""

import html
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pymongo.database import Database
from werkzeug.test import TestResponse

from fhir_server.access.agreements import Agreement
from fhir_server.access.contracts import Limits, Right
from fhir_server.access.emergencies import Emergency, Verdict
from fhir_server.model.topics import ALARM, TOPICS
from imaging.errors import AppError, Category
from tests.support.browser import PASSWORD, Browser, TestApp, answer, forms, registered
from tests.support.doors import Caller, Doors, new_study, opened
from tests.support.receivers import receiving
from tests.support.subscribing import EMERGENCY, LOOPBACK, Work, events, hears, notified, stored, to_topic

SCOPE = "launch/patient patient/*.cruds user/*.cruds openid offline_access"
REASON = "Unconscious after a fall, allergies needed: Mrs. Quitetelling"
BOTH = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.ORDER_PROCESSING]
BTG = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "BTG", "display": "break the glass"}


@dataclass
class Scene:
    doors: Doors
    app: TestApp
    studies: dict[str, str] = field(default_factory=dict)  # PatientID -> Study Instance UID
    patients: dict[str, str] = field(default_factory=dict)  # PatientID -> "Patient/..."

    def browser(self, login: str = "jones") -> Browser:
        self.doors.clock.forward(days=1)  # nobody has asked today
        browser = Browser(self.doors.flask.application.test_client())
        browser.sign_in(login)
        return browser

    def asked(self, browser: Browser, app: TestApp | None = None, **given: str) -> TestResponse:
        """Go to the page of emergency access, as the link on the page of patients leads, and send its form."""
        page = browser.open((app or self.app).request(SCOPE))
        link = html.unescape(re.search(r'href="(/auth/emergency[^"]*)"', page.text)[1])
        return browser.submit(browser.open(link), "/auth/emergency", **{"reason": REASON, **given})

    def token(self, browser: Browser, number: str) -> dict[str, Any]:
        page = self.asked(browser, number=number)
        assert "Emergency access" in page.text, page.text
        left = browser.submit(page, "/auth/decision", decision="allow")
        return dict(self.app.redeem(answer(left)["code"]).json)

    def caller(self, token: dict[str, Any]) -> Caller:
        return Caller(self.doors.flask, token["access_token"], self.doors.clock)

    def alarms(self) -> list[Emergency]:
        return self.doors.server.sign_on.emergencies.listed(all_of_them=False)

    def events(self, query: str) -> list[dict[str, Any]]:
        auditor = self.doors.caller(Right.AUDIT, name="watch")
        found = auditor.get(f"/fhir/AuditEvent?{query}&_sort=-date&_count=50").json
        return [each["resource"] for each in found.get("entry", [])]


@pytest.fixture(scope="module")
def scene(module_db: Database[dict[str, Any]]) -> Iterator[Scene]:
    with opened(module_db, **LOOPBACK) as doors:
        principals = doors.server.principals
        for name in ("ward", "north", "south"):
            principals.add(name, BOTH, is_own=True)
        made = Scene(doors, registered(doors, "ward", SCOPE))
        for name, number in (("ward", "W-1"), ("ward", "W-2"), ("north", "N-1"), ("south", "S-1")):
            birth = {"PatientBirthDate": "19500102" if number == "W-1" else "19600506"}
            uid, files = new_study(PatientID=number, PatientName="Quitetelling^Ann", instances=2, **birth)
            doors.ingest(*files, name=name)
            doors.server.studies.project(uid)
            made.studies[number] = uid
            made.patients[number] = doors.server.own.read("ImagingStudy", uid).json()["subject"]["reference"]
        opens(doors, made.patients["W-2"])
        principals.agree("north", Agreement(opens=frozenset({principals.named("ward")})))
        for login, role, subscriber in (
            ("jones", "practitioner", "ward"),
            ("tech", "technologist", "ward"),
            ("lee", "practitioner", "south"),
            ("olga", "auditor", "ward"),
            ("nora", "operator", "north"),
            ("sue", "auditor", "south"),
        ):
            doors.server.sign_on.add_person(
                login,
                organization=principals.named(subscriber),
                name="Dr. " + login,
                role=role,
                fhir_user="",
                password=PASSWORD,
            )
        yield made


def opens(doors: Doors, known: str) -> None:
    """The contract: people of the ward see one patient, and may break the glass as far as others agree."""
    usual = Limits(patients=frozenset({known}))
    doors.server.principals.add("ward", BOTH, is_own=True, limits=usual, emergency=Limits())
    doors.clock.forward(seconds=2)


class TestWhatItOpens:
    def test_one_patient_at_every_door_that_reads_and_at_no_other(self, scene: Scene) -> None:
        browser = scene.browser()
        usual = scene.app.through(browser, "user/*.rs").json
        before = scene.caller(usual)
        assert before.get(f"/fhir/{scene.patients['W-1']}").status_code == 404
        assert before.get(f"/dicom-web/studies/{scene.studies['W-1']}/metadata").status_code == 404

        token = scene.token(browser, "W-1")
        caller = scene.caller(token)

        mine, theirs = scene.studies["W-1"], scene.studies["W-2"]
        dicom = {"Accept": "multipart/related; type=application/dicom; transfer-syntax=*"}
        for uid, status in ((mine, 200), (theirs, 404), (scene.studies["N-1"], 404), (scene.studies["S-1"], 404)):
            study = f"/dicom-web/studies/{uid}"
            assert caller.get(f"/fhir/ImagingStudy/{uid}").status_code == status
            assert caller.get(study, headers=dicom).status_code == status
            assert caller.get(study, headers={"Accept": "application/zip"}).status_code == status
            for path in ("/metadata", "/series", "/rendered", "/thumbnail"):
                assert caller.get(study + path).status_code == status, path
        assert caller.get(f"/fhir/{scene.patients['W-1']}/$everything").status_code == 200
        assert caller.get(f"/fhir/{scene.patients['W-2']}").status_code == 404
        found = caller.get("/fhir/ImagingStudy").json["entry"]
        assert [each["resource"]["id"] for each in found] == [mine]
        assert [each["0020000D"]["Value"] for each in caller.get("/dicom-web/studies").json] == [[mine]]
        assert caller.get(f"/fhir/ImagingStudy?patient={scene.patients['W-2']}").status_code == 403
        assert before.get(f"/fhir/{scene.patients['W-1']}").status_code == 404, "the other token is as it was"

    def test_it_only_shows(self, scene: Scene) -> None:
        caller = scene.caller(scene.token(scene.browser(), "W-1"))
        patient = scene.patients["W-1"]
        subject = {"subject": {"reference": patient}}

        assert caller.post("/fhir/Observation", {"resourceType": "Observation", **subject}).status_code == 403
        assert caller.post("/fhir/Task", {"resourceType": "Task", "intent": "order"}).status_code == 403
        assert caller.post("/fhir/Subscription", {"resourceType": "Subscription"}).status_code == 403
        assert caller.delete(f"/fhir/{patient}").status_code == 403
        assert caller.delete(f"/dicom-web/studies/{scene.studies['W-1']}").status_code == 403
        stow = {"Content-Type": "application/dicom"}
        assert caller.post("/dicom-web/studies", data=b"x", headers=stow).status_code == 403

    def test_nothing_is_done_with_it_later(self, scene: Scene) -> None:
        server = scene.doors.server
        principal = server.principals.authenticate(scene.token(scene.browser(), "W-1")["access_token"])

        with pytest.raises(AppError, match="nothing is done with it later") as caught:
            server.principals.acting_for(principal.subscriber, principal.granted())
        assert caught.value.category is Category.FORBIDDEN
        caller = Caller(scene.doors.flask, principal.token, scene.doors.clock)
        refused = caller.get("/fhir/Patient", headers={"Prefer": "respond-async"})
        assert refused.status_code == 403
        assert "nothing is done with it later" in refused.text
        export = {"Prefer": "respond-async", "Accept": "application/fhir+json"}
        assert caller.get("/fhir/Patient/$export", headers=export).status_code == 403

    def test_patient_of_another_subscriber_where_both_contracts_say_so(self, scene: Scene) -> None:
        caller = scene.caller(scene.token(scene.browser(), "N-1"))

        assert caller.get(f"/fhir/ImagingStudy/{scene.studies['N-1']}").status_code == 200
        assert caller.get(f"/fhir/ImagingStudy/{scene.studies['W-1']}").status_code == 404
        refused = scene.asked(scene.browser(), number="S-1")
        assert "nobody was found" in refused.text

    def test_owner_who_takes_it_back_is_closed_at_once(self, scene: Scene) -> None:
        principals = scene.doors.server.principals
        caller = scene.caller(scene.token(scene.browser(), "N-1"))
        principals.agree("north", Agreement())
        scene.doors.clock.forward(seconds=2)
        try:
            assert caller.get(f"/fhir/ImagingStudy/{scene.studies['N-1']}").status_code == 404
        finally:
            principals.agree("north", Agreement(opens=frozenset({principals.named("ward")})))

    def test_contract_that_ends_closes_at_once(self, scene: Scene) -> None:
        caller = scene.caller(scene.token(scene.browser(), "W-1"))
        scene.doors.server.principals.add("ward", BOTH, is_own=True)
        scene.doors.clock.forward(seconds=2)
        try:
            assert caller.get(f"/fhir/ImagingStudy/{scene.studies['W-1']}").status_code == 403
        finally:
            opens(scene.doors, scene.patients["W-2"])


class TestHowLong:
    def test_fifteen_minutes_and_no_refresh_token(self, scene: Scene) -> None:
        token = scene.token(scene.browser(), "W-1")
        caller = scene.caller(token)

        assert token["expires_in"] == 900
        assert "refresh_token" not in token
        assert set(token["scope"].split()) == {"launch/patient", "openid", "patient/*.rs"}
        assert token["extensions"]["ihe_iua"]["purpose_of_use"] == [BTG]
        scene.doors.clock.forward(seconds=899)
        assert caller.get(f"/fhir/{scene.patients['W-1']}").status_code == 200
        scene.doors.clock.forward(seconds=2)
        assert caller.get(f"/fhir/{scene.patients['W-1']}").status_code == 401

    def test_operator_ends_it_at_once(self, scene: Scene) -> None:
        caller = scene.caller(scene.token(scene.browser(), "W-1"))
        alarm = scene.alarms()[0]

        scene.doors.server.sign_on.emergencies.end(alarm.id)

        assert caller.get(f"/fhir/{scene.patients['W-1']}").status_code == 401
        assert scene.events("subtype=110138")[0]["entity"][0]["what"]["reference"] == scene.patients["W-1"]

    def test_who_does_not_go_on_within_ten_minutes_has_nothing(self, scene: Scene) -> None:
        browser = scene.browser()
        page = scene.asked(browser, number="W-1")
        scene.doors.clock.forward(minutes=10, seconds=1)

        left = browser.submit(page, "/auth/decision", decision="allow")

        token = scene.app.redeem(answer(left)["code"]).json
        assert scene.caller(token).get(f"/fhir/{scene.patients['W-1']}").status_code in (403, 404)

    def test_one_alarm_gives_one_token(self, scene: Scene) -> None:
        browser = scene.browser()
        page = scene.asked(browser, number="W-1")
        cookie = browser.flask.get_cookie("session", domain="images.test").value
        first = answer(browser.submit(page, "/auth/decision", decision="allow"))
        scene.app.redeem(first["code"])
        browser.flask.set_cookie("session", cookie, domain="images.test")

        second = scene.app.redeem(answer(browser.submit(page, "/auth/decision", decision="allow"))["code"]).json

        assert "extensions" not in second
        assert scene.caller(second).get(f"/fhir/{scene.patients['W-1']}").status_code in (403, 404)


class TestWhoMayAsk:
    @pytest.mark.parametrize("login", ["tech", "lee"])
    def test_nobody_without_role_and_contract(self, scene: Scene, login: str) -> None:
        browser = scene.browser(login)
        app = scene.app if login == "tech" else registered(scene.doors, "south", SCOPE)
        page = browser.open(app.request(SCOPE))
        assert "/auth/emergency" not in page.text

        refused = browser.open("/auth/emergency?" + app.request(SCOPE).partition("?")[2])

        assert refused.status_code == 403
        assert "no emergency access for you" in refused.text

    def test_a_sign_in_of_a_while_ago_is_not_enough(self, scene: Scene) -> None:
        browser = scene.browser()
        page = browser.open(scene.app.request(SCOPE))
        link = html.unescape(re.search(r'href="(/auth/emergency[^"]*)"', page.text)[1])
        scene.doors.clock.forward(minutes=5, seconds=1)

        again = browser.open(link)

        assert "prove again that it is you" in again.text
        assert "Why do you need it?" in browser.submit(again, "/auth/sign-in", login="jones", password=PASSWORD).text

    @pytest.mark.parametrize("reason", ["", "   ", "help", "x" * 501, "a\x00b" * 10, "          a          "])
    def test_reason_has_to_be_one(self, scene: Scene, reason: str) -> None:
        before = len(scene.alarms())

        refused = scene.asked(scene.browser(), number="W-1", reason=reason)

        assert refused.status_code == 400
        assert "say why" in refused.text
        assert len(scene.alarms()) == before

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({}, "give the number"),
            ({"family": "Quitetelling"}, "give the number"),
            ({"family": "Quitetelling", "born": "1960-05-06"}, "more than one"),
            ({"family": "Quitetelling", "born": "1960"}, "more than one"),
            ({"family": "Quitetelling", "born": "the sixth"}, "born"),
            ({"number": "W-"}, "nobody"),
            ({"number": "W-1,W-2"}, "nobody"),
            ({"number": "*"}, "nobody"),
            ({"number": "W" * 101}, "100 characters"),
        ],
    )
    def test_nobody_is_shown_a_list(self, scene: Scene, given: dict[str, str], words: str) -> None:
        refused = scene.asked(scene.browser(), **given)

        assert refused.status_code == 400
        assert words in refused.text
        assert "Patient/" not in refused.text

    def test_name_and_birth_date_mean_one_patient(self, scene: Scene) -> None:
        page = scene.asked(scene.browser(), family="quitetelling", born="1950-01-02")

        assert "Emergency access: it ends 15 minutes after you agree" in page.text
        assert scene.alarms()[0].patient == scene.patients["W-1"]

    def test_five_times_a_day_found_or_not(self, scene: Scene) -> None:
        browser = scene.browser()
        for _ in range(5):
            assert "nobody was found" in scene.asked(browser, number="W-9").text

        refused = scene.asked(browser, number="W-1")

        assert "5 times today" in refused.text
        assert "Emergency access" in scene.asked(scene.browser(), number="W-1").text, "the next day"

    def test_page_of_another_site_breaks_no_glass(self, scene: Scene) -> None:
        browser = scene.browser()
        query = scene.app.request(SCOPE).partition("?")[2]
        before = len(scene.alarms())

        data = {"number": "W-1", "reason": REASON}
        sent = browser.flask.post(f"/auth/emergency?{query}", data=data, base_url="http://images.test")

        assert sent.status_code == 403
        assert len(scene.alarms()) == before

    def test_alarm_of_somebody_else_opens_nothing(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="W-1")
        emergencies, alarm = scene.doors.server.sign_on.emergencies, scene.alarms()[0]
        lee, jones = (scene.doors.server.sign_on.people.named(each) for each in ("lee", "jones"))

        assert emergencies.waiting(alarm.id, jones, alarm.patient) is not None
        assert emergencies.waiting(alarm.id, lee, alarm.patient) is None
        assert emergencies.waiting(alarm.id, jones, scene.patients["W-2"]) is None


class TestAlarm:
    def test_alarm_is_there_before_anything_is_shown(self, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, logger="fhir_server"):
            scene.asked(scene.browser(), number="N-1")

        alarm = scene.alarms()[0]
        assert (alarm.login, alarm.reason, alarm.is_taken) == ("jones", REASON, False)
        assert alarm.patient == scene.patients["N-1"]
        (said,) = [each for each in caplog.records if "emergency access" in each.getMessage()]
        assert said.levelno == logging.WARNING
        everything = " ".join(str(vars(each)) for each in caplog.records)
        assert not [each for each in ("Quitetelling", "fall", scene.patients["N-1"]) if each in everything]

    def test_record_says_who_whose_and_which_alarm_and_not_why(self, scene: Scene) -> None:
        """DICOM PS3.15 A.5.3.11 and CID 401: Emergency Override Started."""
        scene.asked(scene.browser(), number="W-1")
        alarm = scene.alarms()[0]

        event = scene.events("subtype=110127")[0]

        assert event["type"]["code"] == "110113"
        assert event["purposeOfEvent"] == [{"coding": [BTG]}]
        assert event["agent"][0]["altId"] == "jones"
        assert event["agent"][1]["who"]["reference"] == alarm.user
        assert event["agent"][1]["policy"] == [f"urn:fhir-imaging:emergency:{alarm.id}"]
        assert event["entity"][0]["what"]["reference"] == scene.patients["W-1"]
        assert "Quitetelling" not in str(event)
        assert "fall" not in str(event)

    def test_every_access_with_the_token_is_marked_and_others_are_not(self, scene: Scene) -> None:
        browser = scene.browser()
        caller = scene.caller(scene.token(browser, "W-1"))
        alarm, study = scene.alarms()[0], f"/dicom-web/studies/{scene.studies['W-1']}"
        caller.get(f"/fhir/{scene.patients['W-1']}")
        caller.get("/fhir/ImagingStudy")
        caller.get(study, headers={"Accept": "application/zip"})
        caller.get(f"{study}/rendered")
        caller.get(f"/fhir/{scene.patients['W-2']}")
        scene.caller(scene.app.through(browser, "user/*.rs").json).get("/fhir/ImagingStudy")

        events = scene.events(f"date=ge{alarm.asked:%Y-%m-%dT%H:%M:%SZ}")
        marked = [each for each in events if each.get("purposeOfEvent") == [{"coding": [BTG]}]]

        by_token = [each for each in marked if each["agent"][0].get("altId") == scene.app.client_id]
        assert len(by_token) == 5, "each of the five requests, that which was refused as well"
        assert {each["agent"][1]["policy"][0] for each in marked} == {f"urn:fhir-imaging:emergency:{alarm.id}"}
        assert [each for each in events if "purposeOfEvent" not in each and each["subtype"][0]["code"] == "search-type"]

    def test_failures_are_recorded(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="W-9")

        event = scene.events("subtype=110127&outcome=4")[0]

        assert event["agent"][0]["altId"] == "jones"
        assert "W-9" not in str(event)

    def test_owner_of_the_patient_is_told_without_the_reason(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="N-1")
        alarm = scene.alarms()[0]
        north = Caller(scene.doors.flask, scene.doors.server.principals.mint("north"), scene.doors.clock)

        told = north.get(f"/fhir/Communication?identifier={alarm.id}").json["entry"][0]["resource"]

        assert told["category"][0]["coding"] == [ALARM]
        assert told["subject"]["reference"] == scene.patients["N-1"]
        assert told["recipient"][0]["reference"] == scene.doors.server.principals.named("north")
        assert "fall" not in str(told)
        south = Caller(scene.doors.flask, scene.doors.server.principals.mint("south"), scene.doors.clock)
        assert "entry" not in south.get(f"/fhir/Communication?identifier={alarm.id}").json
        topic = TOPICS["urn:fhir-imaging:topic:emergency-access"]
        assert topic.trigger(None, told)
        assert not topic.trigger(None, {"resourceType": "Communication", "category": []})

    def test_owner_who_subscribed_is_told_at_once(self, scene: Scene) -> None:
        work = Work(scene.doors)
        north = Caller(scene.doors.flask, scene.doors.server.principals.mint("north"), scene.doors.clock)
        south = Caller(scene.doors.flask, scene.doors.server.principals.mint("south"), scene.doors.clock)
        with receiving(hears) as theirs, receiving(hears) as others:
            stored(north, to_topic(EMERGENCY, theirs.address))
            stored(south, to_topic(EMERGENCY, others.address))
            work.all()
            scene.asked(scene.browser(), number="N-1")
            north.post("/fhir/Communication", {"resourceType": "Communication", "status": "completed"})
            work.all()

            (told,) = events(notified(theirs)[-1])
            assert told["focus"]["reference"].endswith(f"/emergency-{scene.alarms()[0].id}")
            assert [each for each in notified(others) if events(each)] == []

    def test_when_the_owner_cannot_be_told_the_alarm_is_there_and_nothing_is_opened(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when the power goes off between the writes."""

        def fails(*_: Any, **__: Any) -> None:
            raise AppError(Category.BUSY, "the database is away", where="database")

        browser = scene.browser()
        monkeypatch.setattr(scene.doors.server.own, "update", fails)
        page = scene.asked(browser, number="W-1")
        monkeypatch.undo()

        assert "Emergency access: it ends" not in page.text
        assert (scene.alarms()[0].login, scene.alarms()[0].is_taken) == ("jones", False)
        assert "Emergency access: it ends" not in browser.open(scene.app.request(SCOPE)).text

    def test_alarm_stays_until_it_is_reviewed_once(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="W-1")
        emergencies, alarm = scene.doors.server.sign_on.emergencies, scene.alarms()[0]
        scene.doors.clock.forward(days=400)
        assert alarm.id in {each.id for each in scene.alarms()}

        done = emergencies.review(alarm.id, Verdict.UNJUSTIFIED, reviewer="C. Privacy", note="not of the ward")

        assert (done.verdict, done.reviewer, done.reviewed) == ("unjustified", "C. Privacy", done.reviewed)
        assert alarm.id not in {each.id for each in scene.alarms()}
        assert emergencies.found(alarm.id).reason == REASON
        with pytest.raises(AppError, match="reviewed before") as caught:
            emergencies.review(alarm.id, Verdict.JUSTIFIED, reviewer="somebody", note="")
        assert caught.value.category is Category.CONFLICT
        event = scene.events("subtype=emergency-reviewed")[0]
        assert event["entity"][0]["detail"] == [{"type": "verdict", "valueString": "unjustified"}]


class TestReviewOnThePage:
    def test_auditors_of_both_subscribers_see_it_and_one_reviews(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="N-1")
        alarm = scene.alarms()[0]
        assert alarm.id in scene.browser("olga").open("/auth/alarms").text
        nora = scene.browser("nora")
        page = nora.open("/auth/alarms")
        assert REASON in page.text
        assert "somebody of another subscriber" in page.text

        nora.submit(page, "/auth/alarms", alarm=alarm.id, verdict="justified", note="was right")

        reviewed = scene.doors.server.sign_on.emergencies.found(alarm.id)
        assert (reviewed.verdict, reviewed.reviewer, reviewed.note) == ("justified", "nora", "was right")
        assert alarm.id not in nora.open("/auth/alarms").text
        assert "says nora" in nora.open("/auth/alarms?show=all").text
        assert scene.events("subtype=emergency-reviewed")[0]["agent"][0]["altId"] == "nora"

    def test_third_subscriber_neither_sees_nor_reviews_it(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="N-1")
        alarm = scene.alarms()[0]
        sue = scene.browser("sue")
        assert alarm.id not in sue.open("/auth/alarms?show=all").text

        form = {"csrf_token": forms(sue.open("/auth/"))[0].values["csrf_token"], "alarm": alarm.id}
        sent = sue.flask.post("/auth/alarms", data={**form, "verdict": "justified"}, base_url="http://images.test")

        assert sent.status_code == 404
        assert scene.doors.server.sign_on.emergencies.found(alarm.id).verdict == ""

    def test_practitioners_do_not_review(self, scene: Scene) -> None:
        assert scene.browser("jones").open("/auth/alarms").status_code == 403
        assert "/auth/alarms" not in scene.browser("jones").open("/auth/").text

    @pytest.mark.parametrize(
        "given", [{"verdict": "fine"}, {"verdict": ""}, {"verdict": "unclear", "note": "x" * 2001}]
    )
    def test_what_is_no_verdict_is_refused(self, scene: Scene, given: dict[str, str]) -> None:
        scene.asked(scene.browser(), number="W-1")
        alarm = scene.alarms()[0]
        olga = scene.browser("olga")

        refused = olga.submit(olga.open("/auth/alarms"), "/auth/alarms", alarm=alarm.id, **given)

        assert refused.status_code == 400
        assert scene.doors.server.sign_on.emergencies.found(alarm.id).verdict == ""

    def test_page_of_another_site_gives_no_verdict(self, scene: Scene) -> None:
        scene.asked(scene.browser(), number="W-1")
        olga = scene.browser("olga")

        data = {"alarm": scene.alarms()[0].id, "verdict": "justified"}
        sent = olga.flask.post("/auth/alarms", data=data, base_url="http://images.test")

        assert sent.status_code == 403
