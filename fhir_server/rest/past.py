"""History as it is asked for: of a resource, of a type, of everything. Source: FHIR R4 http 3.1.0.12."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol
from urllib.parse import urlencode

from fhir_server.model import dates, query
from fhir_server.model.criteria import Limits, check_id
from fhir_server.model.resources import RESOURCES, Interaction
from fhir_server.rest import bundles
from fhir_server.rest.asks import Answer, Ask
from fhir_server.store.history import Period
from fhir_server.store.reader import ALWAYS
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

KNOWN = frozenset({"_count", "_since", "_at", "_list", query.CURSOR})


class Surroundings(Protocol):
    """What histories need of the server."""

    @property
    def search_limits(self) -> Limits:
        """Bounds on pages."""

    @property
    def clock(self) -> Callable[[], datetime]:
        """Now, aware UTC."""


def of_resource(repository: Repository, ask: Ask, base_url: str, around: Surroundings) -> tuple[Answer, list[str]]:
    """Return a page of the history of one resource, and what it names."""
    wanted, count = _wanted(ask, around.search_limits)
    before = _whole_number(wanted, query.CURSOR, default=0) or None
    # One more than the page, to know whether there is a next.
    found = repository.history(
        ask.type, ask.id, count=count + 1, before=before, period=_period(wanted), listed=_list(wanted)
    )
    page = found[:count]
    following = str(page[-1].version) if len(found) > count and page else ""
    links = _links(f"{base_url}/{ask.key}/_history", wanted, count, following)
    return Answer(body=bundles.history(base_url, page, links, around.clock())), [ask.key]


def of_types(repository: Repository, ask: Ask, base_url: str, around: Surroundings) -> tuple[Answer, list[str]]:
    """Return a page of the history of a type or of everything, and what it names."""
    wanted, count = _wanted(ask, around.search_limits)
    types = [ask.type] if ask.type else [row.name for row in RESOURCES.values() if _has_history(row.name)]
    place = wanted.get(query.CURSOR, "")
    found = repository.changes(types, count=count, place=place, period=_period(wanted), listed=_list(wanted))
    address = f"{base_url}/{ask.type}/_history" if ask.type else f"{base_url}/_history"
    links = _links(address, wanted, count, found.place)
    body = bundles.history(base_url, found.found, links, around.clock())
    return Answer(body=body), list(dict.fromkeys(each.key for each in found.found))


def _has_history(resource_type: str) -> bool:
    return Interaction.HISTORY_TYPE in RESOURCES[resource_type].interactions


def _wanted(ask: Ask, limits: Limits) -> tuple[dict[str, str], int]:
    given = [(name, value) for name, value in ask.parameters if name not in query.NOT_SEARCH]
    for name, _ in given:
        if name not in KNOWN:
            message = f"the history parameter {name[:64]} is not supported"
            raise AppError(Category.INVALID, message, where=name[:64])
    wanted = dict(given)
    if len(wanted) != len(given):
        raise AppError(Category.INVALID, "a history parameter is given more than once", where="_history")
    count = _whole_number(wanted, "_count", default=limits.default_count)
    return wanted, max(1, min(count, limits.count))


def _period(wanted: dict[str, str]) -> Period:
    since, at = wanted.get("_since"), wanted.get("_at")
    if since is None and at is None:
        return ALWAYS
    return Period(_interval("_since", since).low if since else None, _interval("_at", at) if at else None)


def _list(wanted: dict[str, str]) -> str:
    text = wanted.get("_list")
    if text is None:
        return ""
    if text.startswith("$"):
        raise AppError(Category.INVALID, "functional lists are not kept here; name a List by its id", where="_list")
    return check_id(text.removeprefix("List/"), where="_list")


def _interval(name: str, text: str) -> dates.Interval:
    try:
        return dates.interval(text.replace(" ", "+"))  # a `+` that nobody escaped arrives as a space
    except AppError as error:
        raise AppError(Category.INVALID, f"{name}: {error.message}", where=name) from None


def _links(address: str, wanted: dict[str, str], count: int, following: str) -> list[tuple[str, str]]:
    used = {name: value for name, value in wanted.items() if name not in ("_count", query.CURSOR)} | {"_count": count}
    own = used | ({query.CURSOR: wanted[query.CURSOR]} if query.CURSOR in wanted else {})
    links = [("self", f"{address}?{urlencode(own)}")]
    if following:
        links.append(("next", f"{address}?{urlencode({**used, query.CURSOR: following})}"))
    return links


def _whole_number(wanted: dict[str, str], name: str, *, default: int) -> int:
    text = wanted.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise AppError(Category.INVALID, f"{name} has to be a whole number", where=name)
    return int(text)
