"""Segmentations become SEG and measurements SR, read back by pydicom and accepted as received files are."""

import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.algorithm import Result
from imaging.algorithms import algorithms
from imaging.dataset import read
from imaging.derive import to_part10
from imaging.derive_regions import derive_report, derive_segmentations
from imaging.errors import AppError, Category
from imaging.volume import volume_from
from tests.support.volumes import axial_series, enhanced, frame
from tests.unit.test_derive import work

DONE = work(algorithm="roi-measure", title="Region of interest")
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def measured() -> tuple[Result, list[Dataset]]:
    """Slices at 0, 2, 4, 6 mm with -1000, -980, -960, -940 HU; the region holds the middle two, whole."""
    sources, frames = axial_series([0, 2, 4, 6])
    volume = volume_from(sources[::-1], frames[::-1])
    values = {"center_mm": [1.5, 2.75, 3], "half_size_mm": [9, 9, 1.5], "shape": "box"}
    return algorithms.get("roi-measure").build(values)(volume), sources


def written(result: Result, sources: list[Dataset]) -> tuple[bytes, bytes]:
    segmentations = derive_segmentations(result, sources, DONE, series_number=7)
    report = derive_report(result, sources, segmentations, DONE, series_number=8)
    return to_part10(segmentations[0]), to_part10(report)


def items(ds: Dataset) -> list[Dataset]:
    return [each for item in ds.get("ContentSequence", []) for each in (item, *items(item))]


def test_a_segmentation_reads_back_on_the_slices_of_its_images():
    result, sources = measured()

    ds = dcmread(BytesIO(written(result, sources)[0]))

    places = [group.PlanePositionSequence[0].ImagePositionPatient[2] for group in ds.PerFrameFunctionalGroupsSequence]
    referenced = {
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for group in ds.PerFrameFunctionalGroupsSequence
    }
    assert ds.SOPClassUID == SEG
    assert sorted(places) == [2, 4]
    assert np.array_equal(ds.pixel_array, np.ones((2, 4, 5)))
    assert referenced == {sources[1].SOPInstanceUID, sources[2].SOPInstanceUID}
    assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID) == (
        sources[0].StudyInstanceUID,
        sources[0].FrameOfReferenceUID,
    )


def test_a_report_gives_numbers_units_and_the_segment():
    result, sources = measured()

    ds = dcmread(BytesIO(written(result, sources)[1]))

    found: dict[tuple[str, str], Any] = {}
    for item in items(ds):
        if item.ValueType == "NUM":
            modifiers = [each.ConceptCodeSequence[0].CodeMeaning for each in item.get("ContentSequence", [])]
            value = item.MeasuredValueSequence[0]
            name = item.ConceptNameCodeSequence[0].CodeMeaning
            found[name, *modifiers] = (float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue)
    assert found["Attenuation Coefficient", "Mean"] == (-970, "[hnsf'U]")
    assert found["Attenuation Coefficient", "Minimum"] == (-980, "[hnsf'U]")
    assert found["Volume",] == (pytest.approx(40 * 2 * 0.5 * 0.25 / 1000), "ml")
    assert [item.ReferencedSOPSequence[0].ReferencedSOPClassUID for item in items(ds) if item.ValueType == "IMAGE"] == [
        SEG
    ]
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_a_second_run_makes_the_same_bytes():
    result, sources = measured()

    first = written(result, sources)
    time.sleep(1.1)  # times of the run must not show

    assert written(result, sources) == first


def test_both_are_accepted_as_received_files_are():
    assert [read(file).summary.series.modality for file in written(*measured())] == ["SEG", "SR"]


def test_an_empty_segmentation_is_refused():
    sources, frames = axial_series([0, 2])
    result = algorithms.get("threshold").build({"low": 5000})(volume_from(sources, frames))

    with pytest.raises(AppError) as caught:
        derive_segmentations(result, sources, DONE, series_number=7)

    assert caught.value.category is Category.INVALID


def test_segmentations_of_multi_frame_images_are_refused():
    ds = enhanced([(0, 0, 0), (0, 0, 2)])
    result = algorithms.get("threshold").build({"low": 0})(volume_from([ds], [np.stack([frame(5), frame(6)])]))

    with pytest.raises(AppError) as caught:
        derive_segmentations(result, [ds], DONE, series_number=7)

    assert caught.value.category is Category.UNSUPPORTED


def test_a_report_needs_its_region():
    result, sources = measured()

    with pytest.raises(AppError, match="the region that was measured"):
        derive_report(result, sources, [], DONE, series_number=8)
