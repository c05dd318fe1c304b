"""The pages about printers say what is true: they are written from the registry and from the tables that are used."""

from pathlib import Path

from imaging.dimse.print_page import conformance_page
from imaging.printers import printers
from imaging.printers_reference import reference_page

ROOT = Path(__file__).parents[2]


def test_the_reference_is_written_from_the_registry() -> None:
    assert (ROOT / "docs/reference/printers.md").read_text() == reference_page()


def test_the_conformance_page_is_written_from_the_tables_that_are_used() -> None:
    assert (ROOT / "docs/reference/print-conformance.md").read_text() == conformance_page()


def test_every_kind_of_the_folder_is_registered() -> None:
    files = {path.stem for path in (ROOT / "imaging/printers").glob("*.py")} - {"__init__"}

    assert {printers.get(name).__module__.rpartition(".")[2] for name in printers} == files
