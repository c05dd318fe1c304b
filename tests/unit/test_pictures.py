"""From frames to pictures: spacing and its origin, directions, presentation states, shutters, graphics, colour."""

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, Sequence

from imaging.display import Window
from imaging.errors import AppError, Category
from imaging.film import Fit, Magnification, Sheets, SpacingOrigin, pages
from imaging.film.marks import Drawn, Kind, Words
from imaging.pictures import Look, letters_of, outline_of, picture_of, spacing_of
from imaging.presentation import presentation_of, references, shutter_of

UID = "1.2.3"
WHOLE = Window(128, 256)


def item(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(
            ds,
            keyword,
            Sequence(value) if isinstance(value, list) and value and isinstance(value[0], Dataset) else value,
        )
    return ds


def image(rows: int = 4, columns: int = 6, **more: Any) -> dict[str, Any]:
    base = {
        "SOPInstanceUID": UID, "Rows": rows, "Columns": columns, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
        "PixelRepresentation": 0, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
    }  # fmt: skip
    return item(**(base | more)).to_json_dict()


def state(**more: Any) -> dict[str, Any]:
    base = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1",
        "PresentationLUTShape": "IDENTITY",
        "ReferencedSeriesSequence": [
            item(SeriesInstanceUID="1.2", ReferencedImageSequence=[item(ReferencedSOPInstanceUID=UID)])
        ],
    }
    return item(**(base | more)).to_json_dict()


def area(first: tuple[int, int], last: tuple[int, int], mode: str = "SCALE TO FIT", **more: Any) -> list[Dataset]:
    return [
        item(
            DisplayedAreaTopLeftHandCorner=list(first), DisplayedAreaBottomRightHandCorner=list(last),
            PresentationSizeMode=mode, **more,
        )
    ]  # fmt: skip


def ramp(rows: int = 4, columns: int = 6) -> np.ndarray:
    return np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)


def shown(ps: dict[str, Any], pixels: np.ndarray | None = None, **more: Any) -> Any:
    pixels = ramp() if pixels is None else pixels
    look = Look(presentation=presentation_of(ps, UID, 1), **more)
    return picture_of(pixels, image(*pixels.shape), 1, look)


def stored(picture: Any) -> list[list[int]]:
    """The stored values that the greys of an 8-bit image under the identity stand for."""
    return np.rint(picture.greys * 255).astype(int).tolist()


class TestSpacing:
    @pytest.mark.parametrize(
        ("attributes", "expected"),
        [
            ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25, SpacingOrigin.PATIENT)),
            ({"ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1, SpacingOrigin.DETECTOR)),
            # Equal and not said to be calibrated: a copy, and so at the detector.
            ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.1]}, (0.1, 0.1, SpacingOrigin.DETECTOR)),
            ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"},
             (0.1, 0.1, SpacingOrigin.PATIENT)),
            ({"PixelSpacing": [0.08, 0.08], "ImagerPixelSpacing": [0.1, 0.1]}, (0.08, 0.08, SpacingOrigin.PATIENT)),
            ({"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25},
             (0.08, 0.08, SpacingOrigin.PATIENT)),
            ({"NominalScannedPixelSpacing": [0.2, 0.2]}, (0.2, 0.2, SpacingOrigin.UNKNOWN)),
            ({"PixelAspectRatio": [2, 1]}, (2, 1, SpacingOrigin.UNKNOWN)),
            ({"SharedFunctionalGroupsSequence": [item(PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.7])])]},
             (0.7, 0.7, SpacingOrigin.PATIENT)),
        ],
    )  # fmt: skip
    def test_it_is_measured_at_what_the_attributes_say(self, attributes, expected):
        found = spacing_of(image(**attributes), 1)

        assert (found.down, found.across, found.origin) == pytest.approx(expected)

    def test_of_ultrasound_it_is_that_of_the_regions_where_they_agree(self):
        region = {
            "PhysicalUnitsXDirection": 3,
            "PhysicalUnitsYDirection": 3,
            "PhysicalDeltaX": 0.02,
            "PhysicalDeltaY": 0.03,
        }
        other = region | {"PhysicalDeltaX": 0.04}

        found = spacing_of(image(SequenceOfUltrasoundRegions=[item(**region), item(**region)]), 1)

        assert (found.down, found.across, found.origin) == (
            pytest.approx(0.3),
            pytest.approx(0.2),
            SpacingOrigin.PATIENT,
        )
        assert spacing_of(image(SequenceOfUltrasoundRegions=[item(**region), item(**other)]), 1) is None

    def test_nothing_is_nothing(self):
        assert spacing_of(image(), 1) is None
        assert spacing_of(image(PixelSpacing=[0, 0]), 1) is None


