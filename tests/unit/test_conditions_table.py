"""The table of imaging conditions against the registries of DICOM, LOINC and UCUM, and against its reference page."""

import re
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.sr._concepts_dict import concepts

from imaging.conditions import CONDITIONS
from imaging.conditions_reference import reference_page
from imaging.conditions_table import CONTAINERS, DCM, ELEMENTS, LOINC, Kind, Row, name_from_keyword

REPOSITORY = Path(__file__).parents[2]
REGISTRIES = {DCM: "DCM", LOINC: "LN"}

# UCUM (section 29 to 46): units and the prefixes that are used here
UCUM_ATOMS = set("m s g A V W Hz T N Pa Gy Bq eV L mol deg Cel min % 1".split())  # noqa: SIM905
UCUM_PREFIXES = {"", "n", "u", "m", "c", "d", "k", "M"}


def meanings(scheme: str, code: str) -> set[str]:
    return {codes[code][0] for codes in concepts[scheme].values() if code in codes}


def is_ucum(unit: str) -> bool:
    terms = re.split(r"[./]", re.sub(r"\{\w+\}", "1", unit.removeprefix("/")))
    atoms = {prefix + atom for prefix in UCUM_PREFIXES for atom in UCUM_ATOMS}
    return all(re.sub(r"(?<=[a-zA-Z])[23]$", "", term) in atoms for term in terms)


@pytest.mark.parametrize("row", CONDITIONS, ids=lambda row: row.name)
def test_rows_agree_with_the_registries(row: Row) -> None:
    assert row.tag == tag_for_keyword(row.keyword)
    assert row.vr == dictionary_VR(row.tag)
    assert row.source.endswith(dictionary_description(row.tag))
    assert all(tag_for_keyword(keyword) in CONTAINERS for keyword in row.within)
    for code in row.codes:
        if code.system == ELEMENTS:
            assert code.display == dictionary_description(code.code)
        else:
            assert code.display in meanings(REGISTRIES[code.system], code.code)


@pytest.mark.parametrize("row", CONDITIONS, ids=lambda row: row.name)
def test_numbers_and_only_numbers_have_a_ucum_unit(row: Row) -> None:
    assert (row.kind is Kind.NUMBER) == bool(row.unit)
    assert not row.unit or is_ucum(row.unit)


def test_names_and_tags_are_unique() -> None:
    assert len({row.name for row in CONDITIONS}) == len({row.tag for row in CONDITIONS}) == len(CONDITIONS)


def test_twins_have_the_same_dimension() -> None:
    units = {row.keyword: row.unit for row in CONDITIONS}
    twins = {(row.unit, units[code.code]) for row in CONDITIONS for code in row.codes if code.code in units}

    assert {pair for pair in twins if pair[0] != pair[1]} == {("uA", "mA"), ("uA.s", "mA.s"), ("us", "ms")}


@pytest.mark.parametrize(
    ("keyword", "name"),
    [
        ("KVP", "kvp"),
        ("XRayTubeCurrentInmA", "x_ray_tube_current_in_ma"),
        ("ExposureInuAs", "exposure_in_uas"),
        ("ExposureTimeInms", "exposure_time_in_ms"),
        ("ExposureTimeInuS", "exposure_time_in_us"),
        ("EntranceDoseInmGy", "entrance_dose_in_mgy"),
        ("CTDIvol", "ctdivol"),
        ("dBdt", "dbdt"),
        ("DiffusionBValue", "diffusion_b_value"),
        ("RFEchoTrainLength", "rf_echo_train_length"),
        ("RelativeXRayExposure", "relative_x_ray_exposure"),
        ("NumberOfRRIntervals", "number_of_rr_intervals"),
    ],
)
def test_names_are_keywords_in_snake_case(keyword: str, name: str) -> None:
    assert name_from_keyword(keyword) == name


def test_the_reference_page_is_that_of_the_table() -> None:
    page = REPOSITORY / "docs" / "reference" / "imaging-conditions.md"

    assert page.read_text(encoding="utf-8") == reference_page()
