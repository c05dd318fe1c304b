"""The Internet Printing Protocol: requests and responses as values, and as bytes over HTTP.

Hides the encoding (RFC 8010) and the connection. An attribute has a list of values; those of a collection are mappings
of the same kind. Only what a print client needs is encoded; everything that a printer may answer is decoded.
"""

import base64
import http.client
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO
from urllib.parse import urlsplit

from imaging.errors import AppError, Category

MOST_ANSWER = 4 << 20  # bytes
MOST_DEPTH = 8  # of collections
PORT = 631
_PIECE = 1 << 16


class Operation(IntEnum):
    """Operations of RFC 8011, 5.4.15."""

    CREATE_JOB = 0x0005
    SEND_DOCUMENT = 0x0006
    CANCEL_JOB = 0x0008
    GET_JOB_ATTRIBUTES = 0x0009
    GET_JOBS = 0x000A
    GET_PRINTER_ATTRIBUTES = 0x000B


class Group(IntEnum):
    """Delimiters of groups of attributes. Source: RFC 8010, 3.5.1."""

    OPERATION = 0x01
    JOB = 0x02
    END = 0x03
    PRINTER = 0x04
    UNSUPPORTED = 0x05


class Tag(IntEnum):
    """Types of values. Source: RFC 8010, 3.5.2."""

    INTEGER = 0x21
    BOOLEAN = 0x22
    ENUM = 0x23
    RESOLUTION = 0x32
    RANGE = 0x33
    BEGIN_COLLECTION = 0x34
    END_COLLECTION = 0x37
    TEXT = 0x41
    NAME = 0x42
    KEYWORD = 0x44
    URI = 0x45
    CHARSET = 0x47
    LANGUAGE = 0x48
    MIME = 0x49
    MEMBER_NAME = 0x4A


