"""What it costs to know who asks: the check of a request for each kind of credential, and whole requests with it.

The check finds the principal, makes its restriction and opens the repository: from what is believed for a while, and
anew each time. The requests go through the whole application in this process, without a network; beside them stands the
same request with a principal that nobody had to look for. Tokens of another issuer are of one on the loopback.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

from joserfc import jwt
from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from fhir_server.access.contracts import Right
from fhir_server.access.grants import Grant
from fhir_server.access.principals import Principal
from fhir_server.access.scopes import Scopes
from tests.api.test_foreign_tokens import KEY, SETTINGS, Ehr, claims_of, filled
from tests.benchmarks.searches import ROUNDS, alternately
from tests.support.doors import BASE_URL, Caller, Doors, opened
from tests.support.engine import running_engine

REPEATED = 20  # calls that are timed together: one is too short
RIGHTS = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, Right.RECEIVE_BY_URL]
BELIEVED_S = {"believed": "3600", "anew": "0"}  # access.cache_s
NOBODY = "no check"

Row = dict[str, float]


def run(folder: Path) -> None:
    """Print medians in ms for each kind of credential, in turn."""
    checks: dict[str, Row] = {}
    requests: dict[str, Row] = {}
    ehr = Ehr()
    with running_engine(folder) as uri, closing(MongoClient[dict[str, Any]](uri, tz_aware=True)) as client:
        for way, told in _ways(ehr).items():
            for name, cache_s in BELIEVED_S.items():
                with opened(client[f"bench-{way}"], access__cache_s=cache_s, **SETTINGS, **told) as doors:
                    study = (filled(doors) if name == "believed" else _studies(doors))["E1"]
                    row = f"{name}, tokens of the issuer are {way}"
                    checks[row], requests[row] = _measured(doors, ehr, way, study)
    ehr.server.shutdown()
    ehr.server.server_close()
    for title, rows in (
        ("check of a request", checks),
        ("metadata of a study of one instance, whole request", requests),
    ):
        _print(title, rows)


def _ways(ehr: Ehr) -> dict[str, dict[str, str]]:
    asked = {"issuer__introspection_url": f"{ehr.address}/introspect", "issuer__client_id": "images"}
    return {
        "signed": {"issuer__jwks_url": f"{ehr.address}/jwks"},
        "introspected": {**asked, "issuer__client_secret": "s:cret"},
    }


def _studies(doors: Doors) -> dict[str, str]:
    """Return a study that is there since the database was filled."""
    return {"E1": str(doors.server.database["studies"].find_one()["_id"])}


def _measured(doors: Doors, ehr: Ehr, way: str, study: str) -> tuple[Row, Row]:
    """Return the medians of checks and of requests by credential."""
    server = doors.server
    server.principals.add("ehr", RIGHTS)
    client = next(each.clients[0] for each in server.principals.subscribers() if each.name == "ehr")
    claims = claims_of(doors, scope="system/ImagingStudy.rs", patient=None, exp=int(doors.clock().timestamp()) + 86_400)
    foreign = jwt.encode({"alg": "RS256", "kid": "one"}, claims, KEY) if way == "signed" else uuid4().hex
    ehr.tokens[foreign] = {"active": True, **claims}
    end = doors.clock().replace(year=doors.clock().year + 1)
    tokens = {
        "token": server.principals.mint("ehr"),
        "token with a grant": server.principals.issue(Grant(client, Scopes.parse("system/*.rs"), end)),
        "token of an issuer": foreign,
    }
    path = f"/dicom-web/studies/{study}/metadata"
    url = _capability_url(doors, tokens["token with a grant"], study)
    checks: dict[str, Callable[[], object]] = {
        who: lambda token=token: server.repository_for(server.principals.authenticate(token))
        for who, token in tokens.items()
    }
    checks["capability URL"] = lambda: server.repository_for(
        server.capability_urls.open(url.rpartition("/")[2]).principal
    )
    asked: dict[str, Callable[[], object]] = {NOBODY: _unchecked(doors, path)}
    for who, token in tokens.items():
        asked[who] = _fetch(Caller(doors.flask, token, doors.clock), path)
    asked["capability URL"] = _fetch(doors.stranger, f"{url.removeprefix(BASE_URL)}/studies/{study}/metadata")
    return _medians(checks), _medians(asked)


def _capability_url(doors: Doors, token: str, study: str) -> str:
    bundle = Caller(doors.flask, token, doors.clock).get(
        f"/fhir/ImagingStudy?_id={study}&_include=ImagingStudy:endpoint"
    )
    return str(bundle.json["entry"][1]["resource"]["address"])


def _fetch(caller: Caller, path: str) -> Callable[[], object]:
    def fetch() -> None:
        assert caller.get(path).status_code == 200

    return fetch


def _unchecked(doors: Doors, path: str) -> Callable[[], object]:
    """Return the same request with a principal that is there already."""
    known: Principal = doors.server.principals.authenticate(doors.server.principals.mint("ehr"))
    extensions = doors.flask.application.extensions
    real, fetch = extensions["authenticate"], _fetch(Caller(doors.flask, "known", doors.clock), path)

    def unchecked() -> None:
        extensions["authenticate"] = lambda _: known
        try:
            fetch()
        finally:
            extensions["authenticate"] = real

    return unchecked


def _medians(works: dict[str, Callable[[], object]]) -> Row:
    def repeated(work: Callable[[], object]) -> Callable[[], None]:
        def done() -> None:
            for _ in range(REPEATED):
                work()

        return done

    medians = alternately([repeated(each) for each in works.values()])
    return {name: each / REPEATED for name, each in zip(works, medians, strict=True)}


def _print(title: str, rows: dict[str, Row]) -> None:
    table = Table(title=f"{title}: median of {ROUNDS}, ms")
    table.add_column("")
    for who in next(iter(rows.values())):
        table.add_column(who, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{each:.2f}" for each in row.values()))
    Console(width=150).print(table)
