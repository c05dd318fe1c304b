"""What the archive writes about an instance: the row that makes it exist, and what is read back from it.

Hides the document layout of the collections `instances`, `series`, `studies`, `trash` and `garbage`. An instance exists
when its row does; everything in `series` and `studies` is derived from rows.

* `instances`  `_id` SOP Instance UID
* `series`, `studies`  `_id` UID; a study's `generation` counts changes, `projected` is the one its ImagingStudy shows,
  `sampled` the one of which its series have `samples`: an instance of every kind (see `contents`),
  and `arrived_at` is there while nobody has looked at images that came
* `trash`  instances that were deleted and can be taken back (see `trash`)
* `corrections`  what was decided about attributes of a study (see `corrections`)
* `garbage`  blob keys that may belong to nothing, and the studies of the batch that wrote them (see `upkeep`)
"""

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any

import orjson
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.database import Database

from imaging.archive import attributes, keys
from imaging.archive.attributes import Tables
from imaging.blobs import Buffer
from imaging.conditions import conditions, conditions_to_document
from imaging.dataset import InstanceSummary, PixelLayout, Received
from imaging.dicom_json import dicom_json_of
from imaging.elements import Encoding
from imaging.frames import FrameTable
from imaging.part10 import write_elements
from imaging.transcode import Encoded

Document = dict[str, Any]

INLINE_BYTES = 256 * 1024  # what is larger than this goes into a blob of its own, far below MongoDB's 16 MB a document

_SEARCHED = IndexModel([("$**", ASCENDING)], name="searched", wildcardProjection=dict.fromkeys(keys.FIELDS, 1))
"""Each attribute by itself, also those inside of sequences."""

READING_ORDER = [(name, ASCENDING) for name in ("study", "series_number", "series", "number", "_id")]

INDEXES: dict[str, list[IndexModel]] = {
    "instances": [
        IndexModel(READING_ORDER, name="reading_order"),
        IndexModel([("series", ASCENDING)], name="series"),
        IndexModel([("blob", ASCENDING)], name="blob"),
        IndexModel([("received.blob", ASCENDING)], name="received_blob", sparse=True),
        IndexModel([("aside", ASCENDING)], name="aside", sparse=True),
        IndexModel([("class", ASCENDING)], name="class"),
        IndexModel([("brought_by", ASCENDING)], name="brought_by", sparse=True),
        _SEARCHED,
    ],
    "series": [
        IndexModel([("study", ASCENDING), ("number", ASCENDING), ("_id", ASCENDING)], name="reading_order"),
        _SEARCHED,
    ],
    "studies": [
        IndexModel([("keys.00080020", DESCENDING), ("_id", ASCENDING)], name="study_date"),
        IndexModel(
            [("keys.00100020", ASCENDING), ("keys.00080020", DESCENDING), ("_id", ASCENDING)], name="patient_date"
        ),
        IndexModel(
            [("keys.00080061", ASCENDING), ("keys.00080020", DESCENDING), ("_id", ASCENDING)], name="modality_date"
        ),
        _SEARCHED,
        IndexModel([("marked_at", ASCENDING)], name="behind", partialFilterExpression={"behind": True}),
        IndexModel([("arrived_at", ASCENDING)], name="arrivals", sparse=True),
    ],
    "garbage": [IndexModel([("at", ASCENDING)], name="at")],
    "trash": [
        IndexModel([("row.study", ASCENDING), ("row.series", ASCENDING), ("row._id", ASCENDING)], name="study"),
        IndexModel([("keys", ASCENDING)], name="keys"),
        IndexModel([("until", ASCENDING)], name="until"),
    ],
}


def ensure_indexes(database: Database[Document]) -> None:
    """Create the archive's collections and indexes; those that exist are left alone."""
    for name, models in INDEXES.items():
        database[name].create_indexes(models)


# Original Attributes Sequence: when something was changed on the way in is another time for each sending.
_PADDING = dict.fromkeys((0xFFFCFFFC, 0x04000561))
_PIXELS = dict.fromkeys((0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010, *_PADDING))


@dataclass(frozen=True, slots=True)
class Instance:
    """An archived instance as its row tells it; all sizes in bytes, all digests SHA-256 in hex."""

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    stored_transfer_syntax_uid: str
    received_transfer_syntax_uid: str
    kept_reason: str
    layout: PixelLayout | None
    frames: FrameTable | None
    size_stored: int
    size_received: int
    sha256_stored: str
    sha256_received: str
    sha256_pixels: str | None
    registered_by: str
    checksums: bytes
    envelope: Document | None = field(default=None, repr=False, compare=False)
    """What the received file is made of besides the stored one; None where it was not read along."""

    def checksum(self, number: int) -> int:
        """Return the CRC-32 of the stored bytes of frame `number`, from 1."""
        return int.from_bytes(self.checksums[4 * number - 4 : 4 * number], "little")

    @property
    def is_ours(self) -> bool:
        """Whether the codestreams were made here (and so may be given to a decoder that trusts its input)."""
        return not self.kept_reason

    @property
    def number_of_frames(self) -> int:
        """Frames that can be asked for one by one; 0 without pixel data."""
        return len(self.frames) if self.frames else 0


