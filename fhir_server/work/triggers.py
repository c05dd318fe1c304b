"""Rules at work: when images have come and their study has become quiet, what rules say of them is ordered, once.

The archive remembers that images came until somebody has looked; so a crash only makes somebody look again. The id of
an order follows from rule, action and the content of the series, so looking again orders nothing twice. A rule acts
with its owner's rights and not with the server's. What processing made here triggers nothing: no rule feeds another.
"""

import hashlib
import logging
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

import orjson
from pydicom.dataset import Dataset

from fhir_server import delivery
from fhir_server.access.audit import Access, ordered
from fhir_server.access.contracts import Right
from fhir_server.access.policy import require, sees_as_agreed
from fhir_server.access.principals import Principal
from fhir_server.model import task as tasks
from fhir_server.model.criteria import Clause, Text, Token
from fhir_server.model.query import Query
from fhir_server.model.rule import OWNER, PROFILE, Action, Code, Rule, Series, is_rule, rule_of
from fhir_server.model.task import CODES, Json, Kind
from fhir_server.projection import imaging_study_id
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import handlers
from fhir_server.work.orders import CHOICES_OF_IMAGES, CODE, algorithm_named, algorithm_of, order_of
from fhir_server.work.recipients import admit_recipient
from fhir_server.work.selection import Chosen, is_made_here
from imaging.algorithm import Takes
from imaging.archive import Arrival, Instance
from imaging.errors import AppError, Category

log = logging.getLogger(__name__)

MOST_RULES = 100  # of one subscriber
AT_A_TIME = 100  # studies looked at in one round
_PAGE = 500  # rules fetched at a time
REST_S = 10.0  # before a study is looked at again at which that failed
# The server's trouble, which passes; what else keeps a rule from acting on a series is left, not tried again.
_TRIED_AGAIN = frozenset({Category.BUSY, Category.FAULT, Category.PRECONDITION})


def admit(server: Backing, principal: Principal, plan: Json, *, is_new: bool) -> None:
    """Raise what keeps a principal from storing a PlanDefinition: rights, a rule that says what cannot be done."""
    if not is_rule(plan):
        require(principal, Right.DEFINE, f"store a PlanDefinition without the profile {PROFILE}")
        return
    require(principal, Right.ORDER_PROCESSING, "store a processing rule")
    if not sees_as_agreed(principal, "ImagingStudy"):
        message = "a rule sees every image that the contract allows; the scopes of this token do not"
        raise AppError(Category.FORBIDDEN, message, where="PlanDefinition")
    if is_new and count_of(server, principal.subscriber) >= MOST_RULES:
        message = f"you have {MOST_RULES} rules, which is all that there may be; delete or change one"
        raise AppError(Category.TOO_LARGE, message, where="PlanDefinition")
    rule = rule_of(plan)
    check(rule, handlers.get(CODE).kind)
    for reference in {each for action in rule.actions for each in order_of(_task(rule, action, [])).deliver_to}:
        admit_recipient(server, principal, reference)


def check(rule: Rule, kind: Kind) -> None:
    """Raise INVALID for a rule that orders what cannot be done."""
    for action in rule.actions:
        try:
            task = _task(rule, action, [delivery.value("series", "valueId", "1.2.3")])
            tasks.check_inputs(task, kind)
            chosen = CHOICES_OF_IMAGES & {tasks.name_of(each) for each in action.inputs}
            if chosen:
                raise AppError(Category.INVALID, f"the trigger chooses the images, not an input {min(chosen)!r}")
            if algorithm_named(*algorithm_of(task)).takes is Takes.PAIR:
                raise AppError(Category.INVALID, "the algorithm takes two series; a rule acts on one at a time")
        except AppError as error:
            where = f"action[{action.number}]"
            told = error.message if (error.where or "").startswith("Task") else str(error)  # there is no Task yet
            raise AppError(error.category, f"{where}: {told}", where=f"PlanDefinition.{where}") from error


