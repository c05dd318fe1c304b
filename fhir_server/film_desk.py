"""Modalities that print through us: what a print SCP accepts becomes stored images and hard-copy Tasks.

A calling application entity stands for a subscriber, with the rights of its contract, and prints on one printer. Images
are stored as secondary captures whose values are P-Values: polarity and presentation LUT are applied, as they belong to
the print and not to the image. Each film is one Task; those of one print job have its UID as group identifier. Images
are stored before the Task that prints them: what a crash leaves in between is stored and not printed, and the modality,
which got no answer, sends again. Source: PS3.4 annex H, PS3.3 C.13.
"""

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from fhir_server.access import backing
from fhir_server.access.audit import Access, ordered
from fhir_server.access.principals import Principal
from fhir_server.delivery import value
from fhir_server.hardcopy.devices import capabilities_of, device_id, status_from_device
from fhir_server.hardcopy.inputs import MOST_BANNER
from fhir_server.hardcopy.orders import CODE
from fhir_server.model.criteria import Clause, Token
from fhir_server.model.query import Query
from fhir_server.model.task import CODES, Json, Status, is_over, status_of
from fhir_server.printers import Printers
from fhir_server.store.printers import Modality as Registered
from fhir_server.studies import Studies
from imaging.archive import Refused
from imaging.derive import to_part10
from imaging.errors import AppError, Category
from imaging.film.placing import Greys
from imaging.printer import Outcome, Progress
from imaging.printer import Status as PrinterStatus

if TYPE_CHECKING:
    from imaging.dimse.print_scp import Modality
    from imaging.dimse.print_session import Film

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
UID_SYSTEM = "urn:dicom:uid"  # of Task.groupIdentifier: the print job
MOST_FILMS = 100  # of one job
_BLANK = np.zeros((16, 16), np.float32)
_PRIORITIES = {"HIGH": "urgent", "MED": "routine", "LOW": "routine"}


class Backing(backing.Backing, Protocol):
    """The server as the desk sees it."""

    @property
    def printers(self) -> Printers:
        """The register of printers and of modalities that print."""

    @property
    def studies(self) -> Studies:
        """Where DICOM meets FHIR."""


