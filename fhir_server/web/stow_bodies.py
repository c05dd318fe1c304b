"""The bodies of STOW-RS requests: a row for each form, and from the stream of bytes to what is to be stored.

Hides multipart and single parts, content encodings, and where metadata and bulk data come apart.
Sources: PS3.18 8.6.1, 8.7.3 and 10.5.1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from flask import request

from fhir_server.web.dicom_answers import DICOM_JSON, DICOM_XML
from fhir_server.web.dicom_door import Door
from fhir_server.web.http import reader_of
from imaging.archive import Incoming
from imaging.assembly import JSON_TYPES, XML_TYPES, Assembly
from imaging.dicomweb import ContentType, MultipartLimits, Part, iter_parts, parse_content_type, read_body
from imaging.dicomweb.encoded import decoded
from imaging.errors import AppError, Category

DICOM = "application/dicom"
OCTET_STREAM = "application/octet-stream"
FORMS = (DICOM, DICOM_JSON, DICOM_XML)
"""What instances come as, alone or as the parts of multipart/related; the first is what is meant without a `type`."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request whose body has not been read."""

    read: Callable[[int], bytes]
    content_type: ContentType
    limits: MultipartLimits
    door: Door

    def parts(self) -> Iterator[Part]:
        boundary = self.content_type.parameters.get("boundary", "")
        return iter_parts(self.read, boundary, self.limits)

    def assembly(self, root_type: str) -> Assembly:
        clock = self.door.server.clock
        return Assembly(root_type, at=clock(), most_instances=self.limits.parts)


class Instances:
    """The instances of the request at hand, one after the other, as they arrive.

    What makes the body unreadable ends it and is kept in `error`: the instances before it are stored and reported.
    """

    def __init__(self, door: Door) -> None:
        """Raises UNSUPPORTED for a body of another form, INVALID for a Content-Type that cannot be read."""
        self.error: AppError | None = None
        config = door.server.config
        limits = MultipartLimits(
            parts=config["limits.parts"],
            part_bytes=config["limits.instance_bytes"],
            total_bytes=config["limits.request_bytes"],
        )
        content_type = parse_content_type(request.headers.get("Content-Type", ""))
        read = decoded(reader_of(request), request.headers.get("Content-Encoding", ""))
        self._incoming = _form(content_type)(_Request(read, content_type, limits, door))

    def __iter__(self) -> Iterator[Incoming]:
        try:
            yield from self._incoming
        except AppError as error:
            self.error = error


def _form(content_type: ContentType) -> Callable[[_Request], Iterator[Incoming]]:
    is_multipart = content_type.media_type == "multipart/related"
    told = content_type.related_type if is_multipart else content_type.media_type
    if is_multipart:
        if told in ("", DICOM):
            return _files if told else _either
        if told in JSON_TYPES | XML_TYPES:
            return _apart
    elif told == DICOM:
        return _one_file
    elif told in JSON_TYPES | XML_TYPES:
        return _only_metadata
    message = f"multipart/related of these types, or one of them, expected: {', '.join(FORMS)}"
    raise AppError(Category.UNSUPPORTED, message, where="Content-Type")


def _one_file(asked: _Request) -> Iterator[Incoming]:
    yield read_body(asked.read, asked.limits.part_bytes)


def _files(asked: _Request) -> Iterator[Incoming]:
    return map(_file, asked.parts())


def _file(part: Part) -> Incoming:
    told = part.content_type
    if told is not None and told.media_type not in (DICOM, OCTET_STREAM):
        raise AppError(Category.UNSUPPORTED, f"a part is not {DICOM}", where="Content-Type")
    return part.body


def _either(asked: _Request) -> Iterator[Incoming]:
    """Yield instances of a request that does not say how they come: its first part does."""
    parts = asked.parts()
    for first in parts:
        told = first.content_type
        rest = chain([first], parts)
        if told is not None and told.media_type in JSON_TYPES | XML_TYPES:
            yield from _assembled(asked.assembly(told.media_type), rest)
        else:
            yield from map(_file, rest)


def _apart(asked: _Request) -> Iterator[Incoming]:
    return _assembled(asked.assembly(asked.content_type.related_type), asked.parts())


def _only_metadata(asked: _Request) -> Iterator[Incoming]:
    body = read_body(asked.read, asked.limits.part_bytes)
    return _assembled(asked.assembly(asked.content_type.media_type), [Part({}, body)])


def _assembled(assembly: Assembly, parts: Iterator[Part] | list[Part]) -> Iterator[Incoming]:
    try:
        for part in parts:
            yield from assembly.take(part)
    except AppError:
        yield from assembly.finish()
        raise
    yield from assembly.finish()
