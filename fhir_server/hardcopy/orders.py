"""What a `hard-copy` Task orders: which images, on which device, and how they are to look. Pure.

Hides how a Task says that in its inputs. What is wrong with an order is INVALID and names the input.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fhir_server.hardcopy.inputs import image_parts
from fhir_server.model.task import name_of
from fhir_server.model.task_values import id_of, relative, value_of, values_of
from imaging.display import Window
from imaging.errors import AppError, Category
from imaging.film import Box, Fit, Magnification, Medium, Orientation
from imaging.printer import Priority

CODE = "hard-copy"
MOST_FRAMES = 100_000
_PRIORITIES = {"stat": Priority.HIGH, "asap": Priority.HIGH, "urgent": Priority.HIGH, "routine": Priority.MEDIUM}


@dataclass(frozen=True, slots=True)
class Asked:
    """Images as an order names them.

    kind     the input: imaging-study, series, instance, image or key-object
    uid      of the study, series, instance or document
    frames   from 1, of every instance; none for all
    window   for these images alone, None for that of the order
    state    SOP Instance UID of a presentation state for them alone, "" for none
    """

    kind: str
    uid: str
    frames: tuple[int, ...] = ()
    window: Window | None = None
    state: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A hard copy that was ordered. None and "" stand for the device's own choice.

    device              "Device/..."
    states              SOP Instance UIDs of presentation states for the images that they refer to
    lowest, highest     optical densities; `illumination` and `ambient` in cd/m2
    border, empty       BLACK, WHITE or an optical density as text
    """

    device: str
    images: tuple[Asked, ...]
    states: tuple[str, ...] = ()
    window: Window | None = None
    copies: int = 1
    priority: Priority = Priority.MEDIUM
    destination: str = ""
    medium: Medium | None = None
    film_size: str = ""
    orientation: Orientation = Orientation.PORTRAIT
    layout: str = "STANDARD\\1,1"
    boxes: tuple[Box, ...] = ()
    margin: float | None = None
    gap: float = 2.0
    resolution: int | None = None
    bits: int | None = None
    is_coloured: bool | None = None
    fit: Fit | None = None
    magnification: Magnification = Magnification.CUBIC
    is_reversed: bool = False
    is_linear_in_density: bool = False
    lowest: float | None = None
    highest: float | None = None
    illumination: float | None = None
    ambient: float | None = None
    border: str = "BLACK"
    empty: str = "BLACK"
    trim: bool = False
    banner: tuple[str, ...] = field(default=(), repr=False)
    captions: bool = True
    letters: bool = True
    scale_bar: bool = True
    over_images: bool = False
    letter_height: float = 3.5
    logo: bool = True


def order_of(task: Mapping[str, Any]) -> Order:
    """Return what a Task orders, whose inputs are right one by one. Raises INVALID."""
    given = _Given(task)
    return Order(
        device=relative(given.one("device", {})),
        images=tuple(_images(task, given)),
        states=tuple(given.all("presentation-state")),
        window=Window.from_text(given.one("window", "")) if given.one("window", "") else None,
        copies=given.one("copies", 1),
        priority=_PRIORITIES.get(task.get("priority", "routine"), Priority.MEDIUM),
        destination=given.one("destination", ""),
        medium=Medium(given.one("medium", "")) if given.one("medium", "") else None,
        film_size=given.one("film-size", ""),
        orientation=Orientation(given.one("orientation", Orientation.PORTRAIT)),
        layout=given.one("layout", "STANDARD\\1,1"),
        boxes=tuple(Box(*(float(each) for each in text.split(","))) for text in given.all("box")),
        margin=given.number("margin"),
        gap=given.number("gap", 2.0),
        resolution=given.one("resolution", None),
        bits=given.one("bits", None),
        is_coloured=given.one("colour", None),
        fit=Fit(given.one("fit", "")) if given.one("fit", "") else None,
        magnification=Magnification(given.one("magnification", Magnification.CUBIC)),
        is_reversed=given.one("polarity", "") == "REVERSE",
        is_linear_in_density=given.one("lut-shape", "") == "LIN OD",
        lowest=given.number("density-min"),
        highest=given.number("density-max"),
        illumination=given.number("illumination"),
        ambient=given.number("ambient-light"),
        border=given.one("border", "BLACK"),
        empty=given.one("empty", "BLACK"),
        trim=given.one("trim", False),
        banner=tuple(given.all("banner")),
        captions=given.one("captions", True),
        letters=given.one("letters", True),
        scale_bar=given.one("scale-bar", True),
        over_images=given.one("over-images", False),
        letter_height=given.number("letter-height", 3.5),
        logo=given.one("logo", True),
    )


def check_order(task: Mapping[str, Any]) -> None:
    """Raise INVALID for inputs that are right one by one and wrong together."""
    order = order_of(task)
    given = {name_of(each) for each in task.get("input", [])}
    checks = (
        (bool(order.images or order.states), "name images: an imaging-study, series, instance, image or key-object"),
        (not (order.boxes and "layout" in given), "a layout or boxes, not both"),
        ((order.lowest is None) == (order.highest is None), "density-min and density-max go together"),
        (order.lowest is None or order.lowest < (order.highest or 0), "density-min has to be below density-max"),
        (order.bits in (None, 8, 12, 16), "input 'bits': 8, 12 or 16 expected"),
        (not (order.is_coloured and order.is_linear_in_density), "lut-shape LIN OD is for grey, not for colour"),
    )
    for holds, message in checks:
        if not holds:
            raise AppError(Category.INVALID, message, where="Task.input")


def frames_from_text(text: str) -> tuple[int, ...]:
    """Return the frame numbers of a list such as `1,3-5`, in the order written. Raises INVALID."""
    found: list[int] = []
    for piece in text.split(","):
        first, _, last = piece.partition("-")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high or len(found) + high - low >= MOST_FRAMES:
            raise AppError(Category.INVALID, "frame numbers such as 1,3-5 expected", where="frames")
        found += range(low, high + 1)
    return tuple(found)


class _Given:
    """The inputs of a Task by name, as plain values."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self._values = values_of(task)

    def all(self, name: str) -> list[Any]:
        return self._values.get(name, [])

    def one(self, name: str, default: Any) -> Any:
        return next(iter(self.all(name)), default)

    def number(self, name: str, default: Any = None) -> Any:
        found = self.one(name, default)
        return float(found["value"] if isinstance(found, Mapping) else found) if found is not None else None


def _images(task: Mapping[str, Any], given: _Given) -> Iterator[Asked]:
    frames = frames_from_text(given.one("frames", "")) if given.one("frames", "") else ()
    for entry in task.get("input", []):
        name, value = name_of(entry), value_of(entry)
        if name == "imaging-study":
            yield Asked(name, id_of(value), frames)
        elif name in ("series", "instance", "key-object"):
            yield Asked(name, value, frames)
        elif name == "image":
            uid, parts = image_parts(value)
            own = frames_from_text(parts["frames"]) if "frames" in parts else frames
            window = Window.from_text(parts["window"]) if "window" in parts else None
            yield Asked(name, uid, own, window, parts.get("presentation-state", ""))
