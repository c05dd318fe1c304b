"""Imaging conditions read from small built datasets. Units are those of PS3.3."""

from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian

from imaging.conditions import Coded, Range, conditions
from imaging.conditions_table import SCT
from imaging.dataset import read
from tests.support.conditions import built, code, enhanced_mr, undecoded, units, values


def test_a_condition_tells_unit_code_and_source() -> None:
    (kvp,) = conditions(built(KVP="80"))

    assert (kvp.name, kvp.value, kvp.unit, kvp.source) == ("kvp", 80, "kV", "(0018,0060) KVP")
    assert kvp.code == Coded("http://dicom.nema.org/resources/ontology/DCM", "113733", "KVP")
    assert kvp.codes[1].code == "KVP"


def test_dose_units_of_dicom_are_kept_or_converted_as_stated() -> None:
    ds = built(
        ImageAndFluoroscopyAreaDoseProduct="12.3",  # dGy.cm2
        AcquiredImageAreaDoseProduct=0.7,  # dGy.cm2, single precision
        EntranceDose=2,  # dGy
        EntranceDoseInmGy="3.1",
        OrganDose="0.0123",  # dGy
        ExposureInuAs="4500",
        XRayTubeCurrentInuA="250000",
        ExposureTimeInuS="18000",
    )

    assert {condition.name: (condition.value, condition.unit) for condition in conditions(ds)} == {
        "image_and_fluoroscopy_area_dose_product": (1.23, "Gy.cm2"),
        "acquired_image_area_dose_product": (0.07, "Gy.cm2"),
        "entrance_dose": (200, "mGy"),
        "entrance_dose_in_mgy": (3.1, "mGy"),
        "organ_dose": (1.23, "mGy"),
        "exposure_in_uas": (4500, "uA.s"),
        "x_ray_tube_current_in_ua": (250000, "uA"),
        "exposure_time_in_us": (18000, "us"),
    }


def pet(**elements: Any) -> Dataset:
    tracer = built(
        Radiopharmaceutical="FDG",
        RadionuclideTotalDose="203000000",
        RadionuclideHalfLife="6586.2",
        RadionuclidePositronFraction="0.967",
        RadiopharmaceuticalSpecificActivity="1000",
        RadiopharmaceuticalStartTime="091530.25",
        RadiopharmaceuticalStartDateTime="20240131091530",
        RadionuclideCodeSequence=[code("C-111A1", "SRT", "^18^Fluorine")],
        RadiopharmaceuticalCodeSequence=[code("35321007", "SCT", "Fluorodeoxyglucose F^18^")],
    )
    return built(
        Modality="PT",
        RadiopharmaceuticalInformationSequence=[tracer],
        Units="BQML",
        DecayCorrection="START",
        AttenuationCorrectionMethod="CT-based",
        ActualFrameDuration="120000",
        EnergyWindowRangeSequence=[built(EnergyWindowLowerLimit="435", EnergyWindowUpperLimit="650")],
        **elements,
    )


def test_pet_tracer_comes_out_of_its_sequence() -> None:
    found, unit = values(pet()), units(pet())

    assert found["radiopharmaceutical"] == "FDG"
    assert (found["radionuclide_total_dose"], unit["radionuclide_total_dose"]) == (203_000_000, "Bq")
    assert (found["radionuclide_half_life"], unit["radionuclide_half_life"]) == (6586.2, "s")
    assert unit["radiopharmaceutical_specific_activity"] == "Bq/umol"
    assert found["radiopharmaceutical_start_time"] == "09:15:30.25"
    assert (found["units"], found["decay_correction"]) == ("BQML", "START")
    assert (found["energy_window_lower_limit"], unit["energy_window_lower_limit"]) == (435, "keV")


def test_snomed_rt_codes_come_as_the_snomed_ct_codes_that_replace_them() -> None:
    # PS3.16 CID 4020: (77004003, SCT, "^18^Fluorine"), formerly (C-111A1, SRT)
    assert values(pet())["radionuclide_code_sequence"] == Coded(SCT, "77004003", "^18^Fluorine")


