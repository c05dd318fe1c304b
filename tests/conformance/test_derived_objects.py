"""Results of processing are judged by others: dciodvfy finds no error in them, SimpleITK the same values and places.

Sources conform themselves, so that whatever is found was made here.
"""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from fhir_server.work.kinds.process import _files, _joined
from imaging.algorithm import Algorithm, Result, Takes
from imaging.algorithms import algorithms
from imaging.derive import Equipment, Work, to_part10
from imaging.geometry import Volume
from imaging.volume import Tilt, image_from, volume_from
from tests.support.valid_series import ct_series, mr_series, pet_series, without_pixels

Series = tuple[list[Dataset], list[NDArray[Any]]]

VALUES: dict[str, dict[str, Any]] = {
    "window-level": {"center": 40, "width": 80},
    "bilateral": {"sigma_values": 20},
    "nonlocal-means": {"strength": 10},
    "threshold": {"low": 300},
    "region-growing": {"seed_mm": [-5.6, -12.75, 51], "low": 300},
    "roi-measure": {"center_mm": [-5, -12, 51], "half_size_mm": [8, 8, 8]},
    "slab": {"thickness_mm": 6, "step_mm": 4},
}
CT_VALUES = {"threshold": {"low": -700}, "region-growing": {"seed_mm": [-5.6, -12.75, 51], "low": -700}}
# They need other units.
REFUSED = {("ct", "n4"), ("ct", "suv"), ("mr", "suv"), ("legacy ct", "n4"), ("legacy ct", "suv")}


def legacy_converted(series: list[Dataset]) -> Series:
    """The slices as frames of one instance, by highdicom."""
    slices = [dcmread(BytesIO(to_part10(ds))) for ds in series]
    ds = hd.legacy.LegacyConvertedEnhancedCTImage(slices, "2.25.1001", 5, "2.25.1002", 1)
    pixels = ds.pixel_array
    return [Dataset({tag: ds[tag] for tag in ds.keys() if tag != 0x7FE00010})], [pixels]  # noqa: SIM118


SOURCES: dict[str, Series] = {
    "ct": without_pixels(ct_series()),
    "mr": without_pixels(mr_series()),
    "pet": without_pixels(pet_series()),
    "legacy ct": legacy_converted(ct_series()),
}


def work(name: str, ready: Algorithm) -> Work:
    parameters = {each.name: getattr(ready, each.name) for each in ready.parameters()}
    done_at, equipment = datetime(2026, 1, 3, tzinfo=UTC), Equipment("Maker", "Server", "0.1")
    return Work("Task/1", name, ready.version, ready.title, ready.performed(), parameters, ("a",), done_at, equipment)


def result_of(ready: Algorithm, datasets: Sequence[Dataset], frames: Sequence[NDArray[Any]]) -> Result:
    if ready.takes in (Takes.VOLUME, Takes.PAIR):
        volume = volume_from(datasets, frames, tilt=Tilt.KEEP if ready.takes_tilted else Tilt.REFUSE)
        return ready(volume, volume) if ready.takes is Takes.PAIR else ready(volume)
    images = tuple(
        image_from(ds, pixels, frame=number)
        for ds, pixels in zip(datasets, frames, strict=True)
        for number in range(1, len(pixels) + 1 if pixels.ndim == 3 else 2)
    )
    return ready(images) if ready.takes is Takes.IMAGES else _joined([ready(image) for image in images])


