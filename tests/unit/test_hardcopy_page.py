"""The reference page of hard-copy orders is what the code says."""

from pathlib import Path

from fhir_server.hardcopy.inputs import INPUTS
from fhir_server.hardcopy_page import reference_page

PAGE = Path(__file__).parents[2] / "docs/reference/hard-copy.md"


def test_the_page_is_the_one_that_is_written_from_the_inputs() -> None:
    assert PAGE.read_text() == reference_page()


def test_it_names_every_input() -> None:
    text = PAGE.read_text()

    assert [each.name for each in INPUTS if f"| `{each.name}`" not in text] == []
