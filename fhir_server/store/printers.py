"""The register of printers on MongoDB, and what became of the jobs sent to them, so that nothing is printed twice.

* `printers`    `_id` name; kind, parameters (credentials included, which are nowhere else), state
* `print_modalities`  `_id` application entity title; subscriber and printer of a modality that prints through us
* `print_jobs`  `_id` id of the Task; the ticket of its job, saved before each step that cannot be undone, and at the
                end how many sheets came out for whom: the meter
"""

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from fhir_server.store.failures import translated
from fhir_server.store.lease import Lease, Leases
from imaging.errors import AppError, Category

INDEXES: dict[str, list[IndexModel]] = {
    "print_jobs": [
        IndexModel([("metered.at", ASCENDING)], name="metered", sparse=True),
        IndexModel([("at", ASCENDING)], name="open", partialFilterExpression={"ticket": {"$exists": True}}),
    ],
}
LEASE, LEASE_S = "print:", 10.0
TURN = "printer:"
AGENT = "agent"  # the kind of a printer that an agent at another site serves


@dataclass(frozen=True, slots=True)
class Registered:
    """A printer as an operator registered it.

    kind         of `imaging.printers`, or AGENT
    owner        "Organization/..." whose agent serves it, "" for a printer that this server reaches
    subscribers  "Organization/..." that may order on it; none: every one that may order hard copies
    """

    name: str
    kind: str
    title: str = ""
    owner: str = ""
    subscribers: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_suspended: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether an agent serves it."""
        return self.kind == AGENT


@dataclass(frozen=True, slots=True)
class Modality:
    """A modality that prints through us.

    title       its application entity title
    subscriber  "Organization/..." for which it prints
    printer     name of the printer
    address     from which it has to come, "" for any
    """

    title: str
    subscriber: str
    printer: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Sheets:
    """What came out for an order. `pages` of one copy, `sheets` in all."""

    subscriber: str
    device: str
    pages: int
    sheets: int
    medium: str
    film_size: str
    is_complete: bool


class PrinterStore:
    """The register and the jobs."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._leases = Leases(database, clock)
        durable = WriteConcern("majority", j=True)
        self._printers = database.get_collection("printers", write_concern=durable)
        self._jobs = database.get_collection("print_jobs", write_concern=durable)
        self._modalities = database.get_collection("print_modalities", write_concern=durable)

    def ensure_indexes(self) -> None:
        """Create the indexes; those that exist are left alone."""
        for name, indexes in INDEXES.items():
            self._jobs.database[name].create_indexes(indexes)

    def put(self, printer: Registered) -> None:
        """Register a printer, or replace the one of the same name."""
        document = asdict(printer)
        document["subscribers"] = list(printer.subscribers)
        self._printers.replace_one({"_id": printer.name}, {"_id": document.pop("name"), **document}, upsert=True)

    def get(self, name: str) -> Registered:
        """Return a printer. Raises NOT_FOUND."""
        found = self._printers.find_one({"_id": name})
        if found is None:
            message = f"no printer {name[:64]!r} was registered; `fhir-imaging printer list` shows all"
            raise AppError(Category.NOT_FOUND, message, where="printer")
        return _printer(found)

    def all(self) -> list[Registered]:
        """Return every printer, by name."""
        return [_printer(each) for each in self._printers.find({}).sort("_id")]

    def remove(self, name: str) -> None:
        """Forget a printer and its credentials; one that is not there is forgotten already."""
        self._printers.delete_one({"_id": name})

    # ---- modalities

    def put_modality(self, modality: Modality) -> None:
        """Register a modality, or replace the one of the same title."""
        document = asdict(modality)
        self._modalities.replace_one({"_id": modality.title}, {"_id": document.pop("title"), **document}, upsert=True)

    def modalities(self) -> list[Modality]:
        """Return every modality, by title."""
        return [_modality(each) for each in self._modalities.find({}).sort("_id")]

    def modality(self, title: str) -> Modality | None:
        """Return the modality of a title, None for one that is not registered."""
        found = self._modalities.find_one({"_id": title})
        return _modality(found) if found else None

    def remove_modality(self, title: str) -> bool:
        """Forget a modality; say whether it was there."""
        return self._modalities.delete_one({"_id": title}).deleted_count == 1

    def turn(self, name: str, seconds: float) -> bool:
        """Say whether it is this process' turn to ask a printer how it is; nobody else's for so long."""
        return self._leases.claim(f"{TURN}{name}", str(uuid.uuid4()), seconds) is not None

    # ---- jobs

    @contextmanager
    def job(self, task: str) -> Iterator["JobNotes"]:
        """Give the notes on a Task's job to one process at a time. Raises BUSY while another one has them.

        They are held by a lease that is renewed beside the work: of a process that died, for ten seconds.
        """
        lease = self._leases.claim(f"{LEASE}{task}", str(uuid.uuid4()), LEASE_S)
        if lease is None:
            message = "another process is sending this to the printer, or died while it did"
            raise AppError(Category.BUSY, message, where=f"Task/{task}")
        ended = threading.Event()
        beating = threading.Thread(target=self._renew, args=(lease, ended), daemon=True)
        beating.start()
        try:
            yield JobNotes(self._jobs, task, self._leases.renewing(lease, LEASE_S), self._clock)
        finally:
            ended.set()
            beating.join()
            self._leases.finish(lease)

    def _renew(self, lease: Lease, ended: threading.Event) -> None:
        while not ended.wait(LEASE_S / 3):
            # Where this fails nothing more is saved, and so nothing more is printed by this process.
            with suppress(PyMongoError):
                self._leases.renew(lease, LEASE_S)

    def concerns(self, task: str, printer: str, studies: Mapping[str, int]) -> None:
        """Note on which printer how many instances of which studies (UID) are printed for a Task."""
        told = [{"uid": uid, "instances": count} for uid, count in studies.items()]
        self._jobs.update_one({"_id": task}, {"$set": {"printer": printer, "studies": told}}, upsert=True)

    def studies(self, task: str) -> dict[str, int]:
        """Return what `concerns` noted."""
        found = self._jobs.find_one({"_id": task}, {"studies": 1}) or {}
        return {each["uid"]: each["instances"] for each in found.get("studies", [])}

    def open(self, limit: int) -> dict[str, str]:
        """Return Tasks with a job of which nobody has said yet what came out, and its printer's name; oldest first."""
        wanted = {"ticket": {"$exists": True}, "metered": {"$exists": False}}
        found = self._jobs.find(wanted, {"printer": 1}).sort("at").limit(limit)
        return {row["_id"]: row.get("printer", "") for row in found}

    def meter(self, task: str, sheets: Sheets, at: datetime) -> None:
        """Record what came out for a Task; a later word of the same Task replaces the earlier one."""
        self._jobs.update_one({"_id": task}, {"$set": {"metered": {**asdict(sheets), "at": at}}}, upsert=True)

    def metered(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """Return counts from `start` to before `end`: subscriber, device, medium, film_size, orders, pages, sheets."""
        names = ("subscriber", "device", "medium", "film_size")
        key = {name: f"$metered.{name}" for name in names}
        stages: list[dict[str, Any]] = [
            {"$match": {"metered.at": {"$gte": start, "$lt": end}}},
            {
                "$group": {
                    "_id": key,
                    "orders": {"$sum": 1},
                    "pages": {"$sum": "$metered.pages"},
                    "sheets": {"$sum": "$metered.sheets"},
                }
            },
            {"$sort": {f"_id.{name}": 1 for name in names}},
        ]
        found = self._jobs.aggregate(stages)
        return [{**row["_id"], **{name: row[name] for name in ("orders", "pages", "sheets")}} for row in found]


class JobNotes:
    """What is noted of one job while this process has it."""

    def __init__(
        self, jobs: Collection[Any], task: str, guard: Callable[[ClientSession], None], clock: Callable[[], datetime]
    ) -> None:
        self._jobs, self._task, self._guard, self._clock = jobs, task, guard, clock

    def ticket(self) -> str:
        """Return the ticket that was saved last, "" before the first."""
        found = self._jobs.find_one({"_id": self._task}, {"ticket": 1})
        return str(found.get("ticket", "")) if found else ""

    def keep(self, ticket: str) -> None:
        """Save a ticket durably. Raises CONFLICT where another process has the job by now; nothing is saved then."""

        def write(session: ClientSession) -> None:
            self._guard(session)
            change = {"$set": {"ticket": ticket, "at": self._clock()}}
            self._jobs.update_one({"_id": self._task}, change, upsert=True, session=session)

        with translated(self._task), self._jobs.database.client.start_session() as session:
            session.with_transaction(write, write_concern=WriteConcern("majority", j=True))

    def tries(self) -> int:
        """Count a reservation and return how many there were."""
        change = {"$inc": {"tries": 1}}
        after = ReturnDocument.AFTER
        found = self._jobs.find_one_and_update({"_id": self._task}, change, upsert=True, return_document=after)
        return int(found["tries"]) if found else 1


def _modality(document: Mapping[str, Any]) -> Modality:
    return Modality(title=document["_id"], **{name: each for name, each in document.items() if name != "_id"})


def _printer(document: Mapping[str, Any]) -> Registered:
    rest = {name: value for name, value in document.items() if name not in ("_id", "subscribers")}
    return Registered(name=document["_id"], subscribers=tuple(document["subscribers"]), **rest)
