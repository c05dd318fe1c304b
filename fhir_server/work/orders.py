"""What a `process` Task orders: which images, which algorithm with which parameters, what to keep, whom to send it to.

Pure. Hides how a Task says all that in its inputs. What is wrong with an order is INVALID and names the input.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from fhir_server.delivery import DELIVER_TO, value
from fhir_server.model.task import ALGORITHM as OF_ALGORITHM
from fhir_server.model.task import CODES, Json, Parameter, is_for_server_alone
from fhir_server.model.task_values import id_of, relative, values_of
from fhir_server.ownership import ALGORITHM_URL
from imaging.algorithm import Algorithm
from imaging.dataset import check_uid
from imaging.errors import AppError, Category
from imaging.parameters import MOST_VALUES
from imaging.parameters import Parameter as Declared

MOST_NAMED = 10_000  # series or instances named one by one in an order
MOST_RECIPIENTS = 20
MOST_FRAMES = 100_000
CODE = "process"  # of the Tasks
CHOICES_OF_IMAGES = frozenset({"imaging-study", "series", "instance", "search"})  # inputs that say what is processed
_UCUM = "http://unitsofmeasure.org"
_SEARCH = re.compile(r"ImagingStudy\?[^\s#]{1,2000}")
_REFERENCE = {
    "imaging-study": re.compile(r"(?:.*/)?ImagingStudy/[A-Za-z0-9.\-]{1,64}"),
    DELIVER_TO: re.compile(r"(?:.*/)?(?:Endpoint|Organization)/[A-Za-z0-9.\-]{1,64}"),
}


class Keep(StrEnum):
    """What stays stored: the images before processing, after it, or both."""

    BEFORE = "before"
    AFTER = "after"
    BOTH = "both"


class Named(Protocol):
    """How an order names images, by studies, series and instances or by a search for studies, and whom it is for."""

    @property
    def studies(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def series(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def instances(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def search(self) -> str: ...  # noqa: D102
    @property
    def restricted_to(self) -> tuple[str, ...]: ...  # noqa: D102


def restriction(named: Named, resource_type: str) -> frozenset[str]:
    """Return the references of a type to which an order is restricted; none: it is not."""
    return frozenset(each for each in named.restricted_to if each.startswith(f"{resource_type}/"))


def recipients_of(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return whom alone an order is for: "Patient/...", "Organization/..."; of patients the one in `for`, if any."""
    told, about = _recipients(task), relative(task.get("for", {}))
    is_about_one = about.startswith("Patient/")
    return (about, *(each for each in told if not each.startswith("Patient/"))) if is_about_one else told


