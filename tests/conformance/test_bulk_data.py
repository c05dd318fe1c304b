"""What Bulk Data Access 2.0.0 demands of a server, row by row: each has a test, or a word why it does not apply.

`bulk_data.tsv` has the numbers under which the bulk-data test kit lists what the guide says a server SHALL do, what
that is in our words, and the test. Source: https://hl7.org/fhir/uv/bulkdata/STU2/.
"""

import pytest

from tests.support.requirements import Row, check, table

ROWS = table("bulk_data.tsv")
DEMANDS = 117  # of the guide upon servers


def test_every_demand_upon_servers_is_there_once() -> None:
    numbers = [int(row["requirement"]) for row in ROWS]

    assert len(numbers) == DEMANDS
    assert sorted(set(numbers)) == numbers


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["requirement"])
def test_a_demand_has_a_test_or_a_reason(row: Row) -> None:
    check(row)
