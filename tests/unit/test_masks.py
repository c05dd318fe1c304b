"""What is known to be burned into the images of a device. PS3.15 E.3.1."""

from pathlib import Path

import pytest

from fhir_server import config
from imaging.dataset import PixelLayout
from imaging.deidentify_pixels import Rectangle
from imaging.errors import AppError, Category
from imaging.masks import MOST_MASKS, MOST_RECTANGLES, mask_for, masks_from_file, masks_from_toml

TABLE = """
[[mask]]
about = "top bar"
Modality = "US"
Manufacturer = "Maker"
ManufacturerModelName = "Model 9"
Rows = 600
Columns = 800
burn-out = {rectangles}
{more}
"""
IMAGE = {
    "00080060": {"vr": "CS", "Value": ["US"]},
    "00080070": {"vr": "LO", "Value": ["Maker"]},
    "00081090": {"vr": "LO", "Value": ["Model 9"]},
    "00181020": {"vr": "LO", "Value": ["3.1"]},
    "00280010": {"vr": "US", "Value": [600]},
    "00280011": {"vr": "US", "Value": [800]},
}


def table(rectangles: str = '["0,0,800,60"]', more: str = "") -> str:
    return TABLE.format(rectangles=rectangles, more=more)


def layout(keyword: str = "PixelData", bits: int = 8) -> PixelLayout:
    return PixelLayout(keyword, 0, 0, True, 600, 800, 1, bits, bits, bits - 1, 0, 0, "MONOCHROME2", 1)


def test_an_image_of_the_kind_has_its_rectangles() -> None:
    mask = mask_for(IMAGE, layout(), masks_from_toml(table()))

    assert mask is not None
    assert mask.rectangles == (Rectangle(0, 0, 800, 60),)


@pytest.mark.parametrize("tag", IMAGE)
def test_one_that_differs_in_what_is_named_is_not_of_the_kind(tag: str) -> None:
    masks = masks_from_toml(table(more='SoftwareVersions = "3.1"'))

    assert mask_for(IMAGE, layout(), masks) is not None
    assert mask_for({**IMAGE, tag: {"vr": "LO", "Value": ["9"]}}, layout(), masks) is None
    assert mask_for({name: each for name, each in IMAGE.items() if name != tag}, layout(), masks) is None


def test_what_several_masks_say_is_done_together() -> None:
    masks = masks_from_toml(table() + table('["0,590,800,10", "0,0,800,60"]'))

    mask = mask_for(IMAGE, layout(), masks)

    assert mask is not None
    assert mask.rectangles == (Rectangle(0, 0, 800, 60), Rectangle(0, 590, 800, 10))


def test_somebody_may_have_seen_that_nothing_is_burned_in() -> None:
    mask = mask_for(IMAGE, layout(), masks_from_toml(table("[]")))

    assert mask is not None
    assert mask.rectangles == ()


@pytest.mark.parametrize("pixels", [None, layout("FloatPixelData", 32), layout(bits=1)])
def test_pixels_that_cannot_be_blackened_have_no_mask(pixels: PixelLayout | None) -> None:
    assert mask_for(IMAGE, pixels, masks_from_toml(table())) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[mask]", "no TOML"),
        ("[mask]\nRows = 1", "[[mask]]"),
        ("masks = 1", "[[mask]]"),
        (table().replace('Manufacturer = "Maker"', ""), "Manufacturer is missing"),
        (table().replace("burn-out", "burn"), "burn-out is missing"),
        (table(more="Colour = 1"), "no attribute"),
        (table(more='PixelData = "x"'), "no attribute"),
        (table(more='PatientName = "x"'), "no attribute"),
        (table(more="StationName = 1.5"), "whole number"),
        (table().replace("600", '"600"'), "Rows and Columns"),
        (table('"0,0,1,1"'), "a list"),
        (table('["0,0"]'), "left,top,width,height"),
        (table('["0,0,801,60"]'), "outside of 800 x 600"),
        (table('["0,0,8,6;series=1.2"]'), "series and frames"),
        (table('["0,0,8,6;frames=1"]'), "series and frames"),
        (table(str(["0,0,1,1"] * (MOST_RECTANGLES + 1)).replace("'", '"')), "at most"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(AppError) as refused:
        masks_from_toml(text)

    assert refused.value.category is Category.INVALID
    assert told in refused.value.message
    assert "mask" in str(refused.value.where) or refused.value.where == "rectangle"


def test_the_number_of_masks_is_bounded() -> None:
    with pytest.raises(AppError, match=str(MOST_MASKS)):
        masks_from_toml("[[mask]]\n" * (MOST_MASKS + 1))


def test_a_file_that_is_not_there_is_not_taken_for_no_masks(tmp_path: Path) -> None:
    assert masks_from_file(None) == ()
    with pytest.raises(AppError, match="cannot be read"):
        masks_from_file(tmp_path / "masks.toml")


def test_a_mistake_in_the_file_keeps_the_settings_from_being_read(tmp_path: Path) -> None:
    (tmp_path / "masks.toml").write_text(table() + table().replace("Rows = 600", ""))

    with pytest.raises(AppError, match=r"archive\.masks: .* mask 2: Rows is missing"):
        config.load({"data.dir": str(tmp_path), "archive.masks": str(tmp_path / "masks.toml")}, environment={})


def test_the_example_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/howto/give-deidentified-images.md").read_text()

    (mask,) = masks_from_toml(page.partition("```toml\n")[2].partition("```")[0])

    assert mask.rectangles == (Rectangle(0, 0, 800, 60),)
    assert ("00081090", "LOGIQ E9") in mask.attributes
