"""What is used is counted under the Contract that allowed it, whichever door it goes through."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import AutoReconnect

from fhir_server import usage_report
from fhir_server.access.contracts import Limits, Right, contract
from fhir_server.access.grants import Grant, Role
from fhir_server.access.scopes import Scopes
from fhir_server.model.validation import findings
from fhir_server.store.usage import Per, Usage
from tests.support.doors import Caller, Doors, new_study, opened

WADO = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
ZIP = {"Accept": "application/zip; transfer-syntax=*"}
JSON = {"Accept": "application/dicom+json"}


@dataclass
class Scene:
    """A sender with images of two modalities; subscribers with several contracts, on one server."""

    doors: Doors
    studies: dict[str, str]

    def with_contracts(self, name: str, *given: tuple[list[Right], Limits]) -> tuple[Caller, list[str]]:
        """Return a client of a new subscriber and its Contracts, in the order in which they were issued."""
        principals, own = self.doors.server.principals, self.doors.server.own
        principals.add(name, given[0][0], limits=given[0][1])
        organization = principals.named(name)
        for rights, limits in given[1:]:
            self.doors.clock.forward(seconds=1)
            now = self.doors.clock()
            own.create(contract(organization, rights, issued=now, start=now, end=None, limits=limits))
        self.doors.clock.forward(seconds=2)
        token = principals.mint(name)
        found = []
        for source in principals.authenticate(token).sources:
            found += [source.contract] if source.contract not in found else []
        return Caller(self.doors.flask, token, self.doors.clock), sorted(found, key=self._issued)

    def _issued(self, reference: str) -> str:
        return str(self.doors.server.own.read(*reference.split("/")).json()["issued"])

    def used(self, caller: Caller) -> dict[str, dict[str, int]]:
        """Return by Contract what was counted of what there is."""
        self.doors.server.usage.write()
        day = self.doors.clock().date()
        subscriber = self.doors.server.principals.authenticate(caller.token).subscriber
        rows = self.doors.server.usage.between(day, day, subscriber=subscriber, by_contract=True)
        return {each.contract: {name: count for name, count in each.counts.items() if count} for each in rows}


@pytest.fixture(scope="module")
def scene(module_db: Database[dict[str, Any]]) -> Iterator[Scene]:
    with opened(module_db) as doors:
        studies = {}
        for modality in ("CT", "MR"):
            studies[modality], files = new_study(instances=2, Modality=modality, PatientID=f"of {modality}")
            doors.ingest(*files)
        yield Scene(doors, studies)


def only(modality: str) -> Limits:
    return Limits(None, frozenset({modality}))


RECEIVE, REGISTER = [Right.RECEIVE_IMAGES], [Right.REGISTER_IMAGES]


class TestWhichContract:
    def test_images_go_out_under_the_contract_that_covers_their_study(self, scene: Scene) -> None:
        reader, (of_ct, of_mr) = scene.with_contracts("limited", (RECEIVE, only("CT")), (RECEIVE, only("MR")))

        sizes = {}
        for modality in ("MR", "CT", "MR"):
            answer = reader.get(f"/dicom-web/studies/{scene.studies[modality]}", headers=WADO)
            sizes[modality] = len(answer.data)
            answer.close()

        found = scene.used(reader)
        assert found[of_ct] == {"requests": 1, "instances-out": 2, "bytes-out": sizes["CT"]}
        assert found[of_mr] == {"requests": 2, "instances-out": 4, "bytes-out": 2 * sizes["MR"]}

    def test_one_without_limits_comes_first_and_then_the_earlier_one(self, scene: Scene) -> None:
        given = (RECEIVE, only("CT")), (RECEIVE, Limits()), (RECEIVE, Limits())
        reader, (_, everything, _) = scene.with_contracts("three", *given)

        reader.get(f"/dicom-web/studies/{scene.studies['CT']}", headers=WADO).close()

        assert scene.used(reader).keys() == {everything}

    def test_images_come_in_under_the_contract_that_covers_them(self, scene: Scene) -> None:
        given = (REGISTER, only("CT")), (REGISTER, only("MR"))
        sender, (of_ct, of_mr) = scene.with_contracts("senders", *given)

        for modality, instances in (("CT", 1), ("MR", 3)):
            _, files = new_study(instances=instances, Modality=modality)
            body = b"".join(b"--X\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files)
            headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=X'}
            stored = sender.call("POST", "/dicom-web/studies", data=body + b"--X--\r\n", headers=headers)
            assert stored.status_code == 200, stored.text
            stored.close()

        found = scene.used(sender)
        assert (found[of_ct]["instances-in"], found[of_mr]["instances-in"]) == (1, 3)
        assert found[of_mr]["bytes-in"] > 2 * found[of_ct]["bytes-in"]

    def test_each_right_is_charged_where_it_is_given(self, scene: Scene) -> None:
        given = (RECEIVE, Limits()), ([Right.ORDER_PROCESSING], Limits()), ([Right.RECEIVE_DEIDENTIFIED], Limits())
        caller, (receiving, ordering, unnamed) = scene.with_contracts("apart", *given)
        order = {
            "resourceType": "Task", "status": "draft", "intent": "order",
            "code": {"coding": [{"system": "urn:example", "code": "second-opinion"}]},
        }  # fmt: skip

        placed = caller.post("/fhir/Task", order)
        caller.get(f"/fhir/ImagingStudy/{scene.studies['CT']}").close()
        caller.get(f"/dicom-web/studies/{scene.studies['CT']}", headers=ZIP).close()
        listed = caller.get("/dicom-web/deidentified/studies", headers=JSON)
        for each in (placed, listed):
            each.close()

        assert (placed.status_code, listed.status_code) == (201, 200), (placed.text, listed.text)
        found = scene.used(caller)
        assert (found[ordering]["tasks"], found[ordering]["requests"]) == (1, 1)
        assert (found[receiving]["downloads"], found[receiving]["instances-out"], found[receiving]["requests"]) == (
            1,
            2,
            2,
        )
        assert found[unnamed] == {"requests": 1}

    def test_deidentified_files_go_out_under_their_contract(self, scene: Scene) -> None:
        given = (
            (RECEIVE, Limits()),
            ([Right.RECEIVE_DEIDENTIFIED], only("CT")),
            ([Right.RECEIVE_DEIDENTIFIED], only("MR")),
        )
        caller, (_, of_ct, of_mr) = scene.with_contracts("research", *given)

        files = {"Accept": 'multipart/related; type="application/dicom"'}
        stored = Counter[str]()
        for each in caller.get("/dicom-web/deidentified/studies", headers=JSON).json:
            answer = caller.get(f"/dicom-web/deidentified/studies/{each['0020000D']['Value'][0]}", headers=files)
            assert answer.status_code == 200, answer.text
            stored[each["00080061"]["Value"][0]] += answer.data.count(b"DICM")
            answer.close()

        counted = scene.used(caller)
        assert {contract: counted[contract]["instances-out"] for contract in (of_ct, of_mr)} == {
            of_ct: stored["CT"],
            of_mr: stored["MR"],
        }

    def test_refused_requests_are_charged_to_no_contract_of_several(self, scene: Scene) -> None:
        caller, _ = scene.with_contracts("refused", (RECEIVE, only("CT")), ([Right.AUDIT], Limits()))

        refused = caller.get(f"/dicom-web/studies/{scene.studies['MR']}", headers=WADO)
        refused.close()

        assert refused.status_code == 404
        assert scene.used(caller).keys() == {""}

    def test_what_goes_another_way_than_a_request_is_counted_with_its_bytes(self, scene: Scene) -> None:
        caller, (only_one,) = scene.with_contracts("collected", (REGISTER, Limits()))
        _, files = new_study(instances=2)
        principal = scene.doors.server.principals.authenticate(caller.token)

        list(scene.doors.server.studies.ingest(files, principal))

        assert scene.used(caller) == {only_one: {"instances-in": 2, "bytes-in": sum(map(len, files))}}


class TestReports:
    @pytest.fixture
    def counted(self, db: Database[dict[str, Any]], scene: Scene) -> Usage:
        usage = Usage(db, scene.doors.clock)
        usage.add("Organization/1", "Contract/a", pages=2)
        usage.add("Organization/1", "Contract/b", pages=3, downloads=1)
        usage.add("Organization/2", pages=7)
        usage.write()
        return usage

    def test_report_has_a_stratum_for_each_contract_and_their_sum(self, counted: Usage, scene: Scene) -> None:
        day = scene.doors.clock().date()
        used = counted.between(day, day, by_contract=True)
        bundle = usage_report.as_fhir(used, day, day, scene.doors.clock(), by_contract=True)

        first, second = (each["resource"] for each in bundle["entry"])
        assert findings(first, "MeasureReport") == []
        pages = next(group for group in first["group"] if group["code"]["coding"][0]["code"] == "pages")
        assert pages["measureScore"]["value"] == 5
        strata = pages["stratifier"][0]["stratum"]
        assert {each["value"]["text"]: each["measureScore"]["value"] for each in strata} == {
            "Contract/a": 2,
            "Contract/b": 3,
        }
        assert second["reporter"] == {"reference": "Organization/2"}

    def test_csv_names_contracts(self, counted: Usage, scene: Scene) -> None:
        day = scene.doors.clock().date()
        used = counted.between(day, day, by_contract=True)
        rows = list(csv.DictReader(io.StringIO(usage_report.as_csv(used, {}, day, day, by_contract=True))))

        assert [(each["contract"], each["pages"], each["downloads"]) for each in rows] == [
            ("Contract/a", "2", "0"), ("Contract/b", "3", "1"), ("", "7", "0"),
        ]  # fmt: skip

    def test_months_and_days_are_told_apart(self, db: Database[dict[str, Any]]) -> None:
        moment = [date(2027, 1, 31)]
        usage = Usage(db, lambda: _noon(moment[0]))
        for day, pages in ((date(2027, 1, 30), 1), (date(2027, 1, 31), 2), (date(2027, 2, 1), 4)):
            moment[0] = day
            usage.add("Organization/1", "Contract/a", pages=pages)
        usage.write()
        first, last = date(2027, 1, 30), date(2027, 2, 10)

        months = usage.between(first, last, per=Per.MONTH)
        days = usage.between(first, last, per=Per.DAY)

        assert [(each.period, each.counts["pages"]) for each in months] == [("2027-01", 3), ("2027-02", 4)]
        assert [each.period for each in days] == ["2027-01-30", "2027-01-31", "2027-02-01"]
        written = list(csv.DictReader(io.StringIO(usage_report.as_csv(months, {}, first, last, by_contract=False))))
        assert [(each["from"], each["until"]) for each in written] == [
            ("2027-01-30", "2027-01-31"), ("2027-02-01", "2027-02-10"),
        ]  # fmt: skip

    def test_what_was_counted_before_contracts_were_told_apart_still_counts(self, db: Database[dict[str, Any]]) -> None:
        db["usage"].insert_one(
            {"_id": "2026-01-01 Organization/1", "day": "2026-01-01", "subscriber": "Organization/1", "pages": 3}
        )

        (found,) = Usage(db, lambda: _noon(date(2026, 1, 1))).between(
            date(2026, 1, 1), date(2026, 1, 1), by_contract=True
        )

        assert (found.contract, found.counts["pages"]) == ("", 3)


def _noon(day: date) -> datetime:
    return datetime.combine(day, time(12), UTC)


class TestCrashes:
    def test_batch_whose_answer_was_lost_counts_once(
        self, db: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = Usage(db, lambda: _noon(date(2027, 1, 1)))
        usage.add("Organization/1", "Contract/a", pages=2)
        write = usage._write

        def lost(batch: Any) -> None:
            write(batch)
            raise AutoReconnect("the answer was lost")

        monkeypatch.setattr(usage, "_write", lost)
        usage.write()
        monkeypatch.undo()
        usage.add("Organization/1", "Contract/a", pages=1)
        usage.write()

        (found,) = usage.between(date(2027, 1, 1), date(2027, 1, 1))
        assert found.counts["pages"] == 3

    def test_batch_that_was_not_written_is_written_later(
        self, db: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = Usage(db, lambda: _noon(date(2027, 1, 1)))
        usage.add("Organization/1", pages=2)

        def away(_: Any) -> None:
            raise AutoReconnect("the database is away")

        monkeypatch.setattr(usage, "_write", away)
        usage.write()
        monkeypatch.undo()
        usage.write()

        (found,) = usage.between(date(2027, 1, 1), date(2027, 1, 1))
        assert found.counts["pages"] == 2


@pytest.fixture(scope="module")
def north(scene: Scene) -> Caller:
    caller, _ = scene.with_contracts("north", (REGISTER, Limits()))
    scene.doors.server.usage.add(_subscriber(scene, caller), "Contract/x", pages=4)
    other, _ = scene.with_contracts("south", (REGISTER, Limits()))
    scene.doors.server.usage.add(_subscriber(scene, other), "Contract/y", pages=9)
    scene.doors.server.usage.write()
    return caller


class TestOperation:
    def test_subscriber_reads_its_own_usage_whatever_its_rights(self, scene: Scene, north: Caller) -> None:
        answer = north.get("/fhir/$usage?by=contract")

        assert answer.status_code == 200, answer.text
        (report,) = [each["resource"] for each in answer.json["entry"]]
        assert report["reporter"]["reference"] == _subscriber(scene, north)
        assert _pages(report) == 4

    def test_nobody_reads_that_of_another(self, scene: Scene, north: Caller) -> None:
        south = scene.doors.server.principals.named("south")

        assert north.get(f"/fhir/$usage?subscriber={south}").status_code == 403
        assert scene.doors.stranger.get("/fhir/$usage").status_code == 401

    @pytest.mark.parametrize(
        ("scopes", "role", "status"),
        [
            ("system/MeasureReport.r", None, 200),
            ("system/ImagingStudy.rs", None, 403),
            ("user/*.rs", Role.PRACTITIONER, 200),
            ("patient/*.rs", Role.PATIENT, 403),
        ],
    )
    def test_token_needs_a_scope_and_no_patient_is_told(
        self, scene: Scene, north: Caller, scopes: str, role: Role | None, status: int
    ) -> None:
        caller = _with_scopes(scene, "north", scopes, role)

        assert caller.get("/fhir/$usage").status_code == status

    def test_operator_reads_that_of_all(self, scene: Scene, north: Caller) -> None:
        scene.doors.server.principals.add("the house", [Right.DEFINE])
        operator = _with_scopes(scene, "the house", "user/*.rs", Role.OPERATOR)

        reports = [each["resource"] for each in operator.get("/fhir/$usage").json["entry"]]
        south = scene.doors.server.principals.named("south")
        one = operator.get(f"/fhir/$usage?subscriber={south}").json["entry"]

        pages = Counter({each["reporter"]["reference"]: _pages(each) for each in reports})
        assert (pages[_subscriber(scene, north)], pages[south]) == (4, 9)
        assert [each["resource"]["reporter"]["reference"] for each in one] == [south]

    @pytest.mark.parametrize(
        "query", ["from=2027", "from=2027-02-01&until=2027-01-01", "by=patient", "per=hour", "of=x"]
    )
    def test_what_cannot_be_asked_is_said(self, north: Caller, query: str) -> None:
        assert north.get(f"/fhir/$usage?{query}").status_code == 400

    def test_days_told_apart_are_bounded(self, scene: Scene, north: Caller) -> None:
        today = scene.doors.clock().date()

        assert north.get(f"/fhir/$usage?per=day&from={today - timedelta(days=366)}").status_code == 400
        assert north.get(f"/fhir/$usage?per=day&from={today - timedelta(days=365)}").status_code == 200


def _subscriber(scene: Scene, caller: Caller) -> str:
    return scene.doors.server.principals.authenticate(caller.token).subscriber


def _pages(report: dict[str, Any]) -> int:
    found = {group["code"]["coding"][0]["code"]: group["measureScore"]["value"] for group in report["group"]}
    return int(found["pages"])


def _with_scopes(scene: Scene, name: str, scopes: str, role: Role | None) -> Caller:
    principals = scene.doors.server.principals
    client = principals.authenticate(principals.mint(name)).client_id
    patient = "Patient/1" if role is Role.PATIENT else ""
    user = "" if role is None else patient or "Practitioner/1"
    expires = scene.doors.clock() + timedelta(hours=1)
    grant = Grant(client, Scopes.parse(scopes), expires, patient=patient, user=user, role=role)
    return Caller(scene.doors.flask, principals.issue(grant), scene.doors.clock)