def test_codes_of_private_schemes_keep_their_text_without_system() -> None:
    ds = built(ViewCodeSequence=[code("X1", "99ACME", "our view")])

    assert values(ds)["view_code_sequence"] == Coded("", "X1", "our view")


def test_date_times_take_the_zone_of_the_dataset() -> None:
    zoned = pet(TimezoneOffsetFromUTC="+0100")

    assert values(pet())["radiopharmaceutical_start_date_time"] == "2024-01-31T09:15:30"
    assert values(zoned)["radiopharmaceutical_start_date_time"] == "2024-01-31T09:15:30+01:00"


@pytest.mark.parametrize(
    ("modality", "dose", "becquerel"),
    [
        ("PT", "203000000", 203_000_000),
        ("NM", "740", 740_000_000),  # PS3.3 C.8.4.10.1.7: MBq
        ("NM", "740000000", 740_000_000),  # 740 TBq is no dose
    ],
)
def test_the_dose_of_a_tracer_is_always_in_becquerel(modality: str, dose: str, becquerel: int) -> None:
    ds = built(Modality=modality, RadiopharmaceuticalInformationSequence=[built(RadionuclideTotalDose=dose)])

    assert values(ds)["radionuclide_total_dose"] == becquerel


def test_energy_windows_are_listed_not_spanned() -> None:
    windows = [
        built(EnergyWindowRangeSequence=[built(EnergyWindowLowerLimit=low, EnergyWindowUpperLimit=high)])
        for low, high in (("126.45", "154.55"), ("110", "126"))
    ]

    found = values(built(EnergyWindowInformationSequence=windows))

    assert found["energy_window_lower_limit"] == (126.45, 110)
    assert found["energy_window_upper_limit"] == (154.55, 126)


def test_mammography() -> None:
    ds = built(
        KVP="28",
        AnodeTargetMaterial="MOLYBDENUM",
        FilterMaterial="RHODIUM",
        CompressionForce="98.5",
        BodyPartThickness="53",
        RelativeXRayExposure="512",
        Grid=["FOCUSED", "RECIPROCATING"],
        ImagerPixelSpacing=["0.07", "0.07"],
        ViewModifierCodeSequence=[],
        ViewCodeSequence=[code("399162004", "SCT", "cranio-caudal")],
    )

    found, unit = values(ds), units(ds)

    assert (found["compression_force"], unit["compression_force"]) == (98.5, "N")
    assert (found["body_part_thickness"], unit["body_part_thickness"]) == (53, "mm")
    assert found["anode_target_material"] == "MOLYBDENUM"
    assert found["grid"] == ("FOCUSED", "RECIPROCATING")
    assert found["view_code_sequence"] == Coded(SCT, "399162004", "cranio-caudal")
    assert "view_modifier_code_sequence" not in found


def test_angiography() -> None:
    found = values(
        built(
            PositionerPrimaryAngle="-30.5",
            PositionerSecondaryAngle="10",
            AveragePulseWidth="6.5",
            RadiationSetting="GR",
            CineRate="15",
            TotalTimeOfFluoroscopy=421,
        )
    )

    assert found == {
        "positioner_primary_angle": -30.5,
        "positioner_secondary_angle": 10,
        "average_pulse_width": 6.5,
        "radiation_setting": "GR",
        "cine_rate": 15,
        "total_time_of_fluoroscopy": 421,
    }


def test_frames_that_agree_give_one_value_and_others_their_range() -> None:
    found = values(enhanced_mr([0.0, 1000.0, 500.0]))

    assert found == {
        "slice_thickness": 3,
        "pixel_spacing": (1.5, 2),
        "magnetic_field_strength": 3,
        "repetition_time": 4200,
        "effective_echo_time": 72.5,
        "flip_angle": 90,
        "diffusion_b_value": Range(0, 1000),
    }