def rules_of(server: Backing, *clauses: Clause) -> Iterator[Rule]:
    """Yield the rules in force now; one that is not understood any more is told in the log."""
    query = Query("PlanDefinition", (_HAS_PROFILE, _IS_ACTIVE, *clauses), count=_PAGE)
    now = server.clock()
    while True:
        page = server.own.search(query)
        for each in page.matches:
            try:
                rule = rule_of(each.json())
            except AppError as error:
                log.warning("a rule is not understood", extra={"rule": each.key, "reason": str(error)})
                continue
            if rule.start <= now < rule.end and rule.owner:
                yield rule
        if not page.next_cursor:
            return
        query = replace(query, cursor=page.next_cursor)


def rule_named(server: Backing, canonical: str, owner: str) -> Rule:
    """Return a subscriber's rule by its url, with or without version. Raises INVALID without one, or with several."""
    url = Clause("url", "uri", "", (Text(canonical.partition("|")[0]),))
    found = [
        each
        for each in rules_of(server, url, owned_by(owner))
        if canonical in (each.canonical, each.canonical.partition("|")[0])
    ]
    if len(found) != 1:
        reason = (
            "you have several active rules of this url; name the version" if found else "you have no such active rule"
        )
        raise AppError(Category.INVALID, reason, where="Task.instantiatesCanonical")
    return found[0]


def owned_by(owner: str) -> Clause:
    """Return the clause of the rules of a subscriber."""
    return Clause("_tag", "token", "", (Token(OWNER, owner),))


_HAS_PROFILE = Clause("_profile", "uri", "", (Text(PROFILE),))
_IS_ACTIVE = Clause("status", "token", "", (Token(None, "active"),))


def count_of(server: Backing, owner: str) -> int:
    """Return how many rules a subscriber has, drafts and retired ones included."""
    return server.own.search(Query("PlanDefinition", (_HAS_PROFILE, owned_by(owner)), count=0)).total or 0


