"""The worklist of PS3.18 section 11, over the Tasks of the repository: one principal's transactions on work items.

Knows no sockets. Who may do what is decided by the repository, which is opened for the principal: a work item is read,
placed, claimed and ended under the rules for the Task that it is. Here are the rules that PS3.4 adds: the states, the
lock by a Transaction UID, and which status tells of a mistake. A change is read, decided and written with the version
that was read; of two at once, the second decides again by what the first one left.
"""

import heapq
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fhir_server.access import backing
from fhir_server.access.audit import NOTHING_MORE, Access, Metered
from fhir_server.access.contracts import Right
from fhir_server.access.principals import Principal
from fhir_server.model import workitem, workitem_orders
from fhir_server.model.criteria import Clause, Reference, Token, clause
from fhir_server.model.dates import to_instant
from fhir_server.model.query import Query
from fhir_server.model.task import CANCEL_REQUEST, Json, with_extension
from fhir_server.model.task_writing import Actor
from fhir_server.model.validation import validate
from fhir_server.model.workitem import FINAL, STATES, State
from fhir_server.model.workitem_events import cancel_request
from fhir_server.rest.asks import version_wanted
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from imaging.dataset import check_uid
from imaging.dicomweb import ALL, Matching, MatchKind
from imaging.dicomweb.holds import holds
from imaging.dicomweb.json_model import Model, tag_of, text
from imaging.errors import AppError, Category

MOST_TRIES = 5  # of a change that others are in the way of
PAGE = 200  # Tasks that a search looks at together
MOST_LOOKED_AT = 5_000  # Tasks that a search looks at in all; what would come after is told to be there
RETURNED = frozenset(
    tag_of(keyword)
    for keyword in (
        # what a search returns unasked; PS3.4 table CC.2.5-3, return keys of types 1 and 2
        "SOPClassUID", "SOPInstanceUID", "ProcedureStepState", "ScheduledProcedureStepPriority", "ProcedureStepLabel",
        "WorklistLabel", "ScheduledProcedureStepModificationDateTime", "ScheduledStationNameCodeSequence",
        "ScheduledStationClassCodeSequence", "ScheduledStationGeographicLocationCodeSequence",
        "ScheduledHumanPerformersSequence", "ScheduledProcedureStepStartDateTime", "ExpectedCompletionDateTime",
        "ScheduledProcedureStepExpirationDateTime", "ScheduledWorkitemCodeSequence", "InputReadinessState",
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AdmissionID",
        "StudyInstanceUID", "ReferencedRequestSequence", "ProcedureStepProgressInformationSequence",
    )
)  # fmt: skip
MOST_PATIENTS = 100  # that have a number which is asked for; beyond, each Task is looked at
_PATIENT_ID = tag_of("PatientID")
_INPUTS = tag_of("InputInformationSequence")
_PERFORMED = tag_of("UnifiedProcedureStepPerformedProcedureSequence")

# What a Warning header says. Source: PS3.18 11.4.3.2, 11.6.3.2, 11.7.3.2, 11.8.3.2.
CREATED_OTHERWISE = "The Workitem was created with modifications."
NOT_CLAIMED = "The target URI did not reference a claimed Workitem."
INCONSISTENT_UPDATE = "The submitted request is inconsistent with the current state of the Workitem."
INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
NO_TRANSACTION = "The Transaction UID is missing."
OTHER_TRANSACTION = "The Transaction UID is incorrect."
ALREADY = {each: f"The UPS is already in the requested state of {each}." for each in FINAL}
IS_COMPLETED = "The UPS is already COMPLETED."
NO_CONTACT = "The performer cannot be contacted."


class RefusedError(AppError):
    """A request that does not go with the work item; `warning` is what the standard has a Warning header say."""

    def __init__(self, category: Category, message: str, warning: str, where: str = "workitem") -> None:
        super().__init__(category, message, where=where)
        self.warning = warning


class Backing(backing.Backing, Protocol):
    """What the worklist needs of the server."""

    @property
    def conforms(self) -> Callable[[Json], None]: ...  # noqa: D102

    def actor_for(self, principal: Principal) -> Actor: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Found:
    """A page of a search, and whether more would have matched."""

    items: list[Model]
    is_cut: bool