def test_written_and_read_again_enhanced_objects_give_the_same_both_ways() -> None:
    ds = enhanced_mr([0.0, 1000.0])
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.3"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.4", "1.2.5"
    file = BytesIO()
    ds.file_meta = built(TransferSyntaxUID=ExplicitVRLittleEndian)  # type: ignore[assignment]
    dcmwrite(file, ds, enforce_file_format=True)

    assert conditions(read(file.getvalue()).values) == conditions(ds)
    assert conditions(dcmread(BytesIO(file.getvalue()))) == conditions(ds)


def test_all_of_a_thousand_frames_are_looked_at() -> None:
    ds = enhanced_mr([float(number) for number in range(1000)])

    assert values(ds)["diffusion_b_value"] == Range(0, 999)


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        (0x00180060, "DS", b"high"),
        (0x00180060, "DS", b"nan "),
        (0x00180060, "DS", b"1e999 "),
        (0x00180060, "DS", b"1_000"),
        (0x00180060, "DS", b"120,5 "),
        (0x00180060, "DS", b"\xff\xfe"),
        (0x00180060, "DS", b"0" * 100_000),
        (0x00180060, "DS", b"    "),
        (0x00181150, "IS", b"9" * 30),
        (0x00181150, "IS", b"9" * 6000),
        (0x00189345, "FD", b"\0\0\0"),
        (0x00189345, "FD", b"\0\0\0\0\0\0\xf8\x7f"),  # not a number
        (0x00181316, "SQ", b"\0"),
        (0x00540016, "SQ", b"\1\2\3\4\5\6\7\x08"),
        (0x00540016, "UN", b"\1\2\3\4\5\6\7\x08"),
        (0x00181072, "TM", b"256199"),
        (0x00181072, "TM", b"09"),
        (0x00181078, "DT", b"20241331"),
        (0x0018700C, "DA", b"yesterday "),
        (0x00180015, "ZZ", b"what"),
    ],
)
def test_malformed_values_are_left_out(tag: int, vr: str, value: bytes) -> None:
    ds = undecoded(tag, vr, value)
    ds.SliceThickness = "5"

    assert values(ds) == {"slice_thickness": 5}


@given(
    tag=st.sampled_from([0x00180060, 0x00540016, 0x00181150, 0x00189345, 0x00181072, 0x52009230, 0x00540220]),
    vr=st.sampled_from(["DS", "IS", "FD", "SQ", "UN", "TM", "LO", "CS", "US", "OB", "DT"]),
    value=st.binary(max_size=64),
)
def test_no_bytes_whatsoever_make_it_raise(tag: int, vr: str, value: bytes) -> None:
    found = conditions(undecoded(tag, vr, value))

    assert len(found) <= 1


def test_deep_nesting_is_not_followed() -> None:
    ds = built(KVP="120")
    for _ in range(200):
        ds = built(SharedFunctionalGroupsSequence=[ds])

    assert conditions(ds) == ()


def test_explicit_vr_files_of_careless_senders_are_read_by_what_was_written() -> None:
    assert values(undecoded(0x00180060, "UN", b"120 ")) == {"kvp": 120}
    assert values(undecoded(0x00180060, "LO", b"120 ")) == {"kvp": 120}
    assert values(undecoded(0x00189345, "DS", b"12.5")) == {"ctdivol": 12.5}


def test_text_is_decoded_trimmed_and_bounded() -> None:
    ds = built(SpecificCharacterSet="ISO_IR 192", PaddleDescription="x" * 300, ConvolutionKernel=["A"] * 40)
    ds[0x00181160] = RawDataElement(BaseTag(0x00181160), "SH", 10, "Ød\tø  \0".encode(), 0, False, True)

    found = values(ds)

    assert found["filter_type"] == "Ød ø"
    assert len(found["paddle_description"]) == 256
    assert len(found["convolution_kernel"]) == 16


def test_a_long_list_of_numbers_is_its_range() -> None:
    assert values(built(FocalSpots=[str(number) for number in range(17)])) == {"focal_spots": Range(0, 16)}


def test_sequences_may_be_empty() -> None:
    assert conditions(built(RadiopharmaceuticalInformationSequence=Sequence())) == ()
