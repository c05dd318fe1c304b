"""Film printers to print on: DCMTK's, and one of pynetdicom that has any weakness that a test asks for."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.dimse_messages import N_CREATE_RQ
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from imaging.dimse import answer_at_once
from imaging.dimse import print_terms as terms
from tests.support.film_modality import DCMTK, TLS_GENERAL, TLS_PEER

HAS_DCMPRSCP = shutil.which("dcmprscp") is not None
NEEDS_DCMPRSCP = "needs the package dcmtk (dcmprscp)"
TITLE = "FILMPRINTER"

_CONFIGURATION = (
    DCMTK
    + """Aetitle = {title}
Description = film printer of the tests
Hostname = 127.0.0.1
Port = {port}
Type = LOCALPRINTER
BorderDensity = BLACK\\WHITE
DisplayFormat = 1,1\\1,2\\2,2\\3,4
EmptyImageDensity = BLACK\\WHITE
FilmDestination = MAGAZINE\\PROCESSOR
FilmSizeID = 8INX10IN\\14INX17IN\\A4
MagnificationType = REPLICATE\\BILINEAR\\CUBIC\\NONE
MaxDensity = 320
MediumType = PAPER\\CLEAR FILM\\BLUE FILM
MinDensity = 20
ResolutionID = STANDARD\\HIGH
SmoothingType = NONE
Configuration_1 = A=1
Supports12Bit = true
SupportsDecimateCrop = true
SupportsImageSize = true
SupportsPresentationLUT = true
SupportsTrim = true
{uses_tls}"""
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class DcmtkPrinter:
    """DCMTK's dcmprscp: keeps what it prints as Stored Print and Hardcopy Grayscale Image objects."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def films(self) -> list[Dataset]:
        """Return the stored prints, oldest first."""
        return [dcmread(path) for path in self._made("SP")]

    def images(self) -> list[Dataset]:
        """Return the hardcopy images of what was printed; those of films that were not are kept too."""
        images = {ds.SOPInstanceUID: ds for ds in map(dcmread, self._made("HG"))}
        return [
            images[box.ReferencedImageSequence[0].ReferencedSOPInstanceUID]
            for film in self.films()
            for box in film.ImageBoxContentSequence
        ]

    def printed(self) -> list[np.ndarray]:
        return [image.pixel_array for image in self.images()]

    def forget(self) -> None:
        for path in (*self._made("SP"), *self._made("HG")):
            path.unlink()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _made(self, kind: str) -> list[Path]:
        return sorted(
            (self.folder / "database").glob(f"{kind}_*"), key=lambda path: (path.stat().st_mtime_ns, path.name)
        )


@contextmanager
def dcmtk_printer(folder: Path, tls: Path | None = None) -> Iterator[DcmtkPrinter]:
    """Run dcmprscp; `tls` is the folder of its certificate."""
    port = free_port()
    for name in ("spool", "database", "lut"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "dcmpstat.cfg"
    general, uses_tls = (TLS_GENERAL.format(tls=tls), TLS_PEER) if tls else ("", "")
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder, aetitle="DCMPSTATE", title=TITLE, port=port, tls=general, uses_tls=uses_tls
        )
    )
    program = ["dcmprscp", "-c", str(configuration), "-p", "PRINTER", "-q"]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _await(port)
            yield DcmtkPrinter(folder, port, process)
        finally:
            process.terminate()


