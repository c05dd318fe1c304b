"""QIDO-RS parameters. Expected matches follow from PS3.18 8.3.4 and PS3.4 C.2.2.2."""

import pytest

from imaging.dicomweb import ALL, Level, Match, MatchKind, parse_query
from imaging.errors import AppError, Category


def parsed(*parameters, **options):
    return parse_query(Level.STUDIES, parameters, **options)


def only_match(name, value):
    (match,) = parsed((name, value)).matches
    return match


@pytest.mark.parametrize("name", ["PatientID", "00100020"])
def test_an_attribute_is_named_by_keyword_or_tag(name):
    assert only_match(name, "11235813") == Match("00100020", "LO", MatchKind.ONE_OF, ("11235813",))


@pytest.mark.parametrize(
    "name",
    [
        "RequestAttributesSequence.ScheduledProcedureStepID",
        "00400275.00400009",
        "RequestAttributesSequence.00400009",
        "00400275.ScheduledProcedureStepID",
    ],
)
def test_an_attribute_inside_a_sequence_is_named_by_a_dotted_path(name):
    assert only_match(name, "7") == Match("00400275.00400009", "SH", MatchKind.ONE_OF, ("7",))


def test_hex_digits_are_read_in_any_case():
    assert only_match("0020000d", "1.2").tag == "0020000D"


@pytest.mark.parametrize(
    ("name", "value", "kind", "values"),
    [
        ("StudyInstanceUID", "1.2.3", MatchKind.ONE_OF, ("1.2.3",)),
        ("StudyInstanceUID", "1.2.3,4.5, 6.7", MatchKind.ONE_OF, ("1.2.3", "4.5", "6.7")),
        ("StudyInstanceUID", r"1.2.3\4.5", MatchKind.ONE_OF, ("1.2.3", "4.5")),
        ("ModalitiesInStudy", "CT,MR", MatchKind.ONE_OF, ("CT", "MR")),
        ("ModalitiesInStudy", r"CT\MR", MatchKind.ONE_OF, ("CT", "MR")),
        ("Modality", "C*", MatchKind.WILDCARD, ("C*",)),
        ("PatientName", "Doe^J?n*", MatchKind.WILDCARD, ("Doe^J?n*",)),
        ("PatientName", "Doe***", MatchKind.WILDCARD, ("Doe*",)),
        ("PatientName", "Doe, Jane", MatchKind.ONE_OF, ("Doe, Jane",)),
        ("PatientName", "Müller^Ägidius=山田", MatchKind.ONE_OF, ("Müller^Ägidius=山田",)),
        ("SeriesNumber", "007", MatchKind.ONE_OF, ("7",)),
        ("Rows", "512", MatchKind.ONE_OF, ("512",)),
        ("StudyDate", "20260131", MatchKind.ONE_OF, ("20260131",)),
        ("StudyDate", "20260101-20260131", MatchKind.RANGE, ("20260101", "20260131")),
        ("StudyDate", "20260101-", MatchKind.RANGE, ("20260101", "")),
        ("StudyDate", "-20260131", MatchKind.RANGE, ("", "20260131")),
        ("StudyTime", "1030", MatchKind.RANGE, ("1030", "1030")),
        ("StudyTime", "103000.000-12", MatchKind.RANGE, ("1030", "12")),
        ("StudyTime", "100000-", MatchKind.RANGE, ("10", "")),
        ("StudyTime", "000000.50-", MatchKind.RANGE, ("000000.5", "")),
        ("AcquisitionDateTime", "20260101000000-2026", MatchKind.RANGE, ("20260101", "2026")),
        ("00091001", "x", MatchKind.ONE_OF, ("x",)),
    ],
)
def test_values_are_read_by_their_representation(name, value, kind, values):
    match = only_match(name, value)

    assert (match.kind, match.values) == (kind, values)


DAYS, TIMES = ("StudyDate", "20060705-20060707"), ("StudyTime", "1000-1800")


def test_a_date_and_its_time_in_ranges_of_one_form_are_one_range():
    # The example of PS3.4 C.2.2.2.5.4.
    (match,) = parsed(DAYS, TIMES).matches

    assert match == Match("00080020", "DA", MatchKind.PERIOD, ("20060705", "10", "20060707", "1800"))


def test_a_range_of_dates_may_begin_later_in_the_day_than_it_ends():
    (match,) = parsed(DAYS, ("StudyTime", "22-06")).matches

    assert match.values == ("20060705", "22", "20060707", "06")


@pytest.mark.parametrize("time", ["10-", "-18", "12"])
def test_a_date_and_a_time_in_other_forms_stay_two_conditions(time):
    assert [match.kind for match in parsed(DAYS, ("StudyTime", time)).matches] == [MatchKind.RANGE] * 2


@pytest.mark.parametrize("zone", ["+0200", " 0200"])
def test_a_day_in_a_zone_is_a_range_of_moments(zone):
    (match,) = parsed(("StudyDate", "20260101"), ("TimezoneOffsetFromUTC", zone)).matches

    assert match.values == ("20260101", "", "20260101", "")
    assert match.moments == ("20251231220000.000000", "20260101220000.000000")


def test_a_day_and_a_time_in_a_zone_are_a_range_of_moments():
    parameters = ("StudyTime", "0030"), ("00080201", "-0500"), ("StudyDate", "20260101")

    (match,) = parsed(*parameters).matches

    assert match.moments == ("20260101053000.000000", "20260101053100.000000")