@dataclass(frozen=True, slots=True)
class Brought:
    """An instance that an order has fetched from elsewhere; its size in bytes."""

    sop_uid: str
    study_uid: str
    size_received: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A study to which images have come at which nobody has looked: when the last came, and in which generation."""

    study_uid: str
    at: datetime
    generation: int


INSTANCE_FIELDS = {
    name: 1
    for name in (
        "study", "series", "class", "stored_syntax", "received.syntax", "received.size", "received.sha256",
        "kept_reason", "layout", "frames", "checksums", "size", "blob", "pixels_sha256", "registered_by",
    )
}  # fmt: skip


FILE_FIELDS = {**INSTANCE_FIELDS, "envelope": 1}
"""Of an instance whose file is going to be given."""


def instance_from_row(row: Mapping[str, Any]) -> Instance:
    """Read back what `instance_row` wrote (the fields of `INSTANCE_FIELDS` are enough)."""
    return Instance(
        study_uid=row["study"],
        series_uid=row["series"],
        sop_uid=row["_id"],
        sop_class_uid=row["class"],
        stored_transfer_syntax_uid=row["stored_syntax"],
        received_transfer_syntax_uid=row["received"]["syntax"],
        kept_reason=row["kept_reason"],
        layout=PixelLayout.from_document(row["layout"]) if row["layout"] else None,
        frames=FrameTable.from_bytes(row["frames"]) if row["frames"] else None,
        size_stored=row["size"],
        size_received=row["received"]["size"],
        sha256_stored=row["blob"],
        sha256_received=row["received"]["sha256"],
        sha256_pixels=row["pixels_sha256"],
        registered_by=row["registered_by"],
        checksums=row["checksums"],
        envelope=row.get("envelope"),
    )


def instance_row(
    received: Received, encoded: Encoded, tables: Tables, *, registered_by: str, brought_by: str, stored_at: datetime
) -> Document:
    """Return the row of an instance; `envelope` and `metadata` may be moved aside when large (see `ingest`)."""
    summary = received.summary
    json, told = dicom_json_of(received, tables.instances)
    syntaxes = list(dict.fromkeys((encoded.transfer_syntax_uid, received.transfer_syntax_uid)))
    return {
        "_id": summary.sop_uid,
        "study": summary.study_uid,
        "series": summary.series_uid,
        "class": summary.instance.sop_class_uid,
        "number": summary.instance.instance_number,
        "series_number": summary.series.series_number,
        "common": orjson.dumps({"patient": summary.patient, "study": summary.study, "series": summary.series}),
        "instance": orjson.dumps(summary.instance),
        **instance_index(told, tables, syntaxes),
        "conditions": orjson.dumps(conditions_to_document(conditions(received.values))),
        "metadata": zlib.compress(json, 1),
        "stored_syntax": encoded.transfer_syntax_uid,
        "kept_reason": encoded.kept_reason,
        "layout": encoded.layout.to_document() if encoded.layout else None,
        "frames": encoded.frames.to_bytes() if encoded.frames else None,
        "checksums": _checksums(encoded),
        "blob": encoded.sha256,
        "size": encoded.size,
        "pixels_sha256": encoded.pixels_sha256,
        "envelope": encoded.envelope.to_document(),
        "received": {
            "syntax": received.transfer_syntax_uid,
            "sha256": received.sha256,
            "size": len(received.data),
            **({"blob": received.sha256} if encoded.envelope.kind == "file" else {}),
        },
        "registered_by": registered_by,
        **({"brought_by": brought_by} if brought_by else {}),
        "stored_at": stored_at,
    }


def instance_index(told: attributes.Attributes, tables: Tables, transfer_syntaxes: Sequence[str]) -> Document:
    """Return the fields of a row by which its instance is found, from its metadata."""
    found = attributes.instance(told, tables.instances, transfer_syntaxes=transfer_syntaxes)
    return {"attributes": orjson.dumps(found), **keys.searchable(found, tables.instances)}


def common_from_row(row: Mapping[str, Any]) -> InstanceSummary:
    """Return the summary of the row's instance."""
    return InstanceSummary.from_document({**orjson.loads(row["common"]), "instance": orjson.loads(row["instance"])})


def _checksums(encoded: Encoded) -> bytes:
    """Return the CRC-32 of each frame's stored bytes, four bytes each: a range read has no other digest to check."""
    if encoded.frames is None:
        return b""
    ends = list(accumulate(len(part) for part in encoded.parts))
    sums = []
    for ranges in encoded.frames.frames:
        crc = 0
        for start, length in ranges:
            for piece in _slices(encoded.parts, ends, start, length):
                crc = zlib.crc32(piece, crc)
        sums.append(crc.to_bytes(4, "little"))
    return b"".join(sums)


def _slices(parts: Sequence[Buffer], ends: Sequence[int], start: int, length: int) -> Iterator[memoryview]:
    n = bisect_right(ends, start)
    while length:
        part = memoryview(parts[n])
        offset = start - (ends[n] - len(part))
        piece = part[offset : offset + length]
        yield piece
        start, length, n = start + len(piece), length - len(piece), n + 1


def content_sha256(received: Received, *, pixels: bool) -> str:
    """Return a digest of what the data set says, whatever transfer syntax and file meta it came with.

    Its elements are taken in Implicit VR Little Endian, sequences with defined lengths, without group lengths, padding
    and Original Attributes Sequence. `pixels` tells whether pixel data belong to it, as they are.
    """
    digest = hashlib.sha256()
    # Said to come in another encoding than asked, so that every element is rewritten in the one form.
    told = write_elements(
        received.values, Encoding(implicit_vr=False), implicit_vr=True, edits=_PADDING if pixels else _PIXELS
    )
    for element in told:
        digest.update(element)
    return digest.hexdigest()