class TestLetters:
    def test_they_come_from_the_directions_of_rows_and_columns(self):
        assert letters_of(image(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), 1) == ("A", "L", "P", "R")

    def test_or_from_patient_orientation(self):
        assert letters_of(image(PatientOrientation=["P", "FR"]), 1) == ("HL", "P", "FR", "A")

    @pytest.mark.parametrize("told", [["", ""], ["L"], ["LE", "RT"]])
    def test_what_quadrupeds_or_nobody_have_is_left_out(self, told):
        assert letters_of(image(PatientOrientation=told), 1) == ("", "", "", "")


class TestState:
    def test_it_names_its_images(self):
        (found,) = references(state())

        assert (found.series_uid, found.sop_uid, found.frames) == ("1.2", UID, ())
        assert found.holds(UID, 7)

    def test_without_a_window_all_values_are_shown(self):
        assert stored(shown(state())) == ramp().tolist()

    def test_the_orders_window_goes_before_the_states(self):
        found = shown(
            state(),
            window=Window(
                2.5,
                2,
            ),
        )

        assert set(np.unique(found.greys)) >= {0.0, 1.0}

    # Clockwise, then left and right exchanged: PS3.3 C.10.6.
    @pytest.mark.parametrize(
        ("turn", "flip", "first_row", "letters"),
        [
            (0, "N", [0, 1, 2, 3, 4, 5], ("A", "L", "P", "R")),
            (90, "N", [18, 12, 6, 0], ("R", "A", "L", "P")),
            (180, "N", [23, 22, 21, 20, 19, 18], ("P", "R", "A", "L")),
            (270, "N", [5, 11, 17, 23], ("L", "P", "R", "A")),
            (0, "Y", [5, 4, 3, 2, 1, 0], ("A", "R", "P", "L")),
            (90, "Y", [0, 6, 12, 18], ("R", "P", "L", "A")),
        ],
    )
    def test_it_turns_and_flips_pixels_and_letters(self, turn, flip, first_row, letters):
        look = Look(presentation=presentation_of(state(ImageRotation=turn, ImageHorizontalFlip=flip), UID, 1))

        found = picture_of(ramp(), image(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), 1, look)

        assert stored(found)[0] == first_row
        assert found.letters == letters

    def test_turning_exchanges_the_spacing(self):
        look = Look(presentation=presentation_of(state(ImageRotation=90), UID, 1))

        found = outline_of(image(PixelSpacing=[0.5, 0.25]), 1, look)

        assert found.shape == (6, 4)
        assert (found.spacing.down, found.spacing.across) == (0.25, 0.5)

    def test_the_displayed_area_is_cut_out(self):
        found = shown(state(DisplayedAreaSelectionSequence=area((2, 2), (4, 3))))

        assert stored(found) == [[7, 8, 9], [13, 14, 15]]

    def test_the_corners_of_a_turned_image_are_those_as_shown(self):
        # Turned by 180 degrees, the upper left corner as shown is the lower right one as stored.
        found = shown(state(ImageRotation=180, DisplayedAreaSelectionSequence=area((4, 3), (2, 2))))

        assert stored(found) == [[15, 14, 13], [9, 8, 7]]

    def test_an_area_beyond_the_image_is_black_there(self):
        found = shown(state(DisplayedAreaSelectionSequence=area((0, 1), (2, 2))), ramp() + 1)

        assert stored(found) == [[0, 1, 2], [0, 7, 8]]

    @pytest.mark.parametrize(
        ("corners", "category"),
        [(((10, 10), (12, 12)), Category.INVALID), (((-100, 1), (6, 4)), Category.TOO_LARGE)],
    )
    def test_an_area_beside_the_image_or_without_end_is_refused(self, corners, category):
        with pytest.raises(AppError) as caught:
            shown(state(DisplayedAreaSelectionSequence=area(*corners)))
        assert caught.value.category is category

    def test_true_size_is_kept_unless_the_order_says_otherwise(self):
        wanted = state(
            DisplayedAreaSelectionSequence=area((1, 1), (6, 4), "TRUE SIZE", PresentationPixelSpacing=[1, 1])
        )

        assert shown(wanted).fit is Fit.TRUE_SIZE
        assert shown(wanted, fit=Fit.FIT).fit is Fit.FIT

    def test_magnification_for_a_screen_needs_a_size(self):
        wanted = state(DisplayedAreaSelectionSequence=area((1, 1), (6, 4), "MAGNIFY"))

        with pytest.raises(AppError, match="order a size"):
            shown(wanted)
        assert shown(wanted, fit=Fit.CROP).fit is Fit.CROP

    def test_an_item_for_another_frame_does_not_apply(self):
        of_two = item(ReferencedSOPInstanceUID=UID, ReferencedFrameNumber=[2, 3])
        wanted = state(
            SoftcopyVOILUTSequence=[item(ReferencedImageSequence=[of_two], WindowCenter=1, WindowWidth=1)],
        )

        assert presentation_of(wanted, UID, 2).window == Window(1, 1)
        assert presentation_of(wanted, UID, 1).window is None

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.2"}, "only grayscale"),
            ({"MaskSubtractionSequence": [item(MaskOperation="AVG_SUB")]}, "subtraction of a mask"),
            ({"ShutterShape": "HEXAGONAL"}, "shutter of this shape"),
            ({"GraphicAnnotationSequence": [item(CompoundGraphicSequence=[item(GraphicGroupID=1)])]}, "compound"),
            ({"GraphicAnnotationSequence": [item(GraphicObjectSequence=[item(GraphicType="ARROW")])]}, "this type"),
        ],
    )  # fmt: skip
    def test_what_is_not_done_is_refused_with_the_reason(self, more, words):
        with pytest.raises(AppError) as caught:
            presentation_of(state(**more), UID, 1)

        assert caught.value.category is Category.UNSUPPORTED
        assert words in caught.value.message

    def test_curves_that_would_show_are_refused(self):
        wanted = state() | {"50001001": {"vr": "CS", "Value": ["LAYER"]}}

        with pytest.raises(AppError, match="curves"):
            presentation_of(wanted, UID, 1)

    def test_colour_images_take_none(self):
        document = image(SamplesPerPixel=3, PhotometricInterpretation="RGB")

        with pytest.raises(AppError, match="colour image"):
            picture_of(np.zeros((4, 6, 3), np.uint8), document, 1, Look(presentation=presentation_of(state(), UID, 1)))


