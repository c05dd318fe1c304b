"""The pages about printers say what is true: they are written from the registry and from the tables that are used."""

import subprocess
import sys
from pathlib import Path

from imaging.dimse.print_page import conformance_page
from imaging.printers import printers

ROOT = Path(__file__).parents[2]


def test_the_reference_is_written_from_the_registry() -> None:
    # In a process of its own: other tests register kinds of their own.
    command = [sys.executable, "-m", "imaging.printers_reference"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert (ROOT / "docs/reference/printers.md").read_text() == page


def test_the_conformance_page_is_written_from_the_tables_that_are_used() -> None:
    assert (ROOT / "docs/reference/print-conformance.md").read_text() == conformance_page()


def test_every_kind_of_the_folder_is_registered() -> None:
    files = {path.stem for path in (ROOT / "imaging/printers").glob("*.py")} - {"__init__"}

    homes = [printers.get(name).__module__.rpartition(".") for name in printers]

    assert {file for folder, _, file in homes if folder == "imaging.printers"} == files
