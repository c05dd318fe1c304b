"""DICOM text as FHIR values. Expected values: PS3.5 section 6.2 and the FHIR R4 datatypes page."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from fhir_server.dicom_values import fhir_date, fhir_datetime, human_names, local_system, universal_system


@pytest.mark.parametrize(
    ("da", "expected"),
    [
        ("20240229", "2024-02-29"),
        ("1999.12.31", "1999-12-31"),  # ACR-NEMA 2.0 form, PS3.5 table 6.2-1 note to DA
        (" 20240229 ", "2024-02-29"),
        ("20230229", None),
        ("202402", None),
        ("00000101", None),
        ("anonymous", None),
        ("", None),
    ],
)
def test_a_date_is_a_day_of_the_calendar_or_left_out(da, expected):
    assert fhir_date(da) == expected


@pytest.mark.parametrize(
    ("tm", "offset", "expected"),
    [
        ("101530", "+0100", "2024-03-01T10:15:30+01:00"),
        ("101530.25", "-0330", "2024-03-01T10:15:30.250000-03:30"),
        ("10:15:30", "+0000", "2024-03-01T10:15:30+00:00"),
        ("1015", "+0000", "2024-03-01T10:15:00+00:00"),
        ("235960", "+0000", "2024-03-01T23:59:59+00:00"),  # leap second
        ("10", "+0000", "2024-03-01"),  # to the hour: FHIR cannot say it
        ("101530", "", "2024-03-01"),  # no zone known: FHIR forbids the time
        ("101530", "+1500", "2024-03-01"),  # beyond PS3.3 C.12.1.1.8
        ("101530", "+01:00", "2024-03-01"),
        ("256199", "+0000", "2024-03-01"),
        ("noon", "+0000", "2024-03-01"),
        ("", "+0000", "2024-03-01"),
    ],
)
def test_a_time_needs_minutes_and_a_zone(tm, offset, expected):
    assert fhir_datetime("20240301", tm, offset, None) == expected


def test_the_configured_zone_follows_daylight_saving():
    berlin = ZoneInfo("Europe/Berlin")

    assert fhir_datetime("20240115", "1200", "", berlin) == "2024-01-15T12:00:00+01:00"
    assert fhir_datetime("20240715", "1200", "", berlin) == "2024-07-15T12:00:00+02:00"


def test_the_offset_of_the_images_wins_over_the_configured_zone():
    assert fhir_datetime("20240115", "1200", "-0500", UTC) == "2024-01-15T12:00:00-05:00"


def test_no_date_means_no_time():
    assert fhir_datetime("", "1200", "+0000", UTC) is None


def test_a_name_has_family_given_middle_prefix_suffix():
    # PS3.5 6.2.1.2, the standard's own example.
    assert human_names("Adams^John Robert Quincy^^Rev.^B.A. M.Div.") == [
        {
            "text": "Rev. John Robert Quincy Adams B.A. M.Div.",
            "family": "Adams",
            "given": ["John Robert Quincy"],
            "prefix": ["Rev."],
            "suffix": ["B.A. M.Div."],
        }
    ]


def test_component_groups_say_their_representation():
    # PS3.5 H.3.1, the standard's own example.
    names = human_names("Yamada^Tarou=山田^太郎=やまだ^たろう")

    assert [name["family"] for name in names] == ["Yamada", "山田", "やまだ"]
    assert [name["extension"][0]["valueCode"] for name in names] == ["ABC", "IDE", "SYL"]


def test_an_ideographic_name_alone_says_so():
    assert human_names("=山田^太郎")[0]["extension"][0]["valueCode"] == "IDE"


@pytest.mark.parametrize("pn", ["", "^", "==", " ^ ^ "])
def test_an_empty_name_is_no_name(pn):
    assert human_names(pn) == []


@pytest.mark.parametrize(
    ("issuer", "system"),
    [
        ("1.2.276.0.76", "urn:oid:1.2.276.0.76"),
        ("http://hospital.example/mrn", "http://hospital.example/mrn"),
        ("urn:oid:1.2.3", "urn:oid:1.2.3"),
        ("0f9d8c3a-2a39-4c1c-8d7f-0d1f0c3b5a11", "urn:uuid:0f9d8c3a-2a39-4c1c-8d7f-0d1f0c3b5a11"),
        ("HIS", None),
        ("", None),
        ("7", None),
    ],
)
def test_only_oids_uuids_and_uris_are_universal(issuer, system):
    assert universal_system(issuer) == system


def test_local_numbers_of_two_subscribers_never_share_a_system():
    systems = {
        local_system("patient", "Organization/a"),
        local_system("patient", "Organization/b"),
        local_system("patient", "Organization/a", "HIS"),
        local_system("accession", "Organization/a"),
    }

    assert len(systems) == 4
