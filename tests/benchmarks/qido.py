"""Whether QIDO-RS stays as quick as the store grows: the same searches in a small store and in a large one."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database
from rich.console import Console
from rich.table import Table

from imaging.archive import Archive
from imaging.blobs.gridfs import GridFsBlobs
from imaging.dicomweb import Level, parse_query
from tests.benchmarks.searches import ROUNDS, alternately
from tests.support.engine import running_engine
from tests.support.many_studies import fill

SMALL, LARGE = 1_000, 100_000  # studies
PAGE = 50

SEARCHES: dict[str, tuple[Level, list[tuple[str, str]]]] = {
    "studies: all, newest first": (Level.STUDIES, []),
    "studies: patient": (Level.STUDIES, [("PatientID", "PAT-7")]),
    "studies: a day": (Level.STUDIES, [("StudyDate", "20200105")]),
    "studies: modality": (Level.STUDIES, [("ModalitiesInStudy", "MR")]),
    "studies: modality and half a year": (
        Level.STUDIES,
        [("ModalitiesInStudy", "MR"), ("StudyDate", "20200101-20200630")],
    ),
    "studies: patient, modality and a year": (
        Level.STUDIES,
        [("PatientID", "PAT-7"), ("ModalitiesInStudy", "MR"), ("StudyDate", "20200101-20201231")],
    ),
    "studies: name, wildcard": (Level.STUDIES, [("PatientName", "family77^*")]),
    "studies: name, fuzzy": (Level.STUDIES, [("PatientName", "given770 family77"), ("fuzzymatching", "true")]),
    "series: requested step": (Level.SERIES, [("RequestAttributesSequence.ScheduledProcedureStepID", "STEP-77")]),
    "instances: patient": (Level.INSTANCES, [("PatientID", "PAT-7")]),
}


def run(folder: Path, total: int = LARGE) -> None:
    """Compare the medians at 1,000 and at `total` studies, and print the ratios."""
    with running_engine(folder) as uri, MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        stores = [_filled(client[f"bench-{size}"], size) for size in (SMALL, total)]
        client.admin.command("fsync")
        medians = {name: alternately([_search(store, name) for store in stores]) for name in SEARCHES}
        for store in stores:
            store.close()
    table = Table(title=f"Median of {ROUNDS} searches with their JSON, ms, page of {PAGE}")
    for column in ("search", f"{SMALL:,}", f"{total:,}", "ratio"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for name, (small, large) in medians.items():
        table.add_row(name, f"{small:.2f}", f"{large:.2f}", f"{large / small:.2f}")
    Console(width=110).print(table)


def _filled(database: Database[Any], studies: int) -> Archive:
    archive = Archive(database, GridFsBlobs(database), clock=lambda: datetime.now(UTC), encode_threads=1)
    archive.ensure_indexes()
    fill(database, studies)
    return archive


def _search(archive: Archive, name: str) -> Callable[[], Any]:
    level, query = SEARCHES[name]
    asked = parse_query(level, [*query, ("limit", str(PAGE))])
    return lambda: archive.query(asked)