class FilmDesk:
    """What stands behind a print SCP (`imaging.dimse.print_scp.Backing`)."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._open: dict[str, tuple[str, Progress]] = {}  # UID of a job accepted here -> subscriber, what was told last
        self._lock = threading.Lock()

    def admit(self, modality: "Modality") -> None:
        """Return for a modality that is registered. Raises FORBIDDEN."""
        self._registered(modality)

    def accept(self, modality: "Modality", films: Sequence["Film"]) -> str:
        """Store the images of films, order them, and return the UID of the print job.

        Raises FORBIDDEN where the subscriber may not do that, UNSUPPORTED for films that the printer does not print.
        """
        known = self._registered(modality)
        if not 1 <= len(films) <= MOST_FILMS:
            raise AppError(Category.INVALID, f"1 to {MOST_FILMS} films in a print job expected", where="film session")
        principal = self._server.principals.acting_for(known.subscriber)
        device = self._server.printers.device(known.printer)
        if device is None:
            raise AppError(Category.UNSUPPORTED, "the printer of this modality is not registered", where=known.printer)
        has = capabilities_of(device.json())
        job, study, now = generate_uid(None), generate_uid(None), self._server.clock()
        orders = []
        for number, film in enumerate(films, 1):
            images = list(_images(film, known.title, str(study), number, now))
            self._store(images, principal)
            uids = [str(each.SOPInstanceUID) for each in images]
            bits = min((each for each in has.bits if each >= max(map(_depth, film.images.values()))), default=0)
            is_coloured = film.is_colour and has.colour
            orders.append(_order(film, uids, known.printer, str(job), bits=bits, is_coloured=is_coloured))
        # All are stored; all of them are checked as drafts before the first one is released.
        repository = self._server.repository_for(principal)
        drafts = [repository.create(each).json() for each in orders]
        for draft in drafts:
            named = [f"Task/{draft['id']}"]
            self._server.audit.record(principal, Access.CREATE, resources=named, metered=ordered(draft))
            repository.update({**draft, "status": str(Status.REQUESTED)})
        with self._lock:
            self._open[str(job)] = known.subscriber, Progress.PENDING
        return str(job)

    def outcome(self, modality: "Modality", uid: str) -> Outcome:
        """Return what became of a print job. Raises NOT_FOUND for one that is not of this modality's subscriber."""
        return self._outcome(uid, self._registered(modality).subscriber)

    def news(self) -> list[tuple[str, Outcome]]:
        """Return the print jobs accepted here of which something new is known since the last call, by UID."""
        with self._lock:
            open_now = dict(self._open)
        found = []
        for uid, (subscriber, before) in open_now.items():
            outcome = self._outcome(uid, subscriber)
            if outcome.progress is not before:
                found.append((uid, outcome))
            with self._lock:
                if outcome.progress in (Progress.DONE, Progress.FAILED):
                    del self._open[uid]
                else:
                    self._open[uid] = subscriber, outcome.progress
        return found

    def _outcome(self, uid: str, subscriber: str) -> Outcome:
        clause = Clause("group-identifier", "token", "", (Token(UID_SYSTEM, f"urn:oid:{uid}"),))
        found = [each.json() for each in self._server.own.search(Query("Task", (clause,), count=MOST_FILMS)).matches]
        tasks = [each for each in found if each["requester"]["reference"] == subscriber]
        if not tasks:
            raise AppError(Category.NOT_FOUND, "no such print job", where="print job")
        pages = sum(status_of(each) is Status.COMPLETED for each in tasks)
        if not all(is_over(each) for each in tasks):
            return Outcome(Progress.PRINTING, pages)
        return Outcome(Progress.DONE if pages == len(tasks) else Progress.FAILED, pages)

    def status(self, modality: "Modality") -> PrinterStatus:
        """Return how the printer of a modality is."""
        device = self._server.printers.device(self._registered(modality).printer)
        return status_from_device(device.json() if device else {})

    def _registered(self, modality: "Modality") -> Registered:
        known = self._server.printers.modality(modality.calling)
        if known is None or (known.address and known.address != modality.address):
            message = "this application entity is not registered, or comes from another address"
            raise AppError(Category.FORBIDDEN, message, where="calling AE title")
        return known

    def _store(self, images: Sequence[Dataset], principal: Principal) -> None:
        for outcome in self._server.studies.ingest((to_part10(each) for each in images), principal):
            if isinstance(outcome, Refused):
                raise outcome.error


def _images(film: "Film", title: str, study: str, number: int, now: datetime) -> Iterator[Dataset]:
    """Yield the images of a film in the order of its boxes; an empty box before the last image is a blank one."""
    from imaging.dimse.print_pixels import p_values

    series = generate_uid(None)
    for position in range(1, max(film.images, default=0) + 1):
        box = film.images.get(position)
        greys, depth = (p_values(box, film.lut, film.box), _depth(box)) if box is not None else (_BLANK, 8)
        ds = _capture(greys, depth)
        ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(None), study, str(series)
        ds.SeriesNumber, ds.InstanceNumber = number, position
        ds.StudyDate = ds.ContentDate = f"{now:%Y%m%d}"
        ds.StudyTime = ds.ContentTime = f"{now:%H%M%S}"
        ds.TimezoneOffsetFromUTC = "+0000"
        ds.StudyDescription, ds.SeriesDescription = f"Printed by {title}", f"Film {number}"
        width_mm = float(box.get("RequestedImageSize") or 0) if box is not None else 0.0
        if width_mm:
            ds.PixelSpacing = [f"{width_mm / greys.shape[1]:.8g}"[:16]] * 2
        yield ds


