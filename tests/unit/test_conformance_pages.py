"""The conformance statements say what the code does, and name tests that exist."""

import ast
import re
from pathlib import Path

import pytest

from fhir_server import dicomweb_page, fhir_page
from fhir_server.config import SETTINGS
from fhir_server.storage_checks import CHECKS
from fhir_server.web import dicomweb
from fhir_server.web.stow import FAILURE_REASON, OTHER_STUDY, PROCESSING_FAILURE

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
DICOMWEB = (REFERENCE / "dicomweb-conformance.md").read_text()
ERRORS = (REFERENCE / "errors.md").read_text()

TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
TEST_COLUMN = re.compile(r"^\|[^\n]*\| test \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", re.MULTILINE)


def functions(path: Path) -> set[str]:
    return {each.name for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)}


def routes_on_the_page() -> set[tuple[str, str]]:
    found = set()
    short = {"{i}": "{e}/instances/{instance}", "{e}": "{s}/series/{series}", "{s}": "/studies/{study}"}
    for method, address in re.findall(r"^\| `([A-Z]+)` \| `([^`]+)` \|", DICOMWEB, re.MULTILINE):
        for name, meaning in short.items():
            address = address.replace(name, meaning)
        found.add((method, address))
    return found


def test_the_tables_of_the_dicomweb_page_are_those_of_the_code() -> None:
    assert dicomweb_page.renewed(DICOMWEB) == DICOMWEB
    assert sorted(dicomweb_page.tables_of(DICOMWEB)) == sorted(dicomweb_page.TABLES)


def test_the_resources_of_the_dicomweb_page_are_the_routes_of_the_door() -> None:
    named = {"study_uid": "study", "series_uid": "series", "sop_uid": "instance", "frames": "list", "path": "path"}
    named |= {"workitem_uid": "workitem", "title": "title"}

    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", lambda found: f"{{{named[found[1]]}}}", rule))
        for method, rule, _ in dicomweb.ROUTES
    }

    assert routes_on_the_page() == routes


@pytest.mark.parametrize(("file", "test"), sorted(set(TEST.findall(DICOMWEB))))
def test_every_test_that_the_dicomweb_page_names_exists(file: str, test: str) -> None:
    assert test in functions(ROOT / "tests" / file)


def test_every_row_of_a_table_with_tests_names_one() -> None:
    rows = [row for table in TEST_COLUMN.findall(DICOMWEB) for row in table.splitlines()]

    assert len(rows) > 50
    assert [row for row in rows if not TEST.search(row)] == []


OF_FHIR = {"limits.resource_bytes", "limits.bundle_entries", "limits.bundle_bytes"}


def test_the_limits_of_the_dicomweb_page_are_the_defaults_of_the_settings() -> None:
    told = dict(re.findall(r"^\| `(limits\.\w+)` \| ([^|]+?) \|", DICOMWEB, re.MULTILINE))

    assert {name: text.replace(",", "") for name, text in told.items()} == {
        each.name: each.default for each in SETTINGS if each.name.startswith("limits.") and each.name not in OF_FHIR
    }


def test_the_fhir_page_is_written_from_the_capability_statement() -> None:
    assert (REFERENCE / "fhir-conformance.md").read_text() == fhir_page.reference_page()


def test_every_failure_reason_is_on_the_page_of_errors() -> None:
    told = {int(code, 16) for code in re.findall(r"^\| `(0x[0-9A-F]{4})`", ERRORS, re.MULTILINE)}

    checks = {check.failure_reason for check in CHECKS.values()}
    assert told == {*FAILURE_REASON.values(), OTHER_STUDY, PROCESSING_FAILURE} | checks
