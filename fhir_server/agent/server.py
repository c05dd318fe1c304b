"""The imaging server as the print agent sees it: Tasks that are addressed to its Device, that Device, and images.

Hides FHIR's and DICOMweb's REST. What the server refuses because somebody else was quicker, or because the order is
over, is CONFLICT; while it does not answer, BUSY.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fhir_server.hardcopy.devices import properties, status_of_device
from fhir_server.hardcopy.filed import Filed
from fhir_server.hardcopy.images import MOST_SHOTS
from fhir_server.hardcopy.orders import CODE
from fhir_server.model import json
from fhir_server.model.task import Json
from fhir_server.outbound import dicomweb
from fhir_server.outbound.remote import Remote, Rules, require_good
from imaging.dicomweb import MultipartLimits
from imaging.errors import AppError, Category
from imaging.printer import Capabilities, Status

FHIR_JSON = "application/fhir+json"
MOST_ANSWER_BYTES = 16 << 20
AT_A_TIME = 100  # orders looked at in one search
FILE_WITHIN_S = 3_600.0  # from the first to the last byte of an image
_OPEN = "requested,received,accepted,ready,in-progress"
_GONE = frozenset({404, 409, 410, 412})
_PRIORITIES = ("stat", "asap", "urgent", "routine")
_STUDY, _SERIES, _SOP, _CLASS = "0020000D", "0020000E", "00080018", "00080016"
_FRAMES, _ROWS, _SERIES_NUMBER, _NUMBER = "00280008", "00280010", "00200011", "00200013"


class ImagingServer:
    """One server and the Device of this agent, "Device/..."."""

    def __init__(
        self, address: str, device: str, token: Callable[[], str], rules: Rules, *, most_file_bytes: int
    ) -> None:
        """`token` returns the bearer token, which may be another one tomorrow."""
        self._address, self._token, self._rules = address.rstrip("/"), token, rules
        self._limits = MultipartLimits(part_bytes=most_file_bytes, total_bytes=2 * most_file_bytes)
        self.device = device

    # ---- orders

    def base(self) -> str:
        """Return the base of the FHIR door as the server calls itself."""
        found: str = self._call("GET", "metadata")["implementation"]["url"]
        return found

    def orders(self) -> list[Json]:
        """Return the open Tasks that are addressed to the Device, the most pressing first, then the oldest."""
        query = {
            "owner": self.device, "code": CODE, "status": _OPEN, "_sort": "authored-on", "_count": str(AT_A_TIME),
        }  # fmt: skip
        found = self._call("GET", f"Task?{urlencode(query)}").get("entry", [])
        tasks = [each["resource"] for each in found if each["resource"]["resourceType"] == "Task"]
        return sorted(tasks, key=lambda each: _PRIORITIES.index(each.get("priority", "routine")))

    def order(self, identifier: str) -> Json:
        """Return a Task. Raises CONFLICT for one that is gone."""
        return self._call("GET", f"Task/{quote(identifier)}")

    def write(self, task: Json, **changes: Any) -> Json:
        """Write a new version of the Task that was read, and return it. Raises CONFLICT where that is not the last."""
        match = f'W/"{task["meta"]["versionId"]}"'
        return self._call("PUT", f"Task/{quote(task['id'])}", {**task, **changes}, {"If-Match": match})

    # ---- the Device

    def tell(self, capabilities: Capabilities | None, status: Status) -> bool:
        """Have the Device say what the printer can do and how it is; return False where the operator suspended it."""
        current = self._call("GET", self.device)
        if current.get("status") == "inactive":
            return False
        told = {each: value for each, value in current.items() if each != "statusReason"}
        told |= status_of_device(status, is_suspended=False)
        if capabilities is not None:
            told["property"] = properties(capabilities)
        if told != current:
            match = f'W/"{current["meta"]["versionId"]}"'
            self._call("PUT", self.device, told, {"If-Match": match})
        return True

    # ---- images

    def images_of(self, identifier: str) -> "ImagesOfOrder":
        """Return the images of a Task that was claimed."""
        return ImagesOfOrder(lambda: self.remote(f"dicom-web/print-orders/{quote(identifier)}"), self._limits)

    # ---- inside

    @contextmanager
    def remote(self, door: str) -> Iterator[Remote]:
        """Connect to one of the server's doors."""
        authorization = f"Bearer {self._token()}"
        with Remote(f"{self._address}/{door}", self._rules, name="server", authorization=authorization) as remote:
            yield remote

    def _call(self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None) -> Json:
        told = {"Accept": FHIR_JSON, **(headers or {}), **({"Content-Type": FHIR_JSON} if body else {})}
        with self.remote("fhir") as remote:
            content = json.dumps(body) if body else None
            answer = remote.exchange(method, f"/{path}", headers=told, body=content, most_bytes=MOST_ANSWER_BYTES)
        if answer.status in _GONE:
            message = f"the server has another version of this, or none (HTTP {answer.status})"
            raise AppError(Category.CONFLICT, message, where=path.partition("?")[0])
        require_good(answer.status, "server")
        try:
            found: Json = json.loads(answer.body)
        except AppError:
            raise AppError(Category.BUSY, "the answer is not one of FHIR", where="server") from None
        return found


