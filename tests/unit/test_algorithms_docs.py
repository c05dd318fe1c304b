"""The pages about algorithms say what is true: the reference is the registry's, the how-to's example works."""

import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from imaging.algorithms import algorithms
from imaging.algorithms_pictures import EDGE, PICTURES, picture
from imaging.algorithms_reference import reference_page
from imaging.errors import AppError
from tests.support.volumes import volume_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_written_from_the_registry() -> None:
    assert (DOCS / "reference/algorithms.md").read_text() == reference_page()


@pytest.mark.parametrize("name", list(algorithms))
def test_every_algorithm_has_a_picture_and_it_is_what_the_code_makes(name: str) -> None:
    with Picture.open(DOCS / f"images/algorithms/{name}.png") as image:
        kept = np.asarray(image.convert("RGB"), dtype=np.int16)

    made = picture(name).astype(np.int16)

    assert made.shape == kept.shape
    # Other processors and versions of libraries round otherwise, and iterate to a slightly other end.
    assert np.abs(made - kept).mean() < 2
    before, after = made[:, : EDGE - EDGE // 8], made[:, -(EDGE - EDGE // 8) :]
    assert np.abs(before - after).mean() > 5


def test_there_is_no_picture_of_what_is_not_there() -> None:
    assert {path.stem for path in (DOCS / "images/algorithms").iterdir()} == set(PICTURES) == set(algorithms)


def test_the_example_of_the_how_to_is_an_algorithm_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "howto/add-an-algorithm.md").read_text(), re.M | re.S)
    module = types.ModuleType("example_of_the_how_to")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(algorithms, "_items", dict(algorithms._items))
    exec(text, module.__dict__)
    z, y, x = np.indices((41, 41, 41)) - 20.0
    phantom = volume_of(np.exp(-((2 * z) ** 2 + y**2 + x**2) / (2 * 5.0**2)), (2, 1, 1))

    (blurred,) = algorithms.get("gaussian").build({"sigma_mm": 3})(phantom).volumes

    # Variances add: 5^2 + 3^2 = 34 mm2, along slices that lie 2 mm apart as well.
    for profile, step_mm in ((blurred.array[:, 20, 20], 2), (blurred.array[20, :, 20], 1)):
        expected = profile[20] * np.exp(-((np.arange(-20, 21) * step_mm) ** 2) / (2 * 34))
        assert np.abs(profile - expected).max() < 0.01 * profile[20]
    assert blurred.array.max() == pytest.approx((5 / math.sqrt(34)) ** 3, rel=0.02)
    with pytest.raises(AppError, match=r"a value from 0.1 to 50 mm expected \(sigma_mm\)"):
        algorithms.get("gaussian").build({"sigma_mm": 0})


def test_every_algorithm_of_the_folder_is_registered() -> None:
    folder = DOCS.parent / "imaging/algorithms"
    files: set[Any] = {path.stem for path in folder.glob("*.py")} - {"__init__"}

    assert {algorithms.get(name).__module__.rpartition(".")[2] for name in algorithms} == files
