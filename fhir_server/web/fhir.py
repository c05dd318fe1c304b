"""The FHIR door: /fhir, for every type in the table of resources.

Knows HTTP and FHIR's REST rules; who may do what is the repository's business, which is opened for the principal of the
request. Answers are the stored bytes. Source: FHIR R4 http 3.1.0, search 3.1.1.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Protocol

from flask import Blueprint, Response, g, request

from fhir_server.access.audit import Access, Audit
from fhir_server.access.principals import Principal
from fhir_server.model import json, query
from fhir_server.model.criteria import Limits, check_id
from fhir_server.model.outcome import Issue, outcome
from fhir_server.model.resources import RESOURCES, Interaction
from fhir_server.model.validation import validate
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from fhir_server.studies import Studies
from fhir_server.web import bundles
from fhir_server.web.http import FHIR_JSON, check_content_type, fhir_response, json_body, principal_of, tries
from imaging.errors import AppError, Category

JSON_TYPES = (FHIR_JSON, "application/json", "text/json")
FORMATS = frozenset({"json", *JSON_TYPES})  # of _format
ACCEPTED = frozenset({*JSON_TYPES, "*/*", "application/*", "text/*", "text/html"})
FORM = "application/x-www-form-urlencoded"
GENERAL = frozenset({"_format", "_pretty"})
# Types that projections write: before they are searched, images that were acknowledged have to show.
PROJECTED = frozenset({"Device", "Endpoint", "ImagingStudy", "Observation", "Patient"})
MOST_FORM_BYTES = 1 << 20
# What the methods of an address stand for: of a type, an instance, its history, a version.
LEVELS: tuple[dict[Interaction, str], ...] = (
    {Interaction.SEARCH: "GET", Interaction.CREATE: "POST"},
    {Interaction.READ: "GET", Interaction.UPDATE: "PUT", Interaction.DELETE: "DELETE"},
    {Interaction.HISTORY: "GET"},
    {Interaction.VREAD: "GET"},
)

# interaction -> what the audit record calls it, what the restriction is asked
ACTS: dict[Interaction, tuple[Access, Act]] = {
    Interaction.READ: (Access.READ, Act.READ),
    Interaction.VREAD: (Access.VREAD, Act.READ),
    Interaction.HISTORY: (Access.HISTORY, Act.READ),
    Interaction.SEARCH: (Access.SEARCH, Act.READ),
    Interaction.CREATE: (Access.CREATE, Act.CREATE),
    Interaction.UPDATE: (Access.UPDATE, Act.UPDATE),
    Interaction.DELETE: (Access.DELETE, Act.DELETE),
}

_ETAG = re.compile(r'(?:W/)?"(\d{1,18})"')


class Backing(Protocol):
    """What this door needs of the server."""

    @property
    def studies(self) -> Studies:
        """Where DICOM meets FHIR."""

    @property
    def audit(self) -> Audit:
        """The audit record."""

    @property
    def repository_for(self) -> Callable[[Principal], Repository]:
        """Opens the repository for a principal."""

    @property
    def fhir_url(self) -> str:
        """Base of this door as clients reach it."""

    @property
    def search_limits(self) -> Limits:
        """Bounds on searches."""

    @property
    def most_resource_bytes(self) -> int:
        """Largest resource that is taken."""

    @property
    def capability_statement(self) -> dict[str, Any]:
        """What the server says of itself."""

    @property
    def clock(self) -> Callable[[], datetime]:
        """Now, aware UTC."""


def blueprint(server: Backing) -> Blueprint:
    """Return the door for one server."""
    door = _Door(server)
    routes = Blueprint("fhir", __name__, url_prefix="/fhir")
    for rule, method, answer in (
        ("/metadata", "GET", door.metadata),
        ("/<resource_type>", "GET", door.search),
        ("/<resource_type>/_search", "POST", door.search_by_post),
        ("/<resource_type>", "POST", door.create),
        ("/<resource_type>/<resource_id>", "GET", door.read),
        ("/<resource_type>/<resource_id>", "PUT", door.update),
        ("/<resource_type>/<resource_id>", "DELETE", door.delete),
        ("/<resource_type>/<resource_id>/_history", "GET", door.history),
        ("/<resource_type>/<resource_id>/_history/<version>", "GET", door.vread),
    ):
        routes.add_url_rule(rule, answer.__name__, answer, methods=[method], provide_automatic_options=False)
    return routes


class _Door:
    """One method an interaction."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._url = server.fhir_url
        self._statement = json.dumps(server.capability_statement)

    def metadata(self) -> Response:
        _check_accept()
        return _shown(self._statement)

    def read(self, resource_type: str, resource_id: str) -> Response:
        principal, repository = self._opened(resource_type, Interaction.READ)
        _check_accept()
        if resource_id[:1] in ("_", "$"):
            raise AppError(Category.UNSUPPORTED, "this operation is not supported", where=resource_id[:64])
        self._refresh(resource_type, resource_id)
        found = repository.read(resource_type, resource_id)
        self._server.audit.record(principal, Access.READ, resources=[found.key])
        return _not_modified(found) or self._shown_version(found)

    def vread(self, resource_type: str, resource_id: str, version: str) -> Response:
        principal, repository = self._opened(resource_type, Interaction.VREAD)
        _check_accept()
        check_id(resource_id, where=f"{resource_type}.id")
        if not version.isascii() or not version.isdecimal() or len(version) > 18:
            raise AppError(Category.NOT_FOUND, f"{resource_type}/{resource_id} has no such version", where="_history")
        self._refresh(resource_type, resource_id)
        found = repository.vread(resource_type, resource_id, int(version))
        self._server.audit.record(principal, Access.VREAD, resources=[f"{found.key}/_history/{found.version}"])
        return _not_modified(found) or self._shown_version(found)

    def history(self, resource_type: str, resource_id: str) -> Response:
        principal, repository = self._opened(resource_type, Interaction.HISTORY)
        _check_accept()
        count, before = self._history_page()
        self._refresh(resource_type, resource_id)
        # One more than the page, to know whether there is a next.
        found = repository.history(resource_type, resource_id, count=count + 1, before=before)
        key = f"{resource_type}/{resource_id}"
        self._server.audit.record(principal, Access.HISTORY, resources=[key])
        page = found[:count]
        address = f"{self._url}/{key}/_history?_count={count}"
        links = [("self", address if before is None else f"{address}&{query.CURSOR}={before}")]
        if len(found) > count and page:
            links.append(("next", f"{address}&{query.CURSOR}={page[-1].version}"))
        return _shown(bundles.history(self._url, page, links, self._server.clock()))

    def search(self, resource_type: str) -> Response:
        return self._search(resource_type, list(request.args.items(multi=True)))

    def search_by_post(self, resource_type: str) -> Response:
        self._opened(resource_type, Interaction.SEARCH)
        check_content_type(request, [FORM])
        if (request.content_length or 0) > MOST_FORM_BYTES:
            raise AppError(Category.TOO_LARGE, f"the search is larger than {MOST_FORM_BYTES} bytes", where="body")
        form = request.form.items(multi=True)
        return self._search(resource_type, [*request.args.items(multi=True), *form])

    def create(self, resource_type: str) -> Response:
        principal, repository = self._opened(resource_type, Interaction.CREATE)
        _check_accept()
        if "If-None-Exist" in request.headers:
            message = "conditional create is not supported; nothing was created"
            raise AppError(Category.UNSUPPORTED, message, where="If-None-Exist")
        resource = self._received(resource_type)
        made = repository.create({name: value for name, value in resource.items() if name != "id"})
        self._server.audit.record(principal, Access.CREATE, resources=[made.key])
        self._follow_up(made)
        return self._written(made, HTTPStatus.CREATED)

    def update(self, resource_type: str, resource_id: str) -> Response:
        principal, repository = self._opened(resource_type, Interaction.UPDATE)
        _check_accept()
        if_match = _if_match()
        if "If-None-Match" in request.headers:
            message = "If-None-Match is not supported with an update; nothing was changed"
            raise AppError(Category.UNSUPPORTED, message, where="If-None-Match")
        resource = self._received(resource_type)
        if resource.get("id") != resource_id:
            raise AppError(Category.INVALID, "the id of the resource has to be the one in the address", where="id")
        self._refresh(resource_type, resource_id)
        g.allow = g.allow - {"PUT"}  # what an absent resource can be asked instead
        made = repository.update(resource, if_match=if_match)
        self._server.audit.record(principal, Access.UPDATE, resources=[made.key])
        self._follow_up(made)
        return self._written(made, HTTPStatus.CREATED if made.version == 1 else HTTPStatus.OK)

    def delete(self, resource_type: str, resource_id: str) -> Response:
        principal, _ = self._opened(resource_type, Interaction.DELETE)
        self._server.studies.delete_resource(resource_type, resource_id, principal, if_match=_if_match())
        self._server.audit.record(principal, Access.DELETE, resources=[f"{resource_type}/{resource_id}"])
        return Response(status=HTTPStatus.NO_CONTENT)

    def _opened(self, resource_type: str, interaction: Interaction) -> tuple[Principal, Repository]:
        """Who asks comes first: without a principal no type is told, without a right nothing is read."""
        access, act = ACTS[interaction]
        tries(access)
        principal = principal_of(request)
        row = RESOURCES.get(resource_type)
        if row is None:
            raise AppError(Category.NOT_FOUND, "this server keeps no resources of this type", where=resource_type[:64])
        level = next(level for level in LEVELS if interaction in level)
        g.allow = {level[offered] for offered in row.interactions if offered in level}
        if interaction not in row.interactions:
            message = f"{interaction} is not offered for {resource_type}"
            raise AppError(Category.UNSUPPORTED, message, where="method")
        repository = self._server.repository_for(principal)
        repository.require(resource_type, act)
        return principal, repository

    def _refresh(self, resource_type: str, resource_id: str) -> None:
        """Have an ImagingStudy show the images that were acknowledged before it was asked for."""
        if resource_type == "ImagingStudy":
            self._server.studies.refresh(resource_id)

    def _search(self, resource_type: str, parameters: list[tuple[str, str]]) -> Response:
        principal, repository = self._opened(resource_type, Interaction.SEARCH)
        _check_accept()
        server = self._server
        if resource_type in PROJECTED:
            server.studies.catch_up()
        is_lenient = "handling=lenient" in _preferences()
        asked = query.parse(
            resource_type, parameters, base_url=self._url, limits=self._server.search_limits, lenient=is_lenient
        )
        page = repository.search(asked)
        names = [name for name, _ in parameters if name not in GENERAL]
        server.audit.record(principal, Access.SEARCH, resources=[each.key for each in page.matches], parameters=names)
        left_out = _ignored(asked.ignored) if asked.ignored else None
        return _shown(bundles.searchset(self._url, asked, page, left_out, self._server.clock()))

    def _received(self, resource_type: str) -> dict[str, Any]:
        check_content_type(request, JSON_TYPES)
        resource = json_body(request, most_bytes=self._server.most_resource_bytes)
        validate(resource, resource_type)
        return resource

    def _follow_up(self, written: Resource) -> None:
        if written.type == "ServiceRequest":
            self._server.studies.link_order(written.json())

    def _history_page(self) -> tuple[int, int | None]:
        unknown = set(request.args) - GENERAL - {"_count", query.CURSOR}
        if unknown:
            name = sorted(unknown)[0][:64]
            raise AppError(Category.INVALID, f"the history parameter {name} is not supported", where=name)
        limits = self._server.search_limits
        count = _whole_number("_count", default=limits.default_count)
        before = _whole_number(query.CURSOR, default=0)
        return max(1, min(count, limits.count)), before or None

    def _shown_version(self, version: Resource) -> Response:
        return _versioned(_shown(version.body), version)

    def _written(self, version: Resource, status: HTTPStatus) -> Response:
        wanted = _preferences()
        if "return=minimal" in wanted:
            response = Response(status=status)
        elif "return=operationoutcome" in wanted:
            done = Issue("informational", f"{version.key} is at version {version.version}", severity="information")
            response = _shown(json.dumps(outcome([done])), status)
        else:
            response = _shown(version.body, status)
        response.headers["Location"] = f"{self._url}/{version.key}/_history/{version.version}"
        return _versioned(response, version)


