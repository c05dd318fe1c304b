"""The pictures of films in the docs: composed from orders on real images by the code that prints them.

`python -m tests.support.film_pictures docs/images/film` writes them anew; a test compares. The images are a CT of a
head and an MR of a shoulder that come with pydicom-data.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file

from fhir_server.hardcopy.composing import for_screen
from imaging.derive import to_part10
from imaging.film import Medium, Sheets, pages, test_page
from imaging.printer import Capabilities
from tests.support.films import copying, inputs, task

FILM = Capabilities(("8INX10IN",), (Medium.BLUE_FILM,), (300,), densities=(0.2, 3.0))
SCREEN = 110  # dots per inch
STATE = "1.2.826.0.1.3680043.10.1498.7"


def real(name: str, **changes: Any) -> Dataset:
    """Return a real image with a name that is nobody's."""
    ds = dcmread(str(get_testdata_file(name)))
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Doe^Jane", "4711", "19700131"
    ds.StudyDate, ds.AccessionNumber, ds.InstitutionName = "20260304", "A-2026-17", "General Hospital"
    for keyword, content in changes.items():
        setattr(ds, keyword, content)
    return ds


def file_of(ds: Dataset) -> bytes:
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def windows() -> NDArray[np.uint8]:
    """One CT slice in four windows."""
    ct = real("693_UNCR.dcm", StudyDescription="CT head")
    images = [f"{ct.SOPInstanceUID}?window={each}" for each in ("40,80", "75,215", "40,400", "500,2500")]
    return page_of([file_of(ct)], *inputs(image=images, layout="STANDARD\\2,2", banner="Dr. Roe, ward 3"))


def state() -> NDArray[np.uint8]:
    """An MR as a presentation state shows it: window, shutter, circle and words."""
    mr = real("MR2_UNCR.dcm", StudyDescription="MR shoulder")
    document = presentation_state(mr)
    return page_of([file_of(mr), document], *inputs(presentation_state=STATE))


def sheet_for_tests() -> NDArray[np.uint8]:
    """The page of `fhir-imaging printer test-page`."""
    plain = Sheets(film_size="8INX10IN", medium=Medium.BLUE_FILM, dots_per_inch=SCREEN, banner=("Test page",))
    (page,) = pages(test_page.sheets(plain), test_page.pictures())
    return np.asarray(page.pixels, dtype=np.uint8)


PICTURES: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "windows": windows,
    "state": state,
    "test-page": sheet_for_tests,
}


def page_of(files: list[bytes], *given: dict[str, Any]) -> NDArray[np.uint8]:
    """Return the first page of an order on files, for a screen."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copying(Path(folder), files, task(*given), FILM)
        copy.check()
        page = next(iter(for_screen(copy.job(), SCREEN).pages()))
    return np.asarray(page.pixels, dtype=np.uint8)


def presentation_state(image: Dataset) -> bytes:
    rows, columns = image.Rows, image.Columns
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.11.1", STATE, "PR"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = image.StudyInstanceUID, f"{STATE}.1"
    ds.PatientName, ds.PatientID = image.PatientName, image.PatientID
    named, series, voi, layer, group, circle, words = (Dataset() for _ in range(7))
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedImageSequence = image.SeriesInstanceUID, Sequence([named])
    ds.ReferencedSeriesSequence = Sequence([series])
    voi.WindowCenter, voi.WindowWidth = 300, 600
    ds.SoftcopyVOILUTSequence, ds.PresentationLUTShape = Sequence([voi]), "IDENTITY"
    ds.ShutterShape, ds.ShutterPresentationValue = "CIRCULAR", 0
    ds.CenterOfCircularShutter, ds.RadiusOfCircularShutter = [rows // 2, columns // 2], rows // 2
    layer.GraphicLayer, layer.GraphicLayerOrder = "READING", 1
    layer.GraphicLayerRecommendedDisplayGrayscaleValue = 65_535
    circle.GraphicAnnotationUnits, circle.GraphicDimensions, circle.NumberOfGraphicPoints = "PIXEL", 2, 2
    circle.GraphicType, circle.GraphicFilled = "CIRCLE", "N"
    circle.GraphicData = [columns * 0.6, rows * 0.42, columns * 0.7, rows * 0.42]
    words.AnchorPointAnnotationUnits, words.UnformattedTextValue = "PIXEL", "compare with 2025"
    words.AnchorPoint, words.AnchorPointVisibility = [columns * 0.52, rows * 0.55], "N"
    group.GraphicLayer = "READING"
    group.GraphicObjectSequence, group.TextObjectSequence = Sequence([circle]), Sequence([words])
    ds.GraphicLayerSequence, ds.GraphicAnnotationSequence = Sequence([layer]), Sequence([group])
    return to_part10(ds)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PICTURES.items():
        Image.fromarray(make()).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
