"""Hard copy: images on sheets of film or paper, exact in millimetres and in what the eye makes of greys.

`pages(sheets, pictures)` is all that a device needs; it knows nothing of DICOM files, printers or orders.
"""

from imaging.film.compose import Page, Picture, Sheets, page_count, pages
from imaging.film.layout import FILM_SIZES, Box, Medium, Orientation
from imaging.film.placing import Fit, Magnification, Spacing, SpacingOrigin

__all__ = [
    "FILM_SIZES", "Box", "Fit", "Magnification", "Medium", "Orientation", "Page", "Picture", "Sheets", "Spacing",
    "SpacingOrigin", "page_count", "pages",
]  # fmt: skip
