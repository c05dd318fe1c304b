"""What one modality puts on film in one association: film session, film boxes, image boxes, and the rules of these.

Pure: no network. Each service takes what is asked and returns a status and attributes; it never raises. What is printed
is handed to a callable. Source: PS3.4 annex H.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from imaging.dimse import print_terms as terms
from imaging.dimse.print_attributes import ATTRIBUTES, Refused, checked, checked_image
from imaging.errors import AppError, Category
from imaging.film.layout import Box, boxes
from imaging.printer import Outcome, Progress, State, Status

MOST_FILM_BOXES = 100  # of a session
MOST_LUTS = 100
MOST_BYTES = 512 << 20  # of pixels that wait in one association
ANNOTATION_BOXES = 12  # of a film box, where it has an annotation format

Answer = tuple[int, Dataset | None]

_ANY_SHEET = Box(0, 0, 1_000, 1_000)  # mm; only the number of boxes counts here
_FAILURES = {  # what an error of the callable becomes; a full queue has a status of its own for each class
    Category.FORBIDDEN: 0x0124,
    Category.TOO_LARGE: 0xC605,
    Category.INVALID: 0x0106,
    Category.UNSUPPORTED: 0x0106,
}
_EXECUTIONS = {
    Progress.PENDING: "PENDING",
    Progress.PRINTING: "PRINTING",
    Progress.DONE: "DONE",
    Progress.FAILED: "FAILURE",
    Progress.UNKNOWN: "FAILURE",
}


@dataclass(frozen=True, slots=True)
class Film:
    """A film that a modality wants printed; attributes as it set them, defaults filled in.

    images       image boxes that hold an image, by position: attributes with Basic Grayscale or Color Image Sequence
    annotations  texts, by Annotation Position
    lut          the presentation LUT, None without one
    count        image boxes that the display format has
    """

    uid: str
    session: Dataset
    box: Dataset
    images: Mapping[int, Dataset]
    annotations: Mapping[int, str]
    lut: Dataset | None
    count: int
    is_colour: bool


@dataclass(frozen=True, slots=True)
class Services:
    """What stands behind a print session.

    accept   takes films to be printed, durably, and returns the UID of a print job; raises BUSY for a full queue
    outcome  says what became of a print job; raises NOT_FOUND for one that is not known
    status   says how the printer is
    """

    accept: Callable[[Sequence[Film]], str]
    outcome: Callable[[str], Outcome]
    status: Callable[[], Status]


@dataclass(slots=True, eq=False)
class _FilmBox:
    """A film box; positions by UID of what is below it."""

    uid: str
    ds: Dataset
    lut_uid: str
    is_colour: bool
    image_boxes: dict[str, int]
    annotation_boxes: dict[str, int]
    images: dict[int, Dataset] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)


class PrintSession:
    """The state of one association. Requests of an association come one after the other, so nothing is locked."""

    def __init__(self, services: Services, *, has_annotation: bool = True, printer_name: str = "") -> None:
        self._services = services
        self._has_annotation = has_annotation
        self._printer_name = printer_name
        self._session: tuple[str, Dataset] | None = None
        self._boxes: dict[str, _FilmBox] = {}
        self._luts: dict[str, Dataset] = {}

    def create(self, class_uid: str, uid: str, ds: Dataset, *, is_colour: bool) -> Answer:
        """Create an instance; `is_colour` says under which meta SOP class."""
        makers: dict[str, Callable[[], Answer]] = {
            terms.FILM_SESSION: lambda: self._create_session(uid, ds),
            terms.FILM_BOX: lambda: self._create_box(uid, ds, is_colour),
            terms.PRESENTATION_LUT: lambda: self._create_lut(uid, ds),
        }
        return self._served(makers, class_uid, lambda: self._check_new(uid))

    def set(self, class_uid: str, uid: str, ds: Dataset) -> Answer:
        """Set attributes of an instance."""
        setters: dict[str, Callable[[], Answer]] = {
            terms.FILM_SESSION: lambda: self._set_session(uid, ds),
            terms.FILM_BOX: lambda: self._set_box(uid, ds),
            terms.GREY_IMAGE_BOX: lambda: self._set_image(uid, ds, is_colour=False),
            terms.COLOUR_IMAGE_BOX: lambda: self._set_image(uid, ds, is_colour=True),
            terms.ANNOTATION_BOX: lambda: self._set_annotation(uid, ds),
        }
        return self._served(setters, class_uid, lambda: self._check_class(class_uid, uid))

    def action(self, class_uid: str, uid: str, number: int) -> Answer:
        """Print a film session or a film box."""

        def check() -> None:
            self._check_class(class_uid, uid)
            if number != terms.PRINT:
                raise Refused(0x0123)

        actions: dict[str, Callable[[], Answer]] = {
            terms.FILM_SESSION: self._print_session,
            terms.FILM_BOX: lambda: self._print_box(uid),
        }
        return self._served(actions, class_uid, check)

    def get(self, class_uid: str, uid: str, keywords: Sequence[str]) -> Answer:
        """Return attributes, all of them where none is asked for."""
        getters: dict[str, Callable[[], Answer]] = {
            terms.PRINTER: lambda: _chosen(self._printer(uid), keywords),
            terms.PRINT_JOB: lambda: _chosen(self._job(uid), keywords),
        }
        return self._served(getters, class_uid, lambda: None)

    def delete(self, class_uid: str, uid: str) -> int:
        """Delete an instance, and what is below it."""
        deleters: dict[str, Callable[[], Answer]] = {
            terms.FILM_SESSION: self._delete_session,
            terms.FILM_BOX: lambda: _removed(self._boxes, uid),
            terms.PRESENTATION_LUT: lambda: _removed(self._luts, uid),
        }
        return self._served(deleters, class_uid, lambda: self._check_class(class_uid, uid))[0]

    def _served(
        self, services: Mapping[str, Callable[[], Answer]], class_uid: str, check: Callable[[], None]
    ) -> Answer:
        if class_uid not in services:
            return (0x0211 if class_uid in _CLASSES else 0x0118), None
        try:
            check()
            return services[class_uid]()
        except Refused as refused:
            return refused.status, None

    def _check_new(self, uid: str) -> None:
        if not UID(uid).is_valid:
            raise Refused(0x0117)
        if self._class_of(uid):
            raise Refused(0x0111)

    def _check_class(self, class_uid: str, uid: str) -> None:
        of = self._class_of(uid)
        if of != class_uid:
            raise Refused(0x0119 if of else 0x0112)

    def _class_of(self, uid: str) -> str:
        if self._session is not None and self._session[0] == uid:
            return terms.FILM_SESSION
        if uid in self._luts:
            return terms.PRESENTATION_LUT
        if uid in self._boxes:
            return terms.FILM_BOX
        for box in self._boxes.values():
            if uid in box.image_boxes:
                return _image_class(box)
            if uid in box.annotation_boxes:
                return terms.ANNOTATION_BOX
        return ""

    # --- film session: H.4.1

    def _create_session(self, uid: str, ds: Dataset) -> Answer:
        if self._session is not None:
            raise Refused(0x0213)  # there is one at a time
        status, taken = checked(ATTRIBUTES[terms.FILM_SESSION], ds)
        if "MemoryAllocation" in taken:
            del taken.MemoryAllocation
            status = 0xB600
        self._session = (uid, taken)
        return status, taken

    def _set_session(self, uid: str, ds: Dataset) -> Answer:
        status, taken = checked(ATTRIBUTES[terms.FILM_SESSION], ds, is_change=True)
        self._held()[1].update(taken)
        return status, taken

    def _delete_session(self) -> Answer:
        self._session = None
        self._boxes.clear()
        return terms.SUCCESS, None

    def _print_session(self) -> Answer:
        if not self._boxes:
            raise Refused(0xC600)
        films = [self._film(box) for box in self._boxes.values() if box.images]
        return self._accepted(films, queue_full=0xC601) if films else (0xB602, None)

    def _held(self) -> tuple[str, Dataset]:
        if self._session is None:
            raise Refused(0x0112)
        return self._session

    # --- film box: H.4.2

    def _create_box(self, uid: str, ds: Dataset, is_colour: bool) -> Answer:
        session_uid, _ = self._held()
        if _referenced(ds, "ReferencedFilmSessionSequence") not in ("", session_uid):
            raise Refused(0x0106)
        if len(self._boxes) >= MOST_FILM_BOXES:
            raise Refused(0x0213)
        status, taken = checked(ATTRIBUTES[terms.FILM_BOX], ds)
        images = _box_count(taken.ImageDisplayFormat)
        texts = ANNOTATION_BOXES if self._has_annotation and "AnnotationDisplayFormatID" in taken else 0
        box = _FilmBox(uid, taken, self._lut_of(ds), is_colour, _numbered(images), _numbered(texts))
        self._boxes[uid] = box
        answer = Dataset()
        answer.update(taken)
        answer.ReferencedFilmSessionSequence = [_reference(terms.FILM_SESSION, session_uid)]
        answer.ReferencedImageBoxSequence = [_reference(_image_class(box), each) for each in box.image_boxes]
        if texts:
            annotations = [_reference(terms.ANNOTATION_BOX, each) for each in box.annotation_boxes]
            answer.ReferencedBasicAnnotationBoxSequence = annotations
        return status, answer

    def _set_box(self, uid: str, ds: Dataset) -> Answer:
        box = self._boxes[uid]
        status, taken = checked(ATTRIBUTES[terms.FILM_BOX], ds, is_change=True)
        if "ReferencedPresentationLUTSequence" in ds:
            box.lut_uid = self._lut_of(ds)
        box.ds.update(taken)
        return status, taken

    def _print_box(self, uid: str) -> Answer:
        box = self._boxes[uid]
        return self._accepted([self._film(box)], queue_full=0xC602) if box.images else (0xB603, None)

    def _lut_of(self, ds: Dataset) -> str:
        uid = _referenced(ds, "ReferencedPresentationLUTSequence")
        if uid and uid not in self._luts:
            raise Refused(0x0106)
        return uid

    # --- image boxes: H.4.3; annotation boxes: H.4.4; presentation LUT: H.4.9

    def _set_image(self, uid: str, ds: Dataset, *, is_colour: bool) -> Answer:
        box = next(each for each in self._boxes.values() if uid in each.image_boxes)
        position = box.image_boxes[uid]
        status, taken = checked(ATTRIBUTES[terms.GREY_IMAGE_BOX], ds)
        if taken.ImageBoxPosition != position:
            raise Refused(0x0106)
        image = checked_image(ds, is_colour=is_colour)
        if image is None:
            box.images.pop(position, None)
            return status, None
        waiting = sum(_size(each) for held in self._boxes.values() for each in held.images.values())
        answer = Dataset()
        answer.update(taken)
        setattr(taken, "BasicColorImageSequence" if is_colour else "BasicGrayscaleImageSequence", [image])
        replaced = _size(box.images[position]) if position in box.images else 0
        if waiting - replaced + _size(taken) > MOST_BYTES:
            raise Refused(0xC605)
        box.images[position] = taken
        return status, answer

    def _set_annotation(self, uid: str, ds: Dataset) -> Answer:
        box = next(each for each in self._boxes.values() if uid in each.annotation_boxes)
        status, taken = checked(ATTRIBUTES[terms.ANNOTATION_BOX], ds)
        box.texts[box.annotation_boxes[uid]] = str(taken.get("TextString") or "")
        return status, taken

    def _create_lut(self, uid: str, ds: Dataset) -> Answer:
        if len(self._luts) >= MOST_LUTS:
            raise Refused(0x0213)
        table, shape = ds.get("PresentationLUTSequence"), str(ds.get("PresentationLUTShape") or "")
        if bool(table) == bool(shape):
            raise Refused(0x0106 if table else 0x0120)
        if shape and shape not in ("IDENTITY", "LIN OD"):
            raise Refused(0x0106)
        held = Dataset()
        if shape:
            held.PresentationLUTShape = shape
        else:
            held.PresentationLUTSequence = [_checked_table(table[0])]
        self._luts[uid] = held
        return terms.SUCCESS, held

    # --- printing

    def _film(self, box: _FilmBox) -> Film:
        return Film(
            uid=box.uid,
            session=self._held()[1],
            box=box.ds,
            images=dict(sorted(box.images.items())),
            annotations=dict(sorted(box.texts.items())),
            lut=self._luts.get(box.lut_uid),
            count=len(box.image_boxes),
            is_colour=box.is_colour,
        )

    def _accepted(self, films: Sequence[Film], *, queue_full: int) -> Answer:
        try:
            uid = self._services.accept(films)
        except AppError as error:
            raise Refused(
                queue_full if error.category is Category.BUSY else _FAILURES.get(error.category, 0x0110)
            ) from error
        answer = Dataset()
        answer.ReferencedPrintJobSequence = [_reference(terms.PRINT_JOB, uid)]
        return terms.SUCCESS, answer

    # --- printer: H.4.6; print job: H.4.5

    def _printer(self, uid: str) -> Dataset:
        if uid != terms.PRINTER_INSTANCE:
            raise Refused(0x0112)
        return printer_attributes(self._services.status(), self._printer_name)

    def _job(self, uid: str) -> Dataset:
        try:
            outcome = self._services.outcome(uid)
        except AppError as error:
            raise Refused(0x0112 if error.category is Category.NOT_FOUND else 0x0110) from error
        return job_attributes(outcome, self._printer_name)


def printer_attributes(status: Status, name: str) -> Dataset:
    """Return the attributes of a printer. One that cannot be reached is a FAILURE of this one."""
    ds = Dataset()
    ds.PrinterStatus = "FAILURE" if status.state is State.OFFLINE else str(status.state)
    offline = ("PRINTER OFFLINE",) if status.state is State.OFFLINE else ()
    ds.PrinterStatusInfo = (*status.reasons, *offline, "NORMAL" if status.state is State.NORMAL else "UNKNOWN")[0]
    ds.PrinterName = name
    ds.Manufacturer = "fhir-imaging-server"
    return ds


def job_attributes(outcome: Outcome, name: str) -> Dataset:
    """Return the attributes of a print job."""
    ds = Dataset()
    ds.ExecutionStatus = _EXECUTIONS[outcome.progress]
    queued = "QUEUED" if outcome.progress is Progress.PENDING else "NORMAL"
    failed = outcome.reasons[0] if outcome.reasons else "UNKNOWN"
    ds.ExecutionStatusInfo = failed if ds.ExecutionStatus == "FAILURE" else queued
    ds.PrinterName = name
    return ds


_CLASSES = {
    terms.FILM_SESSION, terms.FILM_BOX, terms.GREY_IMAGE_BOX, terms.COLOUR_IMAGE_BOX, terms.ANNOTATION_BOX,
    terms.PRESENTATION_LUT, terms.PRINTER, terms.PRINT_JOB,
}  # fmt: skip


def _removed(held: dict[str, Any], uid: str) -> Answer:
    del held[uid]
    return terms.SUCCESS, None


def _image_class(box: _FilmBox) -> str:
    return terms.COLOUR_IMAGE_BOX if box.is_colour else terms.GREY_IMAGE_BOX


def _box_count(display_format: str) -> int:
    try:
        return len(boxes(display_format, _ANY_SHEET, gap=0))
    except AppError as error:
        raise Refused(0x0106) from error


def _checked_table(item: Dataset) -> Dataset:
    """Return a presentation LUT that can be used. Source: PS3.3 C.11.4."""
    try:
        entries, first, bits = (int(each) for each in item.LUTDescriptor)
        data = item.LUTData
        count = len(data) // 2 if isinstance(data, bytes) else len(data)
    except (AttributeError, TypeError, ValueError) as error:
        raise Refused(0x0120) from error
    if entries not in (256, 4096) or first != 0 or not 10 <= bits <= 16 or count != entries:
        raise Refused(0x0106)
    return item


def _numbered(count: int) -> dict[str, int]:
    return {generate_uid(None): number for number in range(1, count + 1)}


def _size(box: Dataset) -> int:
    (image,) = box.get("BasicGrayscaleImageSequence") or box.BasicColorImageSequence
    return len(image.PixelData)


def _chosen(ds: Dataset, keywords: Sequence[str]) -> Answer:
    """Return what of some attributes is asked for; a warning where one of those asked for is not known."""
    if not keywords:
        return terms.SUCCESS, ds
    chosen = Dataset()
    for keyword in keywords:
        if keyword in ds:
            chosen[keyword] = ds[keyword]
    is_complete = all(keyword in ds for keyword in keywords)
    return (terms.SUCCESS if is_complete else terms.ATTRIBUTE_LIST_ERROR), chosen


def _referenced(ds: Dataset, keyword: str) -> str:
    items = ds.get(keyword)
    return str(items[0].get("ReferencedSOPInstanceUID") or "") if items else ""


def _reference(class_uid: str, uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = class_uid, uid
    return ds
