"""The inputs of a `hard-copy` Task: one row each, with type, range and meaning. Pure.

The checks of values and the reference page follow from the rows. Words are DICOM's where DICOM has them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.model.task import Parameter
from imaging.dataset import check_uid
from imaging.display import Window
from imaging.errors import AppError, Category
from imaging.film import FILM_SIZES, Fit, Magnification, Medium, Orientation
from imaging.film.layout import MOST_BOXES

MOST_IMAGES = 5_000  # named one by one
MOST_BANNER = 6  # lines of an order, besides those that tell who the patient is
UCUM = "http://unitsofmeasure.org"

_CODE, _TEXT, _YES = "valueCode|valueString", "valueString", "valueBoolean"
_NUMBER, _COUNT, _UID = (
    "valueDecimal|valueInteger|valueQuantity",
    "valuePositiveInt|valueInteger",
    "valueId|valueString",
)
_UID_FORM = r"[0-9.]{1,64}"
_STUDY = re.compile(r"(?:.*/)?ImagingStudy/[A-Za-z0-9.\-]{1,64}")
_DEVICE = re.compile(r"(?:.*/)?Device/[A-Za-z0-9.\-]{1,64}")
_IMAGE = re.compile(rf"(?P<uid>{_UID_FORM})(?:\?(?P<query>[^\s?]{{1,500}}))?")
_BOX = re.compile(r"\s*" + r"\s*,\s*".join([r"\d{1,4}(?:\.\d{1,3})?"] * 4) + r"\s*")
_DENSITY = re.compile(r"BLACK|WHITE|\d(?:\.\d{1,3})?")
_FRAMES = re.compile(r"\s*\d{1,6}(?:-\d{1,6})?(?:\s*,\s*\d{1,6}(?:-\d{1,6})?){0,999}\s*")
_OF_IMAGE = frozenset({"frames", "window", "presentation-state"})

POLARITIES = ("NORMAL", "REVERSE")
LUT_SHAPES = ("IDENTITY", "LIN OD")


@dataclass(frozen=True, slots=True)
class Input:
    """One input.

    value      the FHIR element that holds it; several joined by |
    least      how often it has to come; `most` how often it may
    choices    all the values that there are, where they can be counted
    low, high  of a number, in `unit` (UCUM)
    default    in words
    wrong      returns what is wrong with a value of another form, "" for nothing
    """

    group: str
    name: str
    value: str
    meaning: str
    least: int = 0
    most: int = 1
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    unit: str = ""
    default: str = ""
    wrong: Callable[[Any], str] = lambda _: ""

    def check(self, value: Any) -> str:
        """Return what is wrong with a value, "" for nothing."""
        if self.choices:
            return "" if value in self.choices else f"one of {', '.join(self.choices)} expected"
        if self.low is not None and self.high is not None:
            return self._check_number(value, self.low, self.high)
        return self.wrong(value)

    def _check_number(self, value: Any, low: float, high: float) -> str:
        if isinstance(value, Mapping):
            if value.get("system", UCUM) != UCUM or value.get("code", value.get("unit", self.unit)) != self.unit:
                return f"the unit has to be {self.unit}"
            value = value.get("value")
        unit = f" {self.unit}" if self.unit else ""
        is_number = value is not None and not isinstance(value, bool) and low <= float(value) <= high
        return "" if is_number else f"{low:g} to {high:g}{unit} expected"


def _form(pattern: re.Pattern[str], what: str) -> Callable[[Any], str]:
    def wrong(value: Any) -> str:
        text = value.get("reference", "") if isinstance(value, Mapping) else value
        return "" if isinstance(text, str) and pattern.fullmatch(text) else f"{what} expected"

    return wrong


def _raised(read: Callable[[str], object]) -> Callable[[Any], str]:
    """Return a check that says what `read` has to say about a text."""

    def wrong(value: Any) -> str:
        try:
            read(value)
        except AppError as error:
            return error.message
        return ""

    return wrong


def _uid(text: str) -> None:
    check_uid(text, "this")


def image_parts(text: str) -> tuple[str, dict[str, str]]:
    """Return the UID of an `image` input and what is said of that image alone.

    Raises INVALID. The form is that of WADO-RS: `UID?frames=1,3-5&window=40,400&presentation-state=UID`.
    """
    found = _IMAGE.fullmatch(text)
    query = found["query"] if found else ""
    pairs = [each.partition("=")[::2] for each in (query or "").split("&") if each]
    parts = dict(pairs)
    if found is None or len(parts) != len(pairs) or not parts.keys() <= _OF_IMAGE or not all(parts.values()):
        message = "a SOP Instance UID, perhaps with ?frames=1,3-5&window=40,400&presentation-state=UID expected"
        raise AppError(Category.INVALID, message, where="image")
    check_uid(found["uid"], "this")
    if "presentation-state" in parts:
        check_uid(parts["presentation-state"], "presentation-state")
    if "window" in parts:
        Window.from_text(parts["window"])
    if "frames" in parts and not _FRAMES.fullmatch(parts["frames"]):
        raise AppError(Category.INVALID, "frame numbers such as 1,3-5 expected", where="frames")
    return found["uid"], parts


_IMAGES, _DEVICES, _SHEET, _PICTURE, _TONE, _WORDS = (
    "Images, printed in the order of the inputs", "Device and copies", "Sheet", "Images on the sheet",
    "Densities", "Text and marks",
)  # fmt: skip

INPUTS: tuple[Input, ...] = (
    Input(_IMAGES, "imaging-study", "valueReference", "all images of a study", most=MOST_IMAGES,
          wrong=_form(_STUDY, "a reference to an ImagingStudy")),
    Input(_IMAGES, "series", _UID, "all images of a series: its UID", most=MOST_IMAGES, wrong=_raised(_uid)),
    Input(_IMAGES, "instance", _UID, "all frames of an instance: its SOP Instance UID", most=MOST_IMAGES,
          wrong=_raised(_uid)),
    Input(_IMAGES, "image", _TEXT, "an instance with what holds for it alone: "
          "`UID?frames=1,3-5&window=40,400&presentation-state=UID`, each part if need be", most=MOST_IMAGES,
          wrong=_raised(image_parts)),
    Input(_IMAGES, "key-object", _UID, "the images that a key object selection names: its SOP Instance UID", most=100,
          wrong=_raised(_uid)),
    Input(_IMAGES, "presentation-state", _UID, "SOP Instance UID of a grayscale softcopy presentation state, applied "
          "to the images that it refers to; without other images these are printed", most=100, wrong=_raised(_uid)),
    Input(_IMAGES, "frames", _TEXT, "frames of every instance that says none itself, such as `1,3-5`", default="all",
          wrong=_form(_FRAMES, "frame numbers such as 1,3-5")),
    Input(_DEVICES, "device", "valueReference", "the Device that prints", least=1,
          wrong=_form(_DEVICE, "a reference to a Device")),
    Input(_DEVICES, "copies", _COUNT, "of every page", low=1, high=99, default="1"),
    Input(_DEVICES, "destination", _CODE, "Film Destination (2000,0040), a term of the device",
          wrong=_form(re.compile(r"[A-Z0-9_ ]{1,16}"), "a term such as PROCESSOR or BIN_1")),
    Input(_SHEET, "medium", _CODE, "Medium Type (2000,0030)", choices=tuple(Medium), default="the device's first"),
    Input(_SHEET, "film-size", _CODE, "Film Size ID (2010,0050)", choices=tuple(FILM_SIZES),
          default="the device's first"),
    Input(_SHEET, "orientation", _CODE, "Film Orientation (2010,0040)", choices=tuple(Orientation),
          default=Orientation.PORTRAIT),
    Input(_SHEET, "layout", _TEXT, r"Image Display Format (2010,0010): `STANDARD\columns,rows`, `ROW\n,n`, `COL\n,n`, "
          "`SLIDE`, `SUPERSLIDE`", default=r"`STANDARD\1,1`",
          wrong=_form(re.compile(r"[A-Za-z]{3,10}(?:\\[0-9,]{1,99})?"), r"a format such as STANDARD\2,3")),
    Input(_SHEET, "box", _TEXT, "a box of its own in place of a layout: `left,top,width,height` in mm from the upper "
          "left corner of the sheet; images fill boxes in their order", most=MOST_BOXES,
          wrong=_form(_BOX, "left,top,width,height in mm")),
    Input(_SHEET, "margin", _NUMBER, "along every edge of the sheet", low=0, high=100, unit="mm",
          default="6, or what the device needs"),
    Input(_SHEET, "gap", _NUMBER, "between images", low=0, high=50, unit="mm", default="2"),
    Input(_SHEET, "resolution", _COUNT, "dots per inch", low=72, high=1200, default="the device's first"),
    Input(_SHEET, "bits", _COUNT, "of a grey value", low=8, high=16, default="the device's first"),
    Input(_SHEET, "colour", _YES, "print in colour; otherwise colour becomes grey",
          default="no, unless the device has no grey"),
    Input(_PICTURE, "fit", _CODE, "`fit`: as large as the box allows; `crop`: fills the box; `true-size`: a "
          "millimetre of the patient is one on the sheet", choices=tuple(Fit),
          default="that of the presentation state, else fit"),
    Input(_PICTURE, "magnification", _CODE, "Magnification Type (2010,0060); REPLICATE enlarges by whole numbers",
          choices=tuple(Magnification), default=Magnification.CUBIC),
    Input(_PICTURE, "window", _TEXT, "`center,width[,function]` for every image that has none of its own in the "
          "order; in place of the image's and the presentation state's",
          default="that of the presentation state, else of the image", wrong=_raised(Window.from_text)),
    Input(_PICTURE, "polarity", _CODE, "Polarity (2020,0020)", choices=POLARITIES, default="NORMAL"),
    Input(_TONE, "lut-shape", _CODE, "Presentation LUT Shape (2050,0020): whether greys are P-Values, or evenly "
          "spaced in optical density", choices=LUT_SHAPES, default="IDENTITY"),
    Input(_TONE, "density-min", _NUMBER, "optical density of the lightest point", low=0, high=5,
          default="the device's"),
    Input(_TONE, "density-max", _NUMBER, "optical density of the darkest point", low=0, high=5,
          default="the device's"),
    Input(_TONE, "illumination", _NUMBER, "of the light box without film", low=1, high=20_000, unit="cd/m2",
          default="2000"),
    Input(_TONE, "ambient-light", _NUMBER, "room light that the film reflects", low=0, high=1_000, unit="cd/m2",
          default="10"),
    Input(_TONE, "border", _CODE, "around the images: BLACK, WHITE or an optical density", default="BLACK",
          wrong=_form(_DENSITY, "BLACK, WHITE or an optical density such as 2.8")),
    Input(_TONE, "empty", _CODE, "of boxes without an image: BLACK, WHITE or an optical density", default="BLACK",
          wrong=_form(_DENSITY, "BLACK, WHITE or an optical density such as 2.8")),
    Input(_SHEET, "trim", _YES, "a line around every box", default="no"),
    Input(_WORDS, "banner", _TEXT, "a line of text under the lines that tell who the patient is", most=MOST_BANNER,
          wrong=_form(re.compile(r"[^\x00-\x1f\x7f]{1,200}"), "a line of 1 to 200 characters")),
    Input(_WORDS, "captions", _YES, "numbers and window under every image", default="yes"),
    Input(_WORDS, "letters", _YES, "the patient's directions at the edges of every image", default="yes"),
    Input(_WORDS, "scale-bar", _YES, "under every image whose spacing is known", default="yes"),
    Input(_WORDS, "over-images", _YES, "letters and scale bars on the image instead of beside it", default="no"),
    Input(_WORDS, "letter-height", _NUMBER, "of all text", low=1, high=30, unit="mm", default="3.5"),
    Input(_WORDS, "logo", _YES, "the institution's sign, where the server has one", default="yes"),
)  # fmt: skip

PARAMETERS: tuple[Parameter, ...] = tuple(
    Parameter(each.name, each.value, each.least, each.most, each.check) for each in INPUTS
)