class Worklist:
    """The work items as one principal may see and change them; for one request."""

    def __init__(self, server: Backing, principal: Principal) -> None:
        self._server, self._principal = server, principal
        self._repository = server.repository_for(principal)
        self._known = Seen(self._repository, server.dicomweb_url)

    def create(self, model: Model, uid: str | None) -> tuple[str, str]:
        """Place a work item; return its UID and what the server changed, "" for nothing.

        uid   as the address has it, None where the work item itself tells it, or nobody does
        Raises INVALID for what is missing or wrong, CONFLICT where it exists already.
        """
        self._repository.require("Task", Act.CREATE)
        named = uid or text(model, "SOPInstanceUID") or f"2.25.{uuid.uuid4().int}"
        check_uid(named, "the UID of the work item")
        task = workitem_orders.placed(model, named, self._known)
        if workitem.uid_of(task["id"]) != named:
            raise AppError(Category.INVALID, "a UID has no leading zeros in its components", where="SOPInstanceUID")
        self._check(task)
        made = self._repository.create(task, id=task["id"])
        self._record(Access.CREATE, made.key)
        return named, "" if text(model, "WorklistLabel") else CREATED_OTHERWISE

    def retrieve(self, uid: str) -> tuple[Model, int]:
        """Return a work item with the version of the Task. Raises NOT_FOUND, GONE."""
        found = self._read(uid)
        self._record(Access.READ, found.key)
        return workitem.dataset_of(found.json(), self._known), found.version

    def update(self, uid: str, model: Model, transaction_uid: str, if_match: str | None) -> None:
        """Change attributes of a work item: nobody's yet by who placed it, one in progress by who holds its lock."""

        def change(task: Json, state: State) -> Json:
            if state in FINAL:
                raise RefusedError(Category.INVALID, f"it is {state}: it cannot change any more", INCONSISTENT_UPDATE)
            if state is State.SCHEDULED:
                if transaction_uid:
                    raise RefusedError(Category.CONFLICT, "nobody has claimed it under this UID", NOT_CLAIMED)
                return workitem_orders.changed(task, model, self._known)
            self._unlock(task, transaction_uid, INCONSISTENT_UPDATE, INCONSISTENT_UPDATE)
            return workitem_orders.reported(task, model, self._server.clock())

        self._change(uid, change, if_match)

    def change_state(self, uid: str, wanted: str, transaction_uid: str, if_match: str | None) -> str:
        """Claim, complete or cancel a work item as its performer; return what to warn of, "" for nothing."""
        if wanted not in _NEXT:
            raise AppError(Category.INVALID, f"one of {', '.join(_NEXT)} expected", where="ProcedureStepState")
        if not transaction_uid:
            raise RefusedError(Category.INVALID, "the Transaction UID is missing", NO_TRANSACTION, "TransactionUID")
        check_uid(transaction_uid, "the Transaction UID")
        to = State(wanted)
        warnings: list[str] = []

        def change(task: Json, state: State) -> Json | None:
            if state is to and to in FINAL:
                warnings.append(ALREADY[to])
                return None
            if state is not _NEXT[to]:
                raise RefusedError(Category.CONFLICT, f"it is {state}: it cannot become {to}", INCONSISTENT)
            if to is State.IN_PROGRESS:
                return workitem_orders.claimed(task, transaction_uid, self._server.actor_for(self._principal))
            self._unlock(task, transaction_uid, NO_TRANSACTION, OTHER_TRANSACTION)
            return self._ended(task, to)

        self._change(uid, change, if_match)
        return next(iter(warnings), "")

    def request_cancellation(
        self, uid: str, asked: Model, if_match: str | None, is_told: Callable[[Json], bool]
    ) -> str:
        """Withdraw a work item as who placed it; return what to warn of, "" for nothing.

        One that a performer holds by a Transaction UID goes on: the performer is asked to cancel it.
        is_told   says whether the performer of a Task hears of it
        Raises CONFLICT for one that is completed, and for one whose performer nobody could tell.
        """
        warnings: list[str] = []

        def change(task: Json, state: State) -> Json | None:
            if state is State.CANCELED:
                warnings.append(ALREADY[state])
                return None
            if state is State.COMPLETED:
                raise RefusedError(Category.CONFLICT, "it is COMPLETED", IS_COMPLETED)
            if state is State.IN_PROGRESS and workitem_orders.is_locked(task):
                if not is_told(task):
                    raise RefusedError(Category.CONFLICT, "its performer is not subscribed to it", NO_CONTACT)
                moment = to_instant(self._server.clock())
                return with_extension(task, CANCEL_REQUEST, cancel_request(asked, self._principal.name, moment))
            return workitem_orders.withdrawn(task, asked)

        self._change(uid, change, if_match)
        return next(iter(warnings), "")

    def search(self, matching: Matching, names: list[str]) -> Found:
        """Return the work items that match, the newest first. Raises FORBIDDEN, INVALID."""
        wanted = 0 if matching.limit is None else matching.limit
        include = matching.include
        is_whole = include is ALL or any(tag.partition(".")[0] in (_INPUTS, _PERFORMED) for tag in include)
        known = self._known if is_whole else replace(self._known, has_images=False)
        items: list[Model] = []
        skipped, is_cut = 0, False
        for model in self._candidates(matching, known):
            if model is None:
                is_cut = True
                break
            if not all(holds(match, model, fuzzy=matching.fuzzy) for match in matching.matches):
                continue
            if skipped < matching.offset:
                skipped += 1
            elif len(items) < wanted:
                items.append(_returned(model, include))
            else:
                is_cut = True
                break
        keys = [f"Task/{workitem.task_id_of(text(each, 'SOPInstanceUID'))}" for each in items]
        self._server.audit.record(self._principal, Access.SEARCH, resources=keys, parameters=names)
        return Found(items, is_cut and wanted > 0)

    # ---- what all do

    def _candidates(self, matching: Matching, known: workitem.Known) -> Iterator[Model | None]:
        """Yield the work items that an index finds, at last None where not all were looked at."""
        clauses = _clauses(matching)
        if clauses is None:
            return
        ways = map(self._tasks, self._of_patients(matching) or [clauses])
        last = ""
        for number, each in enumerate(heapq.merge(*ways, key=_newest_first)):
            if number >= MOST_LOOKED_AT:
                yield None
                return
            if each.id != last and workitem.uid_of(each.id) is not None:
                yield workitem.dataset_of(each.json(), known)
            last = each.id

    def _tasks(self, clauses: tuple[Clause, ...]) -> Iterator[Resource]:
        """Yield the Tasks that an index finds, the newest first."""
        asked = Query("Task", clauses, count=PAGE, total="none")
        while True:
            page = self._repository.search(asked)
            yield from page.matches
            if page.next_cursor is None:
                return
            asked = replace(asked, cursor=page.next_cursor)

    def _of_patients(self, matching: Matching) -> list[tuple[Clause, ...]]:
        """Return the ways in which Patient IDs that are asked for may stand in a Task; none where an index is no help.

        They stand there themselves, or as an identifier of the Patient that it names. Nothing else is asked of the
        index: of two conditions on codes it would heed one, and that perhaps not the better.
        """
        asked = [each for each in matching.matches if each.tag == _PATIENT_ID and each.kind is MatchKind.ONE_OF]
        if not asked:
            return []
        states = Clause("status", "token", "", tuple(Token(None, str(each)) for each in STATES))
        numbers = tuple(Token(None, each) for each in asked[0].values)
        ways: list[tuple[Clause, ...]] = [(states, Clause("subject", "reference", "identifier", numbers))]
        try:
            query = Query("Patient", (Clause("identifier", "token", "", numbers),), count=MOST_PATIENTS, total="none")
            found = self._repository.search(query)
        except AppError as error:
            if error.category is not Category.FORBIDDEN:
                raise
            return ways  # who sees no Patients is told of none
        if found.next_cursor:
            return []
        named = tuple(Reference((each.key,)) for each in found.matches)
        return [*ways, (states, Clause("subject", "reference", "", named))] if named else ways

    def _read(self, uid: str) -> Resource:
        found = self._repository.read("Task", workitem.task_id_of(uid))
        if workitem.uid_of(found.id) != uid or workitem.state_of(found.json()) is None:
            raise AppError(Category.NOT_FOUND, "there is no such work item", where="workitem")
        return found

    def _change(self, uid: str, change: Callable[[Json, State], Json | None], if_match: str | None) -> None:
        """Write what `change` makes of a work item, None for nothing."""
        version = version_wanted(if_match)
        for left in reversed(range(MOST_TRIES)):
            found = self._read(uid)
            if version not in (None, found.version):
                message = f"the work item is at version {found.version}, not at version {version}"
                raise AppError(Category.PRECONDITION, message, where="If-Match")
            state = workitem.state_of(found.json())
            assert state is not None  # noqa: S101 -- `_read` has asked
            new = change(found.json(), state)
            if new is None:
                return
            self._check(new)
            try:
                made = self._repository.update(new, if_match=found.version)
            except AppError as error:
                if error.category is not Category.PRECONDITION or not left:
                    raise
                continue
            self._record(Access.UPDATE, made.key)
            return

    def _ended(self, task: Json, to: State) -> Json:
        if to is State.CANCELED:
            return workitem_orders.given_up(task, self._server.clock())
        try:
            return workitem_orders.completed(task)
        except AppError as error:
            raise RefusedError(error.category, error.message, INCONSISTENT) from None

    def _unlock(self, task: Json, transaction_uid: str, missing: str, other: str) -> None:
        """Return when a Transaction UID is that of the claim. Raises INVALID (400: PS3.18 11.6.3 and 11.7.3)."""
        if not transaction_uid:
            raise RefusedError(Category.INVALID, "the Transaction UID is missing", missing, "TransactionUID")
        if not workitem_orders.is_locked_by(task, transaction_uid):
            message = "the Transaction UID is not that under which the work item was claimed"
            raise RefusedError(Category.INVALID, message, other, "TransactionUID")

    def _check(self, task: Json) -> None:
        validate(task, "Task")
        self._server.conforms(task)

    def _record(self, access: Access, key: str) -> None:
        metered = Metered(Right.ORDER_PROCESSING, tasks=1) if access is Access.CREATE else NOTHING_MORE
        self._server.audit.record(self._principal, access, resources=[key], metered=metered)


