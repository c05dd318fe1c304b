"""Hard copy: images on sheets of film or paper, exact in millimetres and in what the eye makes of greys.

`pages(sheets, pictures)` is what a device needs; it knows nothing of DICOM files, printers or orders.
"""

from imaging.film.compose import Outline, Page, Picture, Sheets, Words, page_count, pages, placed
from imaging.film.layout import FILM_SIZES, Box, Medium, Orientation
from imaging.film.placing import Fit, Magnification, Spacing, SpacingOrigin

__all__ = [
    "FILM_SIZES", "Box", "Fit", "Magnification", "Medium", "Orientation", "Outline", "Page", "Picture", "Sheets",
    "Spacing", "SpacingOrigin", "Words", "page_count", "pages", "placed",
]  # fmt: skip