class TestShutter:
    def test_a_rectangle_shows_from_its_first_to_its_last_row_and_column(self):
        hidden = shutter_of(
            state(
                ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=2, ShutterRightVerticalEdge=5,
                ShutterUpperHorizontalEdge=1, ShutterLowerHorizontalEdge=3,
            )
        ).hidden((4, 6))  # fmt: skip

        assert (~hidden).nonzero()[0].min() == 0
        assert ~hidden[0:3, 1:5].any()
        assert (~hidden).sum() == 12

    def test_a_circle_has_the_area_of_a_circle(self):
        wanted = state(ShutterShape="CIRCULAR", CenterOfCircularShutter=[100, 100], RadiusOfCircularShutter=50)

        shown = (~shutter_of(wanted).hidden((200, 200))).sum()

        assert shown == pytest.approx(np.pi * 50**2, rel=0.01)

    def test_a_polygon_has_the_area_of_a_triangle(self):
        corners = [1, 1, 1, 101, 101, 1]  # row and column
        wanted = state(ShutterShape="POLYGONAL", VerticesOfThePolygonalShutter=corners)

        assert (~shutter_of(wanted).hidden((200, 200))).sum() == pytest.approx(5000, rel=0.02)

    def test_several_shapes_show_what_all_of_them_show_and_the_rest_has_the_states_grey(self):
        wanted = state(
            ShutterShape=["RECTANGULAR", "CIRCULAR"], ShutterLeftVerticalEdge=1, ShutterRightVerticalEdge=3,
            ShutterUpperHorizontalEdge=1, ShutterLowerHorizontalEdge=4, CenterOfCircularShutter=[2, 2],
            RadiusOfCircularShutter=1, ShutterPresentationValue=65535,
        )  # fmt: skip

        found = shown(wanted)

        assert found.greys[1, 1] == pytest.approx(7 / 255)
        assert found.greys[3, 5] == 1.0

    def test_an_image_of_its_own_has_one_too(self):
        document = image(
            ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=1, ShutterRightVerticalEdge=1,
            ShutterUpperHorizontalEdge=1, ShutterLowerHorizontalEdge=4,
        )  # fmt: skip

        found = picture_of(ramp() + 1, document, 1, Look(window=WHOLE))

        assert np.count_nonzero(found.greys[:, 1:]) == 0

    def test_one_that_does_not_say_where_is_invalid(self):
        with pytest.raises(AppError, match="where it is"):
            shutter_of(state(ShutterShape="CIRCULAR"))


