"""Exports as a client sees them, and the work that a worker would do for them."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import orjson

from fhir_server.model import task as tasks
from fhir_server.model.task import Role, Status
from fhir_server.work.handlers import Done, Later
from fhir_server.work.kinds import handlers
from tests.support.doors import BASE_URL, Caller, Doors

Json = dict[str, Any]
LATER = {"Prefer": "respond-async"}
LENIENT = {"Prefer": "respond-async, handling=lenient"}


@dataclass(frozen=True)
class Exported:
    """An export that is complete: its manifest, and the lines of its files by part and type."""

    address: str
    manifest: Json
    lines: dict[tuple[str, str], list[Json]]

    def of(self, kind: str) -> list[Json]:
        return self.lines.get(("output", kind), [])

    def ids(self, kind: str) -> list[str]:
        return sorted(each["id"] for each in self.of(kind))

    @property
    def types(self) -> set[str]:
        return {each["type"] for each in self.manifest["output"]}

    @property
    def errors(self) -> list[str]:
        return [
            issue["diagnostics"]
            for each in self.lines.get(("error", "OperationOutcome"), [])
            for issue in each["issue"]
        ]

    @property
    def deleted(self) -> set[str]:
        bundles = self.lines.get(("deleted", "Bundle"), [])
        return {entry["request"]["url"] for bundle in bundles for entry in bundle["entry"]}


def kicked_off(caller: Caller, path: str, body: Json | None = None, headers: dict[str, str] = LATER) -> str:
    """Ask for an export, and return the address of its status."""
    response = caller.call("POST" if body else "GET", path, json=body, headers=headers)
    assert response.status_code == 202, response.text
    return response.headers["Content-Location"].removeprefix(BASE_URL)


def work(doors: Doors, address: str) -> Json:
    """Do what a worker does for the Task of an export until it has ended; return the Task."""
    identifier, handler = address.rpartition("/")[2], handlers.get("export")
    while True:
        order = doors.server.own.read("Task", identifier).json()
        if tasks.status_of(order) is not Status.IN_PROGRESS:
            order = doors.server.own.update(tasks.start(order, Role.SERVER, doors.clock.now)).json()
        done = handler.run(order, doors.server, lambda _: None)
        if not isinstance(done, Later):
            break
    assert isinstance(done, Done)
    return doors.server.own.update(
        tasks.complete(order, handler.kind, done.outputs, Role.SERVER, doors.clock.now)
    ).json()


def fetched(caller: Caller, address: str) -> Exported:
    """Fetch the manifest and all files of an export that is complete."""
    response = caller.get(address)
    assert response.status_code == 200, response.text
    lines = defaultdict(list)
    for part in ("output", "deleted", "error"):
        for file in response.json[part]:
            sent = caller.get(file["url"].removeprefix(BASE_URL))
            assert sent.status_code == 200, sent.text
            read = [orjson.loads(line) for line in sent.data.splitlines()]
            assert len(read) == file["count"]
            lines[part, file["type"]] += read
    return Exported(address, response.json, dict(lines))


def exported(
    doors: Doors, caller: Caller, path: str, body: Json | None = None, headers: dict[str, str] = LATER
) -> Exported:
    """Ask for an export, have it done, and fetch everything."""
    address = kicked_off(caller, path, body, headers)
    work(doors, address)
    return fetched(caller, address)


def parameters(**values: Any) -> Json:
    """Return a Parameters resource; a value that is a list is a parameter that is repeated."""
    elements = {"patient": "valueReference", "_since": "valueInstant"}
    found = []
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            content = {"reference": each} if name == "patient" else each
            found.append({"name": name, elements.get(name, "valueString"): content})
    return {"resourceType": "Parameters", "parameter": found}
