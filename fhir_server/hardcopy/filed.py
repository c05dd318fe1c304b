"""The images of an order as files in a folder, fetched when they are asked for and kept until the order is over.

What was found for a study, a series or an instance is noted beside the files, so that an order whose images were once
fetched is printed without a network.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from numpy.typing import NDArray

from imaging import dicom_json
from imaging.dataset import Limits, Received, read
from imaging.errors import AppError, Category
from imaging.transcode import frames_of

NOTES = "found.json"
_HELD = 4  # files


@dataclass(frozen=True, slots=True)
class Filed:
    """An instance whose file is here, or can be fetched."""

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    number_of_frames: int


class Source(Protocol):
    """Where files come from that are not here yet."""

    def find(self, kind: str, uid: str) -> list[Filed]:
        """Return the instances of a `study`, `series` or `instance`, in reading order. Raises NOT_FOUND, BUSY."""

    def fetch(self, filed: Filed, to: Path) -> None:
        """Write the file of an instance. Raises NOT_FOUND, BUSY."""


class FiledImages:
    """`Images` in a folder of their own; without a source only what is there already."""

    def __init__(self, folder: Path, source: Source | None, *, most_file_bytes: int = 2 << 30) -> None:
        self._folder, self._source = folder, source
        self._limits = Limits(max_file_bytes=most_file_bytes)
        self._open: OrderedDict[str, Received] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)
        notes = folder / NOTES
        self._found: dict[str, list[Filed]] = {
            key: [Filed(**each) for each in rows]
            for key, rows in (json.loads(notes.read_text()) if notes.exists() else {}).items()
        }

    def of_study(self, study_uid: str) -> list[Filed]:
        """Return the instances of a study in reading order."""
        return self._find("study", study_uid)

    def of_series(self, series_uid: str) -> list[Filed]:
        """Return the instances of a series in reading order."""
        return self._find("series", series_uid)

    def of_instance(self, sop_uid: str) -> Filed:
        """Return one instance."""
        return self._find("instance", sop_uid)[0]

    def document(self, found: Filed) -> Mapping[str, Any]:
        """Return the DICOM JSON of an instance, fetched if need be."""
        document: dict[str, Any] = orjson.loads(dicom_json.dicom_json(self._received(found)))
        return document

    def bulkdata(self, found: Filed, uri: str) -> bytes:
        """Return a bulk data value."""
        return bytes(dicom_json.bulkdata(self._received(found), uri.removeprefix("@/"))[0])

    def pixels(self, found: Filed, frame: int) -> tuple[NDArray[Any], str]:
        """Return a decoded frame and its Photometric Interpretation."""
        decoded = frames_of(self._received(found)).decoded(frame - 1)
        return decoded.pixels, decoded.photometric_interpretation

    def fetch(self, wanted: Iterable[Filed]) -> None:
        """Have the files of instances here."""
        for each in wanted:
            self._path(each)

    def _find(self, kind: str, uid: str) -> list[Filed]:
        key = f"{kind} {uid}"
        if key not in self._found:
            if self._source is None:
                raise AppError(Category.NOT_FOUND, f"no such {kind}", where=uid)
            self._found[key] = self._source.find(kind, uid)
            rows = {name: [asdict(each) for each in found] for name, found in self._found.items()}
            _write(self._folder / NOTES, json.dumps(rows).encode())
        return self._found[key]

    def _path(self, found: Filed) -> Path:
        # The UID is hashed, because a name from outside is no path here.
        path = self._folder / f"{hashlib.sha256(found.sop_uid.encode()).hexdigest()[:32]}.dcm"
        if not path.exists():
            if self._source is None:
                raise AppError(Category.NOT_FOUND, "no such instance", where=found.sop_uid)
            part = path.with_suffix(".part")
            self._source.fetch(found, part)
            received = read(part.read_bytes(), limits=self._limits)
            if received.summary.sop_uid != found.sop_uid:
                raise AppError(Category.CONFLICT, "the file that came is of another instance", where=found.sop_uid)
            part.replace(path)
        return path

    def _received(self, found: Filed) -> Received:
        if found.sop_uid in self._open:
            self._open.move_to_end(found.sop_uid)
            return self._open[found.sop_uid]
        received = read(self._path(found).read_bytes(), limits=self._limits)
        self._open[found.sop_uid] = received
        if len(self._open) > _HELD:
            self._open.popitem(last=False)
        return received


def _write(path: Path, content: bytes) -> None:
    """Replace a file by another one, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
