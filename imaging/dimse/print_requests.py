"""What is asked of a film printer, as attributes: from a job, a page or a picture to the data sets of its requests.

Pure. Sources: PS3.3 C.13.1 (film session), C.13.3 (film box), C.13.5 (image boxes), C.13.7 (annotation box), C.11.4
(presentation LUT).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.dimse import print_terms as terms
from imaging.errors import AppError, Category
from imaging.film.compose import Picture, Sheets
from imaging.film.layout import Orientation
from imaging.film.placing import Fit, Magnification, SpacingOrigin
from imaging.printer import Job

MOST_TEXT = 64  # characters of an annotation, Text String (2030,0020) being LO
_ASPECT = 10_000

Samples = NDArray[np.uint8] | NDArray[np.uint16]


class Lut(StrEnum):
    """How a printer is told that pixels are P-Values."""

    NONE = "none"  # it is not told
    IDENTITY = "identity"  # Presentation LUT Shape IDENTITY
    TABLE = "table"  # a Presentation LUT that maps every value to itself


@dataclass(frozen=True, slots=True)
class Scaling:
    """How an image is scaled in its box, beyond what the film box says.

    width_mm  Requested Image Size (2020,0030), None to leave it to the printer
    behavior  Requested Decimate/Crop Behavior (2020,0040), "" to leave it to the printer
    is_true   whether nothing may be printed that has another size
    """

    width_mm: float | None = None
    behavior: str = ""
    magnification: str = ""
    aspect: tuple[int, int] | None = None
    is_true: bool = False


def film_session(job: Job) -> Dataset:
    """Return the attributes of a film session."""
    ds = Dataset()
    ds.NumberOfCopies = job.copies
    ds.PrintPriority = str(job.priority)
    ds.MediumType = str(job.sheets.medium)
    ds.FilmDestination = job.destination or None
    ds.FilmSessionLabel = job.key
    return _without_empty(ds)


def film_box(
    job: Job, *, session_uid: str, lut_uid: str, display_format: str, magnification: str, resolution_id: str,
    annotation_format: str, trim: bool,
) -> Dataset:  # fmt: skip
    """Return the attributes of a film box. `lut_uid` is "" without a presentation LUT."""
    sheets = job.sheets
    ds = Dataset()
    ds.ImageDisplayFormat = display_format
    ds.FilmOrientation = "LANDSCAPE" if sheets.orientation is Orientation.LANDSCAPE else "PORTRAIT"
    ds.FilmSizeID = terms.FILM_SIZE_IDS.get(sheets.film_size, sheets.film_size)
    ds.MagnificationType = magnification or None
    ds.SmoothingType = job.smoothing or None
    ds.BorderDensity = _density(sheets.border)
    ds.EmptyImageDensity = _density(sheets.empty)
    ds.Trim = "YES" if trim else "NO"
    ds.ConfigurationInformation = job.configuration or None
    ds.RequestedResolutionID = resolution_id or None
    ds.AnnotationDisplayFormatID = annotation_format or None
    if job.densities is not None:
        ds.MinDensity, ds.MaxDensity = round(100 * job.densities.lowest), round(100 * job.densities.highest)
    ds.ReferencedFilmSessionSequence = [_reference(terms.FILM_SESSION, session_uid)]
    if lut_uid:
        ds.ReferencedPresentationLUTSequence = [_reference(terms.PRESENTATION_LUT, lut_uid)]
        if job.densities is not None:
            ds.Illumination = round(job.densities.illumination)
            ds.ReflectedAmbientLight = round(job.densities.ambient)
    return _without_empty(ds)


def presentation_lut(lut: Lut, bits: int) -> Dataset:
    """Return the attributes of a presentation LUT under which pixels of so many bits are P-Values."""
    ds = Dataset()
    if lut is Lut.IDENTITY:
        ds.PresentationLUTShape = "IDENTITY"
        return ds
    item = Dataset()
    # The output has 10 to 16 bits; an entry says where the highest value of an input goes. Source: PS3.3 C.11.4.
    item.LUTDescriptor = [1 << bits, 0, 16]
    item["LUTDescriptor"].VR = "US"
    entries = np.round(np.linspace(0, 65_535, 1 << bits)).astype("<u2")
    item.add_new("LUTData", "OW", entries.tobytes())
    ds.PresentationLUTSequence = [item]
    return ds


def image_box(
    position: int, samples: Samples, bits: int, scaling: Scaling, *, is_reversed: bool, smoothing: str
) -> Dataset:
    """Return the attributes of an image box.

    samples  [rows, columns], 0 black, or RGB [rows, columns, 3] of 8 bits
    """
    ds = Dataset()
    ds.ImageBoxPosition = position
    ds.Polarity = "REVERSE" if is_reversed else "NORMAL"
    ds.MagnificationType = scaling.magnification or None
    ds.SmoothingType = smoothing or None
    ds.RequestedImageSize = None if scaling.width_mm is None else f"{scaling.width_mm:.6g}"
    ds.RequestedDecimateCropBehavior = scaling.behavior or None
    image = _image(samples, bits)
    if scaling.aspect is not None:
        image.PixelAspectRatio = list(scaling.aspect)
    if samples.ndim == 3:
        ds.BasicColorImageSequence = [image]
    else:
        ds.BasicGrayscaleImageSequence = [image]
    return _without_empty(ds)


def annotation(position: int, text: str) -> Dataset:
    """Return the attributes of an annotation box; text that is too long is cut."""
    ds = Dataset()
    if not text.isascii():
        ds.SpecificCharacterSet = "ISO_IR 192"
    ds.AnnotationPosition = position
    ds.TextString = "".join(each if each.isprintable() and each != "\\" else " " for each in text)[:MOST_TEXT]
    return ds


def samples_of(picture: Picture, sheets: Sheets) -> Samples:
    """Return a picture's P-Values in the order's bits. Raises INVALID for a colour image where grey is asked."""
    greys = picture.greys
    if greys.ndim == 3 and not sheets.colour:
        raise AppError(Category.INVALID, "a colour image needs a colour device; order it in grey", where="colour")
    if greys.ndim == 2 and sheets.colour:
        greys = np.repeat(greys[:, :, None], 3, axis=2)
    values = np.clip(greys, 0, 1) * sheets.white + 0.5
    return values.astype(np.uint8) if sheets.bits == 8 else values.astype(np.uint16)


def scaling_of(picture: Picture, sheets: Sheets) -> Scaling:
    """Return how the printer is to scale a picture. Raises INVALID for a true size that cannot be had."""
    spacing = picture.spacing
    aspect = None
    if spacing is not None and abs(spacing.down - spacing.across) > 1e-4 * spacing.across:
        aspect = (_ASPECT, round(_ASPECT * spacing.across / spacing.down))
    magnification = str(sheets.magnification)
    fit = picture.fit or sheets.fit
    if fit is not Fit.TRUE_SIZE:
        return Scaling(None, "CROP" if fit is Fit.CROP else "", magnification, aspect)
    if spacing is None or spacing.origin is not SpacingOrigin.PATIENT:
        why = "says no pixel spacing" if spacing is None else "has its spacing at the detector, not the patient"
        raise AppError(Category.INVALID, f"the image {why}; it cannot be printed in true size", where=str(fit))
    if sheets.magnification is Magnification.NONE:
        magnification = str(Magnification.CUBIC)
    return Scaling(picture.greys.shape[1] * spacing.across, "FAIL", magnification, aspect, is_true=True)


def _image(samples: Samples, bits: int) -> Dataset:
    ds = Dataset()
    is_colour = samples.ndim == 3
    ds.SamplesPerPixel = 3 if is_colour else 1
    ds.PhotometricInterpretation = "RGB" if is_colour else "MONOCHROME2"
    if is_colour:
        ds.PlanarConfiguration = 1  # the only one that is allowed. Source: PS3.3 C.13.5
        samples = np.moveaxis(samples, 2, 0)
    ds.Rows, ds.Columns = samples.shape[-2:]
    ds.BitsAllocated = 8 * samples.dtype.itemsize
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, 0
    data = np.ascontiguousarray(samples.astype(samples.dtype.newbyteorder("<"), copy=False)).tobytes()
    ds.add_new("PixelData", "OB" if samples.dtype.itemsize == 1 else "OW", data + bytes(len(data) % 2))
    return ds


def _density(p_value: float) -> str:
    return "WHITE" if p_value > 0.5 else "BLACK"


def _reference(class_uid: str, uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = class_uid, uid
    return ds


def _without_empty(ds: Dataset) -> Dataset:
    """Leave out what is left to the printer: an attribute without value would mean the same, and some refuse it."""
    for tag in [element.tag for element in ds if element.value is None]:
        del ds[tag]
    return ds


def substituted(asked: Dataset, answered: Dataset, keywords: Iterable[str]) -> str:
    """Return which of some attributes the printer answers with another value than asked, "" for none."""
    for keyword in keywords:
        given, taken = asked.get(keyword), answered.get(keyword)
        if given not in (None, "") and taken not in (None, "") and _plain(given) != _plain(taken):
            return f"{taken} instead of {given} ({keyword})"
    return ""


def _plain(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value) if isinstance(value, str) else [str(each) for each in value]
