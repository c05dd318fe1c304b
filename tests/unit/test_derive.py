"""Results become DICOM instances that say what was done; read back by pydicom, and accepted as received files are."""

from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.algorithm import Code, Result
from imaging.algorithms import algorithms
from imaging.dataset import read
from imaging.derive import Equipment, Work, derive_images, quantise, to_part10
from imaging.errors import AppError, Category
from imaging.transcode import encode
from imaging.volume import volume_from
from tests.support.volumes import axial_series, image_of, volume_of


def work(**changes: Any) -> Work:
    values: dict[str, Any] = {
        "key": "Task/1",
        "algorithm": "mpr",
        "version": "1",
        "title": "Multiplanar reformatting",
        "code": Code("113072", "DCM", "Multiplanar reformatting"),
        "parameters": {"plane": "coronal", "spacing_mm": 0.5},
        "input_digests": ("aa", "bb"),
        "done_at": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
        "equipment": Equipment("Maker", "Server", "0.1"),
    }
    return Work(**(values | changes))


def files(result: Result, sources: list[Dataset], done: Work | None = None) -> list[bytes]:
    return [to_part10(ds) for ds in derive_images(result, sources, done or work(), series_number=1001)]


def parsed(file: bytes) -> Dataset:
    return dcmread(BytesIO(file))


def test_a_reformatted_volume_reads_back_with_its_values_and_geometry():
    sources, frames = axial_series([0, 2, 4, 6])
    result = algorithms.get("mpr").build({"plane": "coronal", "spacing_mm": 0.5, "step_mm": 0.5})(
        volume_from(sources, frames)
    )

    written = [parsed(file) for file in files(result, sources)]

    again = volume_from(written, [ds.pixel_array for ds in written])
    (made,) = result.volumes
    assert np.allclose(again.affine, made.affine, atol=1e-9)
    assert np.abs(again.array - made.array).max() <= float(written[0].RescaleSlope) / 2 + 1e-3
    assert again.unit == "[hnsf'U]"
    assert {str(ds.SOPClassUID) for ds in written} == {"1.2.840.10008.5.1.4.1.1.2"}


def test_a_derived_instance_says_what_was_done_to_what():
    sources, frames = axial_series([0, 2, 4])
    for ds in sources:
        ds.Manufacturer, ds.KVP = "Scanner", 120
        ds.add_new(0x00090010, "LO", "PRIVATE")

    ds = parsed(files(Result(volumes=(volume_from(sources, frames),)), sources)[1])

    assert ds.DerivationCodeSequence[0].CodeValue == "113072"
    assert "mpr 1: plane=coronal, spacing_mm=0.5" in ds.DerivationDescription
    assert [item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence] == [sources[1].SOPInstanceUID]
    assert list(ds.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert [item.Manufacturer for item in ds.ContributingEquipmentSequence] == ["Scanner", "Maker"]
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in ds.ContributingEquipmentSequence] == [
        "109101",
        "109102",
    ]
    assert (ds.Manufacturer, ds.KVP, ds.SeriesNumber, ds.InstanceNumber) == ("Maker", 120, 1001, 2)
    assert ds.StudyInstanceUID == sources[0].StudyInstanceUID
    assert ds.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert (0x0009, 0x0010) not in ds


def test_derived_files_are_accepted_as_received_ones_are():
    sources, frames = axial_series([0, 2])

    received = [read(file) for file in files(Result(volumes=(volume_from(sources, frames),)), sources)]

    assert [each.summary.instance.instance_number for each in received] == [1, 2]
    assert received[0].summary.instance.image_type[:2] == ("DERIVED", "SECONDARY")
    assert received[0].pixels is not None
    assert [encode(each).kept_reason for each in received] == ["", ""]  # and kept as JPEG 2000, verified


def test_a_second_run_makes_the_same_bytes_and_other_work_other_uids():
    sources, frames = axial_series([0, 2])
    result = Result(volumes=(volume_from(sources, frames),))

    first, second = files(result, sources), files(result, sources)
    others = [
        parsed(files(result, sources, work(**change))[0]).SOPInstanceUID
        for change in ({"key": "Task/2"}, {"version": "2"}, {"input_digests": ("aa",)}, {"parameters": {}})
    ]

    assert first == second
    assert len({parsed(first[0]).SOPInstanceUID, parsed(first[1]).SOPInstanceUID, *others}) == 6
    assert all(len(uid) <= 64 and uid.startswith("2.25.") for uid in others)