def _capture(greys: Greys, depth: int) -> Dataset:
    """Return a secondary capture of P-Values; who the patient is, a print does not say."""
    ds = Dataset()
    ds.SOPClassUID, ds.Modality, ds.ConversionType = SECONDARY_CAPTURE, "OT", "WSD"
    ds.PatientName = ds.PatientID = ds.PatientBirthDate = ds.PatientSex = ""
    ds.ReferringPhysicianName = ds.StudyID = ds.AccessionNumber = ""
    highest = (1 << depth) - 1
    is_colour = greys.ndim == 3
    ds.Rows, ds.Columns = greys.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if is_colour else (1, "MONOCHROME2")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8 if depth == 8 else 16, depth, depth - 1, 0
    if is_colour:
        ds.PlanarConfiguration = 0
    else:
        ds.PresentationLUTShape = "IDENTITY"
        ds.WindowCenter, ds.WindowWidth = f"{highest / 2:g}", str(highest)
        ds.VOILUTFunction = "LINEAR_EXACT"
    stored = np.rint(greys * highest).astype("u1" if depth == 8 else "<u2")
    raw = stored.tobytes()
    ds.add_new("PixelData", "OB" if depth == 8 else "OW", raw + b"\0" * (len(raw) % 2))
    return ds


def _depth(box: Dataset) -> int:
    (image,) = box.get("BasicGrayscaleImageSequence") or box.BasicColorImageSequence
    return int(image.BitsStored)


def _order(film: "Film", uids: Sequence[str], printer: str, job: str, *, bits: int, is_coloured: bool) -> Json:
    """Return the Task of a film, a draft. Raises UNSUPPORTED for what an order cannot say.

    bits   of a grey value, so that none of the modality's is lost; 0 leaves it to the printer
    """
    box, session = film.box, film.session
    sizes = {bool(each.get("RequestedImageSize")) for each in film.images.values()}
    if len(sizes) > 1:
        message = "either all images of a film have a requested size, or none"
        raise AppError(Category.UNSUPPORTED, message, where="requested image size")
    inputs = [
        value("device", "valueReference", {"reference": f"Device/{device_id(printer)}"}),
        *(value("instance", "valueId", uid) for uid in uids),
        value("layout", "valueString", str(box.ImageDisplayFormat)),
        value("film-size", "valueCode", str(box.FilmSizeID)),
        value("orientation", "valueCode", str(box.FilmOrientation)),
        value("magnification", "valueCode", str(box.MagnificationType)),
        value("fit", "valueCode", "true-size" if True in sizes else "fit"),
        value("medium", "valueCode", str(session.MediumType)),
        value("copies", "valuePositiveInt", int(session.NumberOfCopies)),
        value("trim", "valueBoolean", box.get("Trim") == "YES"),
        value("border", "valueCode", _density(box.get("BorderDensity"))),
        value("empty", "valueCode", _density(box.get("EmptyImageDensity"))),
        *(value(name, "valueBoolean", False) for name in ("captions", "letters", "scale-bar")),
        *(value("banner", "valueString", text[:200]) for text in _texts(film)),
    ]
    if is_coloured:
        inputs.append(value("colour", "valueBoolean", True))
    elif bits:
        inputs.append(value("bits", "valuePositiveInt", bits))
    if box.get("MinDensity") is not None and box.get("MaxDensity") is not None:
        inputs.append(value("density-min", "valueDecimal", int(box.MinDensity) / 100))
        inputs.append(value("density-max", "valueDecimal", int(box.MaxDensity) / 100))
    return {
        "resourceType": "Task",
        "status": str(Status.DRAFT),
        "intent": "order",
        "priority": _PRIORITIES.get(str(session.PrintPriority), "routine"),
        "code": {"coding": [{"system": CODES, "code": CODE}]},
        "groupIdentifier": {"system": UID_SYSTEM, "value": f"urn:oid:{job}"},
        "input": inputs,
    }


def _density(given: Any) -> str:
    """Return BLACK, WHITE, or an optical density, of which DICOM gives the hundredfold."""
    text = str(given or "BLACK")
    return f"{int(text) / 100:g}" if text.isdecimal() else text if text in ("BLACK", "WHITE") else "BLACK"


def _texts(film: "Film") -> list[str]:
    lines = [str(film.session.get("FilmSessionLabel") or ""), *film.annotations.values()]
    clean = ("".join(each if each.isprintable() else " " for each in line).strip() for line in lines)
    return [each for each in clean if each][:MOST_BANNER]
