"""The page about printers says what is true: it is written from the registry."""

from pathlib import Path

from imaging.printers import printers
from imaging.printers_reference import reference_page

ROOT = Path(__file__).parents[2]


def test_the_reference_is_written_from_the_registry() -> None:
    assert (ROOT / "docs/reference/printers.md").read_text() == reference_page()


def test_every_kind_of_the_folder_is_registered() -> None:
    files = {path.stem for path in (ROOT / "imaging/printers").glob("*.py")} - {"__init__"}

    assert {printers.get(name).__module__.rpartition(".")[2] for name in printers} == files
