"""The whole server on a test database, and clients that come to its doors with a token."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from flask.testing import FlaskClient
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from pymongo.database import Database
from werkzeug.test import TestResponse

from fhir_server import config
from fhir_server.access.contracts import Right
from fhir_server.app import Server, assemble
from fhir_server.doors import create_app
from imaging.archive import Stored

BASE_URL = "http://images.test"
FHIR = f"{BASE_URL}/fhir"


class Clock:
    """A clock that stands until it is told otherwise."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


@dataclass(frozen=True)
class Caller:
    """A client of the doors; `token` None comes without one. Each call is a millisecond after the last."""

    flask: FlaskClient
    token: str | None
    clock: Clock

    def call(
        self, method: str, path: str, *, json: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> TestResponse:
        """Send a request; `json` goes as a FHIR resource."""
        self.clock.forward(milliseconds=1)
        sent = dict(headers or {})
        if self.token:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        if json is not None:
            options["data"] = orjson.dumps(json)
            sent.setdefault("Content-Type", "application/fhir+json")
        return self.flask.open(path, method=method, headers=sent, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.call("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("POST", path, json=json, **options)

    def put(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("PUT", path, json=json, **options)

    def patch(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        return self.call("PATCH", path, json=json, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        return self.call("DELETE", path, **options)


@dataclass(frozen=True)
class Doors:
    """A server with its doors open."""

    server: Server
    clock: Clock
    flask: FlaskClient

    def caller(self, *rights: Right, name: str = "") -> Caller:
        """Return a client of a subscriber with these rights, made if need be."""
        known = name or "-".join(sorted(rights))
        self.server.principals.add(known, rights)
        return Caller(self.flask, self.server.principals.mint(known), self.clock)

    @property
    def stranger(self) -> Caller:
        """Return a client without a token."""
        return Caller(self.flask, None, self.clock)

    def ingest(self, *files: bytes, name: str = "sender") -> list[Stored]:
        """Store files as a registering subscriber of this name; every one must be stored."""
        self.clock.forward(milliseconds=1)
        if name not in {each.name for each in self.server.principals.subscribers()}:
            self.server.principals.add(name, [Right.REGISTER_IMAGES])
        principal = self.server.principals.authenticate(self.server.principals.mint(name))
        outcomes = list(self.server.studies.ingest(files, principal))
        assert all(isinstance(outcome, Stored) for outcome in outcomes), outcomes
        return outcomes  # type: ignore[return-value]


@contextmanager
def opened(db: Database[dict[str, Any]], **settings: str) -> Iterator[Doors]:
    """Give a server on the database with its doors; settings as on the command line, dots as double underscores."""
    given = {"web.base_url": BASE_URL, "access.cache_s": "1", "archive.encode_threads": "1"}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    clock = Clock()
    server = assemble(config.load(given, environment={}), db, clock=clock)
    try:
        yield Doors(server, clock, create_app(server).test_client())
    finally:
        # Written now rather than in some seconds, when another test may use the database.
        server.usage.write()
        server.archive.close()


def dicom(name: str = "CT_small.dcm", **changes: Any) -> bytes:
    """Return a real file of pydicom with other values; what is not given stays the file's own."""
    ds: Dataset = dcmread(str(get_testdata_file(name)))
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def new_study(*, instances: int = 1, series: int = 1, **changes: Any) -> tuple[str, list[bytes]]:
    """Return the UID of a new study and its files: small CT slices with UIDs of their own."""
    study_uid = generate_uid()
    files = []
    for number in range(1, series + 1):
        series_uid = generate_uid()
        files += [
            dicom(
                StudyInstanceUID=study_uid,
                SeriesInstanceUID=series_uid,
                SeriesNumber=number,
                SOPInstanceUID=generate_uid(),
                InstanceNumber=position,
                **changes,
            )
            for position in range(1, instances + 1)
        ]
    return study_uid, files
