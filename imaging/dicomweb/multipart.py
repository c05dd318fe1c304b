"""multipart/related bodies, read and written as a stream with bounded memory.

Hides boundaries, part headers and line endings. A part is copied once out of the blocks it arrives in; a part beyond
`spool_bytes` goes to an unnamed temporary file and comes back as a memory map. A Content-Length inside a part is not
believed: searching for the boundary costs 0.1 s per gigabyte, and so there is one truth about where a part ends.
Sources: RFC 2046 5.1, RFC 2387, PS3.18 8.6.1.2.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from imaging.dicomweb.media import ContentType, parse_content_type
from imaging.errors import AppError, Category
from imaging.spool import SPOOL_BYTES, Spool, Spooled

BLOCK_BYTES = 1 << 20
MAX_BOUNDARY_CHARS = 200  # RFC 2046 says 70; some clients send more
MAX_PADDING_BYTES = 256  # white space between a boundary and its line end
MAX_PREAMBLE_BYTES = 65_536
PIECE_BYTES = 256 << 10  # in which a body is sent
_SECOND_PIECE_BYTES = 16 << 10
_SMALL_BYTES = 4_096  # blocks and chunks up to this are cheaper to copy than to keep track of

Body = Spooled


@dataclass(frozen=True, slots=True)
class MultipartLimits:
    """Bounds on a multipart body; what is beyond them is TOO_LARGE."""

    header_bytes: int = 16_384
    parts: int = 100_000
    part_bytes: int = 4 << 30
    total_bytes: int = 64 << 30


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its headers (names in lower case) and its body."""

    headers: Mapping[str, str]
    body: Body

    @property
    def content_type(self) -> ContentType | None:
        """The part's media type, or None when it names none. Raises INVALID when it is malformed."""
        value = self.headers.get("content-type", "").strip()
        return parse_content_type(value) if value else None


def iter_parts(
    read: Callable[[int], bytes],
    boundary: str,
    limits: MultipartLimits | None = None,
    *,
    spool_bytes: int = SPOOL_BYTES,
    spool_dir: str | None = None,
) -> Iterator[Part]:
    """Yield the parts of a body as soon as each is complete; `read(n)` returns at most n bytes, b"" at the end.

    A short read is no end. Raises INVALID (malformed, truncated) or TOO_LARGE; parts before it have been yielded.
    """
    reader = MultipartReader(boundary, limits, spool_bytes=spool_bytes, spool_dir=spool_dir)
    try:
        while block := read(BLOCK_BYTES):
            yield from reader.feed(block)
        reader.close()
    finally:
        reader.discard()


def read_body(
    read: Callable[[int], bytes], most_bytes: int, *, spool_bytes: int = SPOOL_BYTES, spool_dir: str | None = None
) -> Body:
    """Return a whole body that is no multipart, spooled like a part. Raises TOO_LARGE beyond `most_bytes`."""
    spool = Spool(spool_bytes, spool_dir)
    try:
        while block := read(BLOCK_BYTES):
            spool.write(block)
            if spool.size > most_bytes:
                raise PartTooLargeError(Category.TOO_LARGE, f"beyond the limit of {most_bytes} bytes", where="body")
        return spool.finish()
    finally:
        spool.discard()


def part_head(boundary: str, headers: Mapping[str, str]) -> bytes:
    """Return the boundary line and header lines that come before a part's body."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"--{boundary}\r\n{lines}\r\n".encode("latin-1")


def multipart_related(parts: Iterable[tuple[Mapping[str, str], Iterable[bytes]]], boundary: str) -> Iterator[bytes]:
    """Yield a multipart/related body whose parts are (headers, chunks of the body)."""
    line_end = b""
    for headers, chunks in parts:
        yield line_end + part_head(boundary, headers)
        yield from chunks
        line_end = b"\r\n"
    yield line_end + f"--{boundary}--\r\n".encode("latin-1")


def packed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer pieces: small chunks are joined, large ones go out as they are.

    The first piece is the first chunk, and each may be four times as large as the one before: who waits sees something.
    """
    held: list[bytes] = []
    size, enough = 0, 1
    for chunk in chunks:
        if len(chunk) < enough:
            held.append(chunk)
            size += len(chunk)
            if size < enough:
                continue
            chunk = b""
        if held:
            yield b"".join(held)
            held, size = [], 0
        enough = min(PIECE_BYTES, max(_SECOND_PIECE_BYTES, 4 * enough))
        if chunk:
            yield chunk
    if held:
        yield b"".join(held)


