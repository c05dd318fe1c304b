"""How often a request asks the database: each time costs about as much as everything else that a small request does."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from fhir_server import studies
from fhir_server.access.contracts import Limits, Right
from fhir_server.access.grants import Grant
from fhir_server.access.scopes import Scopes
from tests.support.doors import Caller, Doors, new_study, opened

NATIVE = "1.2.840.10008.1.2.1"
INSTANCES = 300
RIGHTS = [Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES]


class Asked(CommandListener):
    """Notes which commands go to which collections of one database; the record of accesses, and its chain, apart."""

    def __init__(self) -> None:
        self.database = ""
        self.commands: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        name, command = event.command_name, event.command
        if event.database_name == self.database and "chains" not in command.values():
            self.commands.append(f"{name} {command.get('collection', command.get(name))}")

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass

    def of(self, work: Callable[[], Any]) -> list[str]:
        """Return what is asked for a piece of work."""
        self.commands.clear()
        work()
        return sorted(self.commands)


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


@pytest.fixture(scope="module")
def database(engine_uri: str, asked: Asked) -> Iterator[Database[dict[str, Any]]]:
    with closing(MongoClient[dict[str, Any]](engine_uri, tz_aware=True, event_listeners=[asked])) as client:
        asked.database = f"test_{uuid4().hex}"
        yield client[asked.database]
        client.drop_database(asked.database)


@pytest.fixture(scope="module")
def doors(database: Database[dict[str, Any]]) -> Iterator[Doors]:
    with pytest.MonkeyPatch.context() as patch, opened(database, access__cache_s="3600") as doors:
        patch.setattr(studies, "BELIEVED_S", 3600.0)  # who may see a study is found before
        yield doors


@pytest.fixture(scope="module")
def study(doors: Doors) -> dict[str, str]:
    study_uid, files = new_study(instances=INSTANCES)
    stored = doors.ingest(*files)
    doors.server.studies.catch_up()
    summary = stored[0].summary
    return {"study": study_uid, "series": summary.series_uid, "sop": summary.sop_uid}


@pytest.fixture(scope="module")
def viewer(doors: Doors) -> Caller:
    return doors.caller(*RIGHTS, name="viewer")


def _related(kind: str, transfer_syntax: str = "*") -> dict[str, str]:
    return {"Accept": f'multipart/related; type="{kind}"; transfer-syntax={transfer_syntax}'}


INSTANCE = "/dicom-web/studies/{study}/series/{series}/instances/{sop}"
SERIES = "/dicom-web/studies/{study}/series/{series}"
RECORDED = "insert resources"  # the AuditEvent
READING = {
    "a frame": (f"{INSTANCE}/frames/1", _related("application/octet-stream"), ["find blobs.chunks", "find instances"]),
    "an instance as stored": (
        INSTANCE,
        _related("application/dicom"),
        ["find blobs.chunks", "find corrections", "find instances"],
    ),
    "an instance as received": (
        INSTANCE,
        _related("application/dicom", NATIVE),
        ["find blobs.chunks", "find corrections", "find instances"],
    ),
    "a picture": (
        f"{INSTANCE}/rendered",
        {"Accept": "image/jpeg"},
        ["find blobs.chunks", "find corrections", "find instances"],
    ),
    "metadata of an instance": (f"{INSTANCE}/metadata", {}, ["find corrections", "find instances"]),
    "metadata of a series": (f"{SERIES}/metadata", {}, ["find corrections", "find instances"]),
    "search for instances": (f"{SERIES}/instances", {}, ["find instances", "find studies"]),
    "search for studies": ("/dicom-web/studies", {}, ["find studies", "find studies"]),
    "read of an ImagingStudy": ("/fhir/ImagingStudy/{study}", {}, ["find resources", "find studies"]),
    "search for ImagingStudies": ("/fhir/ImagingStudy?modality=CT", {}, ["find resources", "find studies"]),
}


@pytest.mark.parametrize("name", READING)
def test_a_request_asks_the_database_no_more_than_it_has_to(
    asked: Asked, viewer: Caller, study: dict[str, str], name: str
) -> None:
    path, headers, expected = READING[name]

    def read() -> None:
        assert viewer.get(path.format(**study), headers=headers).status_code == 200

    read()

    assert asked.of(read) == sorted([*expected, RECORDED])


WHO = {
    "a token": (lambda doors, _: doors.server.principals.mint("whole"), []),
    "a token with a grant": (
        lambda doors, client: doors.server.principals.issue(
            Grant(client, Scopes.parse("system/*.rs"), doors.clock().replace(year=doors.clock().year + 1))
        ),
        [],
    ),
    # Which Devices are the subscriber's says which Tasks it may see.
    "a token with limits": (lambda doors, _: doors.server.principals.mint("part"), ["find resources"]),
}


@pytest.mark.parametrize("who", WHO)
def test_who_asks_is_found_by_two_questions(asked: Asked, doors: Doors, who: str) -> None:
    principals = doors.server.principals
    principals.add("whole", RIGHTS)
    principals.add("part", RIGHTS, limits=Limits(modalities=frozenset({"CT"})))
    client = next(each.clients[0] for each in principals.subscribers() if each.name == "whole")
    mint, more = WHO[who]
    token = mint(doors, client)

    assert asked.of(lambda: principals.authenticate(token)) == ["aggregate tokens", "find resources", *more]
    assert asked.of(lambda: principals.authenticate(token)) == []


def test_no_question_about_who_asks_reads_a_whole_collection(doors: Doors, database: Database[dict[str, Any]]) -> None:
    doors.server.principals.add("known", RIGHTS)
    token = doors.server.principals.mint("known")
    database.command("profile", 2)

    doors.server.principals.authenticate(token)

    database.command("profile", 0)
    steps = list(database["system.profile"].find({"op": {"$in": ["query", "command"]}, "planSummary": {"$exists": 1}}))
    database["system.profile"].drop()
    assert len(steps) == 2
    assert not [step["planSummary"] for step in steps if "COLLSCAN" in step["planSummary"]]
    assert sum(step["docsExamined"] for step in steps) <= 4