def complaints(file: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "made.dcm"
    path.write_bytes(file)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy says nothing, not even which object it is"
    return [line for line in lines if line.startswith("Error")]


@pytest.fixture
def judge() -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")


@pytest.mark.parametrize("kind", ["ct", "mr", "pet"])
def test_the_sources_conform(judge: None, tmp_path: Path, kind: str) -> None:
    made = {"ct": ct_series, "mr": mr_series, "pet": pet_series}[kind]()

    assert complaints(to_part10(made[0]), tmp_path) == []


def test_the_judge_finds_what_is_wrong(judge: None, tmp_path: Path) -> None:
    ds = ct_series()[0]
    del ds.ImageType

    assert any("ImageType" in each for each in complaints(to_part10(ds), tmp_path))


of_arrays = [name for name in algorithms if algorithms.get(name).takes is not Takes.FILES]
CASES = [(kind, name) for kind in SOURCES for name in of_arrays if (kind, name) not in REFUSED]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_is_made_conforms(judge: None, tmp_path: Path, kind: str, name: str) -> None:
    datasets, frames = SOURCES[kind]
    values = VALUES.get(name, {}) | (CT_VALUES.get(name, {}) if "ct" in kind else {})
    algorithm = algorithms.get(name)
    ready = algorithm.build({**algorithm.presets(datasets), **values})
    pair = [datasets] * (2 if algorithm.takes is Takes.PAIR else 1)

    files = list(_files(result_of(ready, datasets, frames), pair, work(name, ready)))

    judged = {n: complaints(files[n], tmp_path) for n in {0, len(files) // 2, len(files) - 1}}
    assert not any(judged.values()), judged


@pytest.mark.parametrize("make", [ct_series, mr_series, pet_series])
def test_copies_that_name_nobody_conform(judge: None, tmp_path: Path, make: Callable[[], list[Dataset]]) -> None:
    ready = algorithms.get("de-identify").build({"modified_dates": True})

    (copy,) = ready([to_part10(make()[0])], b"a key of 16 bytes or more").files

    assert complaints(copy, tmp_path) == []


def written(volume: Volume, sources: Sequence[Dataset], folder: Path) -> sitk.Image:
    """Write a result, and read it as others do."""
    ready = algorithms.get("mpr").build({})
    for number, file in enumerate(_files(Result(volumes=(volume,)), [sources], work("mpr", ready))):
        (folder / f"{number:03d}.dcm").write_bytes(file)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "oblique": [0.8, 0.6, 0, -0.36, 0.48, 0.8],
}


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("resample-isotropic", {"spacing_mm": 1.1}),
        ("mpr", {"plane": "sagittal", "spacing_mm": 1.3, "step_mm": 1.7}),
        ("mpr", {"plane": "oblique", "row_direction": [0.6, 0, 0.8], "column_direction": [0, 1, 0]}),
    ],
)
def test_another_library_resamples_to_the_same_values(
    tmp_path: Path, orientation: str, name: str, values: dict[str, Any]
) -> None:
    axes = np.array(ORIENTATIONS[orientation])
    normal = np.cross(axes[:3], axes[3:])
    series = ct_series(ImageOrientationPatient=axes.tolist())
    for number, ds in enumerate(series):
        ds.ImagePositionPatient = ([-20, -30, 40] + 2.0 * number * normal).tolist()
    datasets, frames = without_pixels(series[::-1])
    (folder := tmp_path / "given").mkdir()
    for number, ds in enumerate(series):
        (folder / f"{number:03d}.dcm").write_bytes(to_part10(ds))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    given = sitk.Cast(reader.Execute(), sitk.sitkFloat32)

    (made,) = algorithms.get(name).build(values)(volume_from(datasets, frames)).volumes

    (folder := tmp_path / "made").mkdir()
    ours = written(made, datasets, folder)
    theirs = sitk.Resample(given, ours, sitk.Transform(), sitk.sitkLinear, -9999.0)
    values_of, expected = sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs)
    # Beyond the outermost centres the two differ by choice: half a voxel of the nearest value here.
    inside = sitk.Resample(given * 0 + 1, ours, sitk.Transform(), sitk.sitkLinear, 0.0)
    inner = sitk.GetArrayFromImage(inside) > 0.999
    assert inner.sum() > 100
    assert np.abs(values_of - expected)[inner].max() < 0.05  # 16 bits for some 1000 HU