def test_images_without_a_place_become_secondary_captures():
    sources, _ = axial_series([0, 2])
    result = Result(images=(image_of(np.array([[0.0, 0.25], [0.5, 1.0]]), unit="1"),))

    (ds,) = [parsed(file) for file in files(result, sources)]

    assert (ds.SOPClassUID, ds.ConversionType) == ("1.2.840.10008.5.1.4.1.1.7", "WSD")
    assert "ImagePositionPatient" not in ds
    assert "FrameOfReferenceUID" not in ds
    values = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    assert np.allclose(values, result.images[0].array, atol=1 / 65535)


def test_uptake_values_stay_pet_images_in_their_new_unit():
    sources, _ = axial_series([0, 2])
    for ds in sources:
        ds.SOPClassUID, ds.Modality, ds.FrameReferenceTime = "1.2.840.10008.5.1.4.1.1.128", "PT", 5
    result = Result(volumes=(volume_of(np.array([[[0.5]], [[7.25]]]), unit="g/ml", modality="PT"),))

    written = [parsed(file) for file in files(result, sources)]

    assert [(ds.Units, ds.SUVType, ds.RescaleIntercept, ds.ImageIndex) for ds in written] == [
        ("GML", "BW", 0, 1),
        ("GML", "BW", 0, 2),
    ]
    assert float(written[1].RescaleSlope) * written[1].pixel_array[0, 0] == pytest.approx(7.25, rel=1e-4)


def test_derived_images_of_pet_keep_the_time_that_their_activity_is_corrected_to():
    sources, _ = axial_series([0, 2])
    for ds, acquired in zip(sources, ("101500", "101200"), strict=True):
        ds.SOPClassUID, ds.Modality, ds.DecayCorrection = "1.2.840.10008.5.1.4.1.1.128", "PT", "START"
        ds.SeriesDate, ds.SeriesTime, ds.AcquisitionDate, ds.AcquisitionTime = "20240506", "1010", "20240506", acquired
    result = Result(volumes=(volume_of(np.ones((2, 1, 1)), unit="Bq/ml", modality="PT"),))

    written = [parsed(file) for file in files(result, sources)]

    assert {(ds.SeriesDate, ds.SeriesTime) for ds in written} == {("20240506", "1010")}
    assert {(ds.AcquisitionDate, ds.AcquisitionTime) for ds in written} == {("20240506", "101200")}
    assert {(ds.ContentDate, ds.ContentTime) for ds in written} == {("20240506", "070809")}


@pytest.mark.parametrize(
    ("told", "expected"),
    [((None, None), None), (("NO", None), None), (("NO", "NO"), "NO"), (("YES", "NO"), "YES"), ((None, "YES"), "YES")],
)
def test_that_no_text_is_burned_in_is_said_only_where_all_sources_say_it(told: tuple[Any, ...], expected: str | None):
    sources, _ = axial_series([0, 2])
    for ds, value in zip(sources, told, strict=True):
        ds.BurnedInAnnotation = value

    (ds,) = (parsed(file) for file in files(Result(images=(image_of(np.ones((1, 1))),)), sources))

    assert (ds.get("BurnedInAnnotation") or None) == expected


def test_the_scale_of_doses_is_not_that_of_results():
    sources, _ = axial_series([0])
    sources[0].DoseGridScaling, sources[0].DoseUnits = "0.001", "GY"

    (ds,) = (parsed(file) for file in files(Result(images=(image_of(np.ones((1, 1)), unit="Gy"),)), sources))

    assert ("DoseGridScaling" in ds, "RescaleSlope" in ds) == (False, True)


def test_images_with_a_place_have_a_frame_of_reference_of_their_own_where_their_sources_name_none():
    sources, frames = axial_series([0, 2])
    for ds in sources:
        del ds.FrameOfReferenceUID

    written = [parsed(file) for file in files(Result(volumes=(volume_from(sources, frames),)), sources)]

    assert {ds.FrameOfReferenceUID for ds in written} == {work().frame_of_reference_uid}


def test_times_of_a_result_are_of_the_zone_that_it_names():
    sources, _ = axial_series([0])
    sources[0].TimezoneOffsetFromUTC = "-0730"

    (ds,) = (parsed(file) for file in files(Result(images=(image_of(np.ones((1, 1))),)), sources))

    assert (ds.SeriesDate, ds.SeriesTime, ds.TimezoneOffsetFromUTC) == ("20240505", "233809", "-0730")


def test_whole_numbers_are_kept_exactly():
    values = np.array([[-1024, 3071]], dtype=np.float32)

    (stored,) = quantise([values])

    assert (stored.slope, stored.intercept, stored.frames.tolist()) == (1, 0, [[-1024, 3071]])


