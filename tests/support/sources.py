"""Sources to collect from: this server behind a socket, its answers spoilt where a test asks for that."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pymongo.database import Database
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from fhir_server.access.contracts import Right
from fhir_server.doors import create_app
from fhir_server.model.peer import Peer, Schedule, Way
from tests.support.doors import Doors, opened

LOOPBACK = "127.0.0.0/8"
# (WSGI environment, start_response) -> body, or None to let the server itself answer
Spoiler = Callable[[dict[str, Any], Any], Any]


@dataclass
class Polled:
    """A second instance of this server, reached over HTTP.

    asked    paths with their queries, in the order in which they were asked for
    spoil    answers in the server's place where it returns something
    """

    doors: Doors
    address: str = ""
    authorization: str = ""
    asked: list[str] = field(default_factory=list)
    spoil: Spoiler = lambda environment, start: None

    def asked_for(self, what: str) -> int:
        """How many requests had this in their address."""
        return sum(what in each for each in self.asked)

    def forget(self) -> None:
        """Have the source hold nothing, and answer as it should."""
        self.asked.clear()
        self.spoil = lambda environment, start: None
        database = self.doors.server.database
        for name in ("instances", "series", "studies", "garbage", "blobs.files", "blobs.chunks"):
            database[name].delete_many({})
        for name in ("resources", "history"):
            database[name].delete_many({"_id": {"$regex": "^(ImagingStudy|Patient|Observation|AuditEvent)/"}})

    def store(self, *files: bytes) -> None:
        """Have the source hold files, projected."""
        self.doors.ingest(*files)
        while self.doors.server.studies.catch_up():
            pass


@contextmanager
def polled(db: Database[dict[str, Any]]) -> Iterator[Polled]:
    """Serve a second instance on a free port of the loopback."""
    with opened(db) as doors:
        source = Polled(doors)
        app = create_app(doors.server)

        def answer(environment: dict[str, Any], start: Any) -> Any:
            request = Request(environment)
            source.asked.append(request.full_path)
            spoilt = source.spoil(environment, start)
            return app(environment, start) if spoilt is None else spoilt

        server = make_server("127.0.0.1", 0, answer, threaded=True)
        source.address = f"http://127.0.0.1:{server.server_port}/dicom-web"
        source.authorization = f"Bearer {doors.caller(Right.RECEIVE_IMAGES).token}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield source
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def peer_of(
    doors: Doors, name: str, address: str, way: Way = Way.DICOMWEB, *, authorization: str = "", **schedule: Any
) -> Peer:
    """Register a source of the subscriber `collected-for`, who may register images, and return it."""
    doors.server.principals.add("collected-for", [Right.REGISTER_IMAGES])
    made = Peer(
        name=name, subscriber="", way=way, address=address, authorization=authorization, schedule=Schedule(**schedule)
    )
    return doors.server.endpoints.add(made, "collected-for")[0]


def gone(environment: dict[str, Any], start: Any) -> Any:
    """Answer 503 to everything."""
    return Response("", 503)(environment, start)