def test_a_time_in_a_zone_needs_its_date():
    with pytest.raises(AppError) as caught:
        parsed(("StudyTime", "10"), ("TimezoneOffsetFromUTC", "+0100"))

    assert caught.value.category is Category.INVALID


@pytest.mark.parametrize(
    ("value", "plain", "bounds"),
    [
        ("20260101120000+0100", ("2026010112", "20260101120000"), ("20260101110000.000000", "20260101110001.000000")),
        ("20260101 0100-", ("20260101", ""), ("20251231230000.000000", "")),
        ("2026-2027", ("2026", "2027"), ()),
        ("-20260101-0500", ("", "20260101"), ("", "20260102050000.000000")),
    ],
)
def test_a_date_and_time_tells_its_zone(value, plain, bounds):
    match = only_match("AcquisitionDateTime", value)

    assert (match.values, match.moments) == (plain, bounds)


def test_the_character_set_of_an_address_is_utf_8_and_not_matched():
    assert parsed(("SpecificCharacterSet", "ISO_IR 192")).matches == ()


@pytest.mark.parametrize("value", ["", "*", "**", " "])
def test_universal_matching_is_no_condition_but_returns_the_attribute(value):
    query = parsed(("StudyDescription", value))

    assert query.matches == ()
    assert query.include == {"00081030"}


def test_a_repeated_attribute_means_any_of_its_values():
    (match,) = parsed(("PatientID", "a"), ("PatientID", "b*")).matches

    assert match == Match("00100020", "LO", MatchKind.WILDCARD, ("a", "b*"))


def test_matching_empty_values_must_be_asked_for():
    empty = ("AccessionNumber", '""')

    assert parsed(empty).matches[0].values == ('""',)
    assert parsed(empty, ("emptyvaluematching", "true")).matches[0].kind is MatchKind.EMPTY


def test_fields_to_include_come_repeated_in_lists_and_as_paths():
    query = parsed(
        ("includefield", "StudyDescription,00081070"),
        ("includeField", "RequestAttributesSequence.ScheduledProcedureStepID"),
    )

    assert query.include == {"00081030", "00081070", "00400275.00400009"}


def test_all_fields_are_included_whatever_else_is_named():
    assert parsed(("includefield", "PatientID"), ("includefield", "all")).include == ALL


def test_paging_is_read_and_bounded():
    query = parsed(("limit", "5000"), ("offset", "40"), max_limit=1000)

    assert (query.limit, query.offset) == (1000, 40)
    assert parsed().limit is None
    assert parsed(("limit", "0")).limit == 0


def test_fuzzy_matching_is_read():
    assert parsed(("fuzzymatching", "true")).fuzzy
    assert not parsed(("fuzzymatching", "false")).fuzzy


def test_accept_and_charset_are_not_attributes():
    assert parsed(("accept", "application/dicom+json"), ("charset", "utf-8")).matches == ()


def test_the_path_narrows_what_the_parameters_ask():
    query = parsed(("StudyInstanceUID", "1.2")).within(study_uid="3.4", series_uid="5.6")

    assert [(match.tag, match.values) for match in query.matches] == [
        ("0020000D", ("3.4",)),
        ("0020000E", ("5.6",)),
        ("0020000D", ("1.2",)),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientId", "x"),
        ("nonsense", "x"),
        ("00100", "x"),
        ("00100099", "x"),
        ("PatientID.PatientName", "x"),
        ("RequestAttributesSequence", "x"),
        (".".join(["RequestAttributesSequence"] * 9), "x"),
        ("$where", "x"),
        ("StudyInstanceUID", "abc"),
        ("StudyInstanceUID", "1.2,,3"),
        ("StudyInstanceUID", "1." * 40),
        ("StudyDate", "2026"),
        ("StudyDate", "20261301"),
        ("StudyDate", "2026-01-01"),
        ("StudyDate", "-"),
        ("StudyTime", "25"),
        ("StudyTime", "10:30"),
        ("StudyTime", "18-10"),
        ("StudyDate", "20260201-20260101"),
        ("AcquisitionDateTime", "20261301"),
        ("AcquisitionDateTime", "-"),
        ("TimezoneOffsetFromUTC", "CET"),
        ("SpecificCharacterSet", "ISO_IR 100"),
        ("multiplevaluematching", "yes"),
        ("SeriesNumber", "x"),
        ("SeriesNumber", "1_0"),
        ("PatientName", "a*" * 17),
        ("PatientName", "x" * 70_000),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "99999999999"),
        ("offset", "1.5"),
        ("fuzzymatching", "yes"),
        ("includefield", "nonsense"),
    ],
)
def test_what_cannot_be_read_is_invalid_and_named(name, value):
    with pytest.raises(AppError) as caught:
        parsed((name, value))

    assert caught.value.category is Category.INVALID
    assert caught.value.where in (name, value)
    assert value not in caught.value.message


@pytest.mark.parametrize("name", ["limit", "StudyDate"])
def test_what_must_be_single_is_refused_when_repeated(name):
    with pytest.raises(AppError) as caught:
        parsed((name, "20260101"), (name, "20260102"))

    assert caught.value.where == name


def test_the_number_of_attributes_is_bounded():
    with pytest.raises(AppError) as caught:
        parsed(*((f"0009{number:04X}", "x") for number in range(65)))

    assert caught.value.category is Category.INVALID