class PartTooLargeError(AppError):
    """One part, or a body that is no multipart, is beyond its own limit; the others may be well."""


class _State(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    BODY = auto()
    EPILOGUE = auto()


class MultipartReader:
    """Turns blocks of a multipart body, cut anywhere, into parts. Bare LF line ends are accepted beside CRLF.

    Rule of the line end before a boundary: it belongs to the boundary. Where the first boundary line ends in a bare
    LF, the whole body is taken to be written so, and a CR before the LF is data.
    """

    def __init__(
        self,
        boundary: str,
        limits: MultipartLimits | None = None,
        *,
        spool_bytes: int = SPOOL_BYTES,
        spool_dir: str | None = None,
    ) -> None:
        """Raises INVALID when the boundary is empty, too long or holds control characters."""
        if not 0 < len(boundary) <= MAX_BOUNDARY_CHARS or not re.fullmatch(r"[\x20-\x7e]+", boundary):
            message = f"boundary of 1 to {MAX_BOUNDARY_CHARS} printable ASCII characters expected"
            raise AppError(Category.INVALID, message, where="multipart")
        self._limits = limits or MultipartLimits()
        # The delimiter starts with the line end before it; the preamble gets one in front so that this always holds.
        self._delimiter = b"\n--" + boundary.encode("ascii")
        self._buffer = b"\n"
        self._position = 0
        self._state = self._state_after = _State.PREAMBLE
        self._preamble_bytes = 0
        self._strip_cr: bool | None = None
        self._headers: dict[str, str] = {}
        # Its first byte is the line end of the header block in front, see _read_headers.
        self._body = Spool(spool_bytes, spool_dir, skip=1)
        self._parts = 0
        self._total_bytes = 0
        self._failure: AppError | None = None

    def feed(self, block: bytes) -> list[Part]:
        """Take the next block and return the parts that it completes. Raises INVALID or TOO_LARGE.

        What is wrong behind a complete part is raised by the next call, so that the part is not lost.
        """
        if self._failure:
            raise self._failure
        self._total_bytes += len(block)
        if self._total_bytes > self._limits.total_bytes:
            raise _too_large("the body is", self._limits.total_bytes, "bytes")
        self._append(block)
        parts: list[Part] = []
        try:
            while self._step(parts):
                pass
        except AppError as error:
            if not parts:
                raise
            self._failure = error
        return parts

    def close(self) -> None:
        """Say that the body has ended. Raises INVALID when its closing boundary has not been seen."""
        if self._failure:
            raise self._failure
        if self._state is _State.PREAMBLE:
            raise AppError(Category.INVALID, "the boundary of the Content-Type is not in the body", where="multipart")
        if self._state is not _State.EPILOGUE:
            message = f"the body ends inside part {self._parts}: closing boundary missing"
            raise AppError(Category.INVALID, message, where="multipart")

    def discard(self) -> None:
        """Drop an unfinished part; its temporary file is gone with it."""
        self._body.discard()

    def _append(self, block: bytes) -> None:
        rest = self._buffer[self._position :]
        if self._state is _State.BODY and len(block) > _SMALL_BYTES:
            # Search the seam alone, so that the block need not be copied to be joined to the rest.
            seam = rest + block[: len(self._delimiter) + MAX_PADDING_BYTES]
            if self._delimiter not in seam:
                self._take(memoryview(rest))
                self._buffer, self._position = block, 0
                return
        self._buffer, self._position = (rest + block if rest else block), 0

    def _step(self, parts: list[Part]) -> bool:
        """Go one transition on; False when more input is needed."""
        if self._state is _State.HEADERS:
            return self._read_headers()
        if self._state is _State.EPILOGUE:
            self._position = len(self._buffer)
            return False
        return self._read_to_boundary(parts)

    def _read_to_boundary(self, parts: list[Part]) -> bool:
        start, search = self._position, self._position
        while True:
            found = self._buffer.find(self._delimiter, search)
            if found < 0:
                # Keep what may be the beginning of "\r" + delimiter.
                self._consume(start, max(start, len(self._buffer) - len(self._delimiter)))
                return False
            end = self._after_boundary(found + len(self._delimiter))
            if end is None:
                self._consume(start, max(start, found - 1))
                return False
            if end != 0:
                break
            search = found + 1  # the line only begins like a boundary: it is data
        self._finish(start, found, parts)
        self._position = end
        return True

    def _after_boundary(self, position: int) -> int | None:
        """Return where the text after a boundary's line ends, 0 if it is no boundary, None if more input is needed.

        Sets the next state. The two dashes of a closing boundary need nothing after them.
        """
        rest = self._buffer[position : position + MAX_PADDING_BYTES + 2]
        if rest.startswith(b"--"):
            self._state_after = _State.EPILOGUE
            return position + 2
        text = rest.lstrip(b" \t")
        if text.startswith((b"\r\n", b"\n")):
            ending = 2 if text[:1] == b"\r" else 1
            if self._strip_cr is None:
                self._strip_cr = ending == 2
            self._state_after = _State.HEADERS
            return position + len(rest) - len(text) + ending
        undecided = text in (b"", b"\r") or rest == b"-"
        return None if undecided and len(rest) < MAX_PADDING_BYTES + 2 else 0

    def _finish(self, start: int, end: int, parts: list[Part]) -> None:
        """Close what stands before a boundary: the preamble or a part's body."""
        if self._state is _State.BODY and self._strip_cr and end > start and self._buffer[end - 1] == 13:
            end -= 1
        self._take(memoryview(self._buffer)[start:end])
        if self._state is _State.BODY:
            parts.append(Part(self._headers, self._body.finish()))
        if self._state_after is _State.HEADERS:
            self._parts += 1
            if self._parts > self._limits.parts:
                raise _too_large("the body has", self._limits.parts, "parts")
        self._state = self._state_after

    def _consume(self, start: int, end: int) -> None:
        self._take(memoryview(self._buffer)[start:end])
        self._position = end

    def _take(self, data: memoryview) -> None:
        if self._state is _State.BODY:
            self._body.write(data)
            if self._body.size > self._limits.part_bytes:
                message = f"part {self._parts} is beyond the limit of {self._limits.part_bytes} bytes"
                raise PartTooLargeError(Category.TOO_LARGE, message, where="multipart")
            return
        self._preamble_bytes += len(data)
        if self._preamble_bytes > MAX_PREAMBLE_BYTES:
            raise _too_large("the text before the first boundary is", MAX_PREAMBLE_BYTES, "bytes")

    def _read_headers(self) -> bool:
        start = self._position
        if self._buffer.startswith((b"\n", b"\r\n"), start):  # no header at all
            blank, end = start, start + self._buffer.startswith(b"\r\n", start)
        else:
            found = _BLANK_LINE.search(self._buffer, start, start + self._limits.header_bytes + 4)
            if not found:
                if len(self._buffer) - start >= self._limits.header_bytes + 4:
                    raise _too_large(f"headers of part {self._parts} are", self._limits.header_bytes, "bytes")
                return False
            blank, end = found.start(), found.end() - 1
        self._headers = _parse_headers(self._buffer[start:blank], self._parts)
        # The body starts at the "\n" of the blank line, dropped when it is finished: an empty body may follow at once
        # with a boundary whose line end is that very "\n".
        self._position = end
        self._state = _State.BODY
        return True


_BLANK_LINE = re.compile(rb"\n\r?\n")


def _parse_headers(block: bytes, part: int) -> dict[str, str]:
    headers: dict[str, str] = {}
    name = ""
    for line in block.decode("latin-1").replace("\r\n", "\n").split("\n"):
        if not line:
            continue
        if line[0] in " \t" and name:  # folded line, RFC 5322 2.2.3
            headers[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise AppError(Category.INVALID, f"header line of part {part} has no name", where="multipart")
        name = name.strip().lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def _too_large(what: str, limit: int, unit: str) -> AppError:
    return AppError(Category.TOO_LARGE, f"{what} beyond the limit of {limit} {unit}", where="multipart")
