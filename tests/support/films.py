"""Orders of hard copies on images in a folder, without a server."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fhir_server.delivery import value
from fhir_server.hardcopy.composing import Copying
from fhir_server.hardcopy.filed import Filed, FiledImages
from fhir_server.hardcopy.images import Chosen
from fhir_server.hardcopy.inputs import INPUTS, PARAMETERS
from fhir_server.hardcopy.orders import CODE, check_order, order_of
from fhir_server.model.task import Kind, check_inputs
from imaging.dataset import read
from imaging.errors import AppError, Category
from imaging.printer import Capabilities

KIND = Kind(CODE, PARAMETERS, check=check_order)
DEVICE = value("device", "valueReference", {"reference": "Device/printer-film"})
ADDRESS = "https://images.example.org/fhir/Task/4b0f1b52-0000-4000-8000-000000000000"
_VALUES = {each.name: each.value.split("|")[0] for each in INPUTS}


class Files:
    """A source of files that are given; `missing` ones cannot be fetched."""

    def __init__(self, files: Iterable[bytes]) -> None:
        self.files = {(each := read(data)).summary.sop_uid: (each, data) for data in files}
        self.fetched: list[str] = []
        self.is_away = False

    def find(self, kind: str, uid: str) -> list[Filed]:
        self._require()
        names = {"study": "study_uid", "series": "series_uid", "instance": "sop_uid"}
        found = [each for each, _ in self.files.values() if getattr(each.summary, names[kind]) == uid]
        if not found:
            raise AppError(Category.NOT_FOUND, f"no such {kind}", where=uid)
        found.sort(key=lambda each: each.summary.instance.instance_number or 0)
        return [
            Filed(
                each.summary.study_uid, each.summary.series_uid, each.summary.sop_uid,
                each.summary.instance.sop_class_uid, each.pixels.number_of_frames if each.pixels else 0,
            )
            for each in found
        ]  # fmt: skip

    def fetch(self, filed: Filed, to: Path) -> None:
        self._require()
        self.fetched.append(filed.sop_uid)
        to.write_bytes(self.files[filed.sop_uid][1])

    def _require(self) -> None:
        if self.is_away:
            raise AppError(Category.BUSY, "the server does not answer", where="server")


def inputs(**given: Any) -> list[dict[str, Any]]:
    """Return inputs by name, dashes as underscores, a list for several; each in the first element that may hold it."""
    made = []
    for name, content in given.items():
        known = name.replace("_", "-")
        for each in content if isinstance(content, list) else [content]:
            made.append(value(known, _VALUES[known], each))
    return made


def task(*given: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return an order of these inputs on the printer `film`."""
    return {
        "resourceType": "Task", "id": "order-1", "status": "requested", "intent": "order",
        "code": {"coding": [{"code": CODE}]}, "requester": {"reference": "Organization/1"},
        "input": [DEVICE, *given], **more,
    }  # fmt: skip


def copying(
    folder: Path, files: Iterable[bytes], ordered: Mapping[str, Any], capabilities: Capabilities, **more: Any
) -> Copying:
    """Return what is printed of an order on files; raises what is wrong with it, as placing it would."""
    check_inputs(ordered, KIND)
    order = order_of(ordered)
    images = FiledImages(folder, Files(files))
    chosen = Chosen(images, order, reach=lambda found: None)
    return Copying(order, chosen, capabilities, key=ordered["id"], address=ADDRESS, **more)
