"""Colour spaces of rendered pictures: ICC profiles that images carry, and conversion to the spaces that clients name.

Grey pictures hold P-Values and get the profile that says so; colours without a profile of their own are taken as sRGB.
Sources: PS3.18 8.3.5.1.5, PS3.3 C.11.15 (ICC Profile Module), ICC.1:2004-10.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image, ImageCms

from imaging.display import BulkData, items_of
from imaging.errors import AppError, Category
from imaging.film.icc import SPACES, grey_profile, rgb_profile

NO, YES, SRGB = "no", "yes", "srgb"
VALUES: Final = (NO, YES, SRGB, *SPACES)
"""What `iccprofile` can be: none, the picture's own, or converted to a space and with its profile."""

MOST_PROFILE_BYTES: Final = 16 << 20
_ICC_PROFILE = "00282000"
_OPTICAL_PATHS = "00480105"


def profile_of(document: Mapping[str, Any], bulkdata: BulkData | None = None) -> bytes | None:
    """Return the ICC profile that an instance has, of the first optical path where there are several; None for none."""
    for holder in (document, *items_of(document, _OPTICAL_PATHS)[:1]):
        element = holder.get(_ICC_PROFILE, {})
        if "InlineBinary" in element:
            try:
                return base64.b64decode(element["InlineBinary"], validate=True)
            except (binascii.Error, ValueError, TypeError):
                return None
        if "BulkDataURI" in element and bulkdata:
            return bulkdata(str(element["BulkDataURI"]))[:MOST_PROFILE_BYTES]
    return None


def in_space(image: Image.Image, own: bytes | None, wanted: str) -> tuple[Image.Image, bytes | None]:
    """Return a picture and the profile to embed, for one of `VALUES`.

    own   of an RGB picture, None where it has none
    Raises UNSUPPORTED for a profile that is damaged or not one for such pictures.
    """
    if wanted == NO:
        return image, None
    source = grey_profile() if image.mode == "L" else own or rgb_profile(SRGB)
    if wanted == YES:
        return image, source
    target = rgb_profile(wanted)
    try:
        converted = ImageCms.profileToProfile(
            image, io.BytesIO(source), io.BytesIO(target), ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        message = "the ICC profile of the image cannot be applied; ask for iccprofile=no"
        raise AppError(Category.UNSUPPORTED, message, where="Accept") from error
    return converted or image, target
