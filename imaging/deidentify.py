"""De-identification of one instance: the Basic Application Level Confidentiality Profile of PS3.15 annex E.

    deidentify(file, key, Options(modified_dates=True), rectangles=[Rectangle.from_text("0,0,512,40")])

It takes and gives whole files; `imaging/algorithms/deidentify.py` makes it an algorithm that can be ordered. The key is
a secret of the server for one recipient, never a part of the order. Each file that is returned goes through the same
ingest as a received one. It is of another study: Study, Series and SOP Instance UIDs are replaced, the same way in
every instance, so that references stay whole.

A result has no Source Image Sequence to its original and no time of processing, so that nothing leads back; the same
file, key and options make the same bytes. Not done: recognising faces, and text in pixels that nobody pointed at.
Sources: PS3.15 E.1 to E.3, PS3.16 CID 7050 (methods) and CID 7005 (contributing equipment).
"""

import hmac
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from typing import Any, Final

import orjson
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from imaging.algorithm import Code
from imaging.conversion import convert
from imaging.dataset import Received, read
from imaging.dataset_from_json import dataset_of
from imaging.deidentify_elements import Cleaner, Options, PrivateElement, Pseudonyms
from imaging.deidentify_pixels import Rectangle, burn_out, clear_unused_bits, without_comments
from imaging.derive import coded
from imaging.dicom_json import BULKDATA, dicom_json
from imaging.errors import AppError, Category
from imaging.layout import PIXEL_KEYWORDS
from imaging.part10 import IMPLEMENTATION_CLASS_UID
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from imaging.transcode import encode

__all__ = [
    "CODES", "NAME", "VERSION", "Options", "PrivateElement", "Pseudonyms", "Rectangle", "check",
    "deidentify", "describe", "described", "head_of",
]  # fmt: skip

NAME: Final = "de-identify"
VERSION: Final = "1"
METHOD: Final = "DICOM PS3.15 Basic Application Level Confidentiality Profile"
MIN_KEY_BYTES: Final = 16

_PROFILE: Final = Code("113100", "DCM", "Basic Application Confidentiality Profile")
CODES: Final = {
    # option                    CID 7050
    "clean_pixels":            Code("113101", "DCM", "Clean Pixel Data Option"),
    "modified_dates":          Code("113107", "DCM", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient_characteristics": Code("113108", "DCM", "Retain Patient Characteristics Option"),
    "device_identity":         Code("113109", "DCM", "Retain Device Identity Option"),
    "uids":                    Code("113110", "DCM", "Retain UIDs Option"),
}  # fmt: skip
"""What says that an option was taken."""
_SAFE_PRIVATE: Final = Code("113111", "DCM", "Retain Safe Private Option")
_MAKER: Final = "FHIR imaging server"
_DEIDENTIFYING: Final = Code("109104", "DCM", "De-identifying Equipment")

_VIDEO: Final = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109))
_AUDIO: Final = ("1.2.840.10008.5.1.4.1.1.9.4.1", "1.2.840.10008.5.1.4.1.1.9.4.2")
_OFTEN_BURNED_IN: Final = (
    "1.2.840.10008.5.1.4.1.1.7",     # Secondary Capture, single and multi-frame
    "1.2.840.10008.5.1.4.1.1.6.",    # Ultrasound
    "1.2.840.10008.5.1.4.1.1.3.",    # Ultrasound multi-frame
    "1.2.840.10008.5.1.4.1.1.77.1.",  # visible light
)  # fmt: skip


