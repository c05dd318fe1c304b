"""Files of exports, in a bucket of their own: NDJSON in pages, compressed as it goes out.

A page is one row and is written once, by its number in the export: so of two workers that believe they have the same
export one is refused, and where a worker ended, the next goes on behind the last page. A page tells where it ends and
which file it belongs to. Pages are gzip members: those of a file, one after the other, are the file, compressed.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bson.binary import Binary
from pymongo import ASCENDING, IndexModel
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from fhir_server.model.dates import whole_milliseconds
from fhir_server.store.failures import translated
from fhir_server.store.snapshot import settle
from imaging.errors import AppError, Category

GZIP = 16 + zlib.MAX_WBITS  # the form of a member
COMPRESSION = 1
READING = timedelta(hours=1)  # files that somebody began to fetch are left for so long
_LISTED = ("kind", "type", "file", "count", "bytes")


class Part(StrEnum):
    """The part of a manifest that a file belongs to."""

    OUTPUT = "output"
    DELETED = "deleted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an export is: the step of its plan, and behind which key of it."""

    step: int = 0
    after: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Lines that are written together.

    file     number of the file within the export; all of its pages have one type
    place    behind the last line
    referred references that were met for the first time
    """

    part: Part
    type: str
    file: int
    lines: Sequence[bytes] = field(repr=False)
    place: Place
    referred: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class File:
    """A file of an export: how many resources it has, and how many bytes when it is not compressed."""

    number: int
    part: Part
    type: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class State:
    """What there is of an export: number of pages, place, the files in order, and references that were met."""

    pages: int
    place: Place
    files: tuple[File, ...]
    referred: frozenset[str]


class Exports:
    """The files of all exports, by the id of the Task that makes them."""

    def __init__(self, database: Database[Any], clock: Callable[[], datetime]) -> None:
        durable = WriteConcern("majority", j=True)
        self._database = database
        self._rows = database.get_collection("exports", write_concern=durable)
        self._pages = database.get_collection("export_pages", write_concern=durable)
        self._clock = clock

    def ensure_indexes(self) -> None:
        """Create the indexes; may be called again at any time."""
        listing = [("export", 1), ("number", 1), *((name, 1) for name in _LISTED)]
        self._pages.create_indexes([IndexModel([(name, ASCENDING) for name, _ in listing], name="listing")])

    def begin(self, export: str, *, wait_s: float) -> datetime:
        """Return the moment that an export shows: that of its first begin, before which nothing is written any more.

        wait_s   as in `snapshot.settle`
        """
        with translated("export"):
            found = self._rows.find_one({"_id": export})
        if found is not None:
            moment: datetime = found["moment"]
            return moment
        moment = whole_milliseconds(self._clock())
        settle(self._database, wait_s=wait_s)
        with translated("export"):
            self._rows.insert_one({"_id": export, "moment": moment})
        return moment

    def state(self, export: str) -> State:
        """Return what there is of an export."""
        with translated("export"):
            last = self._pages.find_one({"export": export}, {"data": 0}, sort=[("number", -1)])
            rows = self._pages.find({"export": export, "referred": {"$gt": []}}, {"referred": 1}) if last else ()
            referred = frozenset(name for row in rows for name in row["referred"])
        if last is None:
            return State(0, Place(), (), frozenset())
        return State(last["number"] + 1, Place(*last["place"]), self.files(export), referred)

    def write(self, export: str, number: int, page: Page) -> None:
        """Keep a page. Raises CONFLICT where there is one of this number."""
        data = b"".join(line + b"\n" for line in page.lines)
        row = {
            "_id": f"{export}/{number}", "export": export, "number": number,
            "kind": str(page.part), "type": page.type, "file": page.file, "count": len(page.lines), "bytes": len(data),
            "place": [page.place.step, page.place.after], "data": Binary(_packed(data)),
            **({"referred": list(page.referred)} if page.referred else {}),
        }  # fmt: skip
        with translated("export"):
            self._pages.insert_one(row)

    def files(self, export: str) -> tuple[File, ...]:
        """Return the files of an export in order; read from an index alone."""
        fields = {"_id": 0, **dict.fromkeys(_LISTED, 1)}
        found: dict[int, File] = {}
        with translated("export"):
            for row in self._pages.find({"export": export}, fields).hint("listing"):
                before = found.get(row["file"])
                count, size = (before.count, before.bytes) if before else (0, 0)
                found[row["file"]] = File(
                    row["file"], Part(row["kind"]), row["type"], count + row["count"], size + row["bytes"]
                )
        return tuple(found.values())

    def read(self, export: str, file: int) -> Iterator[bytes]:
        """Return the pages of a file, each a gzip member. From now on they are kept for an hour at least."""
        with translated("export"):
            if not self._rows.update_one({"_id": export}, {"$set": {"read": self._clock()}}).matched_count:
                raise AppError(Category.NOT_FOUND, "there is no such file, or it is not kept any more", where="export")
            found = self._pages.find({"export": export, "file": file}, {"data": 1}).sort("number", 1).batch_size(4)
        return (bytes(row["data"]) for row in found)

    def forget(self, export: str) -> None:
        """Remove an export and its files."""
        with translated("export"):
            self._pages.delete_many({"export": export})
            self._rows.delete_one({"_id": export})

    def sweep(self, is_kept: Callable[[str], bool]) -> int:
        """Remove exports that are not kept any more and that nobody fetches; return how many.

        A worker that did not hear of its end may have written a page after the rest was removed: it goes as well.
        """
        with translated("export"):
            reading = {row["_id"] for row in self._rows.find({"read": {"$gt": self._clock() - READING}}, {"_id": 1})}
            known = {str(row["_id"]) for row in self._rows.find({}, {"_id": 1})}
            known |= set(self._pages.distinct("export"))
        gone = [each for each in known if each not in reading and not is_kept(each)]
        for each in gone:
            self.forget(each)
        return len(gone)


def unpacked(pages: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of pages that are gzip members, in pieces."""
    return (zlib.decompress(each, GZIP) for each in pages)


def _packed(data: bytes) -> bytes:
    packer = zlib.compressobj(COMPRESSION, zlib.DEFLATED, GZIP)
    return packer.compress(data) + packer.flush()