@dataclass(frozen=True, slots=True)
class Resolution:
    """Dots per inch across and along the feed."""

    across: int
    along: int


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`, ends included."""

    low: int
    high: int


Value = int | bool | str | bytes | Resolution | Range | Mapping[str, "Values"]
Values = list["Value"]
Attributes = Mapping[str, Values]


@dataclass(frozen=True, slots=True)
class Typed:
    """An attribute to be sent."""

    name: str
    tag: Tag
    values: Sequence[int | bool | str | Resolution | Sequence["Typed"]]


@dataclass(frozen=True, slots=True)
class Response:
    """What a printer answers: its status, and groups of attributes by their delimiters; one for each job."""

    status: int
    groups: Mapping[int, Sequence[Attributes]]

    def group(self, group: Group) -> Attributes:
        """Return the attributes of the first group of a kind, none where there is none."""
        return next(iter(self.groups.get(group, ())), {})


# Status -> category of what is wrong; a status of the same hundred that is not here is a FAULT. Source: RFC 8011, B.1.
_FAILURES = {
    0x0401: Category.FORBIDDEN, 0x0402: Category.FORBIDDEN, 0x0403: Category.FORBIDDEN, 0x0404: Category.CONFLICT,
    0x0405: Category.BUSY, 0x0406: Category.NOT_FOUND, 0x0407: Category.NOT_FOUND, 0x0408: Category.TOO_LARGE,
    0x040A: Category.UNSUPPORTED, 0x040B: Category.UNSUPPORTED, 0x0501: Category.UNSUPPORTED, 0x0502: Category.BUSY,
    0x0503: Category.UNSUPPORTED, 0x0505: Category.BUSY, 0x0506: Category.BUSY, 0x0507: Category.BUSY,
}  # fmt: skip
_HTTP_FAILURES = {401: Category.FORBIDDEN, 403: Category.FORBIDDEN, 404: Category.NOT_FOUND, 413: Category.TOO_LARGE}


class NoAnswer(AppError):
    """A request was sent, or in part, and no answer came."""

    def __init__(self) -> None:
        super().__init__(Category.BUSY, "the printer did not answer", where="printer")


def failure(response: Response) -> AppError | None:
    """Return the error that a response stands for, None for success. Statuses below 0x0100 are successes."""
    if response.status < 0x0100:
        return None
    unsupported = ", ".join(response.group(Group.UNSUPPORTED))
    said = f"the printer answers {response.status:#06x}" + (f": {unsupported}" if unsupported else "")
    return AppError(_FAILURES.get(response.status, Category.FAULT), said, where="printer")


# --- bytes


def encode(operation: Operation, request_id: int, groups: Sequence[tuple[Group, Sequence[Typed]]]) -> bytes:
    """Return a request of version 2.0, up to where its document begins."""
    body = struct.pack(">BBHI", 2, 0, operation, request_id)
    for group, attributes in groups:
        body += bytes((group,)) + b"".join(map(_attribute, attributes))
    return body + bytes((Group.END,))


def _attribute(attribute: Typed) -> bytes:
    # Further values of an attribute have no name of their own.
    names = (attribute.name, *("" for _ in attribute.values[1:]))
    return b"".join(_value(attribute.tag, name, value) for name, value in zip(names, attribute.values, strict=True))


def _value(tag: Tag, name: str, value: object) -> bytes:
    if tag is Tag.BEGIN_COLLECTION:
        members = value if isinstance(value, Sequence) else ()
        inner = b"".join(_member(each) for each in members if isinstance(each, Typed))
        return _field(tag, name, b"") + inner + _field(Tag.END_COLLECTION, "", b"")
    return _field(tag, name, _bytes(tag, value))


def _member(member: Typed) -> bytes:
    return _field(Tag.MEMBER_NAME, "", member.name.encode()) + b"".join(
        _value(member.tag, "", value) for value in member.values
    )


def _bytes(tag: Tag, value: object) -> bytes:
    if isinstance(value, Resolution):
        return struct.pack(">iib", value.across, value.along, 3)  # 3 is per inch
    if tag is Tag.BOOLEAN:
        return bytes((bool(value),))
    return struct.pack(">i", value) if isinstance(value, int) else str(value).encode()


def _field(tag: int, name: str, value: bytes) -> bytes:
    return struct.pack(">BH", tag, len(name.encode())) + name.encode() + struct.pack(">H", len(value)) + value


def decode(data: bytes) -> Response:
    """Return what a printer answered. Raises FAULT for what is no response."""
    try:
        _, _, status, _ = struct.unpack_from(">BBHI", data)
        return Response(status, _Reader(data, 8).groups())
    except (struct.error, IndexError, ValueError) as error:
        raise AppError(Category.FAULT, "the printer's answer cannot be read", where="printer") from error


class _Reader:
    """Reads groups of attributes from bytes, from a position on."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def groups(self) -> Mapping[int, Sequence[Attributes]]:
        groups: dict[int, list[Attributes]] = {}
        current: dict[str, Values] = {}
        values: Values = []
        while (tag := self._data[self._at]) != Group.END:
            if tag < 0x10:
                current = {}
                groups.setdefault(tag, []).append(current)
                self._at += 1
                continue
            tag, name, raw = self._field()
            value = self._collection(1) if tag == Tag.BEGIN_COLLECTION else _read(tag, raw)
            if name:
                values = current.setdefault(name, [])
            values.append(value)
        return groups

    def _collection(self, depth: int) -> Mapping[str, Values]:
        if depth > MOST_DEPTH:
            raise ValueError("collections are nested too deeply")
        members: dict[str, Values] = {}
        values: Values = []
        while True:
            tag, _, raw = self._field()
            if tag == Tag.END_COLLECTION:
                return members
            if tag == Tag.MEMBER_NAME:
                values = members.setdefault(raw.decode(errors="replace"), [])
            else:
                values.append(self._collection(depth + 1) if tag == Tag.BEGIN_COLLECTION else _read(tag, raw))

    def _field(self) -> tuple[int, str, bytes]:
        tag, length = struct.unpack_from(">BH", self._data, self._at)
        name = self._piece(self._at + 3, length)
        (length,) = struct.unpack_from(">H", self._data, self._at)
        return tag, name.decode(errors="replace"), self._piece(self._at + 2, length)

    def _piece(self, start: int, length: int) -> bytes:
        if start + length > len(self._data):
            raise ValueError("the answer ends within a value")
        self._at = start + length
        return self._data[start : self._at]


def _read(tag: int, raw: bytes) -> Value:
    if tag in (Tag.INTEGER, Tag.ENUM):
        return int(struct.unpack(">i", raw)[0])
    if tag == Tag.BOOLEAN:
        return raw != b"\0"
    if tag == Tag.RESOLUTION:
        across, along, unit = struct.unpack(">iib", raw)
        scale = 1.0 if unit == 3 else 2.54
        return Resolution(round(across * scale), round(along * scale))
    if tag == Tag.RANGE:
        return Range(*struct.unpack(">ii", raw))
    if tag in (0x35, 0x36):  # text with its language: two strings, each after its length
        (language,) = struct.unpack_from(">H", raw)
        return raw[4 + language :].decode(errors="replace")
    return raw.decode(errors="replace") if tag >= 0x40 else raw


# --- HTTP


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one printer. `uri` is `ipp://host[:port]/path`, or `ipps:` for TLS; nothing is open between requests."""

    uri: str
    user: str = ""
    password: str = ""
    ca_file: str = ""
    connect_s: float = 10.0
    answer_s: float = 60.0

    def __post_init__(self) -> None:
        """Raise INVALID for what is no printer's address."""
        try:
            parts = urlsplit(self.uri)
            is_address = parts.scheme in ("ipp", "ipps") and bool(parts.hostname) and (parts.port or PORT) > 0
        except ValueError:
            is_address = False
        if not is_address or any(each.isspace() for each in self.uri):
            raise AppError(Category.INVALID, "an address such as ipp://host:631/ipp/print expected", where="uri")

    def ask(
        self, operation: Operation, attributes: Sequence[Typed] = (), job: Sequence[Typed] = (),
        document: BinaryIO | None = None,
    ) -> Response:  # fmt: skip
        """Return the response to a request, to which a document may be attached, from its present position.

        Raises BUSY when the printer cannot be reached, NoAnswer when it may have heard the request, else what its
        answer stands for.
        """
        first = (
            Typed("attributes-charset", Tag.CHARSET, ["utf-8"]),
            Typed("attributes-natural-language", Tag.LANGUAGE, ["en"]),
            Typed("printer-uri", Tag.URI, [self.uri]),
            Typed("requesting-user-name", Tag.NAME, [self.user or "fhir-imaging"]),
        )
        # The order counts: what identifies the target comes before the rest. Source: RFC 8011, 4.1.5.
        targets = [each for each in attributes if each.name == "job-id"]
        rest = [each for each in attributes if each.name != "job-id"]
        operation_group = (*first[:3], *targets, first[3], *rest)
        groups = [(Group.OPERATION, operation_group), *([(Group.JOB, job)] if job else [])]
        response = decode(self._post(encode(operation, 1, groups), document))
        error = failure(response)
        if error is not None:
            raise error
        return response

    def _post(self, head: bytes, document: BinaryIO | None) -> bytes:
        parts = urlsplit(self.uri)
        connection = self._connection(parts.scheme, parts.hostname or "", parts.port or PORT)
        # A length, as there are printers that take no chunks.
        length = len(head) + (_remaining(document) if document is not None else 0)
        headers = {"Content-Type": "application/ipp", "Content-Length": str(length)}
        if self.password:
            pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        try:
            try:
                connection.connect()
            except ssl.SSLCertVerificationError as error:
                message = "the printer's certificate is not signed by anyone that is trusted"
                raise AppError(Category.FORBIDDEN, message, where="ca_file") from error
            except (OSError, http.client.HTTPException) as error:
                raise AppError(Category.BUSY, "the printer cannot be reached", where="printer") from error
            connection.sock.settimeout(self.answer_s)
            try:
                body = _body(head, document)
                connection.request("POST", parts.path or "/", body, headers)
                answer = connection.getresponse()
                data = answer.read(MOST_ANSWER + 1)
            except (OSError, http.client.HTTPException) as error:
                raise NoAnswer from error
        finally:
            connection.close()
        if answer.status != 200:
            category = _HTTP_FAILURES.get(answer.status, Category.BUSY if answer.status >= 500 else Category.FAULT)
            raise AppError(category, f"the printer answers HTTP {answer.status}", where="printer")
        if len(data) > MOST_ANSWER:
            raise AppError(Category.TOO_LARGE, f"an answer of more than {MOST_ANSWER >> 20} MiB", where="printer")
        return data

    def _connection(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        if scheme == "ipp":
            return http.client.HTTPConnection(host, port, timeout=self.connect_s)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:
            raise AppError(Category.INVALID, "the file of certificates cannot be read", where="ca_file") from error
        return http.client.HTTPSConnection(host, port, timeout=self.connect_s, context=context)


def _remaining(document: BinaryIO) -> int:
    start = document.tell()
    end = document.seek(0, 2)
    document.seek(start)
    return end - start


def _body(head: bytes, document: BinaryIO | None) -> bytes | Iterator[bytes]:
    if document is None:
        return head

    def pieces() -> Iterator[bytes]:
        yield head
        while piece := document.read(_PIECE):
            yield piece

    return pieces()
