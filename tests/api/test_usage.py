"""What subscribers used: counted at the doors, told by day."""

import csv
import io
from datetime import UTC, date, datetime

import pytest

from fhir_server import usage_report
from fhir_server.access.contracts import Right
from fhir_server.model.validation import findings
from fhir_server.store.usage import COUNTED
from tests.support.doors import Caller, Doors, new_study


def used(doors: Doors, caller: Caller) -> dict[str, int]:
    doors.server.usage.write()
    day = doors.clock().date()
    subscriber = doors.server.principals.authenticate(caller.token).subscriber
    return next(dict(each.counts) for each in doors.server.usage.between(day, day) if each.subscriber == subscriber)


def test_images_that_go_in_and_out_are_counted_with_their_bytes(doors: Doors) -> None:
    sender = doors.caller(Right.REGISTER_IMAGES, name="sender")
    reader = doors.caller(Right.RECEIVE_IMAGES, name="reader")
    study, files = new_study(instances=3)
    body = b"".join(b"--X\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files) + b"--X--\r\n"
    stow = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=X'}
    stored = sender.call("POST", "/dicom-web/studies", data=body, headers=stow)
    stored.close()
    assert stored.status_code == 200

    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    received = reader.get(f"/dicom-web/studies/{study}", headers=accept)
    size = len(received.data)
    received.close()

    sent = used(doors, sender)
    assert (sent["instances-in"], sent["instances-out"], sent["bytes-in"]) == (3, 0, len(body))
    got = used(doors, reader)
    assert (got["requests"], got["instances-in"], got["instances-out"]) == (1, 0, 3)
    assert (got["bytes-in"], got["bytes-out"]) == (0, size)


def test_who_comes_without_a_token_is_nobodys_usage(doors: Doors) -> None:
    doors.stranger.get("/fhir/Patient").close()
    doors.server.usage.write()

    assert doors.server.usage.between(date(2000, 1, 1), date(2100, 1, 1)) == []


def test_days_are_added_up_and_told_apart(doors: Doors) -> None:
    usage = doors.server.usage
    first = doors.clock().date()
    usage.add("Organization/1", pages=2)
    doors.clock.forward(days=1)
    usage.add("Organization/1", pages=3, tasks=1)
    usage.add("Organization/2", pages=1)
    usage.write()
    last = doors.clock().date()

    assert [(each.subscriber, each.counts["pages"]) for each in usage.between(first, first)] == [("Organization/1", 2)]
    both = usage.between(first, last)
    assert [(each.counts["pages"], each.counts["tasks"]) for each in both] == [(5, 1), (1, 0)]


@pytest.fixture
def report(doors: Doors) -> tuple[list[object], date]:
    doors.server.usage.add("Organization/1", bytes_out=10**12)
    doors.server.usage.write()
    day = doors.clock().date()
    return list(doors.server.usage.between(day, day)), day


def test_csv_has_a_line_for_each_subscriber(report: tuple[list[object], date]) -> None:
    found, day = report
    rows = list(
        csv.DictReader(
            io.StringIO(
                usage_report.as_csv(found, {"Organization/1": 'Radiology, "north"'}, day, day, by_contract=False)
            )
        )
    )

    assert len(rows) == 1
    assert rows[0]["subscriber"] == 'Radiology, "north"'
    assert rows[0]["bytes-out"] == str(10**12)


def test_measure_reports_are_valid_fhir(report: tuple[list[object], date]) -> None:
    found, day = report
    bundle = usage_report.as_fhir(found, day, day, datetime(2027, 1, 1, tzinfo=UTC), by_contract=False)

    resource = bundle["entry"][0]["resource"]
    assert findings(resource, "MeasureReport") == []
    assert {group["code"]["coding"][0]["code"] for group in resource["group"]} == set(COUNTED)
