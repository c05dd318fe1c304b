"""Imaging conditions of real files: the values that DCMTK's `dcmdump` prints for their elements."""

import time
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement

from imaging.conditions import Coded, conditions, conditions_from_document, conditions_to_document, merge
from imaging.conditions_table import DCM, SCT
from imaging.dataset import read
from tests.support.conditions import enhanced_mr, real, values

REAL_FILES = {
    "CT_small.dcm": {
        "kvp": 120,
        "x_ray_tube_current": 170,
        "exposure_time": 1601,
        "exposure": 170,
        "focal_spots": 0.7,
        "convolution_kernel": "STANDARD",
        "gantry_detector_tilt": 0,
        "distance_source_to_detector": 1099.3100585938,
        "reconstruction_diameter": 338.6716,
        "pixel_spacing": (0.661468, 0.661468),
        "contrast_bolus_agent": "ISOVUE300/100",
    },
    "humans/ctbrain1.dcm": {
        "ctdivol": 48.7164,
        "ctdi_phantom_type_code_sequence": Coded(DCM, "113690", "IEC Head Dosimetry Phantom"),
        "single_collimation_width": 1.2,
        "total_collimation_width": 14.4,
        "spiral_pitch_factor": 0,
        "gantry_detector_tilt": -7.2544552,
        "exposure_modulation_type": "NONE",
    },
    "MR_small.dcm": {
        "repetition_time": 4000,
        "echo_time": 240,
        "flip_angle": 90,
        "imaging_frequency": 63.924339,
        "imaged_nucleus": "H",
        "mr_acquisition_type": "3D",
    },
    "MR2_UNCR.dcm": {
        "magnetic_field_strength": 1.5,
        "repetition_time": 350,
        "echo_time": 27,
        "echo_train_length": 0,
        "number_of_averages": 4,
        "percent_phase_field_of_view": 80.078148,
        "heart_rate": 60,
        "in_plane_phase_encoding_direction": "COL",
    },
    "MR-SIEMENS-DICOM-WithOverlays.dcm": {
        "scan_options": ("SAT2", "FS"),
        "sequence_name": "*fl3d1",
        "sar": 0.10828038305044,
        "dbdt": 0,
        "acquisition_matrix": (256, 0, 0, 134),
        "pixel_bandwidth": 250,
    },
    "emri_small_big_endian.dcm": {
        "pulse_sequence_name": "T1TFE",
        "specific_absorption_rate_value": 0.0154531570151448,
        "mr_acquisition_frequency_encoding_steps": 256,
        "acquisition_duration": 652.70703125,
        "parallel_acquisition_technique": "SENSE",
    },
    "RG1_UNCR.dcm": {
        "kvp": 150,
        "image_and_fluoroscopy_area_dose_product": 0.12,
        "view_position": "PA",
        "plate_type": "Sel Drum 500x500",
    },
    "animals/cat.dcm": {
        "exposure_index": 297,
        "target_exposure_index": 171,
        "deviation_index": 2.4,
        "imager_pixel_spacing": (0.14, 0.14),
        "detector_temperature": 36.0999984741211,
        "detector_type": "DIRECT",
        "detector_active_dimensions": (355.6, 431.8),
        "view_code_sequence": Coded(SCT, "399348003", "antero-posterior"),
    },
    "ultrasounds/RGB_IMAGE.dcm": {
        "transducer_frequency": 4000,
        "mechanical_index": 1.39201,
        "bone_thermal_index": 0.514488,
        "soft_tissue_thermal_index": 0.514488,
        "transducer_type": "CURVED LINEAR",
        "transducer_data": "6C1 HD",
    },
    "gdcm-US-ALOKA-16.dcm": {
        "depth_of_scan_field": 150,
        "transducer_frequency": 5000,
        "pulse_repetition_frequency": 4340,
    },
    "JPEG2000.dcm": {
        "actual_frame_duration": 1210434,
        "scan_velocity": 1.671598,
        "scan_length": 1899,
        "whole_body_technique": "1PS",
        "number_of_energy_windows": 1,
    },
    "eCT_Supplemental.dcm": {
        "slice_thickness": 10,
        "pixel_spacing": (0.388672, 0.388672),
        "contrast_bolus_volume": 150,
        "contrast_bolus_ingredient_concentration": 300,
        "contrast_bolus_agent_sequence": Coded(SCT, "109218004", "Iohexol"),
    },
}


def from_file(name: str) -> dict[str, Any]:
    return values(dcmread(real(name), stop_before_pixels=True))


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_give_what_their_elements_say(name: str) -> None:
    found = from_file(name)

    assert {key: found.get(key) for key in REAL_FILES[name]} == REAL_FILES[name]


@pytest.mark.parametrize("name", REAL_FILES)
def test_a_scanned_dataset_gives_the_same_as_pydicoms(name: str) -> None:
    received = read(real(name).read_bytes())

    found = conditions(received.values)

    assert found == conditions(dcmread(real(name), stop_before_pixels=True)) == conditions(received.ds)


def test_decoded_and_undecoded_elements_give_the_same() -> None:
    ds = dcmread(real("MR-SIEMENS-DICOM-WithOverlays.dcm"), stop_before_pixels=True)
    undecoded_first = conditions(ds)

    ds.decode()

    assert conditions(ds) == undecoded_first


@pytest.mark.parametrize("name", REAL_FILES)
def test_what_is_stored_comes_back(name: str) -> None:
    found = merge([conditions(dcmread(real(name), stop_before_pixels=True)), conditions(enhanced_mr([0.0, 1.0]))])

    assert conditions_from_document(conditions_to_document(found)) == found


def test_conditions_do_not_touch_the_dataset() -> None:
    ds = dcmread(real("CT_small.dcm"), stop_before_pixels=True)

    conditions(ds)

    assert isinstance(ds.get_item(0x00180060), RawDataElement)


def test_a_plain_ct_takes_less_than_a_third_of_a_millisecond() -> None:
    ds = dcmread(real("CT_small.dcm"), stop_before_pixels=True)
    conditions(ds)

    def once() -> float:
        start = time.perf_counter()
        conditions(ds)
        return time.perf_counter() - start

    assert min(once() for _ in range(200)) < 0.3e-3
