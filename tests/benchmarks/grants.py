"""What it costs that somebody may not see everything: the check of a request, and requests within a restriction.

Who asks is found, the restriction is made and the repository opened as for each request; then the same is read and
searched by who sees all, by an app for one patient, by one with criteria and by a subscriber that sees its own only.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from fhir_server.access.contracts import Limits, Right
from fhir_server.access.grants import Grant
from fhir_server.access.policy import restriction
from fhir_server.access.principals import Principals
from fhir_server.access.scopes import Scopes
from fhir_server.model.query import Query, parse
from fhir_server.store.credentials import Credentials
from fhir_server.store.repository import Repository
from tests.benchmarks.searches import ROUNDS, _filled, alternately
from tests.support.engine import running_engine

LARGE = 100_000  # ImagingStudies
TENANTS = 4
REPEATED = 100  # checks that are timed together: one is too short

ASKED: dict[str, Query] = {
    "the studies of a patient": parse("ImagingStudy", [("patient", "Patient/76")]),
    "newest studies": parse("ImagingStudy", []),
    "newest CT studies by date": parse("ImagingStudy", [("modality", "CT"), ("_sort", "-started")]),
}


def run(folder: Path, total: int = LARGE) -> None:
    """Print medians in ms for each kind of who asks, in turn, and how much they are beyond those of who sees all."""
    with running_engine(folder) as uri, MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        own = _filled(client["bench-grants"], total)
        principals = _owned(own, client["bench-grants"])
        tokens = _tokens(principals)
        client.admin.command("fsync")
        checks = alternately([_check(principals, own, token) for token in tokens.values()])
        opened = {who: own.opened_for(restriction(principals.authenticate(token))) for who, token in tokens.items()}
        rows = {"check of a request": [each / REPEATED for each in checks]}
        rows["read"] = alternately([_read(each) for each in opened.values()])
        for name, query in ASKED.items():
            rows[name] = alternately([_search(each, query) for each in opened.values()])
    table = Table(title=f"Median of {ROUNDS}, ms, {total:,} studies of {TENANTS} subscribers")
    table.add_column("")
    for who in tokens:
        table.add_column(who, justify="right")
    for name, medians in rows.items():
        table.add_row(name, *(f"{each:.3f}" for each in medians))
    Console(width=120).print(table)


def _owned(own: Repository, database: Any) -> Principals:
    """Give the studies to subscribers in turn, and return the register of those."""
    credentials = Credentials(database)
    credentials.ensure_indexes()
    clock = lambda: datetime.now(UTC)  # noqa: E731
    principals = Principals(credentials, own, cache_s=10, token_days=1, clock=clock)
    names = [
        principals.add(f"tenant-{number}", [Right.RECEIVE_IMAGES], is_own=True).organization
        for number in range(TENANTS)
    ]
    last = {"$mod": [{"$toInt": {"$arrayElemAt": [{"$split": ["$_id", "/"]}, 1]}}, TENANTS]}
    change = [{"$set": {"owner": {"$arrayElemAt": [names, last]}}}]
    database["resources"].update_many({"type": {"$in": ["ImagingStudy", "Patient"]}}, change)
    principals.add("all", [Right.RECEIVE_IMAGES], limits=Limits())
    return principals


def _tokens(principals: Principals) -> dict[str, str]:
    client = next(each.clients[0] for each in principals.subscribers() if each.name == "all")
    end = datetime.now(UTC) + timedelta(hours=1)

    def given(scopes: str, patient: str = "") -> str:
        return principals.issue(Grant(client, Scopes.parse(scopes), end, patient=patient))

    return {
        "sees all": principals.mint("all"),
        "patient/*.rs": given("openid launch/patient patient/*.rs", "Patient/76"),
        "system/...?modality": given("system/ImagingStudy.rs?modality=CT system/ImagingStudy.rs?modality=MR"),
        "sees its own": principals.mint("tenant-0"),
    }


def _check(principals: Principals, own: Repository, token: str) -> Callable[[], Any]:
    def check() -> None:
        for _ in range(REPEATED):
            own.opened_for(restriction(principals.authenticate(token)))

    return check


def _read(repository: Repository) -> Callable[[], Any]:
    return lambda: repository.read("ImagingStudy", "760")  # a CT study of Patient/76, of the first subscriber


def _search(repository: Repository, query: Query) -> Callable[[], Any]:
    return lambda: repository.search(query)
