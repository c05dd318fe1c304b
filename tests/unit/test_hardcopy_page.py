"""The reference page of hard-copy orders is what the code says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fhir_server.hardcopy.inputs import INPUTS
from fhir_server.hardcopy_page import reference_page
from tests.support.film_pictures import PICTURES

PAGE = Path(__file__).parents[2] / "docs/reference/hard-copy.md"


def test_the_page_is_the_one_that_is_written_from_the_inputs() -> None:
    assert PAGE.read_text() == reference_page()


def test_it_names_every_input() -> None:
    text = PAGE.read_text()

    assert [each.name for each in INPUTS if f"| `{each.name}`" not in text] == []


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_films_are_what_the_code_makes(name: str) -> None:
    with Image.open(PAGE.parents[1] / f"images/film/{name}.png") as image:
        kept = np.asarray(image, dtype=np.int16)

    made = PICTURES[name]().astype(np.int16)

    # Another release of the font's renderer may shade the edge of a letter otherwise.
    assert made.shape == kept.shape
    assert np.count_nonzero(np.abs(made - kept) > 2) < made.size * 0.002
