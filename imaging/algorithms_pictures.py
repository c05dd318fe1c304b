"""Pictures of what each algorithm does, before and after, for its page: made from real images by running it.

`python -m imaging.algorithms_pictures` writes `docs/images/algorithms/<name>.png`; a test compares. The images are a CT
of a head, an MR of an abdomen and a bone scan that come with pydicom, and an MR of a brain in 24 slices that comes with
nibabel. Where noise, shading, a shift or vessels are needed, they are added by a formula, and the caption says so.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from imaging.algorithm import Result
from imaging.algorithms import algorithms
from imaging.conversion import decode_frame
from imaging.dataset import read
from imaging.geometry import Float32, Image, Volume
from imaging.transcode import encode
from imaging.volume import image_from

FOLDER: Final = Path("docs/images/algorithms")
HEAD, ABDOMEN, BONES = "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm", "JPEG2000.dcm"
BRAIN: Final = "tests/data/example4d.nii.gz"
EDGE: Final = 240
"""Longest side of one of the two pictures, in pixels; a gap of `GAP` white ones lies between them."""
GAP: Final = 6
_TINT: Final = np.array([255, 150, 30])

Greys = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two pictures, uint8 [row, column] or [row, column, 3]."""

    before: Greys
    after: Greys


def picture(name: str) -> NDArray[np.uint8]:
    """Return both pictures of an algorithm side by side, the lower one in the middle on black; [row, column, 3]."""
    pair = PICTURES[name][0]()
    sides = [_fitted(pair.before), _fitted(pair.after)]
    height = max(side.shape[0] for side in sides)
    gap = np.full((height, GAP, 3), 255, np.uint8)
    before, after = (_in_the_middle(side, height) for side in sides)
    return np.concatenate([before, gap, after], axis=1)


def caption(name: str) -> str:
    """Return what a picture shows; "" for an algorithm that has none, such as one of another package."""
    return PICTURES[name][1] if name in PICTURES else ""


