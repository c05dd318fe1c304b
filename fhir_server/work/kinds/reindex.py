"""Indexing of what is stored by a search parameter that a client defined: `reindex` Tasks.

They follow from SearchParameters and are not placed by clients. A second run makes the same rows; one that was broken
off begins again. Until the Task is completed, searches do not know the parameter.
"""

from typing import Any

from fhir_server.delivery import value
from fhir_server.model.task import Json, Kind, Parameter, Progress
from fhir_server.reindexing import CODE, PARAMETER
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import Done, Handler, Report, handlers
from imaging.errors import AppError, Category

INPUTS = (Parameter(PARAMETER, "valueReference", least=1),)
OUTPUTS = (Parameter("indexed", "valueUnsignedInt", least=1),)


def admit(server: Backing, principal: Any, task: Json) -> None:
    """Refuse: what is to be indexed follows from SearchParameters."""
    raise AppError(Category.FORBIDDEN, "the server places these Tasks itself", where="Task.code")


def run(task: Json, context: Any, report: Report) -> Done:
    """Index by the version of the SearchParameter that the Task names. Raises GONE where there is a later one."""
    server: Backing = context
    _, identifier, _, version = task["input"][0]["valueReference"]["reference"].split("/")
    parameter = server.own.read("SearchParameter", identifier)
    if parameter.version != int(version):
        raise AppError(Category.GONE, "the search parameter was changed since; a later Task indexes by it", where=CODE)

    def progress(done: int, total: int) -> None:
        report(Progress(100 * done // max(1, total), f"{done} of {total} resources"))

    return Done([value("indexed", "valueUnsignedInt", server.search_parameters.index(parameter, progress))])


handlers.register(CODE)(Handler(Kind(CODE, INPUTS, OUTPUTS), run, admit=admit))
