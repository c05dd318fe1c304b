"""Instances whose metadata and bulk data come as parts of one request, put together as soon as all of one is there.

Holds back only what still waits for something, with bounds on it. Sources: PS3.18 8.6.1.2 and 10.5.1.2 (parts and their
Content-Location), annex F (JSON), PS3.19 A.1 (XML).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson

from imaging.archive import Incoming, Made, Refused, Remark
from imaging.bulk_media import OCTET_STREAM
from imaging.coercion import COERCED, SYSTEM
from imaging.compose import BulkValue, compose, frames_of, parts_wanted
from imaging.dataset import check_uid
from imaging.dataset_from_model import Model, text_of, uris
from imaging.dicomweb import Part
from imaging.dicomweb.native_reader import document
from imaging.errors import AppError, Category
from imaging.layout import Buffer

JSON_TYPES: Final = frozenset({"application/dicom+json", "application/json"})
XML_TYPES: Final = frozenset({"application/dicom+xml", "application/xml"})
MAX_METADATA_BYTES: Final = 64 << 20
"""Of one instance."""
MAX_LEVELS: Final = 200
MAX_PARKED_BYTES: Final = 128 << 20
MAX_PARKED_FILES: Final = 256
"""What may wait for the rest of its instance: in memory, and in temporary files (parts too large for it)."""
_FRAMES: Final = re.compile(r"(?P<base>.*)/frames/(?P<number>\d{1,9})")
# Possessive, so that nothing is remembered of a long text.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|"', re.DOTALL)
_SPACE: Final = re.compile(rb"\s*")
_COMMA: Final = re.compile(rb"\s*,")


@dataclass(slots=True)
class _Waiting:
    """An instance some of whose bulk data have not come; its metadata are read again when they have."""

    load: Callable[[], Model]
    sop_class_uid: str
    sop_uid: str
    frames: int
    wanted: Mapping[str, str]  # URI -> tag
    missing: set[str]
    model: Model | None = None


@dataclass(slots=True)
class _Bulk:
    media_type: str
    transfer_syntax: str
    parts: list[tuple[int, Buffer]] = field(default_factory=list)  # (number, body)

    def value(self) -> BulkValue:
        ordered = sorted(self.parts, key=lambda part: part[0])
        return BulkValue(self.media_type, self.transfer_syntax, tuple(body for _, body in ordered))


_NOTHING: Final = _Bulk("", "")


class Assembly:
    """Takes the parts of a request, in any order, and gives instances.

    root_type   media type of a first part that names none
    at          when attributes are changed, where some have to be
    """

    def __init__(self, root_type: str, *, at: datetime, most_instances: int) -> None:
        self._root_type = root_type
        self._at = at
        self._most_instances = most_instances
        self._instances = 0
        self._wanting: dict[str, list[_Waiting]] = {}
        self._bulk: dict[str, _Bulk] = {}
        self._parked_bytes = self._parked_files = 0

    def take(self, part: Part) -> Iterator[Incoming]:
        """Yield the instances that this part completes. Raises INVALID for metadata that cannot be read as a whole."""
        told = part.content_type
        media_type = told.media_type if told else self._root_type if not self._instances else ""
        if media_type in JSON_TYPES:
            spans = []
            for span in objects(part.body):
                self._count(1)
                spans.append(span)
            for span in spans:
                yield from self._metadata(lambda span=span: _json(part.body, *span))  # type: ignore[misc]
        elif media_type in XML_TYPES:
            self._count(1)
            yield from self._metadata(lambda: _xml(part.body))
        else:
            syntax = told.parameters.get("transfer-syntax", "") if told else ""
            yield from self._bulk_data(part, media_type, syntax)

    def finish(self) -> Iterator[Incoming]:
        """Yield what is wrong with what is left over: instances whose bulk data did not come, and the reverse."""
        left = {id(each): each for some in self._wanting.values() for each in some}
        for waiting in left.values():
            message = f"{len(waiting.missing)} bulk data that its metadata refers to did not come"
            yield Refused(AppError(Category.INVALID, message), waiting.sop_class_uid, waiting.sop_uid)
        for uri in self._bulk:
            if uri not in self._wanting:
                yield Refused(AppError(Category.INVALID, "no metadata refers to this bulk data"))
        self._wanting.clear()
        self._bulk.clear()

    def _metadata(self, load: Callable[[], Model]) -> Iterator[Incoming]:
        named = ("", "")
        try:
            model = load()
            named = (_uid(model, "00080016"), _uid(model, "00080018"))
            frames = frames_of(model)
        except AppError as error:
            yield Refused(error, *named)
            return
        wanted = {uri: tag for tag, uri in uris(model)}
        waiting = _Waiting(load, *named, frames, wanted, set(wanted))
        waiting.model = model
        for uri in wanted:
            self._wanting.setdefault(uri, []).append(waiting)
        yield from self._settle(waiting)
        waiting.model = None

    def _count(self, instances: int) -> None:
        self._instances += instances
        if self._instances > self._most_instances:
            message = f"the metadata is of more than {self._most_instances} instances"
            raise AppError(Category.TOO_LARGE, message, where="metadata")

    def _bulk_data(self, part: Part, media_type: str, syntax: str) -> Iterator[Incoming]:
        uri, number = _location(part), 0
        if not uri:
            yield Refused(AppError(Category.INVALID, "a part is neither metadata nor has a Content-Location"))
            return
        if uri not in self._wanting and (frame := _FRAMES.fullmatch(uri)):
            uri, number = frame["base"], int(frame["number"])
        held = self._bulk.setdefault(uri, _Bulk(media_type or OCTET_STREAM, syntax))
        held.parts.append((number, part.body))
        self._park(part.body, 1)
        for waiting in list(self._wanting.get(uri, ())):
            yield from self._settle(waiting)
        self._check_parked()

    def _settle(self, waiting: _Waiting) -> Iterator[Incoming]:
        """Yield the instance when nothing of it is missing any more."""
        try:
            came = {uri for uri in waiting.missing if uri in self._bulk and self._is_whole(waiting, uri)}
            waiting.missing -= came
            if waiting.missing:
                return
            model = waiting.model or waiting.load()
            bulk = {uri: self._bulk[uri].value() for uri in waiting.wanted}
            made = compose(model, bulk, at=self._at, system=SYSTEM)
            yield Made(made.data, _remarks(made.original))
        except AppError as error:
            yield Refused(error, waiting.sop_class_uid, waiting.sop_uid)
        self._forget(waiting)

    def _is_whole(self, waiting: _Waiting, uri: str) -> bool:
        held = self._bulk[uri]
        return len(held.parts) >= parts_wanted(waiting.frames, waiting.wanted[uri], held.media_type)

    def _forget(self, waiting: _Waiting) -> None:
        for uri in waiting.wanted:
            others = [each for each in self._wanting.get(uri, ()) if each is not waiting]
            if others:
                self._wanting[uri] = others
            else:
                self._wanting.pop(uri, None)
                for _, body in self._bulk.pop(uri, _NOTHING).parts:
                    self._park(body, -1)

    def _park(self, body: Buffer, sign: int) -> None:
        """Count what waits, or does no more."""
        if isinstance(body, bytes):
            self._parked_bytes += sign * len(body)
        else:
            self._parked_files += sign

    def _check_parked(self) -> None:
        if self._parked_bytes > MAX_PARKED_BYTES or self._parked_files > MAX_PARKED_FILES:
            message = "too much bulk data waits for other parts; send metadata first, and all of an instance together"
            raise AppError(Category.TOO_LARGE, message, where="multipart")


def objects(data: Buffer) -> Iterator[tuple[int, int]]:
    """Yield where each object of a JSON array begins and ends, or the one object. Raises INVALID, TOO_LARGE.

    What is inside of an object is not checked but for its nesting.
    """
    at = _after(_SPACE, data, 0)
    is_array = bytes(data[at : at + 1]) == b"["
    at += is_array
    while True:
        at = _after(_SPACE, data, at)
        if is_array and bytes(data[at : at + 1]) == b"]":
            at += 1
            break
        end = _end_of_object(data, at)
        yield at, end
        at = end
        if not is_array:
            break
        follows = _after(_SPACE, data, at)
        if bytes(data[follows : follows + 1]) != b"]":
            at = _after(_COMMA, data, at)
    if _after(_SPACE, data, at) != len(data):
        raise AppError(Category.INVALID, "more follows the metadata", where="metadata")


def _end_of_object(data: Buffer, start: int) -> int:
    if bytes(data[start : start + 1]) != b"{":
        raise AppError(Category.INVALID, "an array of objects expected", where="metadata")
    depth = 0
    for found in _TOKEN.finditer(data, start):
        token = found[0]
        if token in (b"{", b"["):
            depth += 1
            if depth > MAX_LEVELS:
                raise AppError(Category.TOO_LARGE, f"nested deeper than {MAX_LEVELS} levels", where="metadata")
        elif token in (b"}", b"]"):
            depth -= 1
            if not depth:
                return found.end()
        elif token == b'"':
            break
    raise AppError(Category.INVALID, "the metadata end inside an object", where="metadata")


def _after(pattern: re.Pattern[bytes], data: Buffer, start: int) -> int:
    found = pattern.match(data, start)
    if found is None:
        raise AppError(Category.INVALID, "an array of objects expected", where="metadata")
    return found.end()


def _json(data: Buffer, start: int, end: int) -> Model:
    _check_size(end - start)
    try:
        found: dict[str, Any] = orjson.loads(memoryview(data)[start:end])
    except orjson.JSONDecodeError:
        raise AppError(Category.INVALID, "the metadata of an instance is no JSON", where="metadata") from None
    return {name.upper(): element for name, element in found.items()}


def _xml(data: Buffer) -> Model:
    _check_size(len(data))
    return document(data)


def _check_size(size: int) -> None:
    if size > MAX_METADATA_BYTES:
        message = f"metadata of more than {MAX_METADATA_BYTES} bytes; send large values of an instance as bulk data"
        raise AppError(Category.TOO_LARGE, message, where="metadata")


def _location(part: Part) -> str:
    """Return the URI of bulk data; "" where none is told."""
    identifier = part.headers.get("content-id", "").strip().strip("<>")
    return part.headers.get("content-location", "").strip() or (identifier and f"cid:{identifier}")


def _uid(model: Model, tag: str) -> str:
    """Return a UID of metadata for the report; "" for what is none."""
    uid = text_of(model, tag)
    try:
        check_uid(uid, tag)
    except AppError:
        return ""
    return uid


def _remarks(original: Mapping[str, Any]) -> tuple[Remark, ...]:
    if not original:
        return ()
    return (Remark(COERCED, "the metadata was made to fit the bulk data", original),)
