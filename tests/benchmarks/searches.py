"""Whether searches stay as quick as the store grows, and what a page and a read cost beside the bare database."""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.database import Database
from rich.console import Console
from rich.table import Table

from fhir_server.model.query import Query, parse
from fhir_server.rest import bundles
from fhir_server.store import index
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.joins import FEW
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from fhir_server.store.search import _Search
from tests.support.engine import running_engine

SMALL, LARGE = 10_000, 100_000  # ImagingStudies
A_BATCH = 2_000
ROUNDS = 31
MODALITIES = ("CT", "MR", "US", "CR", "DX", "MG", "NM", "PT")
START = datetime(2010, 1, 1, tzinfo=UTC)

SEARCHES: dict[str, list[tuple[str, str]]] = {
    "patient": [("patient", "Patient/77")],
    "identifier": [("identifier", "urn:dicom:uid|urn:oid:1.2.777")],
    "modality, half a year, newest first, with endpoints": [
        *(("modality", "CT"), ("started", "ge2012-01"), ("started", "lt2012-07"), ("_sort", "-started")),
        ("_include", "ImagingStudy:endpoint"),
    ],
    "modality, newest first": [("modality", "MR"), ("_sort", "-started")],
    "everything, newest created first": [],
    "patient.family (chain)": [("patient.family", "family77")],
    "compartment": [("status", "available")],
}


def run(folder: Path, total: int = LARGE) -> None:
    """Compare the medians at 10,000 and at `total` studies, and print the ratios."""
    with running_engine(folder) as uri, MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        stores = [_filled(client[f"bench-{size}"], size) for size in (SMALL, total)]
        client.admin.command("fsync")  # what was written is not written on while it is measured
        medians = {name: alternately([_search(store, name) for store in stores]) for name in SEARCHES}
        looked_at = {name: [_looked_at(store, name) for store in stores] for name in SEARCHES}
        costs = _beside_the_database(stores[1])
    table = Table(title=f"Median of {ROUNDS} searches, ms, page of 50")
    for column in ("search", f"{SMALL:,}", f"{total:,}", "ratio", "keys and documents looked at"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for name, (small, large) in medians.items():
        keys = " -> ".join(f"{keys:,} + {documents:,}" for keys, documents in looked_at[name])
        table.add_row(name, f"{small:.2f}", f"{large:.2f}", f"{large / small:.2f}", keys)
    for name, (ours, bare) in costs.items():
        table.add_row(name, f"{bare:.2f} bare", f"{ours:.2f}", f"{ours / bare:.2f}")
    Console(width=110).print(table)


def _filled(database: Database[Any], size: int) -> Repository:
    """Return a store with so many studies: documents as the repository makes them, written in bulk."""
    ensure_schema(database)
    clock = iter(range(10**9))
    repository = Repository(database, UNRESTRICTED, clock=lambda: START + timedelta(seconds=next(clock)))
    writer, collection = repository._writer, repository._resources
    collection.insert_one(
        writer.document("Endpoint/dicomweb", {"resourceType": "Endpoint", "status": "active"}, "POST")
    )
    for start in range(0, size, A_BATCH):
        documents = []
        for number in range(start, min(size, start + A_BATCH)):
            documents.append(writer.document(f"ImagingStudy/{number}", study(number), "POST"))
            if number % 10 == 0:
                patient = {"resourceType": "Patient", "name": [{"family": f"Family{number // 10}"}]}
                documents.append(writer.document(f"Patient/{number // 10}", patient, "POST"))
        collection.insert_many(documents, ordered=False)
    return repository


def study(number: int) -> dict[str, Any]:
    modality = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": MODALITIES[number % len(MODALITIES)]}
    # Ten years, whatever the number: the more studies, the more of them in a month.
    started = START + timedelta(minutes=(number * 7_919) % (10 * 365 * 1440))
    return {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:1.2.{number}"}],
        "status": "available",
        "modality": [modality],
        "subject": {"reference": f"Patient/{number // 10}"},
        "started": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "endpoint": [{"reference": "Endpoint/dicomweb"}],
        "series": [
            {"uid": f"1.2.{number}.{each}", "number": each, "modality": modality, "numberOfInstances": 40}
            for each in range(3)
        ],
    }


def _query(name: str) -> Query:
    return parse("ImagingStudy", SEARCHES[name], compartment="Patient/77" if name == "compartment" else "")


def _search(repository: Repository, name: str) -> Callable[[], Any]:
    query = _query(name)
    return lambda: repository.search(query)


def _looked_at(repository: Repository, name: str) -> tuple[int, int]:
    """Return how many index keys and documents the query for the matches looks at."""
    query = _query(name)
    asked = _Search(repository._resources, query, UNRESTRICTED, START, FEW, index.rows)
    found = repository._resources.find(asked._condition).sort(list(asked._order)).limit(query.count + 1)
    told = found.explain()["executionStats"]
    return told["totalKeysExamined"], told["totalDocsExamined"]


def _beside_the_database(repository: Repository) -> dict[str, list[float]]:
    """What a page as a Bundle and a read cost, and the same documents raw."""
    query = parse("ImagingStudy", [("modality", "CT"), ("_sort", "-started")])
    page = repository.search(query)
    keys = [each.key for each in page.matches]
    collection = repository._resources.with_options(CodecOptions())
    now = datetime.now(UTC)

    def ours() -> bytes:
        return bundles.searchset("http://x/fhir", query, repository.search(query), None, now)

    def raw() -> list[Any]:
        return list(collection.find({"_id": {"$in": keys}}))

    def read() -> Any:
        return repository.read("ImagingStudy", "77")

    def find_one() -> Any:
        return collection.find_one({"_id": "ImagingStudy/77"})

    return {"page of 50 as a Bundle": alternately([ours, raw]), "read": alternately([read, find_one])}


def alternately(works: list[Callable[[], Any]]) -> list[float]:
    """Return the median of each in ms; they are done in turn, so that what else happens hits all of them alike."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(ROUNDS + 1):
        for work, own in zip(works, times, strict=True):
            begun = time.perf_counter()
            work()
            if turn:  # the first one fills caches
                own.append((time.perf_counter() - begun) * 1e3)
    return [statistics.median(own) for own in times]
