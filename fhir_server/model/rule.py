"""Processing rules: PlanDefinitions that say which algorithm works on which series when images have come.

Pure. A rule is a PlanDefinition of the type `eca-rule` that claims `PROFILE`. Each action has one trigger (`data-added`
on ImagingStudy), whose DataRequirement names the series: `codeFilter` on modality and body site, patterns of the
description, who registered the images. The action's `definitionCanonical` is the algorithm, `PARAMETER` extensions are
inputs of the Task. What is not understood is refused, so that no rule acts on more than its author meant.
Source: FHIR R4 PlanDefinition, TriggerDefinition, DataRequirement.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from fhir_server.model import json
from fhir_server.model.dates import EARLIEST, LATEST, interval
from imaging.errors import AppError, Category
from imaging.wildcards import matches

Json = dict[str, Any]
Plan = Mapping[str, Any]

PROFILE = "urn:fhir-imaging:profile:processing-rule"
OWNER = "urn:fhir-imaging:owner"  # system of the tag that the server writes: "Organization/...", with whose rights
TASK_INPUT = "urn:fhir-imaging:extension:task-input"  # on an action: name, value[x]
PATTERN = "urn:fhir-imaging:extension:pattern"  # on a codeFilter: * for anything, ? for one character
REGISTERED_BY = "urn:fhir-imaging:extension:registered-by"  # on a DataRequirement: an Organization

MOST_ACTIONS = 20
MOST_CODES = 50  # of one filter
MOST_PATTERNS = 20
MOST_INPUTS = 200
LONGEST_PATTERN = 64  # characters, as many as a Series Description has

_ECA_RULE = ("http://terminology.hl7.org/CodeSystem/plan-definition-type", "eca-rule")
_SAID_ELSEWHERE = frozenset({"goal", "library", "subjectCodeableConcept", "subjectReference"})
_OF_ACTION = frozenset(
    {"id", "prefix", "title", "description", "textEquivalent", "priority", "code", "reason", "documentation", "trigger",
     "definitionCanonical", "extension"}
)  # fmt: skip
_WORDS = frozenset({"id", "prefix", "title", "description", "textEquivalent", "code", "reason", "documentation"})
_CODED, _DESCRIBED = ("series.modality", "series.bodySite"), "series.description"


class Code(NamedTuple):
    """A code that a series may have; without a system, in any."""

    system: str
    code: str


@dataclass(frozen=True, slots=True)
class Series:
    """What rules look at. `registered_by` are references, "Organization/..."."""

    uid: str
    modality: Code
    body_site: Code | None
    description: str
    registered_by: frozenset[str]


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a rule: what it acts on, and what it orders. An empty condition holds for every series.

    digest   equal for actions that act alike, whatever their words
    """

    number: int
    codes: Mapping[str, tuple[Code, ...]]  # by path
    patterns: tuple[str, ...]
    registered_by: frozenset[str]
    algorithm: str  # canonical
    inputs: tuple[Json, ...]  # as Task.input
    priority: str
    digest: str

    def acts_on(self, series: Series) -> bool:
        """Say whether the series is one that the action is meant for."""
        described = series.description.casefold()
        found = {"series.modality": series.modality, "series.bodySite": series.body_site}
        return (
            all(any(_is_code(code, found[path]) for code in codes) for path, codes in self.codes.items())
            and (not self.patterns or any(matches(each.casefold(), described) for each in self.patterns))
            and (not self.registered_by or bool(self.registered_by & series.registered_by))
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that may be acted on: with the rights of `owner`, "Organization/...", from `start` until before `end`."""

    id: str
    canonical: str  # url, with the version where it has one
    owner: str
    start: datetime
    end: datetime
    actions: tuple[Action, ...]


def is_rule(plan: Plan) -> bool:
    """Say whether a PlanDefinition claims to be a processing rule."""
    return PROFILE in plan.get("meta", {}).get("profile", [])


def owner_of(plan: Plan) -> str:
    """Return whose rule it is, "" when nobody's."""
    tags = plan.get("meta", {}).get("tag", [])
    return next((str(each.get("code", "")) for each in tags if each.get("system") == OWNER), "")


def owned(plan: Plan, owner: str) -> Json:
    """Return the PlanDefinition as the rule of a subscriber, "" for nobody's; what it says itself does not count."""
    meta = dict(plan.get("meta", {}))
    tags = [each for each in meta.pop("tag", []) if each.get("system") != OWNER]
    tags += [{"system": OWNER, "code": owner}] if owner else []
    meta |= {"tag": tags} if tags else {}
    rest = {name: value for name, value in plan.items() if name != "meta"}
    return {**rest, "meta": meta} if meta else rest


def rule_of(plan: Plan) -> Rule:
    """Return what a PlanDefinition orders. Raises INVALID, saying where, for what is no rule or is not understood."""
    if "url" not in plan:
        raise _invalid("a rule has a url, by which orders name it", "url")
    codings = [(each.get("system"), each.get("code")) for each in plan.get("type", {}).get("coding", [])]
    if _ECA_RULE not in codings:
        raise _invalid(f"a rule has the type {_ECA_RULE[1]} of {_ECA_RULE[0]}", "type")
    _refuse(plan, _SAID_ELSEWHERE & plan.keys(), "")
    actions = plan.get("action", [])
    if not 1 <= len(actions) <= MOST_ACTIONS:
        raise _invalid(f"a rule has 1 to {MOST_ACTIONS} actions", "action")
    period = plan.get("effectivePeriod", {})
    version = f"|{plan['version']}" if "version" in plan else ""
    return Rule(
        id=str(plan.get("id", "")),
        canonical=f"{plan['url']}{version}",
        owner=owner_of(plan),
        start=interval(period["start"]).low if "start" in period else EARLIEST,
        end=interval(period["end"]).high if "end" in period else LATEST,
        actions=tuple(_action(each, number) for number, each in enumerate(actions)),
    )


def _action(action: Plan, number: int) -> Action:
    where = f"action[{number}]"
    _refuse(action, action.keys() - _OF_ACTION, where)
    if "definitionCanonical" not in action:
        raise _invalid("an action names the algorithm", f"{where}.definitionCanonical")
    required = _requirement(action, where)
    codes: dict[str, tuple[Code, ...]] = {}
    patterns: tuple[str, ...] = ()
    for position, each in enumerate(required.get("codeFilter", [])):
        place = f"{where}.trigger[0].data[0].codeFilter[{position}]"
        path = each.get("path")
        if path in codes or (path == _DESCRIBED and patterns):
            raise _invalid(f"there is one filter for each path; write all that {path} may be in it", place)
        if path in _CODED:
            codes[path] = _codes(each, place)
        elif path == _DESCRIBED:
            patterns = _patterns(each, place)
        else:
            raise _invalid(f"the path has to be one of {', '.join((*_CODED, _DESCRIBED))}", f"{place}.path")
    return Action(
        number=number,
        codes=codes,
        patterns=patterns,
        registered_by=frozenset(_registered_by(required, where)),
        algorithm=action["definitionCanonical"],
        inputs=tuple(_inputs(action, where)),
        priority=action.get("priority", "routine"),
        digest=_digest(action),
    )


def _requirement(action: Plan, where: str) -> Plan:
    triggers = action.get("trigger", [])
    if len(triggers) != 1 or triggers[0].get("type") != "data-added" or len(triggers[0].get("data", [])) != 1:
        message = "an action has one trigger, of the type data-added with one data requirement"
        raise _invalid(message, f"{where}.trigger")
    _refuse(triggers[0], triggers[0].keys() - {"id", "type", "data"}, f"{where}.trigger[0]")
    required: Plan = triggers[0]["data"][0]
    place = f"{where}.trigger[0].data[0]"
    if required.get("type") != "ImagingStudy":
        raise _invalid("the data that are added are ImagingStudy", f"{place}.type")
    _refuse(required, required.keys() - {"id", "type", "codeFilter", "extension"}, place)
    return required


def _codes(given: Plan, where: str) -> tuple[Code, ...]:
    _refuse(given, given.keys() - {"id", "path", "code"}, where)
    codes = given.get("code", [])
    if not 1 <= len(codes) <= MOST_CODES or not all("code" in each for each in codes):
        raise _invalid(f"the filter has 1 to {MOST_CODES} codings with a code", f"{where}.code")
    return tuple(Code(each.get("system", ""), each["code"]) for each in codes)


def _patterns(given: Plan, where: str) -> tuple[str, ...]:
    _refuse(given, given.keys() - {"id", "path", "extension"}, where)
    found = [each.get("valueString") for each in _extensions(given, PATTERN, where)]
    if not 1 <= len(found) <= MOST_PATTERNS:
        raise _invalid(f"the filter has 1 to {MOST_PATTERNS} extensions {PATTERN}", f"{where}.extension")
    for each in found:
        if not isinstance(each, str) or len(each) > LONGEST_PATTERN:
            message = f"a pattern is a valueString of up to {LONGEST_PATTERN} characters"
            raise _invalid(message, f"{where}.extension")
    return tuple(str(each) for each in found)


def _registered_by(required: Plan, where: str) -> Iterator[str]:
    place = f"{where}.trigger[0].data[0]"
    found = _extensions(required, REGISTERED_BY, place)
    if len(found) > MOST_CODES:
        raise _invalid(f"at most {MOST_CODES} organisations", f"{place}.extension")
    for each in found:
        reference = each.get("valueReference", {}).get("reference", "")
        if not reference.startswith("Organization/"):
            raise _invalid("who registered the images is a reference to an Organization", f"{place}.extension")
        yield reference


def _inputs(action: Plan, where: str) -> Iterator[Json]:
    found = _extensions(action, TASK_INPUT, where)
    if len(found) > MOST_INPUTS:
        raise _invalid(f"at most {MOST_INPUTS} inputs", f"{where}.extension")
    for each in found:
        parts = {part.get("url"): part for part in each.get("extension", [])}
        name = parts.get("name", {}).get("valueCode")
        values = {key: content for key, content in parts.get("value", {}).items() if key.startswith("value")}
        if not name or len(values) != 1 or parts.keys() != {"name", "value"}:
            message = f"the extension {TASK_INPUT} has a name (valueCode) and a value"
            raise _invalid(message, f"{where}.extension")
        yield {"type": {"coding": [{"code": name}]}, **values}


def _extensions(holder: Plan, url: str, where: str) -> Sequence[Plan]:
    found: Sequence[Plan] = holder.get("extension", [])
    unknown = [each.get("url") for each in found if each.get("url") != url]
    if unknown:
        raise _invalid(f"only the extension {url} is understood here", f"{where}.extension")
    return found


def _is_code(wanted: Code, found: Code | None) -> bool:
    return found is not None and wanted.code == found.code and wanted.system in ("", found.system)


def _digest(action: Plan) -> str:
    acting = {name: value for name, value in action.items() if name not in _WORDS}
    return hashlib.sha256(json.dumps(acting)).hexdigest()


def _refuse(holder: Plan, names: Any, where: str) -> None:
    if names:
        name = sorted(names)[0]
        place = f"{where}.{name}" if where else name
        raise _invalid("a processing rule cannot say this; leave it out, so that it means what it says", place)


def _invalid(message: str, where: str) -> AppError:
    return AppError(Category.INVALID, message, where=f"PlanDefinition.{where}")