def _await(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")


@dataclass
class WeakPrinter:
    """A film printer with weaknesses, which a test switches on while it runs.

    has            optional SOP classes that it accepts
    names_jobs     its answer to N-ACTION names a print job
    own_uids       it gives its own UIDs instead of those that it is asked to give
    boxes          image boxes of a film box, however many are asked; None for as many as asked
    dies_at        step before whose answer it ends the association: the service and the name of the SOP class
    dies_before    as above, but before it has done anything
    statuses       answers by step, in place of success
    answers        attributes that it answers with, by step
    tells_events   it reports an event of its own before each answer
    executions     Execution Status of a print job, one for each time that it is asked; the last one stays
    status         Printer Status and Printer Status Info
    """

    has: tuple[str, ...] = (terms.PRESENTATION_LUT, terms.ANNOTATION_BOX, terms.PRINT_JOB)
    names_jobs: bool = True
    own_uids: bool = False
    boxes: int | None = None
    annotation_boxes: int = 0
    dies_at: str = ""
    dies_before: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tells_events: bool = False
    executions: list[tuple[str, str]] = field(default_factory=lambda: [("DONE", "NORMAL")])
    status: tuple[str, str] = ("NORMAL", "NORMAL")
    steps: list[str] = field(default_factory=list)
    requests: list[tuple[str, Dataset]] = field(default_factory=list)
    films: list[list[np.ndarray]] = field(default_factory=list)
    colour: bool = False

    def printed(self) -> list[np.ndarray]:
        return [image for film in self.films for image in film]

    def forget(self) -> None:
        self.films.clear()

    def asked(self, step: str) -> list[Dataset]:
        """Return the attributes that were sent in a step."""
        return [ds for name, ds in self.requests if name == step]

    @contextmanager
    def running(self) -> Iterator["WeakPrinter"]:
        entity = AE(ae_title=TITLE)
        entity.require_called_aet = True
        for uid in (terms.GREY_META, *((terms.COLOUR_META,) if self.colour else ()), *self.has):
            entity.add_supported_context(uid)
        self._boxes: dict[str, list[str]] = {}
        self._images: dict[str, np.ndarray] = {}
        handlers = [
            (evt.EVT_CONN_OPEN, lambda event: answer_at_once(event.assoc)),
            (evt.EVT_DIMSE_RECV, self._forget_uid),
            (evt.EVT_N_CREATE, self._create),
            (evt.EVT_N_SET, self._set),
            (evt.EVT_N_ACTION, self._action),
            (evt.EVT_N_GET, self._get),
            (evt.EVT_N_DELETE, self._delete),
        ]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = server.server_address[1]
        running = [server]
        self.stop = lambda: [each.shutdown() for each in running] and running.clear()
        try:
            yield self
        finally:
            self.stop()

    # --- services

    def _create(self, event: evt.Event) -> tuple[int, Dataset]:
        request = event.request
        name = _NAMES[request.AffectedSOPClassUID]
        step = f"create {name}"
        self._begin(event, step, event.attribute_list)
        ds = Dataset()
        uid = generate_uid() if self.own_uids else str(request.AffectedSOPInstanceUID)
        if self.own_uids:
            ds.AffectedSOPInstanceUID = uid
        if name == "film box":
            across, down = map(int, event.attribute_list.ImageDisplayFormat.split("\\")[1].split(","))
            count = across * down if self.boxes is None else self.boxes
            self._boxes[uid] = [generate_uid() for _ in range(count)]
            ds.ReferencedImageBoxSequence = [_reference(terms.GREY_IMAGE_BOX, each) for each in self._boxes[uid]]
            annotations = [_reference(terms.ANNOTATION_BOX, generate_uid()) for _ in range(self.annotation_boxes)]
            if annotations:
                ds.ReferencedBasicAnnotationBoxSequence = annotations
        return self._end(event, step, ds)

    def _set(self, event: evt.Event) -> tuple[int, Dataset]:
        name = _NAMES[event.request.RequestedSOPClassUID]
        step = f"set {name}"
        self._begin(event, step, event.modification_list)
        if name == "image box":
            self._images[str(event.request.RequestedSOPInstanceUID)] = _pixels(event.modification_list)
        return self._end(event, step, Dataset())

    def _action(self, event: evt.Event) -> tuple[int, Dataset]:
        name = _NAMES[event.request.RequestedSOPClassUID]
        step = f"print {name}"
        self._begin(event, step, Dataset())
        ds = Dataset()
        if not terms.is_failure(self.statuses.get(step, 0)):
            uid = str(event.request.RequestedSOPInstanceUID)
            printed = [uid] if name == "film box" else list(self._boxes)
            for each in printed:
                self.films.append([self._images[box] for box in self._boxes.pop(each) if box in self._images])
            if self.names_jobs:
                ds.ReferencedPrintJobSequence = [_reference(terms.PRINT_JOB, generate_uid())]
        return self._end(event, step, ds)

    def _get(self, event: evt.Event) -> tuple[int, Dataset]:
        name = _NAMES[event.request.RequestedSOPClassUID]
        step = f"get {name}"
        self._begin(event, step, Dataset())
        ds = Dataset()
        if name == "printer":
            ds.PrinterStatus, ds.PrinterStatusInfo = self.status
            ds.Manufacturer, ds.PrinterName = "Weak Printers", "W1"
        else:
            ds.ExecutionStatus, ds.ExecutionStatusInfo = self.executions[0]
            del self.executions[: len(self.executions) > 1]
        return self._end(event, step, ds)

    def _delete(self, event: evt.Event) -> int:
        step = f"delete {_NAMES[event.request.RequestedSOPClassUID]}"
        self._begin(event, step, Dataset())
        return self._end(event, step, Dataset())[0]

    # --- weaknesses

    def _forget_uid(self, event: evt.Event) -> None:
        """Take the UID out of a request to create, which has pynetdicom answer with the handler's."""
        if self.own_uids and isinstance(event.message, N_CREATE_RQ):
            event.message.command_set.AffectedSOPInstanceUID = ""

    def _begin(self, event: evt.Event, step: str, ds: Dataset) -> None:
        self.steps.append(step)
        self.requests.append((step, ds))
        if self.dies_before == step:
            self.dies_before = ""
            event.assoc.abort()
            raise ConnectionError("died")

    def _end(self, event: evt.Event, step: str, ds: Dataset) -> tuple[int, Dataset]:
        if self.tells_events:
            self._tell(event)
        if self.dies_at == step:
            self.dies_at = ""
            event.assoc.abort()
            raise ConnectionError("died")
        for keyword, value in self.answers.get(step, {}).items():
            setattr(ds, keyword, value)
        return self.statuses.get(step, 0), ds

    def _tell(self, event: evt.Event) -> None:
        """Report that film is low, between a request and its response."""
        report = N_EVENT_REPORT()
        report.MessageID = 4711
        report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = terms.PRINTER, terms.PRINTER_INSTANCE
        report.EventTypeID = 2
        ds = Dataset()
        ds.PrinterStatusInfo = "SUPPLY LOW"
        syntax = event.context.transfer_syntax
        report.EventInformation = BytesIO(encode(ds, syntax.is_implicit_VR, syntax.is_little_endian))
        event.assoc.dimse.send_msg(report, event.context.context_id)


_NAMES = {
    terms.FILM_SESSION: "film session",
    terms.FILM_BOX: "film box",
    terms.GREY_IMAGE_BOX: "image box",
    terms.COLOUR_IMAGE_BOX: "image box",
    terms.PRESENTATION_LUT: "presentation lut",
    terms.ANNOTATION_BOX: "annotation box",
    terms.PRINTER: "printer",
    terms.PRINT_JOB: "print job",
}


def _reference(class_uid: str, uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = class_uid, uid
    return ds


def _pixels(box: Dataset) -> np.ndarray:
    (image,) = box.get("BasicGrayscaleImageSequence") or box.BasicColorImageSequence
    dtype = np.uint8 if image.BitsAllocated == 8 else np.uint16
    shape = (image.Rows, image.Columns) if image.SamplesPerPixel == 1 else (3, image.Rows, image.Columns)
    count = int(np.prod(shape))
    pixels = np.frombuffer(image.PixelData, dtype=dtype)[:count].reshape(shape)
    return pixels if image.SamplesPerPixel == 1 else np.moveaxis(pixels, 0, 2)
