"""What Bulk Data Access 2.0.0 demands of a server, row by row: each has a test, or a word why it does not apply.

`bulk_data.tsv` has the numbers under which the bulk-data test kit lists what the guide says a server SHALL do, what
that is in our words, and the test. Source: https://hl7.org/fhir/uv/bulkdata/STU2/.
"""

import ast
import csv
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROWS = list(csv.DictReader((TESTS / "conformance/bulk_data.tsv").read_text().splitlines(), delimiter="\t"))
INAPPLICABLE = "does not apply: "
DEMANDS = 117  # of the guide upon servers


def functions(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text())
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def test_every_demand_upon_servers_is_there_once() -> None:
    numbers = [int(row["requirement"]) for row in ROWS]

    assert len(numbers) == DEMANDS
    assert sorted(set(numbers)) == numbers


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["requirement"])
def test_a_demand_has_a_test_or_a_reason(row: dict[str, str]) -> None:
    path, _, function = row["test"].partition("::")

    assert row["what"]
    assert row["test"].removeprefix(INAPPLICABLE)
    assert row["test"].startswith(INAPPLICABLE) or function in functions(path)
