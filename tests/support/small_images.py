"""An endless supply of small, different images of several studies."""

import io
from collections.abc import Iterator
from itertools import count

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file

A_STUDY = 20


def small_images(tag: int = 1) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (study, series, SOP instance UID, Part 10 file) of 64 x 64 MR images, `A_STUDY` in each study."""
    ds = dcmread(str(get_testdata_file("MR_small.dcm")))
    pixels = ds.pixel_array.copy()
    for n in count():
        study_uid, series_uid = f"1.2.826.0.1.{tag}.{n // A_STUDY}", f"1.2.826.0.1.{tag}.{n // A_STUDY}.1"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{series_uid}.{n}"
        ds.PatientID, ds.InstanceNumber = f"P{n // A_STUDY}", n % A_STUDY + 1
        ds.PixelData = np.roll(pixels, n, axis=1).tobytes()
        out = io.BytesIO()
        ds.save_as(out)
        yield study_uid, series_uid, ds.SOPInstanceUID, out.getvalue()
