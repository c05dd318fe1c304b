"""The search parameters in use: the official ones and those that clients defined, the same in every process.

A custom parameter is indexed at every write as soon as a process has heard of it, at most `REFRESH_S` after it was
written. Only when all resources were indexed by it (`index`) does a search know it, so that none is ever missed.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pymongo.database import Database

from fhir_server.model.custom_parameters import is_active, parameters_of
from fhir_server.model.definitions import Parameter, parameters
from fhir_server.store.documents import BODY_FIELDS, Resource, resource_of
from fhir_server.store.reindex import reindex_resources
from imaging.errors import AppError, Category

Progress = Callable[[int, int], None]
Known = Mapping[str, Parameter]

REFRESH_S = 5.0  # how long a process believes what it has read
SETTLE_S = 1.0  # after that time, for writes that had begun before
MOST = 200  # custom parameters in use
COLLECTION = "search_parameters"  # _id `SearchParameter/id`, and the version by which all resources are indexed


@dataclass(frozen=True, slots=True)
class _Tables:
    """What is in use: by which parameters resources are indexed, and by which they can be searched."""

    indexed: Mapping[str, Known] = field(default_factory=dict)
    searched: Mapping[str, Known] = field(default_factory=dict)
    waiting: tuple[Resource, ...] = ()  # not indexed yet


class SearchParameters:
    """The table of search parameters of one process."""

    def __init__(self, database: Database[Any], *, base_url: str = "", refresh_s: float = REFRESH_S) -> None:
        self._database = database
        self._base_url = base_url
        self._refresh_s = refresh_s
        self._tables = _Tables()
        self._read_at = float("-inf")
        self._lock = threading.Lock()

    def indexed(self, resource_type: str) -> Known:
        """Return the parameters by which resources of a type are indexed when they are written."""
        return self._current().indexed.get(resource_type) or parameters(resource_type)

    def searched(self, resource_type: str) -> Known:
        """Return the parameters by which a type can be searched."""
        return self._current().searched.get(resource_type) or parameters(resource_type)

    def custom(self) -> dict[str, list[Parameter]]:
        """Return the custom parameters that can be searched by, by resource type."""
        tables = self._current().searched
        return {
            kind: [each for each in known.values() if each.code not in parameters(kind)]
            for kind, known in tables.items()
        }

    def waiting(self) -> tuple[Resource, ...]:
        """Return the SearchParameters in use by which resources are not indexed yet."""
        return self._read().waiting

    def check(self, resource: Mapping[str, Any]) -> None:
        """Return when a SearchParameter can be used, or is not to be. Raises INVALID with the reason, CONFLICT."""
        if not is_active(resource):
            return
        wanted = parameters_of(resource)
        tables = self._read()
        others = {
            (kind, each.code)
            for kind, known in tables.indexed.items()
            for each in known.values()
            if each.url != resource.get("url")
        }
        for kind, each in wanted.items():
            if (kind, each.code) in others:
                message = f"SearchParameter.code: another one defines {each.code} for {kind} already"
                raise AppError(Category.CONFLICT, message, where="SearchParameter.code")

    def index(self, parameter: Resource, progress: Progress) -> int:
        """Index all resources by a SearchParameter and let it be searched by from now on; return how many there were.

        May be done again from the beginning. Raises INVALID when the parameter cannot be used.
        """
        kinds = list(parameters_of(parameter.json()))
        time.sleep(self._refresh_s + SETTLE_S)  # until every process writes rows for it
        self._read()
        done = reindex_resources(self._database, progress, base_url=self._base_url, table=self.indexed, types=kinds)
        self._database[COLLECTION].update_one(
            {"_id": parameter.key}, {"$set": {"version": parameter.version}}, upsert=True
        )
        self._read()
        return done

    def _current(self) -> _Tables:
        if time.monotonic() - self._read_at > self._refresh_s:
            with self._lock:
                if time.monotonic() - self._read_at > self._refresh_s:
                    return self._read()
        return self._tables

    def _read(self) -> _Tables:
        active = {"type": "SearchParameter", "tok": {"$exists": True, "$elemMatch": {"p": "status", "c": "active"}}}
        found = self._database["resources"].find(active, BODY_FIELDS).sort("created", 1).limit(MOST)
        ready = {each["_id"]: each["version"] for each in self._database[COLLECTION].find()}
        indexed: dict[str, dict[str, Parameter]] = {}
        searched: dict[str, dict[str, Parameter]] = {}
        waiting: list[Resource] = []
        for document in found:
            resource = resource_of(document["_id"], document)
            try:
                wanted = parameters_of(resource.json())
            except AppError:
                continue  # was stored before it could not be used any more
            is_ready = ready.get(resource.key) == resource.version
            waiting += [] if is_ready else [resource]
            for kind, parameter in wanted.items():
                indexed.setdefault(kind, {}).setdefault(parameter.code, parameter)
                if is_ready:
                    searched.setdefault(kind, {}).setdefault(parameter.code, parameter)
        self._tables = _Tables(_with_official(indexed), _with_official(searched), tuple(waiting))
        self._read_at = time.monotonic()
        return self._tables


def _with_official(custom: Mapping[str, Known]) -> dict[str, Known]:
    return {kind: {**known, **parameters(kind)} for kind, known in custom.items()}