# the state that a work item has to be in to become what is wanted; PS3.4 table CC.1.1-2
_NEXT = {
    State.IN_PROGRESS: State.SCHEDULED,
    State.COMPLETED: State.IN_PROGRESS,
    State.CANCELED: State.IN_PROGRESS,
}


@dataclass(frozen=True)
class Seen:
    """What the principal may see of images and patients.

    has_images   whether ImagingStudies are looked up: a search that does not return the images needs none of them
    """

    repository: Repository
    dicomweb_url: str
    has_images: bool = True

    def studies(self, parameter: str, value: str) -> list[Json]:
        """Return the ImagingStudies that a search parameter finds."""
        if not self.has_images:
            return []
        try:
            asked = clause("ImagingStudy", parameter, value)
            found = self.repository.search(Query("ImagingStudy", (asked,), count=10, total="none"))
        except AppError as error:
            if error.category not in (Category.FORBIDDEN, Category.INVALID):
                raise
            return []
        return [each.json() for each in found.matches]

    def patient(self, reference: str) -> Json | None:
        """Return the Patient that a reference names, None where it is not to be seen."""
        kind, _, identifier = reference.partition("/")
        if kind != "Patient":
            return None
        try:
            return self.repository.read("Patient", identifier).json()
        except AppError as error:
            if error.category not in (Category.FORBIDDEN, Category.NOT_FOUND, Category.GONE, Category.INVALID):
                raise
            return None

    def address(self, study_uid: str, series_uid: str) -> str:
        """Return the URL by which WADO-RS gives a series."""
        return f"{self.dicomweb_url}/studies/{study_uid}/series/{series_uid}"


