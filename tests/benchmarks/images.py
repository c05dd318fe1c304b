"""The images that the benchmarks send: a CT series of distinct slices, made from one real slice."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

NOISE_HU = 18.0  # standard deviation
AIR = -900  # stored values at and below are air or padding, and stay as they are
REAL_CT = "693_UNCR.dcm"  # 512 x 512, signed 16 bit, from pydicom-data (see tests/data/SOURCES.md)


def ct_series(count: int, *, series_per_study: int = 1, tag: str = "bench") -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (study, series, SOP instance UID, Part 10 file) of `count` slices of about 526 kB, all different.

    Each slice is the real one, rolled by some rows, inside the body with its own Gaussian noise of `NOISE_HU`. The real
    slice is thick and smooth and compresses 4.5 to 1; thin slices of today's scanners are noisier and reach 2.6 to 1.
    """
    ds = dcmread(str(get_testdata_file(REAL_CT)))
    pixels = ds.pixel_array
    is_body = pixels > AIR
    random = np.random.default_rng(20260101)
    study_uid = generate_uid(entropy_srcs=[tag, "study"])
    for n in range(count):
        series_uid = generate_uid(entropy_srcs=[tag, "series", str(n * series_per_study // count)])
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[tag, "instance", str(n)])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.InstanceNumber = n + 1
        noise = np.rint(random.normal(0, NOISE_HU, pixels.shape)).astype(np.int16)
        ds.PixelData = np.roll(pixels + noise * is_body, n % 64, axis=0).astype("<i2").tobytes()
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        yield study_uid, series_uid, ds.SOPInstanceUID, out.getvalue()


def write_series(folder: Path, count: int, **options: object) -> list[Path]:
    """Write a series as files; return their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n, (*_, data) in enumerate(ct_series(count, **options)):  # type: ignore[arg-type]
        path = folder / f"{n:05d}.dcm"
        path.write_bytes(data)
        paths.append(path)
    return paths