def annotated(*objects: Dataset, **more: Any) -> dict[str, Any]:
    layer = item(GraphicLayer="A", GraphicLayerOrder=1, GraphicLayerRecommendedDisplayGrayscaleValue=32768)
    return state(
        GraphicLayerSequence=[layer],
        GraphicAnnotationSequence=[item(GraphicLayer="A", GraphicObjectSequence=list(objects))],
        **more,
    )


def graphic(kind: str, *points: float, units: str = "PIXEL", filled: str = "N") -> Dataset:
    return item(
        GraphicAnnotationUnits=units, GraphicDimensions=2, NumberOfGraphicPoints=len(points) // 2,
        GraphicData=[float(each) for each in points], GraphicType=kind, GraphicFilled=filled,
    )  # fmt: skip


class TestGraphics:
    def test_they_are_in_pixels_of_the_picture_with_the_grey_of_their_layer(self):
        (mark,) = shown(annotated(graphic("POLYLINE", 1, 1, 5, 3))).marks

        assert (mark.kind, mark.points) == (Kind.POLYLINE, ((1, 1), (5, 3)))
        assert mark.grey == pytest.approx(0.5, abs=1e-4)

    def test_those_in_pixels_turn_with_the_image_and_follow_its_part(self):
        wanted = annotated(
            graphic("POINT", 1, 1), ImageRotation=90, DisplayedAreaSelectionSequence=area((1, 4), (6, 1))
        )

        (mark,) = shown(wanted).marks

        assert mark.points == ((3, 1),)  # of 4 columns and 6 rows as shown

    def test_those_in_fractions_of_the_display_stay_where_they_are_seen(self):
        (mark,) = shown(annotated(graphic("POINT", 0.5, 0.25, units="DISPLAY"), ImageRotation=90)).marks

        assert mark.points == ((2, 1.5),)

    def test_texts_have_a_box_or_an_anchor(self):
        boxed = item(
            BoundingBoxAnnotationUnits="PIXEL", UnformattedTextValue="one\r\ntwo",
            BoundingBoxTopLeftHandCorner=[1.0, 1.0], BoundingBoxBottomRightHandCorner=[4.0, 2.0],
            BoundingBoxTextHorizontalJustification="CENTER",
        )  # fmt: skip
        anchored = item(
            AnchorPointAnnotationUnits="DISPLAY",
            UnformattedTextValue="here",
            AnchorPoint=[0.5, 0.5],
            AnchorPointVisibility="Y",
        )
        wanted = state(GraphicAnnotationSequence=[item(GraphicLayer="A", TextObjectSequence=[boxed, anchored])])

        assert shown(wanted).marks == (
            Words(("one", "two"), (1, 1), (4, 2), None, 0.5, 1.0),
            Words(("here",), (3, 2)),
        )

    def test_a_number_of_points_that_makes_no_figure_is_invalid(self):
        with pytest.raises(AppError, match="no ELLIPSE"):
            shown(annotated(graphic("ELLIPSE", 1, 1, 2, 2)))

    def test_they_are_drawn_where_they_belong_and_as_thick_as_a_pen(self):
        """A circle of radius 40 pixels on an image that is printed 1:1 is a ring of that radius."""
        greys = np.zeros((200, 200), np.uint8)
        wanted = annotated(graphic("CIRCLE", 100, 100, 140, 100))
        picture = shown(wanted, greys, window=WHOLE)
        sheets = Sheets(
            film_size="A4",
            letters=False,
            scale_bar=False,
            margin=0,
            dots_per_inch=300,
            magnification=Magnification.NONE,
            border=0,
        )

        (page,) = pages(sheets, [lambda: picture])

        left, top, placement = page.placements[0]
        part = page.pixels[top + placement.top :, left + placement.left :][:200, :200].astype(float)
        rows, columns = (part > 60).nonzero()
        radii = np.hypot(columns + 0.5 - 100, rows + 0.5 - 100)
        assert radii.mean() == pytest.approx(40, abs=0.7)
        assert radii.max() - radii.min() < 0.25 / 25.4 * 300 + 2

    @pytest.mark.parametrize(
        ("kind", "points"),
        [
            (Kind.POINT, ((50, 50),)),
            (Kind.POLYLINE, ((10, 10), (90, 90))),
            (Kind.INTERPOLATED, ((10, 50), (50, 10), (90, 50), (50, 90), (10, 50))),
            (Kind.ELLIPSE, ((10, 50), (90, 50), (50, 30), (50, 70))),
        ],
    )
    def test_every_figure_passes_through_its_points(self, kind, points):
        greys = np.zeros((100, 100), np.float32)
        picture = shown(state(), greys.astype(np.uint8))
        marked = type(picture)(picture.greys, marks=(Drawn(kind, points),))
        sheets = Sheets(film_size="A4", letters=False, scale_bar=False, margin=0, magnification=Magnification.NONE)

        (page,) = pages(sheets, [lambda: marked])

        left, top, placement = page.placements[0]
        part = page.pixels[top + placement.top :, left + placement.left :][:100, :100]
        assert all(part[y - 1 : y + 1, x - 1 : x + 1].max() > 200 for x, y in points)


