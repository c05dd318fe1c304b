"""Exports: `export` Tasks, which the operation `$export` places.

Done in turns of a minute, so that other orders come between, each with the rights that who asked has then. What is
written is kept page by page: a turn, also after a crash, goes on behind the last page. When all is written the manifest
becomes the answer of the request.
"""

import time
from dataclasses import replace
from typing import Any

from fhir_server.delivery import value
from fhir_server.model import json
from fhir_server.model.task import Json, Kind, Parameter, Progress
from fhir_server.rest import exporting
from fhir_server.rest.exporting import Export
from fhir_server.store.exports import Part
from fhir_server.work.backing import Backing
from fhir_server.work.exporting import Exporter, FileLimits
from fhir_server.work.handlers import Done, Handler, Later, Report, handlers
from imaging.errors import AppError, Category

TURN_S = 60.0
SHOWING_S = 30.0  # for images that came before and do not show yet
OUTPUTS = (
    Parameter("resources", "valueUnsignedInt", least=1),
    Parameter("files", "valueUnsignedInt", least=1),
)


def admit(server: Backing, principal: Any, task: Json) -> None:
    """Refuse: clients ask for this by the operation."""
    raise AppError(Category.FORBIDDEN, "ask for [base]/$export; the server places these Tasks", where="Task.code")


def run(task: Json, context: Any, report: Report) -> Done | Later:
    """Write some pages of an export, or the rest of it. Raises NOT_FOUND where nobody wants it any more."""
    server: Backing = context
    id, config = task["id"], server.config
    asked = server.answers.find(id)
    if asked.status:  # and only to say so was left
        return _done(server, id)
    made = exporting.of_json(json.loads_trusted(asked.request)["export"])
    principal = replace(server.principals.acting_for(asked.owner, asked.grant), client_id=asked.client)
    server.answers.renew(id)
    server.studies.show_all(SHOWING_S)
    moment = server.exports.begin(id, wait_s=config["bulk.settle_s"])
    exporter = Exporter(
        server.exports,
        id,
        made,
        server.repository_for(principal).as_of(moment),
        base_url=server.fhir_url,
        limits=server.search_limits,
        file_limits=FileLimits(config["bulk.file_bytes"], config["bulk.files"]),
    )
    step = ""

    def told(percent: int, text: str) -> None:
        nonlocal step
        step = text
        report(Progress(percent, text))

    if not exporter.run(time.monotonic() + TURN_S, told):
        return Later(0, step)
    server.answers.keeping(id, 200, _manifest(server, id, made))(None)
    return _done(server, id)


def _manifest(server: Backing, id: str, made: Export) -> bytes:
    moment = server.exports.begin(id, wait_s=0)
    files = [
        (str(each.part), each.type, f"{server.fhir_url}/_async/{id}/{each.number}.{each.type}.ndjson", each.count)
        for each in server.exports.files(id)
        if each.count
    ]
    return json.dumps(exporting.manifest(made, moment=moment, files=files, parts=[str(each) for each in Part]))


def _done(server: Backing, id: str) -> Done:
    files = [each for each in server.exports.files(id) if each.count]
    count = sum(each.count for each in files if each.part is Part.OUTPUT)
    return Done([value("resources", "valueUnsignedInt", count), value("files", "valueUnsignedInt", len(files))])


handlers.register(exporting.CODE)(Handler(Kind(exporting.CODE, outputs=OUTPUTS), run, admit=admit))
