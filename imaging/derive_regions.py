"""Segmentations of results as DICOM SEG, measurements as DICOM SR (TID 1500), through highdicom.

A measured region is referenced by its segment, so that numbers and voxels stay together. The same work makes the same
bytes, as in `derive`. Sources: PS3.3 A.51 (Segmentation), PS3.16 TID 1500 (Measurement Report), CID 7469.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any, Final

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from imaging.algorithm import Code, Measurement, Result, Segmentation
from imaging.derive import Work, add_work
from imaging.errors import AppError, Category

INTENSITIES: Final = {
    # UCUM unit   quantity of which mean, deviation and extremes are taken
    "[hnsf'U]": Code("112031", "DCM", "Attenuation Coefficient"),
    "g/ml": Code("126400", "DCM", "Standardized Uptake Value"),
}
_INTENSITY: Final = Code("intensity", "99FHIRIMG", "Image intensity")
MODIFIERS: Final = frozenset({"373098007", "386136009", "255605001", "56851009"})
"""Codes that say what of a quantity was measured, not the quantity: mean, deviation, minimum, maximum (CID 7464)."""

_TISSUE: Final = ("85756007", "SCT", "Tissue")
_NEEDED: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "StudyID", "ReferringPhysicianName",
)  # fmt: skip


def derive_segmentations(
    result: Result, sources: Sequence[Dataset], work: Work, *, series_number: int
) -> list[Dataset]:
    """Return each segmentation of a result as a SEG of one segment, all in one new series.

    sources  datasets of the images that were read, without pixel data

    Raises UNSUPPORTED for a segmentation on another grid than that of its images, INVALID for an empty one.
    """
    made: list[Dataset] = []
    for number, segmentation in enumerate(result.segmentations, start=1):
        if not segmentation.mask.any():
            raise AppError(Category.INVALID, "no voxel was segmented; there is nothing to store")
        ds = _segmentation(segmentation, _images_of(segmentation, sources), work, number, series_number)
        made.append(ds)
    return made


def derive_report(
    result: Result, sources: Sequence[Dataset], segmentations: Sequence[Dataset], work: Work, *, series_number: int
) -> Dataset:
    """Return the measurements of a result as a Comprehensive 3D SR, TID 1500.

    segmentations  what `derive_segmentations` made of the same result; the first one is the region measured

    Raises INVALID without measurements or without a segmentation.
    """
    if not result.measurements or not segmentations:
        raise AppError(Category.INVALID, "a report needs measurements and the region that was measured")
    series_uid = str(sources[0].SeriesInstanceUID)
    region = hd.sr.ReferencedSegment(
        sop_class_uid=segmentations[0].SOPClassUID,
        sop_instance_uid=segmentations[0].SOPInstanceUID,
        segment_number=1,
        source_series=hd.sr.SourceSeriesForSegmentation(series_uid),
    )
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(work.uid("tracking", 1), work.title[:64]),
        referenced_segment=region,
        measurements=[_measurement(each) for each in result.measurements],
        algorithm_id=hd.sr.AlgorithmIdentification(
            work.algorithm, work.version, manufacturer=work.equipment.manufacturer
        ),
    )
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=work.uid("device"), manufacturer_name=work.equipment.manufacturer, model_name=work.equipment.model_name
    )
    observer = hd.sr.ObserverContext(hd.sr.CodedConcept("121007", "DCM", "Device"), device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=[group],
    )
    report = hd.sr.Comprehensive3DSR(
        evidence=[*map(_completed, sources), *segmentations],
        content=content[0],
        series_instance_uid=work.uid("report"),
        series_number=series_number,
        sop_instance_uid=work.uid("report", "instance", 1),
        instance_number=1,
        manufacturer=work.equipment.manufacturer,
        is_complete=True,
    )
    add_work(report, work)
    return report


def _segmentation(
    segmentation: Segmentation, images: list[Dataset], work: Work, number: int, series_number: int
) -> Dataset:
    parameters = {name: str(value) for name, value in sorted(work.parameters.items())}
    algorithm = hd.AlgorithmIdentificationSequence(
        name=work.title[:64],
        family=hd.sr.CodedConcept("segmentation", "99FHIRIMG", "Segmentation"),
        version=work.version,
        parameters=parameters or None,
    )
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=segmentation.label[:64],
        segmented_property_category=hd.sr.CodedConcept(*_TISSUE),
        segmented_property_type=hd.sr.CodedConcept(*_TISSUE),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=work.uid("tracking", number),
        tracking_id=work.title[:64],
    )
    ds = hd.seg.Segmentation(
        source_images=images,
        pixel_array=segmentation.mask.astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[description],
        series_instance_uid=work.uid("segmentations"),
        series_number=series_number,
        sop_instance_uid=work.uid("segmentations", "instance", number),
        instance_number=number,
        manufacturer=work.equipment.manufacturer,
        manufacturer_model_name=work.equipment.model_name,
        software_versions=work.equipment.software_version,
        device_serial_number=work.equipment.serial_number or "none",
        content_label="SEGMENTATION",
    )
    organization = work.uid("dimensions", number)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    add_work(ds, work)
    return ds


def _images_of(segmentation: Segmentation, sources: Sequence[Dataset]) -> list[Dataset]:
    """Return the images in the order of the mask's slices."""
    by_uid = {str(ds.SOPInstanceUID): ds for ds in sources}
    uids = [source.sop_instance_uid for source in segmentation.sources]
    if any(source.frame is not None for source in segmentation.sources):
        raise AppError(Category.UNSUPPORTED, "segmentations of multi-frame images are not written yet")
    if len(uids) != len(segmentation.mask) or not by_uid.keys() >= set(uids):
        message = "a segmentation is written on the slices of its images; this one lies on another grid"
        raise AppError(Category.UNSUPPORTED, message)
    return [_completed(by_uid[uid]) for uid in uids]


def _completed(ds: Dataset) -> Dataset:
    """Return the dataset with those elements of patient and study empty that it lacks (type 2 in every IOD)."""
    completed = copy(ds)
    for keyword in _NEEDED:
        if keyword not in completed:
            setattr(completed, keyword, None)
    return completed


def _measurement(measurement: Measurement) -> Any:
    unit = hd.sr.CodedConcept(measurement.unit, "UCUM", measurement.unit)
    code = hd.sr.CodedConcept(measurement.code.value, measurement.code.scheme, measurement.code.meaning)
    if measurement.code.value not in MODIFIERS:
        return hd.sr.Measurement(name=code, value=measurement.value, unit=unit)
    quantity = INTENSITIES.get(measurement.unit, _INTENSITY)
    name = hd.sr.CodedConcept(quantity.value, quantity.scheme, quantity.meaning)
    return hd.sr.Measurement(name=name, value=measurement.value, unit=unit, derivation=code)
