"""Overlays and bitmap shutters: whose bits lie where, of which frame, on the image as it is stored and turned."""

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from imaging.display import FrameSource
from imaging.errors import AppError, Category
from imaging.film import Magnification, Sheets, pages
from imaging.overlays import plane_of
from imaging.pictures import Look, picture_of
from imaging.presentation import presentation_of
from imaging.softcopy import softcopy
from tests.unit.test_pictures import UID, image, item, state

BITS = np.random.default_rng(7).random((5, 7)) < 0.4
GREY = 50_000 / 65_535


def overlay(bits: np.ndarray, row: int = 1, column: int = 1, group: int = 0x6002, **more: Any) -> Dataset:
    """Overlay elements, the first bit at a row and column counted from 1; bits are [row, column] or by frame."""
    packed = np.packbits(bits, bitorder="little").tobytes()
    ds = Dataset()
    elements = {
        0x10: ("US", bits.shape[-2]), 0x11: ("US", bits.shape[-1]), 0x40: ("CS", "G"), 0x50: ("SS", [row, column]),
        0x100: ("US", 1), 0x102: ("US", 0), 0x3000: ("OW", packed + b"\0" * (len(packed) % 2)),
    }  # fmt: skip
    if bits.ndim == 3:
        elements |= {0x15: ("IS", bits.shape[0])}
    for element, (vr, value) in (elements | more.get("changed", {})).items():
        ds.add_new((group << 16) + element, vr, value)
    return ds


def source(ds: Dataset, frame: int = 1) -> FrameSource:
    return FrameSource(ds.to_json_dict(), frame, None)


def shows(*parts: Dataset, layer: str = "OVERLAY", **more: Any) -> dict[str, Any]:
    """A state that shows the overlay 6002."""
    layers = [item(GraphicLayer="OVERLAY", GraphicLayerOrder=1, GraphicLayerRecommendedDisplayGrayscaleValue=50_000)]
    activated = Dataset()
    activated.add_new(0x60021001, "CS", layer)
    found = state(GraphicLayerSequence=layers, **more) | activated.to_json_dict()
    for part in parts:
        found |= part.to_json_dict()
    return found


def seen(ps: dict[str, Any], document: dict[str, Any] | None = None, frame: int = 1) -> np.ndarray:
    """The 8-bit greys of a black image of 12 x 16 under a state, as on a screen and pixel by pixel."""
    document = document or image(12, 16)
    presentation = presentation_of(ps, UID, frame, image=FrameSource(document, frame, None))
    black = np.zeros((12, 16), np.uint8)
    shown, _ = softcopy(black, document, frame, presentation, photometric="MONOCHROME2", viewport=None)
    return np.asarray(shown)


def expected(bits: np.ndarray, row: int, column: int) -> np.ndarray:
    """Bits from a row and column (from 1) on, in the grey of the layer, on black; what is beyond is cut off."""
    canvas = np.zeros((72, 76), np.uint8)
    canvas[30 + row - 1 :, 30 + column - 1 :][: bits.shape[0], : bits.shape[1]] = bits * round(GREY * 255)
    return canvas[30:42, 30:46]


class TestPlane:
    def test_the_bits_are_those_that_pydicom_reads(self) -> None:
        ds = overlay(BITS)

        plane = plane_of(source(ds), "6002")

        assert (plane.bits == ds.overlay_array(0x6002)).all()
        assert (plane.bits == BITS).all()

    @pytest.mark.parametrize(("frame", "index"), [(1, None), (2, 0), (4, 2), (5, None)])
    def test_each_frame_has_its_own_from_the_first_that_is_named(self, frame: int, index: int | None) -> None:
        three = np.random.default_rng(1).random((3, 5, 7)) < 0.5

        plane = plane_of(source(overlay(three, changed={0x51: ("US", 2)}), frame), "6002")

        assert (plane is None) == (index is None)
        assert index is None or (plane.bits == three[index]).all()

    @pytest.mark.parametrize(
        ("changed", "category", "words"),
        [
            ({0x3000: ("OW", b"\1\2")}, Category.INVALID, "16 of the overlay's 35 bits"),
            ({0x100: ("US", 16)}, Category.UNSUPPORTED, "unused bits"),
            ({0x10: ("US", 0)}, Category.INVALID, "where it is"),
            ({0x10: ("US", 60_000), 0x11: ("US", 60_000)}, Category.TOO_LARGE, "at most"),
        ],
    )
    def test_what_is_no_overlay_is_refused(self, changed: dict, category: Category, words: str) -> None:
        with pytest.raises(AppError, match=words) as caught:
            plane_of(source(overlay(BITS, changed=changed)), "6002")
        assert caught.value.category is category