class Triggers:
    """Looks at studies to which images came, and places the orders of rules."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._quiet_s: float = server.config["work.rules_quiet_s"]

    def round(self, stopping: threading.Event) -> float | None:
        """Look at every study that has been quiet for a while; return in how many seconds another may be, if any."""
        arrivals = self._server.archive.arrivals(AT_A_TIME)
        if not arrivals:
            return None
        now, quiet = self._server.clock(), timedelta(seconds=self._quiet_s)
        due = [each for each in arrivals if each.at + quiet <= now]
        rests = bool(due) and not self._look_at_all(due, stopping)
        waiting = [(each.at + quiet - now).total_seconds() for each in arrivals if each.at + quiet > now]
        return min([*(max(0.05, each) for each in waiting[:1]), *([REST_S] if rests else [])], default=None)

    def _look_at_all(self, due: list[Arrival], stopping: threading.Event) -> bool:
        """Look at these studies; say whether that was possible with every one."""
        rules, failed = list(rules_of(self._server)), 0
        # Several workers see the same list; in the same order they would do the same at the same time.
        random.shuffle(due)
        for each in due:
            if stopping.is_set():
                break
            # Whatever is wrong with one study, the others have to go on.
            try:
                self.look(each.study_uid, rules)
                self._server.archive.looked_at(each)
            except Exception:
                log.exception("rules cannot look at a study; it is tried again", extra={"study_uid": each.study_uid})
                failed += 1
        return not failed

    def look(self, study_uid: str, rules: Sequence[Rule]) -> list[str]:
        """Place what rules order for a study, unless it was before; return references of the new Tasks."""
        placed = []
        for rule, action, found in meant(self._server, study_uid, rules):
            uid = found.series.uid
            identifier = delivery.following_id({"id": rule.id}, "rule", action.digest, uid, found.content)
            try:
                placed += self._place(rule, action, uid, identifier)
            except AppError as error:
                if error.category in _TRIED_AGAIN:
                    raise
                told = {"rule": rule.id, "action": action.number, "series_uid": uid, "reason": str(error)}
                log.info("a rule does not act on a series", extra=told)
        return placed

    def _place(self, rule: Rule, action: Action, series_uid: str, identifier: str) -> list[str]:
        if self._was_placed(identifier):
            return []
        principal = self._server.principals.acting_for(rule.owner)
        require(principal, Right.ORDER_PROCESSING, "have images processed by a rule")
        task = _task(rule, action, [delivery.value("series", "valueId", series_uid)])
        try:
            made = self._server.repository_for(principal).create(task, id=identifier)
        except AppError:
            if self._was_placed(identifier):  # by another worker at the same moment
                return []
            raise
        self._server.audit.record(principal, Access.CREATE, resources=[made.key], metered=ordered(task))
        return [made.key]

    def _was_placed(self, identifier: str) -> bool:
        try:
            self._server.own.read("Task", identifier)
        except AppError as error:
            if error.category is Category.NOT_FOUND:
                return False
            if error.category is not Category.GONE:
                raise
        return True  # also one that its requester has deleted


class Found(NamedTuple):
    """A series as rules see it, with its images."""

    series: Series
    instances: tuple[Instance, ...]

    @property
    def content(self) -> str:
        """Return a digest of the received images: another one for every image more or less."""
        digests = sorted(each.sha256_received for each in self.instances)
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def meant(server: Backing, study_uid: str, rules: Sequence[Rule]) -> Iterator[tuple[Rule, Action, Found]]:
    """Yield what rules would do with a study. What processing made here is left out, so that no rule feeds another."""
    for found in _series_of(server, study_uid) if rules else ():
        acting = [(rule, action) for rule in rules for action in rule.actions if action.acts_on(found.series)]
        if acting and not _is_result(server, found.instances[0]):
            yield from ((rule, action, found) for rule, action in acting)


def orders_of(server: Backing, task: Json, rule: Rule, chosen: Sequence[Chosen]) -> list[Json]:
    """Return the Tasks, parts of one that names a rule, that the rule orders for chosen images."""
    made = []
    for study_uid in dict.fromkeys(each.study_uid for each in chosen):
        wanted = {each.series_uid: each for each in chosen if each.study_uid == study_uid}
        for _, action, found in meant(server, study_uid, [rule]):
            if found.series.uid in wanted:
                images = _images(wanted[found.series.uid], found)
                part = delivery.following(task, CODE, images, action.digest, found.series.uid)
                whole = _task(rule, action, images)
                own = {"instantiatesCanonical": rule.canonical, "input": whole["input"]}
                made.append({**part, **own, "priority": task.get("priority", action.priority)})
    return made


def _images(chosen: Chosen, found: Found) -> list[Json]:
    if len(chosen.instances) == len(found.instances):
        return [delivery.value("series", "valueId", chosen.series_uid)]
    return [delivery.value("instance", "valueId", each.sop_uid) for each in chosen.instances]


def _task(rule: Rule, action: Action, images: Iterable[Json]) -> Json:
    return {
        "resourceType": "Task",
        "instantiatesCanonical": rule.canonical,
        "status": "requested",
        "intent": "order",
        "priority": action.priority,
        "code": {"coding": [{"system": CODES, "code": CODE}]},
        "input": [delivery.value("algorithm", "valueCanonical", action.algorithm), *action.inputs, *images],
    }


def _series_of(server: Backing, study_uid: str) -> Iterator[Found]:
    try:
        server.studies.refresh(study_uid)
        study = server.own.read("ImagingStudy", imaging_study_id(study_uid)).json()
        instances = server.archive.instances(study_uid)
    except AppError as error:
        if error.category in (Category.NOT_FOUND, Category.GONE):
            return  # deleted meanwhile
        raise
    for entry in study.get("series", []):
        own = tuple(each for each in instances if each.series_uid == entry["uid"])
        if own:
            yield Found(_described(entry, own), own)


def _described(entry: Json, instances: Sequence[Instance]) -> Series:
    site = entry.get("bodySite", {})
    return Series(
        uid=entry["uid"],
        modality=Code(entry["modality"].get("system", ""), entry["modality"]["code"]),
        body_site=Code(site.get("system", ""), site["code"]) if "code" in site else None,
        description=entry.get("description", ""),
        registered_by=frozenset(each.registered_by for each in instances),
    )


def _is_result(server: Backing, instance: Instance) -> bool:
    (_, json), *_ = server.archive.metadata(instance.study_uid, instance.series_uid, instance.sop_uid)
    return is_made_here([Dataset.from_json(orjson.loads(json), bulk_data_uri_handler=lambda *_: None)])