def write(folder: Path) -> None:
    """Write all pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        pixels = picture(name)
        is_grey = bool((pixels == pixels[..., :1]).all())
        Pictures.fromarray(pixels[..., 0] if is_grey else pixels).save(folder / f"{name}.png", optimize=True)


@cache
def _image(file: str) -> Image:
    path = get_testdata_file(file, download=False)
    if path is None:
        raise FileNotFoundError(f"pydicom does not carry {file}")
    encoded = encode(read(Path(str(path)).read_bytes()))
    if encoded.frames is None or encoded.layout is None:
        raise ValueError(f"{file} has no pixels")
    stored = b"".join(encoded.parts)
    frame = decode_frame(encoded.frames.read(stored, 0), encoded.layout, encoded.transfer_syntax_uid)
    return image_from(read(stored).ds, frame.pixels)


@cache
def _head() -> Image:
    """Return the CT, 256 x 256 pixels of 0.862 mm, at least -1000 HU."""
    image = _image(HEAD)
    array = image.array.clip(-1000).reshape(256, 2, 256, 2).mean(axis=(1, 3))
    return replace(image, array=array, spacing_mm=(0.862, 0.862))


@cache
def _abdomen() -> Image:
    """Return the middle of the MR, 240 x 400 pixels."""
    image = _image(ABDOMEN)
    return replace(image, array=np.ascontiguousarray(image.array[10:250, 40:440]))


@cache
def _liver() -> Image:
    """Return a part of the MR, pixel by pixel, in which noise and edges are seen; 190 x 240 pixels."""
    return replace(_abdomen(), array=np.ascontiguousarray(_abdomen().array[20:210, 40:280]))


@cache
def _brain() -> Volume:
    """Return the MR of a brain, 24 slices of 96 x 96 pixels; 2.2 x 2 x 2 mm, from the bottom up, front first."""
    found = find_spec("nibabel")
    if found is None or found.origin is None:
        raise FileNotFoundError("the pictures need the package nibabel, which carries an MR of a brain")
    image = sitk.ReadImage(str(Path(found.origin).parent / BRAIN))[..., 0]
    array = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))[:, :, 16:112]
    affine = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [2.2, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(np.ascontiguousarray(array, dtype=np.float32), affine, modality="MR")


def _noisy(array: Float32, deviation: float, seed: int = 1) -> Float32:
    noise = np.random.default_rng(seed).normal(0, deviation, array.shape)
    return np.asarray(array + noise, dtype=np.float32)


def _run(name: str, *given: Any, **parameters: Any) -> Result:
    return algorithms.get(name).build(parameters)(*given)


def _shown(array: NDArray[Any], low: float, high: float) -> Greys:
    """Return values as greys, black at `low`, white at `high`."""
    scaled = np.clip((array.astype(np.float64) - low) / (high - low), 0, 1)
    return np.asarray(scaled * 255 + 0.5, dtype=np.uint8)


def _tinted(greys: Greys, mask: NDArray[np.bool_]) -> Greys:
    colour = np.repeat(greys[..., None], 3, axis=2)
    colour[mask] = (colour[mask] // 2 + _TINT // 2).astype(np.uint8)
    return colour


def _fitted(greys: Greys) -> Greys:
    image = Pictures.fromarray(greys).convert("RGB")
    factor = EDGE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return np.asarray(image.resize(size, Pictures.Resampling.BOX if factor < 1 else Pictures.Resampling.BICUBIC))


def _in_the_middle(side: Greys, height: int) -> Greys:
    above = (height - side.shape[0]) // 2
    return np.pad(side, ((above, height - side.shape[0] - above), (0, 0), (0, 0)))


def _bilateral() -> Pair:
    noisy = replace(_head(), array=_noisy(_head().array, 60))
    (after,) = _run("bilateral", noisy, sigma_values=200, sigma=2).images
    return Pair(_shown(noisy.array, -150, 350), _shown(after.array, -150, 350))


def _median() -> Pair:
    array = _liver().array.copy()
    chosen = np.random.default_rng(2).random(array.shape)
    array[chosen < 0.02], array[chosen > 0.98] = 0, 1000
    (after,) = _run("median", replace(_liver(), array=array)).images
    return Pair(_shown(array, 0, 750), _shown(after.array, 0, 750))


def _deidentify() -> Pair:
    path = get_testdata_file(HEAD, download=False)
    ds = dcmread(str(path))
    shown = _shown(_image(HEAD).array, -1000, 400)
    sheet = Pictures.fromarray(shown)
    ImageDraw.Draw(sheet).text((12, 10), "DOE^JANE\n1970-01-01", fill=255, font=ImageFont.load_default(40))
    ds.PixelData, ds["PixelData"].VR = np.asarray(sheet).tobytes(), "OB"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    ready = algorithms.get("de-identify").build({"clean_pixels": True, "rectangle": ["0,0,250,110"]})
    (after,) = ready([file.getvalue()], b"a key for one picture").files
    return Pair(np.asarray(sheet), dcmread(BytesIO(after)).pixel_array)


def _nonlocal_means() -> Pair:
    noisy = replace(_liver(), array=_noisy(_liver().array, 50))
    (after,) = _run("nonlocal-means", noisy, strength=40, noise=50).images
    return Pair(_shown(noisy.array, 0, 750), _shown(after.array, 0, 750))


def _clahe() -> Pair:
    (after,) = _run("clahe", _abdomen()).images
    return Pair(_shown(_abdomen().array, 0, 1123), _shown(after.array, 0, 1))


def _unsharp() -> Pair:
    (after,) = _run("unsharp", _liver(), sigma=2, amount=1.5).images
    return Pair(_shown(_liver().array, 0, 750), _shown(after.array, 0, 750))


def _window_level() -> Pair:
    (after,) = _run("window-level", _head(), center=40, width=400).images
    return Pair(_shown(_head().array, -1000, 1900), _shown(after.array, 0, 1))


def _curvature_flow() -> Pair:
    noisy = replace(_brain(), array=_noisy(_brain().array, 60))
    (after,) = _run("curvature-flow", noisy, iterations=25).volumes
    return Pair(_shown(noisy.array[12], 0, 800), _shown(after.array[12], 0, 800))


def _n4() -> Pair:
    shading = 3.0 ** np.linspace(1, -1, 96)
    volume = replace(_brain(), array=np.asarray(_brain().array * shading, dtype=np.float32))
    (after,) = _run("n4", volume).volumes
    # The field is known up to a factor: both pictures have their 99th percentile white.
    return Pair(*(_shown(each.array[12], 0, float(np.percentile(each.array, 99))) for each in (volume, after)))


def _dsa() -> Pair:
    mask = ndimage.gaussian_filter(_head().array, 1)
    rows, columns = np.indices(mask.shape)
    vessels = np.zeros(mask.shape)
    for number in range(5):
        path = 70 + 28 * number + 10 * np.sin(rows / 18 + number)
        vessels += 120 * np.exp(-(((columns - path) / 2.5) ** 2)) * ((rows > 60) & (rows < 210))
    moved = ndimage.shift(mask + vessels, (1.5, -1), order=1, mode="nearest").astype(np.float32)
    frames = tuple(replace(_head(), array=np.asarray(each, np.float32)) for each in (mask, moved))
    (after,) = _run("dsa", frames, shift=[1.5, -1]).images
    return Pair(_shown(moved, -1000, 1200), _shown(after.array, -60, 130))


def _montage() -> Pair:
    slices = tuple(Image(plane, modality="MR") for plane in _brain().array)
    (after,) = _run("montage", slices, columns=4, every=2).images
    return Pair(_shown(slices[0].array, 0, 800), _shown(after.array, 0, 800))


def _mpr() -> Pair:
    (after,) = _run("mpr", _brain(), plane="sagittal", spacing_mm=1, step_mm=1).volumes
    return Pair(_shown(_brain().array[12], 0, 800), _shown(after.array[96], 0, 800))


def _slab() -> Pair:
    (after,) = _run("slab", _brain(), thickness_mm=30, step_mm=100).volumes
    return Pair(_shown(_brain().array[7], 0, 900), _shown(after.array[0], 0, 900))


def _resample_isotropic() -> Pair:
    affine = _brain().affine * [2, 1, 1, 1]
    thick = replace(_brain(), array=np.ascontiguousarray(_brain().array[::2]), affine=affine)
    (after,) = _run("resample-isotropic", thick, spacing_mm=2).volumes
    return Pair(_shown(thick.array[::-1, :, 48], 0, 800), _shown(after.array[::-1, :, 48], 0, 800))


def _segmented(name: str, volume: Volume, index: int, high: float, **parameters: Any) -> Pair:
    (segment,) = _run(name, volume, **parameters).segmentations
    greys = _shown(volume.array[index], -300 if volume.modality == "CT" else 0, high)
    return Pair(greys, _tinted(greys, segment.mask[index]))


def _threshold() -> Pair:
    volume = Volume(_head().array[None], np.diag([4.0, 0.862, 0.862, 1])[[2, 1, 0, 3]], unit="[hnsf'U]", modality="CT")
    return _segmented("threshold", volume, 0, 900, low=300)


def _region_growing() -> Pair:
    return _segmented("region-growing", _brain(), 14, 800, seed_mm=[86, 74, 30.8], low=560)


def _roi_measure() -> Pair:
    return _segmented("roi-measure", _brain(), 12, 800, center_mm=[118, 96, 26.4], half_size_mm=[14, 20, 8])


def _rigid_registration() -> Pair:
    fixed, angle = _brain(), np.radians(6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = np.array([47.5, 47.5]) - turn @ np.array([49.5, 46])
    turned = [ndimage.affine_transform(plane, turn, offset, order=1) for plane in fixed.array]
    moving = replace(fixed, array=np.stack(turned).astype(np.float32))
    (after,) = _run("rigid-registration", fixed, moving, metric="mean-squares").volumes
    before, rest = (np.abs(each.array[12] - fixed.array[12]) for each in (moving, after))
    return Pair(_shown(before, 0, 500), _shown(rest, 0, 500))


def _suv() -> Pair:
    """Return two scans of one patient with doses of 300 and 600 MBq, by activity and by SUV, each on one scale."""
    given = {"weight_kg": 70, "half_life_s": 21624, "elapsed_s": 10800}
    counts = _image(BONES).array[:512].clip(0)
    scans, values = [], []
    for dose_bq in (3e8, 6e8):
        array = np.asarray(counts * (dose_bq / 6e6), dtype=np.float32)
        affine = np.diag([4.0, 2.26, 2.26, 1])[[2, 1, 0, 3]]
        scans.append(Volume(array[None], affine, unit="Bq/ml", modality="PT"))
        values.append(_run("suv", scans[-1], dose_bq=dose_bq, **given).volumes[0])
    white = float(np.percentile(scans[1].array, 99.5))
    white_suv = float(np.percentile(values[1].array, 99.5))
    return Pair(
        np.concatenate([_shown(each.array[0], 0, white) for each in scans], axis=1),
        np.concatenate([_shown(each.array[0], 0, white_suv) for each in values], axis=1),
    )


PICTURES: Final[dict[str, tuple[Callable[[], Pair], str]]] = {
    "bilateral": (
        _bilateral,
        "CT with noise of 60 HU added; `sigma_values` 200 HU. Edges of bone stay. Greys from -150 to 350 HU.",
    ),
    "clahe": (_clahe, "MR of an abdomen; parts in shadow become visible."),
    "curvature-flow": (_curvature_flow, "MR of a brain with noise of standard deviation 60 added; 25 `iterations`."),
    "de-identify": (
        _deidentify,
        "A CT with a name in its pixels, which nobody bears, written there for this picture; `clean_pixels`, "
        "`rectangle` 0,0,250,110. What its attributes said is gone as well.",
    ),
    "dsa": (
        _dsa,
        "The CT is the mask; vessels were added by a formula, then all was moved by 1.5 rows and -1 column; "
        "`shift` 1.5, -1.",
    ),
    "median": (_median, "Part of the MR, 4% of whose pixels were set to black or white; `radius` 1."),
    "montage": (_montage, "The lowest of 24 slices of a brain; then every second one of all, in 4 `columns`."),
    "mpr": (_mpr, "One of 24 axial slices of a brain, and the sagittal slice in the middle, which they make."),
    "n4": (
        _n4,
        "A brain, by a formula made up to 3 times brighter at one side and up to 3 times darker at the other.",
    ),
    "nonlocal-means": (
        _nonlocal_means,
        "Part of the MR with noise of standard deviation 50 added; `strength` 40, `noise` 50.",
    ),
    "region-growing": (
        _region_growing,
        "A brain; from a seed in a ventricle, what is at least 560 bright and hangs together with it.",
    ),
    "resample-isotropic": (
        _resample_isotropic,
        "Every second slice of a brain, cut lengthwise: pixel by pixel with voxels of 4.4 x 2 mm, then of 2 x 2 mm in "
        "true proportions.",
    ),
    "rigid-registration": (
        _rigid_registration,
        "What differs between a brain and the same turned by 6 degrees and shifted, before and after.",
    ),
    "roi-measure": (
        _roi_measure,
        "A brain; an ellipsoid of 14 x 20 x 8 mm half size, whose voxels are measured.",
    ),
    "slab": (_slab, "A slice of a brain, and the maximum of 30 mm around it: fluid is bright, so all of it is seen."),
    "suv": (
        _suv,
        "A bone scan taken for PET, as it were with 300 and with 600 MBq: by Bq/ml on one scale the doses are seen; "
        "by SUV on one scale both are the same.",
    ),
    "threshold": (_threshold, "CT; `low` 300 HU: bone."),
    "unsharp": (_unsharp, "Part of the MR; `sigma` 2, `amount` 1.5."),
    "window-level": (
        _window_level,
        "CT over its whole range, then with `center` 40 HU and `width` 400 HU: soft tissue shows, bone is white.",
    ),
}
"""Of each algorithm of this package, by name, with what is to be seen."""

if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