def _shown(body: bytes, status: HTTPStatus = HTTPStatus.OK) -> Response:
    is_pretty = request.args.get("_pretty") == "true"
    return fhir_response(bundles.pretty(body) if is_pretty else body, status)


def _versioned(response: Response, version: Resource) -> Response:
    response.headers["ETag"] = version.etag
    response.headers["Last-Modified"] = format_datetime(version.last_updated.astimezone(UTC), usegmt=True)
    return response


def _not_modified(version: Resource) -> Response | None:
    """304 for a conditional read of what the client has. Source: FHIR R4 http 3.1.0.5.1, RFC 9110 13.2.2."""
    known = request.headers.get("If-None-Match")
    if known is not None:
        tags = [tag.strip() for tag in known.split(",")]
        is_known = "*" in tags or any(_version_of(tag) == version.version for tag in tags)
    else:
        since = _http_date(request.headers.get("If-Modified-Since", ""))
        is_known = since is not None and version.last_updated.replace(microsecond=0) <= since
    return _versioned(Response(status=HTTPStatus.NOT_MODIFIED), version) if is_known else None


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _version_of(tag: str) -> int | None:
    match = _ETAG.fullmatch(tag)
    return int(match[1]) if match else None


def _if_match() -> int | None:
    given = request.headers.get("If-Match")
    if given is None:
        return None
    version = _version_of(given.strip())
    if version is None:
        raise AppError(Category.INVALID, 'If-Match has to be one version such as W/"3"', where="If-Match")
    return version


