"""The attributes of print management: which a class has, what they may be, and what is taken where they are not given.

Sources: PS3.4 H.4.1 to H.4.4 (which), PS3.3 C.13.1 to C.13.7 (values), PS3.7 C.4 (statuses of what is wrong).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from imaging.dimse import print_terms as terms
from imaging.film.layout import FILM_SIZES, Medium
from imaging.film.placing import Magnification

MOST_TEXT = 1_024  # characters of a value
MOST_SIDE = 20_000  # pixels
MOST_COPIES = 99
MOST_DENSITY = 500  # hundredths


class Refused(Exception):
    """A service that fails with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#06x}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute.

    default       taken where none is given, and in place of a defined term that is not known; None for nothing
    enumerated    values; another is refused
    defined       terms; for another the default is taken, with a warning
    range         of a number; what is beyond becomes the nearer end, with a warning
    is_fixed      whether it cannot be changed once the instance is made
    """

    keyword: str
    default: str | int | None = None
    enumerated: tuple[str, ...] = ()
    defined: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    is_required: bool = False
    is_fixed: bool = False


_MAGNIFICATIONS = tuple(map(str, Magnification))
_SIZES = tuple(size for size in FILM_SIZES if size not in terms.FILM_SIZE_IDS)
_DENSITIES = (
    Attribute("MinDensity", range=(0, MOST_DENSITY)),
    Attribute("MaxDensity", range=(0, MOST_DENSITY)),
)
_SCALING = (
    Attribute("SmoothingType"),
    Attribute("ConfigurationInformation"),
)

ATTRIBUTES: Mapping[str, tuple[Attribute, ...]] = MappingProxyType(
    {
        terms.FILM_SESSION: (
            Attribute("NumberOfCopies", 1, range=(1, MOST_COPIES)),
            Attribute("PrintPriority", "MED", enumerated=("HIGH", "MED", "LOW")),
            Attribute("MediumType", str(Medium.BLUE_FILM), defined=tuple(map(str, Medium))),
            Attribute("FilmDestination"),
            Attribute("FilmSessionLabel"),
            Attribute("MemoryAllocation"),
            Attribute("OwnerID"),
        ),
        terms.FILM_BOX: (
            Attribute("ImageDisplayFormat", is_required=True, is_fixed=True),
            Attribute("FilmOrientation", "PORTRAIT", enumerated=("PORTRAIT", "LANDSCAPE"), is_fixed=True),
            Attribute("FilmSizeID", "14INX17IN", defined=_SIZES, is_fixed=True),
            Attribute("MagnificationType", "CUBIC", defined=_MAGNIFICATIONS),
            *_SCALING,
            Attribute("BorderDensity", "BLACK"),
            Attribute("EmptyImageDensity", "BLACK"),
            *_DENSITIES,
            Attribute("Trim", "NO", enumerated=("YES", "NO")),
            Attribute("Illumination", range=(0, 65_535)),
            Attribute("ReflectedAmbientLight", range=(0, 65_535)),
            Attribute("RequestedResolutionID", "STANDARD", defined=("STANDARD", "HIGH"), is_fixed=True),
            Attribute("AnnotationDisplayFormatID", is_fixed=True),
        ),
        terms.GREY_IMAGE_BOX: (
            Attribute("ImageBoxPosition", range=(1, 65_535), is_required=True),
            Attribute("Polarity", "NORMAL", enumerated=("NORMAL", "REVERSE")),
            Attribute("MagnificationType", defined=_MAGNIFICATIONS),
            *_SCALING,
            *_DENSITIES,
            Attribute("RequestedImageSize", range=(1, 2_000)),
            Attribute("RequestedDecimateCropBehavior", enumerated=("DECIMATE", "CROP", "FAIL")),
        ),
        terms.ANNOTATION_BOX: (
            Attribute("AnnotationPosition", range=(1, 65_535)),
            Attribute("TextString"),
        ),
    }
)

# What other services of the same data set take care of.
_APART = {
    "SpecificCharacterSet", "ReferencedFilmSessionSequence", "ReferencedPresentationLUTSequence",
    "ReferencedFilmBoxSequence", "BasicGrayscaleImageSequence", "BasicColorImageSequence",
    "ReferencedImageBoxSequence", "ReferencedBasicAnnotationBoxSequence",
}  # fmt: skip


def checked(attributes: Sequence[Attribute], ds: Dataset, *, is_change: bool = False) -> tuple[int, Dataset]:
    """Return a status, success or a warning, and the attributes that are taken. Raises Refused.

    is_change  only what is given is taken
    """
    known = {attribute.keyword for attribute in attributes if not (is_change and attribute.is_fixed)} | _APART
    is_unknown = any(element.keyword not in known for element in ds if not element.tag.is_private)
    status = terms.ATTRIBUTE_LIST_ERROR if is_unknown else terms.SUCCESS
    taken = Dataset()
    for attribute in attributes:
        if is_change and (attribute.is_fixed or attribute.keyword not in ds):
            continue
        is_taken, value = _value(attribute, ds)
        if not is_taken:
            status = terms.OUT_OF_RANGE
        if value is not None:
            setattr(taken, attribute.keyword, value)
    return status, taken


def _value(attribute: Attribute, ds: Dataset) -> tuple[bool, str | int | float | None]:
    """Return whether the value is the one that was given, and the value."""
    given = _text(ds, attribute.keyword)
    if not given:
        if attribute.is_required:
            raise Refused(0x0121 if attribute.keyword in ds else 0x0120)
        return True, attribute.default
    if attribute.enumerated and given not in attribute.enumerated:
        raise Refused(0x0106)
    if attribute.defined and given not in attribute.defined:
        return False, attribute.default
    if attribute.range is None:
        return True, given
    try:
        number = float(given)
    except ValueError:
        raise Refused(0x0106) from None
    low, high = attribute.range
    within = min(max(number, low), high) if number == number else low
    return within == number, int(within) if within == int(within) else within


def _text(ds: Dataset, keyword: str) -> str:
    try:
        value = ds.get(keyword)
    except Exception as error:  # bytes that are no value of this VR
        raise Refused(0x0106) from error
    text = "" if value is None else "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    if len(text) > MOST_TEXT:
        raise Refused(0x0106)
    return text.strip()


def checked_image(ds: Dataset, *, is_colour: bool) -> Dataset | None:
    """Return the image of an image box, None where it is taken out of it. Raises Refused."""
    keyword = "BasicColorImageSequence" if is_colour else "BasicGrayscaleImageSequence"
    if keyword not in ds:
        raise Refused(0x0120)
    items = ds[keyword].value
    if not items:
        return None
    image: Dataset = items[0]
    rows, columns, allocated, stored = (
        _number(image, each) for each in ("Rows", "Columns", "BitsAllocated", "BitsStored")
    )
    samples = 3 if is_colour else 1
    photometric = ("RGB",) if is_colour else ("MONOCHROME1", "MONOCHROME2")
    # 8 bits, or 12 in 16. Source: PS3.3 C.13.5. Some send 10 bits.
    depths = {8: (8,)} if is_colour else {8: (8,), 16: range(9, 17)}
    is_sound = (
        1 <= rows <= MOST_SIDE
        and 1 <= columns <= MOST_SIDE
        and _number(image, "SamplesPerPixel") == samples
        and _text(image, "PhotometricInterpretation") in photometric
        and stored in depths.get(allocated, ())
        and _number(image, "PixelRepresentation") == 0
        and (not is_colour or _number(image, "PlanarConfiguration") in (0, 1))
    )
    if not is_sound:
        raise Refused(0x0106)
    if "PixelData" not in image:
        raise Refused(0x0120)
    expected = rows * columns * samples * allocated // 8
    if len(image.PixelData) not in (expected, expected + expected % 2):
        raise Refused(0x0106)
    return image


def _number(image: Dataset, keyword: str) -> int:
    text = _text(image, keyword)
    if not text:
        raise Refused(0x0121 if keyword in image else 0x0120)
    if not text.isdecimal():
        raise Refused(0x0106)
    return int(text)