class ImagesOfOrder:
    """The images of one order as the server gives them: a `Source`."""

    def __init__(self, remote: Callable[[], AbstractContextManager[Remote]], limits: MultipartLimits) -> None:
        self._opened, self._limits = remote, limits

    @contextmanager
    def _remote(self) -> Iterator[Remote]:
        try:
            with self._opened() as remote:
                yield remote
        except AppError as error:
            if error.category is Category.CONFLICT:  # the claim has lapsed meanwhile; it is made anew
                raise AppError(Category.BUSY, "the order has to be claimed anew", where="server") from error
            raise

    def find(self, kind: str, uid: str) -> list[Filed]:
        """Return the instances of a study, series or instance in reading order."""
        with self._remote() as remote:
            path, params = f"/studies/{uid}/instances", []
            if kind == "series":
                study = _first(
                    dicomweb.search(remote, "/series", [("SeriesInstanceUID", uid)], _SERIES, most=AT_A_TIME),
                    _STUDY,
                    uid,
                )
                path = f"/studies/{study}/series/{uid}/instances"
            elif kind == "instance":
                path, params = "/instances", [("SOPInstanceUID", uid)]
            more = [("includefield", tag) for tag in (_SERIES_NUMBER, _ROWS, _FRAMES)]
            found = list(dicomweb.search(remote, path, [*params, *more], _SOP, most=MOST_SHOTS))
        if not found:
            raise AppError(Category.NOT_FOUND, f"no such {kind}", where=uid)
        return [_filed(each) for each in sorted(found, key=_reading_order)]

    def fetch(self, filed: Filed, to: Path) -> None:
        """Write the file of an instance as the server keeps it, compressed."""
        path = f"/studies/{filed.study_uid}/series/{filed.series_uid}/instances/{filed.sop_uid}"
        with self._remote() as remote, to.open("wb") as file:
            for part in dicomweb.retrieve(remote, path, self._limits, within_s=FILE_WITHIN_S):
                file.write(part)
                return
        raise AppError(Category.NOT_FOUND, "the server sent no file", where=filed.sop_uid)


def _first(found: Iterator[dict[str, Any]], tag: str, uid: str) -> str:
    value = next((dicomweb.text(each, tag) for each in found), "")
    if not value:
        raise AppError(Category.NOT_FOUND, "no such series", where=uid)
    return value


def _filed(match: Mapping[str, Any]) -> Filed:
    has_pixels = dicomweb.count(match, _ROWS) > 0
    return Filed(
        study_uid=dicomweb.text(match, _STUDY),
        series_uid=dicomweb.text(match, _SERIES),
        sop_uid=dicomweb.text(match, _SOP),
        sop_class_uid=dicomweb.text(match, _CLASS),
        number_of_frames=max(1, dicomweb.count(match, _FRAMES)) if has_pixels else 0,
    )


def _reading_order(match: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what sorts as the server does: by numbers, those without one first, UIDs breaking ties."""
    numbers = [dicomweb.text(match, tag) for tag in (_SERIES_NUMBER, _NUMBER)]
    series, number = (int(each) if each.lstrip("-").isdigit() else None for each in numbers)
    return (
        series is not None, series or 0, dicomweb.text(match, _SERIES),
        number is not None, number or 0, dicomweb.text(match, _SOP),
    )  # fmt: skip
