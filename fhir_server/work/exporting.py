"""The pages of an export, in the order of a plan that follows from what was asked: an export goes on where it was left.

Lines are the stored bytes. Memory holds a block of resources, a page, and the references of types that explain others.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from fhir_server.model import json
from fhir_server.model.criteria import Clause, Limits, Reference
from fhir_server.model.dates import interval
from fhir_server.model.outcome import Issue, outcome
from fhir_server.model.summary import subset
from fhir_server.rest.exporting import Associated, Export, Level, patients_of
from fhir_server.store.documents import Resource
from fhir_server.store.exports import Exports, File, Page, Part, Place, State
from fhir_server.store.filters import Act
from fhir_server.store.snapshot import Deletion, Snapshot, Wanted
from imaging.errors import AppError, Category

PAGE_LINES = 5_000
PAGE_BYTES = 4 << 20
PAGE_S = 30.0  # a place is kept this often, though nothing was found
TOGETHER = 200  # resources that are looked at together
ENTRIES = 100  # deletions in one Bundle
MOST_REFERRED = 100_000  # resources that come because others refer to them
_BINARY = b'"url":"Binary/'  # in canonical JSON, nowhere but at an element `url`

Lines = Iterator[tuple[str, bytes | None]]  # (place behind it, line); None: nothing, but that far it was looked


@dataclass(frozen=True, slots=True)
class FileLimits:
    """The largest file in bytes before compression, and how many there may be."""

    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class _Step:
    part: Part
    type: str
    lines: Callable[[str], Lines]  # behind a place


class Exporter:
    """Makes the files of one export, as its owner may read."""

    def __init__(
        self, exports: Exports, id: str, made: Export, snapshot: Snapshot, *, base_url: str, limits: Limits,
        file_limits: FileLimits,
    ) -> None:  # fmt: skip
        self._exports = exports
        self._id = id
        self._made = made
        self._snapshot = snapshot
        self._base_url = base_url
        self._limits = limits
        self._file_limits = file_limits
        self._patients = self._patients_meant()
        self._supporting = made.supporting_types()
        self._reference = _references(self._supporting, base_url)
        self._referred: set[str] = set()

    def run(self, until: float, told: Callable[[int, str], None]) -> bool:
        """Make pages until all is done, which is True, or until a moment of `time.monotonic`.

        told   percent, and what is being done
        """
        state = self._exports.state(self._id)
        self._referred = set(state.referred)
        pages = _Pages(self._exports, self._id, state, self._file_limits)
        steps = self._steps()
        for number, step in enumerate(steps):
            if number < state.place.step:
                continue
            after = state.place.after if number == state.place.step else ""
            for page in self._pages(number, step, after):
                pages.write(page)
                told(100 * number // len(steps), f"{step.type}: {pages.written} resources written")
                if time.monotonic() > until:
                    return False
        return True

    def _pages(self, number: int, step: _Step, after: str) -> Iterator[Page]:
        lines: list[bytes] = []
        size, place, begun = 0, after, time.monotonic()
        known = set(self._referred)
        for place, line in step.lines(after):
            if line is not None:
                lines.append(line)
                size += len(line)
            if len(lines) >= PAGE_LINES or size >= PAGE_BYTES or time.monotonic() - begun > PAGE_S:
                yield Page(step.part, step.type, 0, lines, Place(number, place), sorted(self._referred - known))
                lines, size, begun, known = [], 0, time.monotonic(), set(self._referred)
        if lines:
            yield Page(step.part, step.type, 0, lines, Place(number, place), sorted(self._referred - known))

    # ---- the plan

    def _steps(self) -> list[_Step]:
        made = self._made
        kinds = made.plan_types()
        plain = [kind for kind in kinds if kind != "Provenance"]
        steps = [_Step(Part.ERROR, "OperationOutcome", self._told_first)]
        steps += [_Step(Part.OUTPUT, kind, self._of_type(kind)) for kind in plain]
        steps += [_Step(Part.OUTPUT, kind, self._of_referred(kind)) for kind in self._supporting]
        if "Provenance" in kinds:
            steps.append(_Step(Part.OUTPUT, "Provenance", self._of_provenance))
        if made.since:
            steps += [_Step(Part.DELETED, "Bundle", self._of_deleted(kind)) for kind in kinds]
        return [*steps, _Step(Part.ERROR, "OperationOutcome", self._told_last)]

    def _told_first(self, after: str) -> Lines:
        """What was left out, and what may not be read any more."""
        if after:
            return
        issues = list(self._made.left_out)
        for kind in self._made.types or ():
            if not self._snapshot.may(Act.READ if kind in self._supporting else Act.SEARCH, kind):
                text = f"{kind} resources are left out: they may not be read any more"
                issues.append(Issue("forbidden", text, severity="error"))
        for each in issues:
            yield "told", json.dumps(outcome([each]))

    def _told_last(self, after: str) -> Lines:
        if not after and len(self._referred) >= MOST_REFERRED:
            text = f"of what the resources refer to, {MOST_REFERRED} are included and no more"
            yield "told", json.dumps(outcome([Issue("too-costly", text, severity="warning")]))

    def _of_type(self, kind: str) -> Callable[[str], Lines]:
        def lines(after: str) -> Lines:
            if self._snapshot.may(Act.SEARCH, kind):
                for each in self._snapshot.resources(kind, self._wanted(kind), after):
                    yield each.key, self._line(each)

        return lines

    def _of_referred(self, kind: str) -> Callable[[str], Lines]:
        def lines(after: str) -> Lines:
            keys = sorted(key for key in self._referred if key.startswith(f"{kind}/") and key > after)
            for some in _batches(keys if self._snapshot.may(Act.READ, kind) else (), TOGETHER):
                for each in self._snapshot.these(kind, some, self._explaining(kind)):
                    yield each.key, self._line(each)
                yield some[-1], None

        return lines

    def _of_provenance(self, after: str) -> Lines:
        if not self._snapshot.may(Act.SEARCH, "Provenance"):
            return
        made = self._made
        wanted = replace(self._wanted("Provenance"), owners=None, owned=None)
        # What is associated comes with what it is about, whenever it was written itself.
        wanted = replace(wanted, since=None) if made.associated else wanted
        is_any = made.level is Level.SYSTEM and made.associated is None
        for some in _batches(self._snapshot.resources("Provenance", wanted, after), TOGETHER):
            kept = {each.key for each in some} if is_any else self._about_what_is_exported(some)
            for each in some:
                yield each.key, self._line(each) if each.key in kept else None

    def _of_deleted(self, kind: str) -> Callable[[str], Lines]:
        def lines(after: str) -> Lines:
            if self._snapshot.may(Act.SEARCH, kind):
                for some in _batches(self._snapshot.deletions(kind, self._wanted(kind), after), ENTRIES):
                    yield some[-1].place, _bundle(some)

        return lines

    # ---- what is wanted of a type

    def _wanted(self, kind: str) -> Wanted:
        return self._made.wanted(kind, self._patients, self._base_url, self._limits)

    def _explaining(self, kind: str) -> Wanted:
        """Whenever they were changed: who got the rest before may not have these."""
        alternatives = self._wanted(kind).criteria
        return Wanted(criteria=alternatives, owned=False)

    def _patients_meant(self) -> frozenset[str] | None:
        made = self._made
        members = None
        if made.level is Level.GROUP:
            members = patients_of(made.group, self._group, self._snapshot.moment, self._base_url)
        if made.patients is None:
            return members
        named = frozenset(made.patients)
        return named if members is None else named & members

    def _group(self, identifier: str) -> dict[str, Any]:
        found = self._snapshot.these("Group", [f"Group/{identifier}"], Wanted())
        if not found:
            raise AppError(Category.NOT_FOUND, "the group is not there", where="Group")
        return found[0].json()

    # ---- provenance

    def _about_what_is_exported(self, some: Sequence[Resource]) -> set[str]:
        targets = {each.key: _targets(each, self._base_url) for each in some}
        met = self._exported({target for mine in targets.values() for target in mine})
        about = {key: mine & met for key, mine in targets.items()}
        if self._made.associated is not Associated.LATEST_PROVENANCE:
            return {key for key, mine in about.items() if mine}
        latest = self._latest({target for mine in about.values() for target in mine})
        return {key for key, mine in about.items() if any(latest.get(target) == key for target in mine)}

    def _exported(self, targets: set[str]) -> set[str]:
        """Return those of the references that are exported, or that belong to the patients where none is associated."""
        met: set[str] = set()
        kinds = set(self._made.plan_types()) - {"Provenance"}
        for kind in {target.partition("/")[0] for target in targets}:
            mine = [target for target in targets if target.startswith(f"{kind}/")]
            if self._made.associated and kind in kinds:
                wanted = self._wanted(kind)
            elif self._made.associated:
                met |= {target for target in mine if kind in self._supporting and target in self._referred}
                continue
            else:
                wanted = replace(self._wanted("Patient"), criteria=(), since=None)
            if self._snapshot.may(Act.READ, kind):
                met |= {each.key for each in self._snapshot.these(kind, mine, wanted)}
        return met

    def _latest(self, targets: set[str]) -> dict[str, str]:
        """Return of each target the Provenance that was recorded last."""
        clause = Clause("target", "reference", "", (Reference(tuple(sorted(targets))),))
        found: dict[str, tuple[datetime, str]] = {}
        if targets:
            for each in self._snapshot.resources("Provenance", Wanted(criteria=((clause,),))):
                recorded = interval(each.json()["recorded"]).low
                for target in _targets(each, self._base_url) & targets:
                    found[target] = max(found.get(target, (recorded, "")), (recorded, each.key))
        return {target: key for target, (_, key) in found.items()}

    # ---- lines

    def _line(self, resource: Resource) -> bytes:
        """Return the stored bytes; addresses of attachments kept here become absolute, as the specification demands."""
        body = resource.body
        names = self._made.elements_of(resource.type)
        if names:
            body = json.dumps(subset(resource.json(), names=names))
        if self._reference and len(self._referred) < MOST_REFERRED:
            self._referred |= {f"{kind.decode()}/{id.decode()}" for kind, id in self._reference.findall(body)}
        if _BINARY in body:
            body = body.replace(_BINARY, f'"url":"{self._base_url}/Binary/'.encode())
        return body


class _Pages:
    """Puts pages into files: of one type each, and not too large."""

    def __init__(self, exports: Exports, id: str, state: State, limits: FileLimits) -> None:
        self._exports, self._id, self._limits = exports, id, limits
        self._number = state.pages
        self._file: File | None = state.files[-1] if state.files else None
        self.written = sum(each.count for each in state.files if each.part is Part.OUTPUT)

    def write(self, page: Page) -> None:
        """Write a page into the file that it fits into. Raises TOO_LARGE beyond the number of files."""
        size = sum(len(line) + 1 for line in page.lines)
        file = self._file
        fits = file and (file.part, file.type) == (page.part, page.type) and file.bytes + size <= self._limits.bytes
        if file is None or not fits:
            file = File(file.number + 1 if file else 1, page.part, page.type, 0, 0)
        if file.number > self._limits.files:
            message = (
                f"the export needs more than {self._limits.files} files: narrow it by _type, _since or _typeFilter"
            )
            raise AppError(Category.TOO_LARGE, message, where="bulk.files")
        self._exports.write(self._id, self._number, replace(page, file=file.number))
        self._number += 1
        self._file = replace(file, count=file.count + len(page.lines), bytes=file.bytes + size)
        self.written += len(page.lines) if page.part is Part.OUTPUT else 0


def _references(kinds: Sequence[str], base_url: str) -> "re.Pattern[bytes] | None":
    """Return what finds references to resources of the types in canonical JSON."""
    if not kinds:
        return None
    base = re.escape(f"{base_url}/")
    pattern = rf'"reference":"(?:{base})?({"|".join(kinds)})/([A-Za-z0-9\-.]{{1,64}})["/]'
    return re.compile(pattern.encode())


def _targets(provenance: Resource, base_url: str) -> set[str]:
    """Return the references of what a Provenance is about, without versions."""
    texts = (each.get("reference", "") for each in provenance.json().get("target", ()))
    return {text.removeprefix(f"{base_url}/").partition("/_history/")[0] for text in texts if text}


def _bundle(deleted: Iterable[Deletion]) -> bytes:
    entries = [{"request": {"method": "DELETE", "url": each.key}} for each in deleted]
    return json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})


def _batches(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    left = iter(items)
    while some := list(islice(left, count)):
        yield some