def _recipients(task: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(relative(each) for each in task.get("restriction", {}).get("recipient", []))


def study_in_focus(task: Mapping[str, Any]) -> list[Any]:
    """Return the study that a Task is about, where it is one: the same as an input that names it."""
    focus = task.get("focus", {})
    return [focus] if _REFERENCE["imaging-study"].fullmatch(str(focus.get("reference", ""))) else []


@dataclass(frozen=True, slots=True)
class Order:
    """A processing order. Without `studies` and `search`, series and instances are named.

    algorithm    "" where a rule of the requester chooses
    frames       1-based, of every chosen instance; none for all
    region       left, top, width, height in pixels of each frame; None for all
    parameters   as the algorithm takes them
    deliver_to   "Endpoint/..." or "Organization/..."
    restricted_to  whom alone it is for: "Patient/..." whose images it may work on, "Organization/..." that may get them
    """

    algorithm: str
    version: str
    parameters: Mapping[str, Any]
    studies: tuple[str, ...]
    series: tuple[str, ...]
    instances: tuple[str, ...]
    frames: tuple[int, ...]
    region: tuple[int, int, int, int] | None
    search: str
    keep: Keep
    deliver_to: tuple[str, ...]
    restricted_to: tuple[str, ...] = ()


def order_of(task: Mapping[str, Any]) -> Order:
    """Return what a Task orders. Raises INVALID."""
    given = values_of(task)
    name, version = ("", "") if rule_in(task) else algorithm_of(task)
    reserved = {each.name for each in INPUTS}
    return Order(
        algorithm=name,
        version=version,
        parameters=_parameters(algorithm_named(name, version), given, reserved) if name else {},
        studies=tuple(id_of(each) for each in [*given.get("imaging-study", []), *study_in_focus(task)]),
        series=tuple(given.get("series", [])),
        instances=tuple(given.get("instance", [])),
        frames=frames_from_text(given["frames"][0]) if "frames" in given else (),
        region=_region(given["region"][0]) if "region" in given else None,
        search=given.get("search", [""])[0].removeprefix("ImagingStudy?"),
        keep=Keep(given.get("keep", [Keep.BOTH])[0]),
        deliver_to=tuple(relative(each) for each in given.get(DELIVER_TO, [])),
        restricted_to=recipients_of(task),
    )


def rule_in(task: Mapping[str, Any]) -> str:
    """Return the canonical of the rule that is to choose what is done, "" where the order says that itself."""
    canonical = str(task.get("instantiatesCanonical", ""))
    has_algorithm = "algorithm" in values_of(task)
    return "" if has_algorithm or canonical.startswith(ALGORITHM_URL) else canonical


def algorithm_of(task: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and version, "" for whichever is here, from an input, `instantiatesCanonical` or both.

    Beside the input, `instantiatesCanonical` may tell by which rule that was chosen. Raises INVALID.
    """
    told = values_of(task).get("algorithm", [])
    canonical = str(task.get("instantiatesCanonical", ""))
    told += [canonical] if canonical.startswith(ALGORITHM_URL) else []
    if not all(isinstance(each, str) for each in told):
        message = "input 'algorithm' has to be a valueString or a valueUri or a valueCanonical"
        raise AppError(Category.INVALID, message, where="Task.input")
    named = {each.removeprefix(ALGORITHM_URL) for each in told}
    if len(named) != 1:
        message = "name one algorithm, by the input 'algorithm' or by instantiatesCanonical, which may also name a rule"
        raise AppError(Category.INVALID, message, where="Task.input")
    name, _, version = named.pop().partition("|")
    return name, version


def algorithm_named(name: str, version: str) -> type[Algorithm]:
    """Return an algorithm. Raises INVALID where there is none of this name, or not in this version."""
    from imaging.algorithms import algorithms  # takes a second, and most processes never order

    if name not in algorithms:
        message = f"{name[:64]!r} is not known; there are: {', '.join(algorithms)}"
        raise AppError(Category.INVALID, message, where="algorithm")
    found = algorithms.get(name)
    if version not in ("", found.version):
        raise AppError(Category.INVALID, f"{name} is here in version {found.version} only", where="algorithm")
    return found


def further_inputs(task: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the inputs that an order may have for the parameters of the algorithm that it names."""
    if rule_in(task):
        return ()
    return tuple(_input_of(each) for each in algorithm_named(*algorithm_of(task)).parameters())


def check_order(task: Mapping[str, Any]) -> None:
    """Raise INVALID for an order whose inputs do not fit together."""
    order = order_of(task)
    if order.algorithm:
        algorithm = algorithm_named(order.algorithm, order.version)
        algorithm.check(order.parameters)
        if algorithm.takes == "files":
            _check_of_files(order)
        _check_owner(task, order)
    else:
        _check_left_to_rule(order)
    check_images(order)
    check_restriction(task, order)
    if order.keep is Keep.AFTER and (order.frames or order.region):
        message = "keep 'after' removes whole images; it does not go with frames or a region"
        raise AppError(Category.INVALID, message, where="Task.input")
    if order.keep is not Keep.BOTH and not is_for_server_alone(task):
        message = "this server removes images only after work of its own; leave out keep, or owner and performerType"
        raise AppError(Category.INVALID, message, where="keep")
    if order.keep is Keep.BEFORE and not order.deliver_to:
        message = "keep 'before' drops the result after its delivery; name whom to deliver-to"
        raise AppError(Category.INVALID, message, where="Task.input")


def _check_of_files(order: Order) -> None:
    if order.frames or order.region:
        message = "whole images are copied; that does not go with frames or a region"
        raise AppError(Category.INVALID, message, where="Task.input")
    if len(order.deliver_to) > 1:
        message = "each recipient gets pseudonyms of its own; place an order for each"
        raise AppError(Category.INVALID, message, where=DELIVER_TO)


def _check_owner(task: Mapping[str, Any], order: Order) -> None:
    owner = str(task.get("owner", {}).get("reference", ""))
    if owner.startswith(OF_ALGORITHM) and owner != f"{OF_ALGORITHM}{order.algorithm}":
        message = f"the order is for {order.algorithm}, and addressed to another algorithm"
        raise AppError(Category.INVALID, message, where="Task.owner")


def check_restriction(task: Mapping[str, Any], named: Named) -> None:
    """Raise INVALID for a restriction that would not be kept."""
    where = "Task.restriction"
    if task.get("restriction", {}).get("repetitions", 1) != 1:
        raise AppError(Category.INVALID, "an order is done once; place another one", where=f"{where}.repetitions")
    understood = restriction(named, "Patient") | restriction(named, "Organization")
    patients = {each for each in _recipients(task) if each.startswith("Patient/")}
    if patients and not patients >= restriction(named, "Patient"):
        raise AppError(Category.INVALID, "the order is for another Patient than it is restricted to", where="Task.for")
    if not understood.issuperset(named.restricted_to):
        message = (
            "an order can be restricted to a Patient, whose images it is for, or to an Organization that gets them"
        )
        raise AppError(Category.INVALID, message, where=f"{where}.recipient")


def _check_left_to_rule(order: Order) -> None:
    given = {"frames": order.frames, "region": order.region, DELIVER_TO: order.deliver_to}
    told = [name for name, value in given.items() if value] + (["keep"] if order.keep is not Keep.BOTH else [])
    if told:
        message = f"the rule says what becomes of the images; leave out {', '.join(told)}"
        raise AppError(Category.INVALID, message, where="Task.input")


def check_images(named: Named) -> None:
    """Raise INVALID where no images are named, or a search beside others."""
    if not (named.studies or named.series or named.instances or named.search):
        message = "name images: an imaging-study, series, instance or search"
        raise AppError(Category.INVALID, message, where="Task.input")
    if named.search and (named.studies or named.series or named.instances):
        raise AppError(Category.INVALID, "a search goes alone, without other images", where="Task.input")


def task_of(
    algorithm: str, parameters: Mapping[str, str], inputs: Sequence[Mapping[str, Any]], *, priority: str = "routine"
) -> Json:
    """Return the Task that orders an algorithm, `name` or `name|version`, with parameters as a person writes them.

    A list is written with commas: `center_mm=10,20,30`. Raises INVALID for a parameter that there is not, or whose text
    is not of its kind.
    """
    name, _, version = algorithm.partition("|")
    known = {each.name: each for each in algorithm_named(name, version).parameters()}
    told = [value("algorithm", "valueString", algorithm), *inputs]
    for given, text in parameters.items():
        if given not in known:
            message = f"there is no such parameter; known: {', '.join(known) or 'none'}"
            raise AppError(Category.INVALID, message, where=given)
        pieces = [text] if known[given].length is None else text.split(",")
        told += [value(given, *_typed(piece.strip(), known[given])) for piece in pieces]
    return {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "priority": priority,
        "code": {"coding": [{"system": CODES, "code": CODE}]},
        "input": [dict(each) for each in told],
    }


def _typed(text: str, declared: Declared) -> tuple[str, Any]:
    """Return the element of an input that holds a value of this kind, and the value."""
    if declared.kind in ("choice", "text"):
        return ("valueCode" if declared.kind == "choice" else "valueString"), text
    if declared.kind == "boolean" and text in ("true", "false"):
        return "valueBoolean", text == "true"
    try:
        return ("valueInteger", int(text)) if declared.kind == "integer" else ("valueDecimal", float(text))
    except ValueError:
        message = f"{text[:40]!r} is no {'true or false' if declared.kind == 'boolean' else declared.kind}"
        raise AppError(Category.INVALID, message, where=declared.name) from None


def frames_from_text(text: str) -> tuple[int, ...]:
    """Return the frame numbers of a list such as `1,3-5`, in the order written. Raises INVALID."""
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last or len(found) + last - first >= MOST_FRAMES:
            raise AppError(Category.INVALID, "frame numbers such as 1,3-5 expected", where="frames")
        found += range(first, last + 1)
    return tuple(found)


def _is(pattern: re.Pattern[str], what: str) -> Any:
    def check(value: Any) -> str:
        text = value.get("reference", "") if isinstance(value, dict) else value
        return "" if isinstance(text, str) and pattern.fullmatch(text) else what

    return check


def _is_uid(value: Any) -> str:
    try:
        check_uid(value, "UID")
    except (AppError, TypeError):
        return "a UID expected"
    return ""


def _is_frames(value: Any) -> str:
    try:
        frames_from_text(value)
    except AppError as error:
        return error.message
    return ""


def _is_region(value: Any) -> str:
    try:
        _region(value)
    except AppError as error:
        return error.message
    return ""


INPUTS = (
    Parameter("algorithm", "valueString|valueUri|valueCanonical"),
    Parameter(
        "imaging-study", "valueReference", most=MOST_NAMED,
        check=_is(_REFERENCE["imaging-study"], "a reference to an ImagingStudy expected"),
    ),
    Parameter("series", "valueId|valueString", most=MOST_NAMED, check=_is_uid),
    Parameter("instance", "valueId|valueString", most=MOST_NAMED, check=_is_uid),
    Parameter("frames", "valueString", check=_is_frames),
    Parameter("region", "valueString", check=_is_region),
    Parameter("search", "valueString", check=_is(_SEARCH, "a search such as ImagingStudy?modality=CT expected")),
    Parameter(
        "keep", "valueCode",
        check=lambda value: "" if value in Keep.__members__.values() else f"one of {', '.join(Keep)} expected",
    ),
    Parameter(
        DELIVER_TO, "valueReference", most=MOST_RECIPIENTS,
        check=_is(_REFERENCE[DELIVER_TO], "a reference to an Endpoint or an Organization expected"),
    ),
)  # fmt: skip

_ELEMENTS = {
    "number": "valueDecimal|valueInteger|valueQuantity",
    "integer": "valueInteger|valuePositiveInt|valueUnsignedInt",
    "boolean": "valueBoolean",
    "choice": "valueCode|valueString",
    "text": "valueString",
}


def cardinality(declared: Declared) -> tuple[int, int]:
    """Return how often a parameter has to come as an input, and may: one that is a list, as often as it is long."""
    least = (declared.length or 1) if declared.is_required and not declared.is_stated else 0
    return least, MOST_VALUES if declared.length == 0 else declared.length or 1


def _input_of(declared: Declared) -> Parameter:
    """Return a parameter of an algorithm as an input."""
    least, most = cardinality(declared)

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return ""  # its type and range are checked with the others, by the algorithm itself
        if value.get("system", _UCUM) != _UCUM or value.get("code", value.get("unit")) != declared.unit:
            return f"the unit has to be {declared.unit or 'that of the image, and so not given'}"
        if "comparator" in value:
            return "one value expected, without comparator"
        return "" if "value" in value else "a quantity without a value"

    return Parameter(declared.name, _ELEMENTS[declared.kind], least=least, most=most, check=check)


def _parameters(algorithm: type[Algorithm], given: Mapping[str, Sequence[Any]], reserved: set[str]) -> Json:
    lengths = {each.name: each.length for each in algorithm.parameters()}
    found: Json = {}
    for name, values in given.items():
        if name not in reserved:
            plain = [each["value"] if isinstance(each, dict) else each for each in values]
            found[name] = plain[0] if lengths.get(name) is None else plain
    return found


def _region(text: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"\s*(\d{1,5})\s*,\s*(\d{1,5})\s*,\s*([1-9]\d{0,4})\s*,\s*([1-9]\d{0,4})\s*", text)
    if not match:
        raise AppError(Category.INVALID, "left,top,width,height in pixels expected", where="region")
    left, top, width, height = (int(each) for each in match.groups())
    return left, top, width, height