def deidentify(
    file: bytes,
    key: bytes,
    options: Options,
    *,
    rectangles: Sequence[Rectangle] = (),
    safe_private: Sequence[PrivateElement] = (),
) -> bytes:
    """Return the instance, a whole file, without what identifies anybody; in its transfer syntax or Explicit VR LE.

    key  secret, at least 16 bytes; the same one gives the same pseudonyms, another one unlinkable ones

    Raises INVALID for a short key, a damaged file, and rectangles without `clean_pixels` or outside of the image.
    Raises UNSUPPORTED for what cannot be cleaned: structured reports and other content trees, encapsulated documents,
    sound and video, and images that have, or by their kind often have, text burned in, unless `clean_pixels`.
    """
    if len(key) < MIN_KEY_BYTES:
        raise AppError(Category.INVALID, f"a key of at least {MIN_KEY_BYTES} bytes is needed", where="key")
    if rectangles and not options.clean_pixels:
        raise AppError(
            Category.INVALID, "rectangles are burned out with the option clean_pixels only", where="rectangle"
        )
    received = read(file)
    check(received.ds, received.transfer_syntax_uid, options, has_pixels=received.pixels is not None)
    chosen = [each for each in rectangles if each.series_uid in ("", received.ds.SeriesInstanceUID)]
    ds = _dataset(received, is_native=bool(chosen))
    _clean_pixels(ds, chosen)
    describe(ds, key, options, safe_private, has_pixels="PixelData" in ds)
    return _written(ds)


def describe(
    ds: Dataset, key: bytes, options: Options, safe_private: Sequence[PrivateElement] = (), *, has_pixels: bool = False
) -> None:
    """Make of some attributes of an instance, in place, what `deidentify` would make of them."""
    Cleaner(ds, Pseudonyms.of(ds, key), options, safe_private).clean()
    _tell(ds, options, has_safe_private=bool(safe_private), has_pixels=has_pixels)


def head_of(ds: Dataset, key: bytes, options: Options, *, has_pixels: bool) -> bytes:
    """Return the cleaned file of a dataset, without pixel data: in Explicit VR Little Endian."""
    describe(ds, key, options, has_pixels=has_pixels)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    return _written(ds)


def described(document: bytes, key: bytes, options: Options) -> bytes:
    """Return of the DICOM JSON of an instance that of its cleaned file; no pixel is touched, no bulk data read.

    What is bulk data stays so, where the cleaned file has it.
    """
    model = orjson.loads(document)
    pixels = {tag: model.pop(tag) for tag in list(model) if int(tag, 16) in PIXEL_KEYWORDS}
    marks: set[str] = set()
    _mark(model, key, marks)
    cleaned = orjson.loads(dicom_json(read(head_of(dataset_of(model), key, options, has_pixels=bool(pixels)))))
    _point(cleaned, marks, BULKDATA)
    return orjson.dumps(dict(sorted({**cleaned, **pixels}.items())))


def check(ds: Dataset, transfer_syntax_uid: str, options: Options, *, has_pixels: bool) -> None:
    """Return when a program can clean such an instance. Raises UNSUPPORTED, see `deidentify`.

    ds   needs to hold SOP Class UID and Burned In Annotation; of Content Sequence and Encapsulated Document it counts
         only whether they are there
    """
    _check_content(ds, transfer_syntax_uid)
    if has_pixels:
        _check_burned_in(ds, options)


def _check_content(ds: Dataset, transfer_syntax_uid: str) -> None:
    refusals = {
        "the content of a structured report": "ContentSequence" in ds,
        "an encapsulated document": "EncapsulatedDocument" in ds,
        "a recording of sound": str(ds.SOPClassUID) in _AUDIO,
        "a video stream, which may carry sound and text,": transfer_syntax_uid in _VIDEO,
    }
    for what, is_there in refusals.items():
        if is_there:
            raise AppError(Category.UNSUPPORTED, f"{what} cannot be cleaned of names by a program")


def _check_burned_in(ds: Dataset, options: Options) -> None:
    stated = str(ds.get("BurnedInAnnotation") or "")
    if options.clean_pixels or stated == "NO":
        return
    if stated == "YES" or str(ds.SOPClassUID).startswith(_OFTEN_BURNED_IN):
        says = "says that text is" if stated == "YES" else "is of a kind that often has text"
        message = f"the image {says} burned in; look at it, and give clean_pixels with the rectangles to burn out"
        raise AppError(Category.UNSUPPORTED, message, where="(0028,0301)")


