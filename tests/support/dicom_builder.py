"""Builds synthetic Part 10 files with pydicom, which is not what reads them in the code under test."""

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ROOT = "1.2.826.0.1.3680043.10.1498"

Array = NDArray[Any]


def instance(
    frames: Array | None = None,
    *,
    study: int = 1,
    series: int = 1,
    number: int = 1,
    sop_class_uid: str = CT_IMAGE,
    modality: str = "CT",
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    photometric: str | None = None,
    bits_stored: int | None = None,
    high_bit: int | None = None,
    planar: int = 0,
    preamble: bytes = bytes(128),
    attributes: Mapping[str, Any] | None = None,
    change: Callable[[Dataset], None] | None = None,
) -> bytes:
    """Return one Part 10 file.

    frames      [rows, columns], [frames, rows, columns], or either with 3 samples last; integers; None for no pixels.
                They are written as they are, whatever `bits_stored` says
    attributes  more elements by keyword; they win over the usual ones
    change      edits the dataset before it is written
    """
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = sop_class_uid, modality
    ds.SOPInstanceUID = f"{ROOT}.{study}.{series}.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.{study}", f"{ROOT}.{study}.{series}"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = f"P{study}", "Test^Person", "19700101", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240102", "030405", str(study), f"A{study}"
    ds.SeriesNumber, ds.InstanceNumber = series, number
    if frames is not None:
        _add_pixels(ds, frames, UID(transfer_syntax_uid), photometric, bits_stored, high_bit, planar)
    for keyword, value in (attributes or {}).items():
        setattr(ds, keyword, value)
    if change is not None:
        change(ds)
    return write(ds, transfer_syntax_uid, preamble)


def write(ds: Dataset, transfer_syntax_uid: str, preamble: bytes = bytes(128)) -> bytes:
    """Return a dataset as a Part 10 file."""
    uid = UID(transfer_syntax_uid)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID = f"{ROOT}.9"
    ds.preamble = preamble
    out = BytesIO()
    known = not uid.is_private and uid.is_transfer_syntax
    encoding = {} if known else {"implicit_vr": False, "little_endian": True}
    dcmwrite(out, ds, enforce_file_format=True, **encoding)  # type: ignore[arg-type]
    return out.getvalue()


def _add_pixels(
    ds: Dataset,
    frames: Array,
    uid: UID,
    photometric: str | None,
    bits_stored: int | None,
    high_bit: int | None,
    planar: int,
) -> None:
    colour = frames.shape[-1] == 3 and frames.ndim > 2
    stack = frames.reshape(-1, *frames.shape[-3 if colour else -2 :])
    bits = 8 * frames.dtype.itemsize
    ds.Rows, ds.Columns = stack.shape[1:3]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = photometric or ("RGB" if colour else "MONOCHROME2")
    ds.BitsAllocated, ds.BitsStored = bits, bits_stored or bits
    ds.HighBit = (bits_stored or bits) - 1 if high_bit is None else high_bit
    ds.PixelRepresentation = int(frames.dtype.kind == "i")
    if colour:
        ds.PlanarConfiguration = planar
    if frames.ndim == (4 if colour else 3):
        ds.NumberOfFrames = len(stack)
    if not uid.is_transfer_syntax or uid.is_encapsulated:
        ds.PixelData = encapsulate([_compressed(frame, ds, uid) for frame in stack])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        return
    native = stack.transpose(0, 3, 1, 2) if colour and planar else stack
    order = ">" if uid == ExplicitVRBigEndian else "<"
    ds.PixelData = _even(np.ascontiguousarray(native).astype(frames.dtype.newbyteorder(order)).tobytes())
    ds["PixelData"].VR = "OW" if bits > 8 or uid == ImplicitVRLittleEndian else "OB"


def _compressed(frame: Array, ds: Dataset, uid: UID) -> bytes:
    """Return one frame in an encapsulated transfer syntax, made by other code than ours."""
    name = uid.name
    if "RLE" in name:
        return bytes(RLELosslessEncoder.encode(frame.tobytes(), **_rle_options(ds)))
    if "JPEG-LS" in name:
        return bytes(imagecodecs.jpegls_encode(frame.view(f"u{frame.itemsize}"), out=2 * frame.nbytes + 4096))
    if "High-Throughput" in name or "HTJ2K" in name:
        return bytes(imagecodecs.htj2k_encode(frame, reversible=True, planar=False))
    if "JPEG 2000" in name:
        return bytes(imagecodecs.jpeg2k_encode(frame, codecformat="J2K", reversible=True, mct=False))
    if "Lossless" in name and "JPEG" in name:
        return bytes(imagecodecs.jpeg8_encode(frame.view(f"u{frame.itemsize}"), lossless=True))
    if "JPEG Baseline" in name:
        return bytes(imagecodecs.jpeg8_encode(frame, level=90))
    return bytes(frame.tobytes())


def _rle_options(ds: Dataset) -> dict[str, Any]:
    return {
        "rows": ds.Rows,
        "columns": ds.Columns,
        "samples_per_pixel": ds.SamplesPerPixel,
        "number_of_frames": 1,
        "bits_allocated": ds.BitsAllocated,
        "bits_stored": ds.BitsStored,
        "pixel_representation": ds.PixelRepresentation,
        "photometric_interpretation": ds.PhotometricInterpretation,
        "planar_configuration": 0,
        "pixel_keyword": "PixelData",
        "encoding_plugin": "pydicom",
    }


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
