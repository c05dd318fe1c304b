"""How QIDO-RS matches, over the whole server. Expected answers are those of PS3.4 C.2.2.2 and PS3.18 8.3.4."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pymongo import MongoClient
from pymongo.database import Database

from fhir_server.app import reindex
from tests.support.dicomweb import Site, ct, site, site_of_a_module


def item(**values: str) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def request_of(step: str, procedure: str) -> Dataset:
    return item(ScheduledProcedureStepID=step, RequestedProcedureID=procedure, RequestedProcedureDescription="Head")


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    both = Sequence([request_of("S1", "P1"), request_of("S2", "P2")])
    code = item(CodeValue="77477000", CodingSchemeDesignator="SCT", CodeMeaning="CT")
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as made:
        answer = made.store(
            ct(
                study="1.1",
                PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
                SpecificCharacterSet="ISO_IR 192",
                StudyDate="20260101",
                StudyTime="233000",
                TimezoneOffsetFromUTC="-0100",
                RequestAttributesSequence=both,
                AccessionNumber="",
                AcquisitionDateTime="20260101233000",
                OtherPatientIDsSequence=Sequence([item(PatientID="OLD-1", IssuerOfPatientID="Elsewhere")]),
                ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            ),
            ct(
                study="1.2",
                PatientName="Müller-Lüdenscheidt^Anna Maria",
                SpecificCharacterSet="ISO_IR 192",
                StudyDate="20260102",
                StudyTime="003000",
                TimezoneOffsetFromUTC="+0000",
                ProcedureCodeSequence=Sequence([code]),
                SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
            ),
            ct(study="1.3", PatientName="Meyer^Anna", StudyDate="20260103", StudyTime="120000", Rows=16, Columns=64),
        )
        assert answer.status_code == 200, answer.get_data()
        yield made


def found(here: Site, path: str, *query: tuple[str, str]) -> list[str]:
    """The last component of each study that was found, in the order of their UIDs."""
    answer = here.get(f"{path}?{urlencode(query, quote_via=quote)}")
    if answer.status_code == 204:
        return []
    assert answer.status_code == 200, answer.get_data()
    return sorted(each["0020000D"]["Value"][0].rpartition(".")[2] for each in answer.json)


STEP, PROCEDURE = (f"RequestAttributesSequence.{name}" for name in ("ScheduledProcedureStepID", "RequestedProcedureID"))


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        # sequences: all that is asked inside has to hold in one item
        ("/series", [(STEP, "S2")], ["1"]),
        ("/series", [("00400275.00400009", "S2")], ["1"]),
        ("/series", [(STEP, "S1"), (PROCEDURE, "P1")], ["1"]),
        ("/series", [(STEP, "S1"), (PROCEDURE, "P2")], []),
        ("/series", [(STEP, "S?")], ["1"]),
        ("/studies", [("ProcedureCodeSequence.CodeValue", "77477000")], ["2"]),
        ("/studies", [("OtherPatientIDsSequence.PatientID", "OLD-1")], ["1"]),
        ("/instances", [(STEP, "S1")], ["1"]),
        # person names: component groups, neither case nor accents
        ("/studies", [("PatientName", "yamada^tarou")], ["1"]),
        ("/studies", [("PatientName", "山田^太郎")], ["1"]),
        ("/studies", [("PatientName", "=山田*")], ["1"]),
        ("/studies", [("PatientName", "Yamada^Tarou=山田^太郎")], ["1"]),
        ("/studies", [("PatientName", "Yamada^Tarou=鈴木*")], []),
        ("/studies", [("PatientName", "MULLER*")], ["2"]),
        ("/studies", [("PatientName", "*anna*")], ["2", "3"]),
        ("/studies", [("PatientName", "M?yer^Anna")], ["3"]),
        ("/studies", [("PatientName", "Meyer")], []),
        # fuzzy: each word begins some word of the name
        ("/studies", [("fuzzymatching", "true"), ("PatientName", "anna lud")], ["2"]),
        ("/studies", [("fuzzymatching", "true"), ("PatientName", "Ann")], ["2", "3"]),
        ("/studies", [("fuzzymatching", "true"), ("PatientName", "nna")], []),
        # empty values
        ("/studies", [("emptyvaluematching", "true"), ("AccessionNumber", '""')], ["1"]),
        ("/studies", [("emptyvaluematching", "true"), ("AdmissionID", '""')], ["1", "2", "3"]),
        ("/series", [("emptyvaluematching", "true"), ("RequestAttributesSequence", '""')], ["2", "3"]),
        ("/series", [("emptyvaluematching", "true"), (STEP, '""')], ["2", "3"]),
        ("/series", [("emptyvaluematching", "true"), (STEP, "S1")], ["1"]),
        # a date and its time as one range, PS3.4 C.2.2.2.5.4
        ("/studies", [("StudyDate", "20260101-20260102"), ("StudyTime", "23-01")], ["1", "2"]),
        ("/studies", [("StudyDate", "20260101-20260102"), ("StudyTime", "2345-01")], ["2"]),
        ("/studies", [("StudyDate", "20260102-"), ("StudyTime", "01-")], ["3"]),
        ("/studies", [("StudyDate", "-20260102"), ("StudyTime", "-00")], ["1", "2"]),
        # zones: 1.1 was made at 00:30 UTC on the 2nd, 1.2 too; 1.3 does not tell
        ("/studies", [("StudyDate", "20260102"), ("TimezoneOffsetFromUTC", "+0000")], ["1", "2"]),
        ("/studies", [("StudyDate", "20260101"), ("TimezoneOffsetFromUTC", "-0100")], ["1", "2"]),
        ("/studies", [("StudyDate", "20260101"), ("TimezoneOffsetFromUTC", "+0000")], []),
        ("/studies", [("StudyDate", "20260102"), ("StudyTime", "0230"), ("00080201", "+0200")], ["1", "2"]),
        ("/studies", [("StudyDate", "20260103"), ("TimezoneOffsetFromUTC", "+0900")], ["3"]),
        # instances by their own attributes
        ("/instances", [("Rows", "16")], ["3"]),
        ("/instances", [("ImageType", "AXIAL")], ["1"]),
        ("/instances", [("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")], ["2"]),
        ("/instances", [("Rows", "16"), ("PatientName", "Meyer*")], ["3"]),
    ],
)
def test_what_matches_is_found_and_nothing_else(
    here: Site, path: str, query: list[tuple[str, str]], expected: list[str]
) -> None:
    assert found(here, path, *query) == expected


def test_of_a_sequence_only_what_is_asked_is_included(here: Site) -> None:
    query = "StudyInstanceUID=1.1&includefield=PatientComments,00209222.00209165,OtherPatientIDsSequence.PatientID"

    (study,) = here.get(f"/studies?{query}").json

    # The sequences of the tables come whole, as the standard lists them.
    (other,) = study["00101002"]["Value"]
    assert set(other) == {"00100020", "00100021"}


def test_of_a_further_sequence_only_what_is_asked_is_included(db: Database[dict[str, Any]], tmp_path: Path) -> None:
    inside = Sequence([item(ReferencedSOPClassUID="1.2.3.4", ReferencedSOPInstanceUID="5.6.7")])
    with site(db, tmp_path) as one:
        one.store(ct(ReferencedStudySequence=inside))

        (study,) = one.get("/studies?includefield=ReferencedStudySequence.ReferencedSOPInstanceUID").json
        (whole,) = one.get("/studies?includefield=ReferencedStudySequence").json

    assert study["00081110"] == {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["5.6.7"]}}]}
    assert set(whole["00081110"]["Value"][0]) == {"00081150", "00081155"}


FURTHER = {
    "search__studies_attributes": "MedicalAlerts, 00081080",
    "search__series_attributes": "SoftwareVersions",
    "search__instances_attributes": "AcquisitionDateTime,SliceThickness",
}


@pytest.mark.parametrize(
    ("path", "query", "hits"),
    [
        ("/studies", "MedicalAlerts=Latex", 1),
        ("/studies", "AdmittingDiagnosesDescription=Head*", 1),
        ("/series", "SoftwareVersions=7.1", 1),
        ("/instances", "SliceThickness=2.50", 1),
        ("/instances", "SliceThickness=3", 0),
        ("/instances", "AcquisitionDateTime=20260101-20260102", 1),
        ("/instances", "AcquisitionDateTime=20260101223000%2B0000", 1),
        ("/instances", "AcquisitionDateTime=20260101233000%2B0000", 0),
    ],
)
def test_attributes_of_the_operator_are_matched_and_returned_also_after_a_change(
    db: Database[dict[str, Any]], tmp_path: Path, path: str, query: str, hits: int
) -> None:
    told = {"MedicalAlerts": "Latex", "AdmittingDiagnosesDescription": "Headache", "SoftwareVersions": "7.1"}
    more = {"SliceThickness": "2.5", "AcquisitionDateTime": "20260101233000", "TimezoneOffsetFromUTC": "+0100"}
    with site(db, tmp_path) as before:
        before.store(ct(**told, **more))
        assert before.get(f"{path}?{query}").status_code == 400

    with site(db, tmp_path, **FURTHER) as after:
        reindex(after.server, lambda done, total: None)
        answer = after.get(f"{path}?{query}")

    assert answer.status_code == (200 if hits else 204), answer.get_data()
    if hits:
        assert {"studies": "00102000", "series": "00181020", "instances": "00180050"}[path[1:]] in answer.json[0]
