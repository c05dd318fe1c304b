"""Every condition of a search is narrowed by an index: what the database says it did, whichever key is asked."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from imaging.archive import Archive
from imaging.blobs.gridfs import GridFsBlobs
from imaging.dicomweb import Level, parse_query
from tests.support.many_studies import fill

STUDIES = 3000
PAGE = 10


@pytest.fixture(scope="module")
def database(mongo: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    made = mongo[f"test_{uuid4().hex}"]
    yield made
    mongo.drop_database(made)


@pytest.fixture(scope="module")
def archive(database: Database[dict[str, Any]]) -> Iterator[Archive]:
    made = Archive(database, GridFsBlobs(database), clock=lambda: datetime.now(UTC))
    made.ensure_indexes()
    fill(database, STUDIES)
    yield made
    made.close()


STEP = "RequestAttributesSequence.ScheduledProcedureStepID"
EMPTY = ("emptyvaluematching", "true")
ZONE = ("TimezoneOffsetFromUTC", "+0100")


@pytest.mark.parametrize(
    ("level", "query", "least"),
    [
        (Level.STUDIES, [], PAGE),
        (Level.STUDIES, [("PatientID", "PAT-7")], 1),
        (Level.STUDIES, [("PatientID", "PAT-77*")], PAGE),
        (Level.STUDIES, [("PatientName", "family7^*")], 1),
        (Level.STUDIES, [("PatientName", "given70"), ("fuzzymatching", "true")], 1),
        (Level.STUDIES, [("AccessionNumber", "ACC-17")], 1),
        (Level.STUDIES, [("AccessionNumber", '""'), EMPTY], 0),
        (Level.STUDIES, [("StudyInstanceUID", "1.9.5,1.9.6")], 2),
        (Level.STUDIES, [("ModalitiesInStudy", "MR")], PAGE),
        (Level.STUDIES, [("ModalitiesInStudy", "XA")], 0),
        (Level.STUDIES, [("StudyDate", "20200105-20200106")], 1),
        (Level.STUDIES, [("StudyDate", "20200105-20200106"), ("StudyTime", "10-12")], 1),
        (Level.STUDIES, [("StudyDate", "20200105"), ZONE], 1),
        (Level.STUDIES, [("StudyDate", "20200101-20201231"), ("ModalitiesInStudy", "MR"), ("PatientID", "PAT-8")], 0),
        (Level.STUDIES, [("ReferringPhysicianName", "nobody")], 0),
        (Level.STUDIES, [("ProcedureCodeSequence.CodeValue", "C7")], 1),
        (Level.STUDIES, [("StudyDescription", "nothing")], 0),
        (Level.SERIES, [(STEP, "STEP-7")], 1),
        (Level.SERIES, [("Modality", "XA")], 0),
        (Level.SERIES, [("PerformedProcedureStepStartDate", "19990101")], 0),
        (Level.SERIES, [("PatientID", "PAT-7")], 1),
        (Level.SERIES, [("StudyInstanceUID", "1.9.7"), ("Modality", "MR")], 0),
        (Level.INSTANCES, [("SOPInstanceUID", "1.9.7.1.1")], 1),
        (Level.INSTANCES, [("SOPClassUID", "9.9")], 0),
        (Level.INSTANCES, [("ContentDate", "20200105")], 1),
        (Level.INSTANCES, [("Rows", "9999")], 0),
        (Level.INSTANCES, [("PatientID", "PAT-7")], 1),
        (Level.INSTANCES, [("StudyInstanceUID", "1.9.7"), ("Rows", "512")], 1),
    ],
)
def test_no_search_reads_what_it_does_not_give(
    archive: Archive, database: Database[dict[str, Any]], level: Level, query: list[tuple[str, str]], least: int
) -> None:
    asked = parse_query(level, [*query, ("limit", str(PAGE))])
    archive.query(asked)
    database.command("profile", 2)

    found = archive.query(asked)

    database.command("profile", 0)
    steps = list(database["system.profile"].find({"op": "query"}))
    database["system.profile"].drop()
    assert len(found) >= least
    assert steps
    assert not [step["planSummary"] for step in steps if "COLLSCAN" in step["planSummary"]]
    assert sum(step["docsExamined"] for step in steps) <= 40 + 5 * len(found)