class TestOverlay:
    @pytest.mark.parametrize(("row", "column"), [(1, 1), (4, 9), (-2, 14), (11, -3), (30, 30)])
    def test_it_lies_where_its_origin_is_and_has_the_grey_of_its_layer(self, row: int, column: int) -> None:
        assert (seen(shows(overlay(BITS, row, column))) == expected(BITS, row, column)).all()

    @pytest.mark.parametrize("flip", ["N", "Y"])
    @pytest.mark.parametrize("turn", [90, 180, 270])
    def test_it_is_turned_with_the_image(self, turn: int, flip: str) -> None:
        found = seen(shows(overlay(BITS, 3, 5), ImageRotation=turn, ImageHorizontalFlip=flip))

        turned = np.rot90(expected(BITS, 3, 5), -turn // 90)
        assert (found == (turned[:, ::-1] if flip == "Y" else turned)).all()

    def test_the_states_own_goes_before_the_images(self) -> None:
        document = image(12, 16) | overlay(~BITS, 6, 6).to_json_dict()

        assert (seen(shows(), document) == expected(~BITS, 6, 6)).all()
        assert (seen(shows(overlay(BITS, 2, 2)), document) == expected(BITS, 2, 2)).all()

    def test_it_is_not_shown_without_a_layer_or_where_no_image_has_it(self) -> None:
        assert not seen(shows(overlay(BITS), layer="")).any()
        assert not seen(shows()).any()
        assert not seen(state(), image(12, 16) | overlay(BITS).to_json_dict()).any()

    def test_one_of_an_image_that_is_not_at_hand_is_refused(self) -> None:
        with pytest.raises(AppError, match="not at hand"):
            presentation_of(shows(), UID, 1)

    def test_on_paper_a_bit_is_as_large_as_a_pixel(self) -> None:
        presentation = presentation_of(shows(overlay(BITS, 3, 5)), UID, 1)
        picture = picture_of(np.zeros((12, 16), np.uint8), image(12, 16), 1, Look(presentation=presentation))
        sheets = Sheets(
            film_size="8INX10IN", dots_per_inch=72, magnification=Magnification.REPLICATE, letters=False,
            scale_bar=False, border=0.0,
        )  # fmt: skip

        (page,) = pages(sheets, [lambda: picture])

        ((left, top, placed),) = page.placements
        left, top, factor = left + placed.left, top + placed.top, placed.width // 16
        part = page.pixels[top : top + placed.height, left : left + placed.width]
        assert factor > 20
        assert (part == np.kron(expected(BITS, 3, 5), np.ones((factor, factor), np.uint8))).all()


class TestBitmapShutter:
    def shutter(self, bits: np.ndarray) -> dict[str, Any]:
        ds = item(ShutterShape="BITMAP", ShutterOverlayGroup=0x6002, ShutterPresentationValue=50_000)
        return shows(overlay(bits), ds)

    def test_bits_that_are_set_hide_the_image_and_are_no_overlay(self) -> None:
        bits = np.random.default_rng(3).random((12, 16)) < 0.5
        ramp = np.arange(192, dtype=np.uint8).reshape(12, 16)
        presentation = presentation_of(self.shutter(bits), UID, 1)

        picture = picture_of(ramp, image(12, 16), 1, Look(presentation=presentation))

        assert picture.marks == ()
        np.testing.assert_allclose(picture.greys, np.where(bits, GREY, ramp / 255), atol=1e-6)

    def test_it_has_to_be_as_large_as_the_image(self) -> None:
        with pytest.raises(AppError, match="as large as the image"):
            seen(self.shutter(BITS))

    def test_one_without_its_overlay_is_invalid(self) -> None:
        with pytest.raises(AppError, match="where it is"):
            presentation_of(state(ShutterShape="BITMAP", ShutterOverlayGroup=0x6002), UID, 1)
