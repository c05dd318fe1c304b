"""Tables of what a guide demands of a server: each row has a test, or a word why it does not apply."""

import ast
import csv
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
INAPPLICABLE = "does not apply: "

Row = dict[str, str]


def table(name: str) -> list[Row]:
    """Return the rows of a table: requirement, what, test."""
    return list(csv.DictReader((TESTS / "conformance" / name).read_text().splitlines(), delimiter="\t"))


def check(row: Row) -> None:
    """Fail unless the row says what is demanded, and names a test that is there or a reason."""
    path, _, function = row["test"].partition("::")
    assert row["what"]
    assert row["test"].removeprefix(INAPPLICABLE)
    assert row["test"].startswith(INAPPLICABLE) or function in _functions(path)


@cache
def _functions(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef))