def test_other_values_are_within_half_a_step():
    values = np.random.default_rng(6).normal(0, 1e-3, (50, 50)).astype(np.float32)

    for is_pet in (False, True):
        (stored,) = quantise([values], is_pet=is_pet)
        again = stored.frames * stored.slope + stored.intercept
        assert np.abs(again - values).max() <= 0.51 * stored.slope


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(AppError, match="not finite"):
        quantise([np.array([[np.nan]], dtype=np.float32)])


def test_sources_of_two_patients_are_refused():
    sources, _ = axial_series([0, 2])
    sources[1].PatientID = "P2"

    with pytest.raises(AppError) as caught:
        files(Result(images=(image_of(np.zeros((2, 2))),)), sources)

    assert caught.value.category is Category.INVALID


def test_results_of_two_studies_belong_to_the_first_and_have_the_modality_of_their_pixels():
    sources, _ = axial_series([0, 2])
    sources[0].StudyDate, sources[0].StudyTime, sources[0].StudyID = "20240102", "101112", "1"
    sources[1].StudyInstanceUID, sources[1].Modality, sources[1].StudyDate = "1.2.3", "MR", "20230102"

    (ds,) = [parsed(file) for file in files(Result(images=(image_of(np.zeros((2, 2)), modality="MR"),)), sources)]

    assert (ds.StudyInstanceUID, ds.StudyDate, ds.StudyID) == (sources[0].StudyInstanceUID, "20240102", "1")
    assert ds.Modality == "MR"


def test_lossy_compression_of_a_source_is_not_forgotten():
    sources, frames = axial_series([0, 2])
    for ds in sources:
        ds.LossyImageCompression = "01"

    ds = parsed(files(Result(volumes=(volume_from(sources, frames),)), sources)[0])

    assert ds.LossyImageCompression == "01"


def test_what_describes_other_pixels_is_not_kept():
    sources, frames = axial_series([0, 2])
    mapping = Dataset()
    mapping.RealWorldValueSlope = 7.0
    for ds in sources:
        ds.PatientOrientation, ds.GantryDetectorTilt, ds.ShutterLeftVerticalEdge = ["L", "P"], 10, 1
        ds.RealWorldValueMappingSequence, ds.DigitalSignaturesSequence = [mapping], [Dataset()]
        ds.PixelPresentation, ds.ImageComments, ds.KVP = "COLOR", "the slice of yesterday", 120
    coronal = algorithms.get("mpr").build({"plane": "coronal"})(volume_from(sources, frames))

    ds = parsed(files(coronal, sources)[0])

    assert list(ds.PatientOrientation) == ["L", "F"]
    assert ds.KVP == 120
    for keyword in (
        "GantryDetectorTilt", "ShutterLeftVerticalEdge", "RealWorldValueMappingSequence", "DigitalSignaturesSequence",
        "PixelPresentation", "ImageComments",
    ):  # fmt: skip
        assert keyword not in ds


def test_slices_stay_as_thick_as_they_are_and_slabs_are_as_thick_as_they_say():
    sources, frames = axial_series([0, 2, 4, 6])  # 3 mm thick, 2 mm apart
    volume = volume_from(sources, frames)
    slab = algorithms.get("slab").build({"thickness_mm": 6, "step_mm": 2})(volume)

    same, thick = (parsed(files(result, sources)[1]) for result in (Result(volumes=(volume,)), slab))

    assert (same.SliceThickness, thick.SliceThickness) == (3, 6)
    assert [each.ReferencedSOPInstanceUID for each in thick.SourceImageSequence] == [
        ds.SOPInstanceUID for ds in sources[1:]
    ]


def test_low_values_that_are_shown_white_stay_so():
    sources, frames = axial_series([0, 2])
    for ds in sources:
        ds.PhotometricInterpretation = "MONOCHROME1"
    image = replace(image_of(np.arange(20.0).reshape(4, 5)), is_inverse=True)

    of_volume = parsed(files(Result(volumes=(volume_from(sources, frames),)), sources)[0])
    of_image = parsed(files(Result(images=(image,)), sources)[0])

    assert (of_volume.PhotometricInterpretation, of_image.PhotometricInterpretation) == ("MONOCHROME1", "MONOCHROME1")


def test_distances_at_the_detector_are_not_given_out_as_those_in_the_patient():
    sources, _ = axial_series([0])
    del sources[0].PixelSpacing
    sources[0].ImagerPixelSpacing = [0.1, 0.1]
    image = image_of(np.zeros((4, 5)), spacing_mm=(0.1, 0.1))

    ds = parsed(files(Result(images=(image,)), sources)[0])

    assert "PixelSpacing" not in ds
    assert list(ds.ImagerPixelSpacing) == [0.1, 0.1]