class TestGreys:
    def test_they_are_as_fine_as_the_pixels(self):
        pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)

        found = picture_of(
            pixels, image(64, 64, BitsAllocated=16, BitsStored=12, HighBit=11), 1, Look(window=Window(2048, 4096))
        )

        assert len(np.unique(found.greys)) == 4096

    def test_a_tone_makes_p_values_of_them(self):
        found = picture_of(ramp(), image(), 1, Look(window=WHOLE, tone=lambda greys: 1 - greys))

        assert found.greys[0, 0] == 1

    def test_colour_becomes_the_luma_of_bt_601_unless_it_stays(self):
        document = image(1, 3, SamplesPerPixel=3, PhotometricInterpretation="RGB")
        pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)

        grey, coloured = (picture_of(pixels, document, 1, Look(is_coloured=each)).greys for each in (False, True))

        assert grey[0].tolist() == pytest.approx([0.299, 0.587, 0.114])
        assert coloured.shape == (1, 3, 3)

    @pytest.mark.parametrize("turn", [0, 90])
    def test_the_outline_is_that_of_the_picture(self, turn):
        document = image(PixelSpacing=[0.5, 0.25], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        look = Look(
            caption=("one",),
            presentation=presentation_of(
                state(ImageRotation=turn, DisplayedAreaSelectionSequence=area((2, 2), (4, 3))), UID, 1
            ),
        )

        assert picture_of(ramp(), document, 1, look).outline == outline_of(document, 1, look)
