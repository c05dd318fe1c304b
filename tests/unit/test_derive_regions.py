"""Segmentations become SEG and measurements SR, read back by pydicom and accepted as received files are."""

import time
from dataclasses import replace
from io import BytesIO
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.algorithm import Result, Segmentation
from imaging.algorithms import algorithms
from imaging.dataset import read
from imaging.derive import to_part10
from imaging.derive_regions import derive_report, derive_segmentations
from imaging.errors import AppError, Category
from imaging.geometry import Volume
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


@pytest.mark.parametrize("lacking", ["FrameOfReferenceUID", "SliceThickness", "PatientSex"])
def test_what_images_lack_keeps_no_segmentation_from_being_made(lacking: str):
    result, sources = measured()
    for ds in sources:
        if lacking in ds:
            delattr(ds, lacking)
    before = [set(ds.keys()) for ds in sources]

    segmentation, report = (dcmread(BytesIO(file)) for file in written(result, sources))

    assert segmentation.FrameOfReferenceUID == sources[0].get("FrameOfReferenceUID", DONE.frame_of_reference_uid)
    assert np.array_equal(segmentation.pixel_array, np.ones((2, 4, 5)))
    (measures,) = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SliceThickness == sources[0].get("SliceThickness", 2)  # from slice to slice
    assert report.Modality == "SR"
    assert [set(ds.keys()) for ds in sources] == before


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


def turned(volume: Volume) -> Volume:
    """The volume with rows and columns that lie obliquely in the patient."""
    return replace(
        volume, affine=np.array([[1, 0, 0, 4], [0, 0.8, -0.6, 5], [0, 0.6, 0.8, 6], [0, 0, 0, 1.0]]) @ volume.affine
    )


def cropped(volume: Volume) -> Volume:
    """Rows 1 to 3, columns 2 to 4."""
    shift = np.eye(4)
    shift[:3, 3] = 0, 1, 2
    return replace(volume, array=volume.array[:, 1:4, 2:5], affine=volume.affine @ shift)


def of_frames(positions: list[tuple[float, float, float]]) -> tuple[Volume, list[Dataset]]:
    """An enhanced image, whose frame n is 3 n - 5 everywhere."""
    ds = enhanced(positions)
    return volume_from([ds], [np.stack([frame(n) for n in range(len(positions))])]), [ds]


def of_slices() -> tuple[Volume, list[Dataset]]:
    sources, frames = axial_series([0, 2, 4, 6])
    return volume_from(sources[::-1], frames[::-1]), sources


@pytest.mark.parametrize("change", [lambda volume: volume, turned, cropped])
@pytest.mark.parametrize("made", [of_slices(), of_frames([(0, 0, 4), (0, 0, 0), (0, 0, 2)])])
def test_another_reader_finds_every_voxel_where_it_was_in_the_patient(made: Any, change: Any):
    volume, sources = made
    volume = change(volume)
    mask = np.random.default_rng(3).random(volume.array.shape) < 0.4
    segment = Segmentation(mask, volume.affine, "random", volume.frame_of_reference_uid, volume.sources)

    (ds,) = derive_segmentations(Result(segmentations=(segment,)), sources, DONE, series_number=7)

    read_back = hd.seg.segread(BytesIO(to_part10(ds))).get_volume(combine_segments=True)
    indices = np.argwhere(read_back.array > 0)
    found = indices @ read_back.affine[:3, :3].T + read_back.affine[:3, 3]
    expected = np.array([volume.position_mm(tuple(each)) for each in np.argwhere(mask)])
    order = [np.lexsort(np.round(each, 3).T) for each in (found, expected)]
    assert np.allclose(found[order[0]], expected[order[1]], atol=1e-3)
    (series,) = ds.ReferencedSeriesSequence
    referenced = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
    assert referenced == {each.SOPInstanceUID for each in sources}


def test_a_segmentation_of_too_few_pixels_is_refused():
    volume, sources = of_slices()
    small = replace(volume, array=volume.array[:, :2, :3])
    segment = Segmentation(small.array < 0, small.affine, "small", "", small.sources)

    with pytest.raises(AppError, match="less than 8 pixels"):
        derive_segmentations(Result(segmentations=(segment,)), sources, DONE, series_number=7)


def test_a_report_needs_its_region():
    result, sources = measured()

    with pytest.raises(AppError, match="the region that was measured"):
        derive_report(result, sources, [], DONE, series_number=8)
