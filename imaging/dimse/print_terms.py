"""What both sides of print management have to know: SOP classes, statuses, and how attributes are written.

Sources: PS3.4 annex H (services, statuses), PS3.3 C.13 (attributes), PS3.7 annex C (general statuses).
"""

from collections.abc import Mapping
from types import MappingProxyType

from imaging.errors import Category

FILM_SESSION = "1.2.840.10008.5.1.1.1"
FILM_BOX = "1.2.840.10008.5.1.1.2"
GREY_IMAGE_BOX = "1.2.840.10008.5.1.1.4"
COLOUR_IMAGE_BOX = "1.2.840.10008.5.1.1.4.1"
GREY_META = "1.2.840.10008.5.1.1.9"
COLOUR_META = "1.2.840.10008.5.1.1.18"
PRINT_JOB = "1.2.840.10008.5.1.1.14"
ANNOTATION_BOX = "1.2.840.10008.5.1.1.15"
PRINTER = "1.2.840.10008.5.1.1.16"
PRINTER_INSTANCE = "1.2.840.10008.5.1.1.17"
PRESENTATION_LUT = "1.2.840.10008.5.1.1.23"

PRINT = 1  # the one action of film sessions and film boxes

# Film sizes whose everyday names DICOM does not know.
FILM_SIZE_IDS: Mapping[str, str] = MappingProxyType({"LETTER": "8_5INX11IN"})

SUCCESS = 0x0000
ATTRIBUTE_LIST_ERROR = 0x0107
OUT_OF_RANGE = 0x0116

# Warnings that mean that a print has another size than asked. Source: PS3.4 H.4.1.2.2.4, H.4.2.2.2.4, H.4.3.1.2.1.
RESIZED: Mapping[int, str] = MappingProxyType(
    {
        0xB604: "demagnified to fit its box",
        0xB609: "cropped to fit its box",
        0xB60A: "decimated to fit its box",
    }
)

# Failure -> what it means, and what may be done about it.
FAILURES: Mapping[int, tuple[str, Category]] = MappingProxyType(
    {
        0x0105: ("no such attribute", Category.UNSUPPORTED),
        0x0106: ("invalid attribute value", Category.UNSUPPORTED),
        0x0110: ("processing failure", Category.FAULT),
        0x0111: ("duplicate SOP instance", Category.CONFLICT),
        0x0112: ("no such SOP instance", Category.NOT_FOUND),
        0x0115: ("invalid argument value", Category.UNSUPPORTED),
        0x0117: ("invalid SOP instance", Category.UNSUPPORTED),
        0x0118: ("no such SOP class", Category.UNSUPPORTED),
        0x0119: ("class and instance do not fit", Category.UNSUPPORTED),
        0x0120: ("an attribute is missing", Category.UNSUPPORTED),
        0x0121: ("an attribute has no value", Category.UNSUPPORTED),
        0x0122: ("SOP class not supported", Category.UNSUPPORTED),
        0x0123: ("no such action", Category.UNSUPPORTED),
        0x0124: ("not authorised", Category.FORBIDDEN),
        0x0210: ("duplicate message", Category.FAULT),
        0x0211: ("unrecognised operation", Category.UNSUPPORTED),
        0x0212: ("mistyped argument", Category.FAULT),
        0x0213: ("out of resources", Category.BUSY),
        0xC600: ("the film session has no film box", Category.FAULT),
        0xC601: ("the print queue is full", Category.BUSY),
        0xC602: ("the print queue is full", Category.BUSY),
        0xC603: ("the image is larger than its box", Category.UNSUPPORTED),
        0xC605: ("not enough memory for the image", Category.BUSY),
        0xC613: ("the combined image is larger than its box", Category.UNSUPPORTED),
        0xC616: ("another film box is not printed yet", Category.CONFLICT),
    }
)


def failure(status: int) -> tuple[str, Category]:
    """Return what a failure means and its category; FAULT for one that is the printer's own."""
    return FAILURES.get(status, ("a failure of the printer's own", Category.FAULT))


def is_failure(status: int) -> bool:
    """Say whether a status is neither success nor a warning. Source: PS3.7 C."""
    is_warning = status in (0x0001, ATTRIBUTE_LIST_ERROR, OUT_OF_RANGE) or status >> 12 == 0xB
    return status != SUCCESS and not is_warning
