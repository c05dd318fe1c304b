"""Images as grayscale presentation states show them: the greys are those of another implementation, DCMTK's."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file

from imaging.pictures import Look, picture_of
from imaging.presentation import presentation_of

pytestmark = pytest.mark.skipif(not shutil.which("dcmp2pgm"), reason="dcmp2pgm is not installed (Debian: dcmtk)")

IMAGE = Path(str(get_testdata_file("CT_small.dcm")))
Change = Callable[[Dataset], None]


def rendered(folder: Path, image: Path, *changes: Change) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what DCMTK and what we make of an image under DCMTK's own state for it, changed."""
    state = folder / "state.dcm"
    subprocess.run(["dcmpsmk", image, state], check=True)
    ds = dcmread(state)
    for change in changes:
        change(ds)
    ds.save_as(state)
    subprocess.run(["dcmp2pgm", "-p", state, image, folder / "out.pgm"], check=True)
    raw = (folder / "out.pgm").read_bytes()
    width, height = map(int, raw.split(b"\n", 2)[1].split()[:2])
    theirs = np.frombuffer(raw[-width * height :], np.uint8).reshape(height, width)
    source = dcmread(image)
    presentation = presentation_of(ds.to_json_dict(), source.SOPInstanceUID, 1)
    picture = picture_of(source.pixel_array, source.to_json_dict(), 1, Look(presentation=presentation))
    return theirs.astype(int), picture.greys * 255


def window(center: float, width: float) -> Change:
    def change(ds: Dataset) -> None:
        item = Dataset()
        item.WindowCenter, item.WindowWidth = center, width
        ds.SoftcopyVOILUTSequence = Sequence([item])

    return change


def attributes(**values: Any) -> Change:
    def change(ds: Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return change


def table(first: int, bits: int, entries: NDArray[Any]) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [len(entries), first, bits])
    item.add_new("LUTData", "OW", np.round(entries).astype("<u2").tobytes())
    return item


def voi_table(ds: Dataset) -> None:
    item = Dataset()
    item.VOILUTSequence = Sequence([table(-200, 8, np.sqrt(np.arange(512) / 511) * 255)])
    ds.SoftcopyVOILUTSequence = Sequence([item])


def presentation_table(ds: Dataset) -> None:
    del ds.PresentationLUTShape
    ds.PresentationLUTSequence = Sequence([table(0, 12, np.linspace(4095, 0, 256))])


ABDOMEN = window(40, 400)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ((), 1.0),
        ((ABDOMEN,), 1.0),
        ((ABDOMEN, attributes(PresentationLUTShape="INVERSE")), 1.0),
        ((voi_table,), 0.01),
        ((ABDOMEN, presentation_table), 2.0),  # theirs rounds twice to 8 bits
        ((attributes(RescaleSlope="2", RescaleIntercept="-500"), ABDOMEN), 1.0),
        *((((ABDOMEN, attributes(ImageRotation=turn, ImageHorizontalFlip=flip))), 1.0)
          for turn in (0, 90, 180, 270) for flip in ("N", "Y")),
    ],
)  # fmt: skip
def test_the_greys_are_those_of_dcmtk(tmp_path: Path, changes: tuple[Change, ...], tolerance: float) -> None:
    theirs, ours = rendered(tmp_path, IMAGE, *changes)

    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() <= tolerance
    assert len(np.unique(theirs)) > 8  # 9 where 65536 values are shown in 256


def test_a_state_has_the_last_word_over_the_image_and_its_photometric_interpretation(tmp_path: Path) -> None:
    ds = dcmread(IMAGE)
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.save_as(tmp_path / "negative.dcm")

    theirs, ours = rendered(tmp_path, tmp_path / "negative.dcm", ABDOMEN, attributes(PresentationLUTShape="IDENTITY"))
    _, positive = rendered(tmp_path, IMAGE, ABDOMEN)

    assert np.abs(ours - positive).max() == 0
    assert np.abs(theirs - ours).max() <= 1.0