def _check_accept() -> None:
    """Raise UNSUPPORTED (406) unless JSON of FHIR 4.0 is welcome; `_format` wins over Accept."""
    wanted = request.args.get("_format")
    if wanted is not None:
        # An unescaped plus arrives as a space.
        if wanted.partition(";")[0].strip().replace(" ", "+").lower() not in FORMATS:
            raise AppError(Category.UNSUPPORTED, f"_format: this server speaks {FHIR_JSON}", where="Accept")
        return
    if not request.headers.get("Accept", "").strip():
        return
    if not any(_is_welcome(media.lower()) for media, quality in request.accept_mimetypes if quality > 0):
        raise AppError(Category.UNSUPPORTED, f"this server speaks {FHIR_JSON}, FHIR version 4.0", where="Accept")


def _is_welcome(media: str) -> bool:
    name, _, parameters = media.partition(";")
    version = re.search(r"fhirversion\s*=\s*\"?([\d.]+)", parameters)
    return name.strip() in ACCEPTED and (version is None or version[1] in ("4.0", "4.0.1"))


def _preferences() -> set[str]:
    """The preferences of the request in lower case, without spaces. Source: RFC 7240."""
    given = ",".join(request.headers.getlist("Prefer"))
    return {"".join(each.split()).lower() for each in re.split(r"[,;]", given)}


def _ignored(names: Iterable[str]) -> dict[str, Any]:
    told = [Issue("not-supported", f"the parameter {name[:64]} was left out", severity="warning") for name in names]
    return outcome(told)


def _whole_number(name: str, *, default: int) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise AppError(Category.INVALID, f"{name} has to be a whole number", where=name)
    return int(text)
