"""The criteria of a conditional interaction: a search that selects one resource or none.

Strict, whatever the client prefers: a criterion that is not understood would select too much.
Source: FHIR R4 http 3.1.0.4.3, 3.1.0.5.1, 3.1.0.6.1, 3.1.0.7.1.
"""

from collections.abc import Iterable
from urllib.parse import parse_qsl

from fhir_server.model import query
from fhir_server.model.criteria import Limits
from fhir_server.model.query import Query
from imaging.errors import AppError, Category

# They say what a search gives, not what it finds.
RESULT_PARAMETERS = frozenset({
    "_contained", "_containedType", "_count", "_cursor", "_elements", "_include", "_revinclude", "_score", "_sort",
    "_summary", "_total",
})  # fmt: skip


def criteria(resource_type: str, parameters: Iterable[tuple[str, str]], base_url: str, limits: Limits) -> Query:
    """Return the search. Raises INVALID for none at all, and for what does not select."""
    given = [(name, value) for name, value in parameters if name not in query.NOT_SEARCH]
    for name, _ in given:
        if name.partition(":")[0] in RESULT_PARAMETERS:
            raise AppError(Category.INVALID, "this parameter selects nothing", where=name[:64])
    if not given:
        raise AppError(Category.INVALID, "search criteria are needed, which select one resource", where=resource_type)
    return query.parse(resource_type, given, base_url=base_url, limits=limits)


def criteria_of_text(resource_type: str, text: str, base_url: str, limits: Limits) -> Query:
    """Return the search of a header such as If-None-Exist: `identifier=...`, with or without `[base]/[type]?` before.

    Raises INVALID.
    """
    before, mark, after = text.strip().rpartition("?")
    if mark and before.rpartition("/")[2] not in ("", resource_type):
        raise AppError(Category.INVALID, f"criteria for {resource_type} are wanted", where="If-None-Exist")
    return criteria(resource_type, parameters_of(after, limits, where="If-None-Exist"), base_url, limits)


def parameters_of(text: str, limits: Limits, *, where: str) -> list[tuple[str, str]]:
    """Return the parameters of a search as it stands in an address. Raises INVALID."""
    try:
        return parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=limits.parameters)
    except ValueError:
        raise AppError(Category.INVALID, "search criteria are wanted: name=value&...", where=where) from None
