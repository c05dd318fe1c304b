"""Processing of stored images: `process` Tasks, from the order to the stored result and what follows from it.

A second run makes the same objects, which the archive recognises; so does the Provenance, whose id follows from the
Task's. What an algorithm refuses fails the order with its reason, except where a whole study or a search was ordered:
there a series that cannot be processed (a localizer, say) is told in an output and does not keep the others from it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Any

import orjson
from pydicom.dataset import Dataset

from fhir_server import delivery
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.delivery import value
from fhir_server.model.dates import interval
from fhir_server.model.task import Json, Kind, Parameter, Progress
from fhir_server.ownership import ALGORITHM
from fhir_server.projection import imaging_study_id
from fhir_server.work import whole_files
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import Done, Handler, Report, handlers
from fhir_server.work.orders import (
    CODE,
    INPUTS,
    Keep,
    Order,
    algorithm_named,
    check_order,
    further_inputs,
    order_of,
    restriction,
    rule_in,
)
from fhir_server.work.parties import requester_of
from fhir_server.work.recipients import admit_recipient, receivers, require_among
from fhir_server.work.selection import OURS, Choice, Chosen, Loaded, choose, inputs_for, is_made_here, query_of
from fhir_server.work.triggers import orders_of, rule_named
from imaging.algorithm import Algorithm, Result, Takes
from imaging.archive import Refused
from imaging.errors import AppError, Category
from imaging.layout import Buffer

PROCESSING = "urn:fhir-imaging:extension:processing"  # on Provenance: algorithm, version, parameters
FIRST_SERIES_NUMBER = 1000  # of results, added to that of the source
MOST_OUTPUTS = 10_000

OUTPUTS = (
    Parameter("performed", "valueString", least=1),
    Parameter("imaging-study", "valueReference", most=MOST_OUTPUTS),
    Parameter("series", "valueId", most=MOST_OUTPUTS),
    Parameter("provenance", "valueReference", most=MOST_OUTPUTS),
    Parameter("refused", "valueString", most=MOST_OUTPUTS),
    Parameter("task", "valueReference", most=MOST_OUTPUTS),
)


@dataclass
class _Made:
    """What has come of an order so far."""

    performed: str = ""
    studies: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    provenances: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # series that were processed


@dataclass(frozen=True, slots=True)
class _Stage:
    """Tells how far the work on one of several series is."""

    report: Report
    number: int
    of: int

    def begins(self, percent: int, what: str) -> None:
        """Say that so much of this series is done, and what comes next."""
        self.report(
            Progress((100 * self.number + percent) // self.of, f"series {self.number + 1} of {self.of}: {what}")
        )


def admit(server: Backing, principal: Principal, task: Json) -> None:
    """Raise what keeps a principal from placing an order whose inputs are well formed. A search is done later."""
    require(principal, Right.ORDER_PROCESSING, "order processing")
    order = order_of(task)
    if order.keep is Keep.AFTER:
        require(principal, Right.REGISTER_IMAGES, "have images replaced by what is made of them")
    if canonical := rule_in(task):
        rule_named(server, canonical, principal.subscriber)
    chosen = () if order.search else choose(server, principal, order).series
    for reference in order.deliver_to:
        admit_recipient(server, principal, reference, {each.study_uid for each in chosen})
        require_among(restriction(order, "Organization"), receivers(server, reference))
    if order.search:
        query_of(server, order.search)
        return
    if not order.algorithm:
        return
    if algorithm_named(order.algorithm, order.version).takes is Takes.PAIR and len(chosen) != 2:
        raise AppError(Category.INVALID, f"two series are compared; {len(chosen)} are named", where="Task.input")
    if order.keep is Keep.AFTER:
        _require_own(chosen, principal)


def run(task: Json, context: Any, report: Report) -> Done:
    """Process what a Task orders."""
    server: Backing = context
    principal = requester_of(server, task)
    require(principal, Right.ORDER_PROCESSING, "have images processed")
    order = order_of(task)
    choice = choose(server, principal, order)
    chosen = choice.series
    if canonical := rule_in(task):
        return _left_to_rule(server, principal, task, choice, canonical)
    algorithm = algorithm_named(order.algorithm, order.version)
    if order.keep is Keep.AFTER:
        _require_own(chosen, principal)
    groups = [chosen] if algorithm.takes is Takes.PAIR else [(each,) for each in chosen]
    is_lenient = not (order.series or order.instances)
    made = _Made(refused=choice.left_out())
    for number, group in enumerate(groups):
        stage = _Stage(report, number, len(groups))
        try:
            _process(server, principal, task, order, algorithm, group, made, stage, skips_results=is_lenient)
        except AppError as error:
            if not is_lenient or error.category not in (Category.INVALID, Category.UNSUPPORTED):
                raise
            made.refused.append(f"series {group[0].series_uid}: {error}")
    if not made.provenances:
        reasons = "; ".join(made.refused[:3]) or "all of the images are results of processing already"
        raise AppError(Category.INVALID, f"nothing could be processed: {reasons}")
    return Done(_outputs(made), _following(task, order, chosen, made))


def _left_to_rule(server: Backing, principal: Principal, task: Json, choice: Choice, canonical: str) -> Done:
    """Return the orders, parts of this one, that a rule makes of it."""
    parts = orders_of(server, task, rule_named(server, canonical, principal.subscriber), choice.series)
    if not parts:
        message = "the rule acts on none of the chosen series"
        raise AppError(Category.INVALID, message, where="Task.instantiatesCanonical")
    words = f"{canonical}: {len(parts)} orders for {len(choice.series)} series"
    told = [
        value("performed", "valueString", words),
        *(value("refused", "valueString", each) for each in choice.left_out()),
        *(value("task", "valueReference", {"reference": f"Task/{each['id']}"}) for each in parts),
    ]
    return Done(told, parts)


def _process(
    server: Backing, principal: Principal, task: Json, order: Order, algorithm: type[Algorithm],
    group: Sequence[Chosen], made: _Made, stage: "_Stage", *, skips_results: bool,
) -> None:  # fmt: skip
    stage.begins(0, "reading and computing")
    loaded = [Loaded(server, each) for each in group]
    if skips_results and is_made_here(loaded[0].datasets):
        return
    ready = algorithm.build({**algorithm.presets(loaded[0].datasets), **order.parameters})
    work = _work(task, order, ready, group)
    is_of_files = algorithm.takes is Takes.FILES
    files: Iterable[Buffer] = (
        whole_files.made_of(server, task, order, ready, group) if is_of_files else _computed(ready, loaded, order, work)
    )
    series: dict[str, str] = {}  # UID -> that of its study
    for count, outcome in enumerate(server.studies.register_results(files, principal), start=1):
        stage.begins(60, f"{count} results stored")
        if isinstance(outcome, Refused):
            raise outcome.error
        series[outcome.summary.series_uid] = outcome.summary.study_uid
    stage.begins(90, "showing the results")
    for uid in dict.fromkeys(series.values()):
        server.studies.refresh(uid)
        study = f"ImagingStudy/{imaging_study_id(uid)}"
        made.studies += [study] if study not in made.studies else []
        mine = [each for each, of in series.items() if of == uid]
        # Nothing leads from what names nobody back to what it was made of.
        sources = [] if is_of_files else group
        made.provenances.append(_provenance(server, task, work, group, study, mine, named=sources))
    made.performed = work.description
    made.sources += [each.series_uid for each in group]
    made.series += list(series)


def _computed(ready: Algorithm, loaded: Sequence[Loaded], order: Order, work: Any) -> Iterator[bytes]:
    """Yield the files of what an algorithm makes of images."""
    from imaging.volume import Tilt

    tilt = Tilt.KEEP if ready.takes_tilted else Tilt.REFUSE
    results = [ready(*inputs) for inputs in inputs_for(ready.takes, loaded, order, tilt)]
    return _files(_joined(results), [each.datasets for each in loaded], work)


def _joined(results: Sequence[Result]) -> Result:
    """Return the results of images one by one as one, whose images make one series."""
    if len(results) == 1:
        return results[0]
    return Result(
        images=tuple(image for each in results for image in each.images),
        volumes=tuple(volume for each in results for volume in each.volumes),
        segmentations=tuple(each for result in results for each in result.segmentations),
        measurements=tuple(each for result in results for each in result.measurements),
        lost=sum(each.lost for each in results),
    )


def _files(result: Result, sources: Sequence[Sequence[Dataset]], work: Any) -> Iterator[bytes]:
    """Yield the DICOM files of a result: images, segmentations, their measurements, the registration."""
    from imaging.derive import derive_images
    from imaging.derive_files import Writer, to_part10
    from imaging.derive_regions import derive_report, derive_segmentations
    from imaging.derive_registration import derive_registration

    every = [ds for series in sources for ds in series]
    number = _first_number(every[0])
    writer = Writer()
    for ds in derive_images(result, every, work, series_number=number):
        yield writer.part10(ds)
    regions = derive_segmentations(result, every, work, series_number=number + 7)
    for ds in regions:
        yield to_part10(ds)
    if result.measurements:
        yield to_part10(derive_report(result, every, regions, work, series_number=number + 8))
    if result.transform is not None:
        fixed, moving = sources
        yield to_part10(derive_registration(result, fixed, moving, work, series_number=number + 9))


def _first_number(source: Dataset) -> int:
    """Return the number of the first new series; one that would not fit into Series Number counts as none."""
    told = str(source.get("SeriesNumber") or "").strip()
    return FIRST_SERIES_NUMBER + 10 * (int(told) if told.isascii() and told.isdigit() and len(told) < 9 else 0)


def _work(task: Json, order: Order, ready: Algorithm, group: Sequence[Chosen]) -> Any:
    from imaging.derive import Equipment, Work

    parameters = {each.name: getattr(ready, each.name) for each in ready.parameters()}
    parameters |= {"frames": list(order.frames)} if order.frames else {}
    parameters |= {"region": list(order.region)} if order.region else {}
    version = metadata.version("fhir-imaging-server")
    return Work(
        key=f"Task/{task['id']}",
        algorithm=order.algorithm,
        version=ready.version,
        title=ready.title,
        code=ready.performed(),
        parameters=parameters,
        input_digests=tuple(each.sha256_received for chosen in group for each in chosen.instances),
        done_at=_ordered_at(task),
        equipment=Equipment(OURS, "fhir-imaging-server", version),
    )


def _ordered_at(task: Json) -> datetime:
    """Return when it was ordered: unlike the time of the work, the same in a second run."""
    return interval(task["authoredOn"]).low


def _provenance(
    server: Backing, task: Json, work: Any, group: Sequence[Chosen], study: str, series: Sequence[str],
    *, named: Sequence[Chosen],
) -> str:  # fmt: skip
    """Write which processing was applied to what, of which `named` is told, and return the reference."""
    identifier = delivery.following_id(task, "provenance", *(each.series_uid for each in group))
    told = [{"url": "algorithm", "valueString": work.algorithm}, {"url": "version", "valueString": work.version}]
    told += [
        {"url": "parameter", "extension": [{"url": "name", "valueString": name}, {"url": "value", "valueString": text}]}
        for name, text in ((name, orjson.dumps(each).decode()) for name, each in work.parameters.items())
    ]
    entity: list[Json] = [{"role": "source", "what": {"identifier": _series(each.series_uid)}} for each in named]
    entity += [{"role": "derivation", "what": {"reference": f"Task/{task['id']}"}}] if named else []
    code = work.code
    scheme = {"DCM": "http://dicom.nema.org/resources/ontology/DCM", "SCT": "http://snomed.info/sct"}
    coding = {"code": code.value, "display": code.meaning}
    if code.scheme in scheme:
        coding["system"] = scheme[code.scheme]
    resource = {
        "resourceType": "Provenance",
        "id": identifier,
        "extension": [{"url": PROCESSING, "extension": told}],
        "target": [{"reference": study}, *({"identifier": _series(uid)} for uid in series)],
        "recorded": task["authoredOn"],
        "activity": {"coding": [coding], "text": work.description},
        "agent": [
            {
                "type": {"text": "performer"},
                "who": {"reference": f"Device/{ALGORITHM}{work.algorithm}", "display": f"{work.title} {work.version}"},
                "onBehalfOf": task["requester"],
            }
        ],
        **({"entity": entity} if entity else {}),
    }
    server.own.update(resource, create=True, if_changed=True, owner=task["requester"]["reference"])
    return f"Provenance/{identifier}"


def _series(uid: str) -> Json:
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}


def _outputs(made: _Made) -> list[Json]:
    return [
        value("performed", "valueString", made.performed),
        *(value("imaging-study", "valueReference", {"reference": each}) for each in made.studies),
        *(value("series", "valueId", each) for each in made.series),
        *(value("provenance", "valueReference", {"reference": each}) for each in made.provenances),
        *(value("refused", "valueString", each) for each in made.refused),
    ]


def _following(task: Json, order: Order, chosen: Sequence[Chosen], made: _Made) -> list[Json]:
    """Return the deliveries, and the removal of what the order does not keep, which waits for them."""
    then = delivery.orders(task, studies=made.studies, series=made.series, recipients=order.deliver_to)
    if order.keep is Keep.BEFORE:
        dropped = [value("series", "valueId", uid) for uid in made.series]
    elif order.keep is Keep.AFTER:
        done = [each for each in chosen if each.series_uid in made.sources]
        dropped = [value("instance", "valueId", each.sop_uid) for one in done for each in one.instances]
    else:
        return then
    return [*then, delivery.following(task, "discard", dropped)]


def _require_own(chosen: Sequence[Chosen], principal: Principal) -> None:
    if any(each.registered_by != principal.subscriber for one in chosen for each in one.instances):
        message = "keep 'after' removes the images that were processed; only who registered all of them may order that"
        raise AppError(Category.FORBIDDEN, message, where="keep")


handlers.register(CODE)(Handler(Kind(CODE, INPUTS, OUTPUTS, further_inputs, check_order), run, admit=admit))