def _dataset(received: Received, *, is_native: bool) -> Dataset:
    """Return the dataset with its pixels, in Explicit VR Little Endian where they are, or shall be, native."""
    is_encapsulated = received.pixels is not None and received.pixels.encapsulated
    if is_native:
        # Through the archive's own encoding, which gives subsampled and planar colour one form.
        encoded = encode(received)
        data, layout, frames = b"".join(encoded.parts), encoded.layout, encoded.frames
        is_ours = not encoded.kept_reason
        received = read(b"".join(convert(data, layout, frames, EXPLICIT_VR_LITTLE_ENDIAN, trusted=is_ours)))
    elif not is_encapsulated and received.transfer_syntax_uid != EXPLICIT_VR_LITTLE_ENDIAN:
        received = read(b"".join(convert(received.data, received.pixels, None, EXPLICIT_VR_LITTLE_ENDIAN)))
    ds, element = received.ds, received.pixel_element
    if element is not None:
        ds.add_new(element.tag, received.values.vr(element), received.values.raw(element))
        ds[element.tag].is_undefined_length = element.undefined
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(received.transfer_syntax_uid)
    return ds


def _clean_pixels(ds: Dataset, rectangles: Sequence[Rectangle]) -> None:
    if "PixelData" not in ds:
        if rectangles:
            raise AppError(Category.UNSUPPORTED, "there are no pixels to burn rectangles into", where="rectangle")
        return
    if rectangles:
        burn_out(ds, rectangles)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        without_comments(ds)
    elif any(tag.group >> 8 == 0x60 for tag in ds.keys()):  # noqa: SIM118 - elements need not be decoded
        clear_unused_bits(ds)


def _mark(model: Mapping[str, Any], key: bytes, marks: set[str]) -> None:
    """Put something that nobody can guess in the place of bulk data, so as to find again what cleaning leaves of it."""
    for element in model.values():
        if "BulkDataURI" in element:
            mark = b64encode(hmac.digest(key, element.pop("BulkDataURI").encode(), sha256)).decode("ascii")
            element["InlineBinary"] = mark
            marks.add(mark)
        elif element["vr"] == "SQ":
            for item in element.get("Value", ()):
                _mark(item or {}, key, marks)


def _point(model: Mapping[str, Any], marks: set[str], path: str) -> None:
    """Put the address of bulk data in the place of what stands for it."""
    for tag, element in model.items():
        if element.get("InlineBinary") in marks:
            del element["InlineBinary"]
            element["BulkDataURI"] = f"{path}{tag}"
        elif element["vr"] == "SQ":
            for number, item in enumerate(element.get("Value", ())):
                _point(item or {}, marks, f"{path}{tag}/{number}/")


def _tell(ds: Dataset, options: Options, *, has_safe_private: bool, has_pixels: bool) -> None:
    """Write what was done, no more (PS3.15 E.2, E.3; PS3.3 C.7.1.1, C.12.1)."""
    codes = [_PROFILE, *(code for name, code in CODES.items() if getattr(options, name))]
    codes += [_SAFE_PRIVATE] if has_safe_private else []
    earlier = [item for item in ds.get("DeidentificationMethodCodeSequence") or [] if "CodeValue" in item]
    known = {(item.CodeValue, item.get("CodingSchemeDesignator")) for item in earlier}
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = METHOD
    ds.DeidentificationMethodCodeSequence = Items(
        [*earlier, *(coded(code) for code in codes if (code.value, code.scheme) not in known)]
    )
    ds.LongitudinalTemporalInformationModified = "MODIFIED" if options.modified_dates else "REMOVED"
    if options.clean_pixels and has_pixels:
        ds.BurnedInAnnotation = "NO"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Items([coded(_DEIDENTIFYING)])
    equipment.Manufacturer, equipment.ContributionDescription = _MAKER, f"{NAME} {VERSION}"
    ds.ContributingEquipmentSequence = Items([*(ds.get("ContributingEquipmentSequence") or []), equipment])


def _written(ds: Dataset) -> bytes:
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    ds.preamble = bytes(128)
    out = BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()
