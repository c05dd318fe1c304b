"""Segmentations of results as DICOM SEG, measurements as DICOM SR (TID 1500), through highdicom.

A measured region is referenced by its segment, so that numbers and voxels stay together. The same work makes the same
bytes, as in `derive`. Sources: PS3.3 A.51 (Segmentation), PS3.16 TID 1500 (Measurement Report), CID 7469.
"""

from collections.abc import Sequence
from typing import Any, Final

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DSfloat

from imaging.algorithm import Code, Measurement, Result, Segmentation
from imaging.derive import Work, add_work, copied
from imaging.errors import AppError, Category
from imaging.frame_values import slices_of

INTENSITIES: Final = {
    # UCUM unit   quantity of which mean, deviation and extremes are taken
    "[hnsf'U]": Code("112031", "DCM", "Attenuation Coefficient"),
    "g/ml": Code("126400", "DCM", "Standardized Uptake Value"),
}
_INTENSITY: Final = Code("intensity", "99FHIRIMG", "Image intensity")
MODIFIERS: Final = frozenset({"373098007", "386136009", "255605001", "56851009"})
"""Codes that say what of a quantity was measured, not the quantity: mean, deviation, minimum, maximum (CID 7464)."""

_FEWEST_PIXELS: Final = 8  # highdicom (0.28) packs the bits of smaller frames apart from each other
_NEAR_MM: Final = 0.02  # positions of scanners are rounded to 0.01 mm
_TISSUE: Final = ("85756007", "SCT", "Tissue")
_NEEDED: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "StudyID", "ReferringPhysicianName", "SliceThickness",
)  # fmt: skip


def derive_segmentations(
    result: Result, sources: Sequence[Dataset], work: Work, *, series_number: int
) -> list[Dataset]:
    """Return each segmentation of a result as a SEG of one segment, all in one new series.

    sources  datasets of the images that were read, without pixel data

    Raises INVALID for an empty segmentation, UNSUPPORTED for one of less than 8 pixels a slice.
    """
    made: list[Dataset] = []
    for number, segmentation in enumerate(result.segmentations, start=1):
        if not segmentation.mask.any():
            raise AppError(Category.INVALID, "no voxel was segmented; there is nothing to store")
        if segmentation.mask[0].size < _FEWEST_PIXELS:
            raise AppError(Category.UNSUPPORTED, "slices of less than 8 pixels are not segmented; give a larger region")
        made.append(_segmentation(segmentation, sources, work, number, series_number))
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
        evidence=[*(_completed(ds, work) for ds in sources), *segmentations],
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
    segmentation: Segmentation, sources: Sequence[Dataset], work: Work, number: int, series_number: int
) -> Dataset:
    images, mask, grid = _laid_out(segmentation, [_completed(ds, work) for ds in sources])
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
        pixel_array=mask.astype(np.uint8),
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
        **grid,
    )
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if "SliceThickness" not in measures:
        measures.SliceThickness = DSfloat(_thickness_mm(segmentation), auto_format=True)
    organization = work.uid("dimensions", number)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    add_work(ds, work)
    return ds


def _laid_out(
    segmentation: Segmentation, sources: Sequence[Dataset]
) -> tuple[list[Dataset], NDArray[np.bool_], dict[str, Any]]:
    """Return the images, the mask frame by frame in their order, and where its frames lie unless they lie on theirs."""
    by_uid = {str(ds.SOPInstanceUID): ds for ds in sources}
    used = [by_uid[source.sop_instance_uid] for source in segmentation.sources]
    images = list({id(ds): ds for ds in used}.values())
    mask = segmentation.mask
    is_whole = len(used) == len(mask) and _lies_on(segmentation, used)
    if is_whole and all(source.frame is None for source in segmentation.sources):
        return images, mask, {}
    numbers = [source.frame or 1 for source in segmentation.sources]
    if is_whole and len(images) == 1 and len(numbers) == int(images[0].get("NumberOfFrames", 1)):
        return images, mask[np.argsort(numbers)], {}
    return images, mask, _grid(segmentation)


def _lies_on(segmentation: Segmentation, used: Sequence[Dataset]) -> bool:
    """Say whether each slice of a mask lies on the frame that it came from, voxel on pixel."""
    for index, (ds, source) in enumerate(zip(used, segmentation.sources, strict=True)):
        (frame,) = slices_of(ds, 0, [source.frame or 1])
        if frame.shape != segmentation.mask.shape[1:] or frame.position_mm is None or frame.orientation is None:
            return False
        row, column = frame.orientation[:3], frame.orientation[3:]
        rows_mm, columns_mm = frame.spacing_mm or (0.0, 0.0)
        theirs = np.stack([column * rows_mm, row * columns_mm, frame.position_mm], axis=1)
        ours = segmentation.affine[:3, 1:].copy()
        ours[:, 2] += segmentation.affine[:3, 0] * index
        if np.abs(ours - theirs).max() > _NEAR_MM:
            return False
    return True


def _grid(segmentation: Segmentation) -> dict[str, Any]:
    axes = segmentation.affine[:3, :3]
    step_mm, row_mm, column_mm = (float(each) for each in np.linalg.norm(axes, axis=0))
    directions = axes / np.linalg.norm(axes, axis=0)
    system = hd.CoordinateSystemNames.PATIENT
    positions = [segmentation.affine[:3, 3] + axes[:, 0] * index for index in range(len(segmentation.mask))]
    return {
        "plane_positions": [hd.PlanePositionSequence(system, tuple(map(float, each))) for each in positions],
        "plane_orientation": hd.PlaneOrientationSequence(
            system, tuple(map(float, (*directions[:, 2], *directions[:, 1])))
        ),
        "pixel_measures": hd.PixelMeasuresSequence(
            (row_mm, column_mm), slice_thickness=_thickness_mm(segmentation), spacing_between_slices=step_mm
        ),
    }


def _thickness_mm(segmentation: Segmentation) -> float:
    """Return from one slice to the next, along their normal."""
    along_slices, along_rows, along_columns = segmentation.affine[:3, :3].T
    normal = np.cross(along_columns, along_rows)
    return abs(float(along_slices @ normal / np.linalg.norm(normal)))


def _completed(ds: Dataset, work: Work) -> Dataset:
    """Return the dataset with those elements empty that it lacks and every IOD has (type 2), and a frame of reference.

    Where the images name none, the result has one of its own.
    """
    completed = copied(ds)
    for keyword in _NEEDED:
        if keyword not in completed:
            setattr(completed, keyword, None)
    if not completed.get("FrameOfReferenceUID"):
        completed.FrameOfReferenceUID = work.frame_of_reference_uid
    return completed


def _measurement(measurement: Measurement) -> Any:
    unit = hd.sr.CodedConcept(measurement.unit, "UCUM", measurement.unit)
    code = hd.sr.CodedConcept(measurement.code.value, measurement.code.scheme, measurement.code.meaning)
    if measurement.code.value not in MODIFIERS:
        return hd.sr.Measurement(name=code, value=measurement.value, unit=unit)
    quantity = INTENSITIES.get(measurement.unit, _INTENSITY)
    name = hd.sr.CodedConcept(quantity.value, quantity.scheme, quantity.meaning)
    return hd.sr.Measurement(name=name, value=measurement.value, unit=unit, derivation=code)