def _newest_first(task: Resource) -> tuple[float, str]:
    """Return the key of the order in which searches give Tasks."""
    assert task.created is not None  # noqa: S101 -- every resource that is stored has it
    return -task.created.timestamp(), task.id


def _clauses(matching: Matching) -> tuple[Clause, ...] | None:
    """Return what an index can say of the conditions, no less than they let through; None where nothing can match."""
    wanted = {match.tag: match.values for match in matching.matches if match.kind is MatchKind.ONE_OF}
    states = wanted.get(tag_of("ProcedureStepState"), tuple(State))
    statuses = [status for status, state in STATES.items() if state in states]
    priorities = wanted.get(tag_of("ScheduledProcedureStepPriority"))
    codes = {
        # search parameter -> codes
        "status": statuses,
        "priority": priorities and [name for name, told in _PRIORITIES if told in priorities],
        "performer": wanted.get(f"{tag_of('ScheduledStationNameCodeSequence')}.{tag_of('CodeValue')}"),
        "code": wanted.get(f"{tag_of('ScheduledWorkitemCodeSequence')}.{tag_of('CodeValue')}"),
        "_id": _ids(wanted.get(tag_of("SOPInstanceUID"))),
    }
    told = {name: values for name, values in codes.items() if values is not None}
    if not all(told.values()):
        return None
    return tuple(
        Clause(name, "token", "", tuple(Token(None, str(each)) for each in values)) for name, values in told.items()
    )


def _ids(uids: tuple[str, ...] | None) -> list[str] | None:
    return None if uids is None else [workitem.task_id_of(uid) for uid in uids]


# what a Task may say of a priority, LOW and MEDIUM being one in FHIR
_PRIORITIES = (*workitem.PRIORITIES.items(), ("routine", "LOW"))


def _returned(model: Mapping[str, Any], include: frozenset[str]) -> Model:
    if include is ALL:
        return dict(model)
    tops = {tag.partition(".")[0] for tag in include}
    return {tag: each for tag, each in model.items() if tag in RETURNED or tag in tops}
