"""The images of an order: what is named becomes a list of frames, in order, each with what it is to look like.

Images come from an archive or over the network; `Images` is what either can do. Hides key object selections,
presentation states and the DICOM JSON of instances, of which a few are held at a time.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from fhir_server.hardcopy.orders import Asked, Order
from imaging.display import Window
from imaging.errors import AppError, Category
from imaging.key_objects import KEY_OBJECT_SELECTION, selected
from imaging.presentation import GRAYSCALE_STATE, references

Document = Mapping[str, Any]

MOST_SHOTS = 20_000  # frames in one order
_HELD = 64  # documents


class Found(Protocol):
    """An instance that an order may print."""

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""

    @property
    def series_uid(self) -> str:
        """Series Instance UID."""

    @property
    def sop_uid(self) -> str:
        """SOP Instance UID."""

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID."""

    @property
    def number_of_frames(self) -> int:
        """Frames that can be printed, 0 without pixels."""


class Images(Protocol):
    """Where the images of an order are had from."""

    def of_study(self, study_uid: str) -> list[Any]:
        """Return the instances (`Found`) of a study in reading order. Raises NOT_FOUND for none."""

    def of_series(self, series_uid: str) -> list[Any]:
        """Return the instances of a series in reading order. Raises NOT_FOUND for none."""

    def of_instance(self, sop_uid: str) -> Any:
        """Return one instance. Raises NOT_FOUND."""

    def document(self, found: Any) -> Document:
        """Return the DICOM JSON of an instance; bulk data may be URIs."""

    def bulkdata(self, found: Any, uri: str) -> bytes:
        """Return what a bulk data URI of the document stands for."""

    def pixels(self, found: Any, frame: int) -> tuple[NDArray[Any], str]:
        """Return a decoded frame, from 1, and its Photometric Interpretation as decoded."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame to print. `window` of this frame alone; `state` is a presentation state, None for none."""

    found: Any
    frame: int
    window: Window | None = None
    state: Any | None = None


class Chosen:
    """The frames of an order, and their documents."""

    def __init__(self, images: Images, order: Order, *, reach: Callable[[list[Any]], None]) -> None:
        """Find them. Raises NOT_FOUND, INVALID for what has no pixels, TOO_LARGE for too many.

        reach   raises for instances (`Found`) that whoever orders may not see, before anything is told of them
        """
        self.images = images
        self._reach = reach
        self._documents: OrderedDict[str, Document] = OrderedDict()
        self._instances: dict[str, Any] = {}
        self._states = [self._state(uid) for uid in order.states]
        self.shots = list(self._shots(order))
        if not self.shots:
            raise AppError(Category.INVALID, "none of the images has pixels", where="images")

    def instances(self) -> list[Any]:
        """Return every instance that is needed, documents and presentation states included, each once."""
        every = [*self._instances.values(), *(shot.found for shot in self.shots)]
        return list({each.sop_uid: each for each in every}.values())

    def studies(self) -> dict[str, int]:
        """Return how many instances of which study (UID) are printed."""
        return dict(
            Counter(each.study_uid for each in {shot.found.sop_uid: shot.found for shot in self.shots}.values())
        )

    def document(self, found: Any) -> Document:
        """Return the DICOM JSON of an instance, held for the next frames of the same."""
        if found.sop_uid in self._documents:
            self._documents.move_to_end(found.sop_uid)
            return self._documents[found.sop_uid]
        document = self.images.document(found)
        self._documents[found.sop_uid] = document
        if len(self._documents) > _HELD:
            self._documents.popitem(last=False)
        return document

    def _shots(self, order: Order) -> Iterator[Shot]:
        asked = order.images or tuple(self._of_states())
        count = 0
        for each in asked:
            for shot in self._expanded(each):
                count += 1
                if count > MOST_SHOTS:
                    message = f"more than {MOST_SHOTS} images; order fewer"
                    raise AppError(Category.TOO_LARGE, message, where="images")
                yield shot if shot.state else Shot(shot.found, shot.frame, shot.window, self._state_for(shot))

    def _of_states(self) -> Iterator[Asked]:
        for state in self._states:
            for each in references(self.document(state)):
                yield Asked("image", each.sop_uid, each.frames, None, state.sop_uid)

    def _state_for(self, shot: Shot) -> Any | None:
        """Return the last of the order's states that refers to a frame."""
        for state in reversed(self._states):
            named = references(self.document(state))
            if any(each.holds(shot.found.sop_uid, shot.frame) for each in named):
                return state
        return None

    def _expanded(self, asked: Asked) -> Iterator[Shot]:
        if asked.kind == "key-object":
            document = self._named(asked.uid, KEY_OBJECT_SELECTION, "key-object", "a key object selection")
            for each in selected(self.document(document)):
                yield from self._expanded(Asked("image", each.sop_uid, each.frames or asked.frames, None, each.state))
            return
        state = self._state(asked.state) if asked.state else None
        for found in self._instances_of(asked):
            for frame in _frames(found, asked):
                yield Shot(found, frame, asked.window, state)

    def _instances_of(self, asked: Asked) -> list[Any]:
        if asked.kind == "imaging-study":
            found = self._reached(self.images.of_study(asked.uid))
        elif asked.kind == "series":
            found = self._reached(self.images.of_series(asked.uid))
        else:
            found = [self._instance(asked.uid)]
            if not found[0].number_of_frames:
                raise AppError(Category.INVALID, "this instance has no pixels", where=asked.uid)
        return [each for each in found if each.number_of_frames]

    def _state(self, uid: str) -> Any:
        return self._named(uid, GRAYSCALE_STATE, "presentation-state", "a grayscale softcopy presentation state")

    def _named(self, uid: str, sop_class: str, where: str, what: str) -> Any:
        found = self._instance(uid)
        if found.sop_class_uid != sop_class:
            raise AppError(Category.UNSUPPORTED, f"{uid} is not {what}", where=where)
        return found

    def _instance(self, uid: str) -> Any:
        if uid not in self._instances:
            (self._instances[uid],) = self._reached([self.images.of_instance(uid)])
        return self._instances[uid]

    def _reached(self, found: list[Any]) -> list[Any]:
        self._reach(found)
        return found


def _frames(found: Any, asked: Asked) -> Iterator[int]:
    total = found.number_of_frames
    beyond = [each for each in asked.frames if each > total]
    if beyond:
        message = f"frame {beyond[0]} asked, the instance has {total}"
        raise AppError(Category.INVALID, message, where=found.sop_uid)
    yield from asked.frames or range(1, total + 1)
