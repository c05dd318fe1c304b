"""What SMART App Launch 2.2 demands of a server, row by row: each has a test, or a word why it does not apply.

`smart_app_launch.tsv` has the numbers under which SMART's test kit lists what the guide says a server SHALL do, what
that is in our words, and the test. Source: https://hl7.org/fhir/smart-app-launch/STU2.2/.
"""

import pytest

from tests.support.requirements import TESTS, Row, check, table

ROWS = table("smart_app_launch.tsv")
DEMANDS = 172  # of the guide upon servers


def test_every_demand_upon_servers_is_there_once() -> None:
    numbers = [int(row["requirement"]) for row in ROWS]

    assert len(numbers) == DEMANDS
    assert sorted(set(numbers)) == numbers


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["requirement"])
def test_a_demand_has_a_test_or_a_reason(row: Row) -> None:
    check(row)


def test_what_links_between_patients_mean_is_documented() -> None:
    assert "Patient.link" in (TESTS.parent / "docs/howto/connect-an-app.md").read_text()
