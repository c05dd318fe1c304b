"""What the DICOMweb routes share: negotiated answers, validators, streams.

Hides how an answer is made out of chunks: whole with an ETag where it is small, streamed where it is not. A failure
after the first byte aborts the connection, so that nobody takes half an answer for a whole one.
Sources: PS3.18 8.5 to 8.7, RFC 9110 section 8.8 (validators), RFC 9111 (caching).
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

from flask import Response, request

from imaging.blobs import Buffer
from imaging.dicomweb import PIECE_BYTES, Choice, Offer, multipart_related, negotiate, packed
from imaging.dicomweb.negotiation import UNICODE
from imaging.errors import AppError, Category

DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
JSON_OFFERS = (Offer(DICOM_JSON), Offer("application/json"))
IMMUTABLE = "private, max-age=31536000, immutable"  # content under its own hash, for the client that was let in
REVALIDATE = "private, no-cache"
MOST_BUFFERED_BYTES = 16 << 20  # up to this size an answer gets an ETag made of its content
GZIP_LEVEL = 1  # of metadata: a tenth of the bytes at 100 MB/s
GZIP_LEAST_BYTES = 1024

Part = tuple[str, dict[str, str], Iterable[bytes]]  # content type, further headers, chunks of the body


def choose(offers: Iterable[Offer]) -> Choice:
    """Return what the request accepts of the offers. Raises UNSUPPORTED (406)."""
    return chooser()(offers)


def chooser() -> Callable[[Iterable[Offer]], Choice]:
    """Return `choose` for the request at hand, also for when it is not any more."""
    headers, parameter = request.headers.getlist("Accept"), ",".join(request.args.getlist("accept"))
    charsets = {name.strip().lower() for name in request.args.get("charset", "*").split(",")}

    def chosen(offers: Iterable[Offer]) -> Choice:
        choice = negotiate(headers, parameter, offers)
        if charsets.isdisjoint(UNICODE) and Offer(choice.media_type).is_text:
            raise AppError(Category.UNSUPPORTED, "texts are sent in UTF-8; leave charset out", where="Accept")
        return choice

    return chosen


@contextmanager
def decoding() -> Iterator[None]:
    """Do what decodes stored pixels; that they are damaged is no mistake of the request, which can ask differently."""
    try:
        yield
    except AppError as error:
        if error.category is not Category.INVALID:
            raise
        message = f"the pixels cannot be decoded ({error.message}); they can be had as stored, with transfer-syntax=*"
        raise AppError(Category.UNSUPPORTED, message, where="Accept") from error


def digest(*words: object) -> str:
    """Return a short digest of words; good as an ETag and as a boundary, which then cannot be inside the content."""
    return hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=16).hexdigest()


def not_modified(tag: str, caching: str) -> Response | None:
    """Return the 304 answer when the client has the representation called `tag` already."""
    if not request.if_none_match.contains_weak(tag):
        return None
    return validated(Response(status=304), tag, caching)


def validated(response: Response, tag: str, caching: str) -> Response:
    """Return the response with its validator and how it may be cached."""
    response.set_etag(tag, weak=response.headers.get("Content-Encoding") is not None)
    response.headers["Cache-Control"] = caching
    response.vary.add("Accept")
    return response


def streamed(chunks: Iterator[bytes], content_type: str, *, length: int | None = None) -> Response:
    """Return a response that sends chunks as they come; what fails before the first one still becomes an error."""
    first = next(chunks, b"")
    response = Response(_after(first, chunks), content_type=content_type, direct_passthrough=True)
    if length is not None:
        response.content_length = length
    return response


def ranged(response: Response, length: int) -> Response:
    """Return the response, cut to the bytes that are asked for of its `length`.

    Several ranges, and what cannot be read, are answered whole (RFC 9110 14.2); one beyond the end is 416.
    """
    asked = request.range
    response.headers["Accept-Ranges"] = "bytes"
    if asked and asked.units == "bytes" and len(asked.ranges) == 1:
        response.make_conditional(request, accept_ranges=True, complete_length=length)
    return response


def sliced(value: Buffer) -> Iterator[bytes]:
    """Yield a value in pieces, so that a large one that lies in a file is never in memory as a whole."""
    view = memoryview(value)
    for start in range(0, len(view), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def multipart(parts: Iterable[Part], boundary: str) -> Iterator[bytes]:
    """Yield a multipart/related body."""
    return packed(
        multipart_related((({"Content-Type": kind, **headers}, chunks) for kind, headers, chunks in parts), boundary)
    )


def json_array(documents: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a JSON array of encoded objects."""

    def pieces() -> Iterator[bytes]:
        separator = b"["
        for document in documents:
            yield separator + document
            separator = b","
        yield b"]" if separator == b"," else b"[]"

    return packed(pieces())


def text_answer(chunks: Iterator[bytes], content_type: str) -> Response:
    """Return JSON or XML: with a validator and, where the client takes it, compressed; streamed when large."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size > MOST_BUFFERED_BYTES:
            return _streamed_text(chain(held, chunks), content_type)
    tag = hashlib.blake2b(digest_size=16)
    for chunk in held:
        tag.update(chunk)
    if unchanged := not_modified(tag.hexdigest(), REVALIDATE):
        return unchanged
    compress = size >= GZIP_LEAST_BYTES and _takes_gzip()
    response = Response(b"".join(_gzipped(held) if compress else held), content_type=content_type)
    if compress:
        response.headers["Content-Encoding"] = "gzip"
    response.vary.add("Accept-Encoding")
    return validated(response, tag.hexdigest(), REVALIDATE)


def _streamed_text(chunks: Iterator[bytes], content_type: str) -> Response:
    compress = _takes_gzip()
    response = streamed(_gzipped(chunks) if compress else chunks, content_type)
    if compress:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Cache-Control"] = REVALIDATE
    response.vary.update(["Accept", "Accept-Encoding"])
    return response


def _takes_gzip() -> bool:
    return request.accept_encodings.quality("gzip") > 0


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    for chunk in chunks:
        if data := packer.compress(chunk):
            yield data
    yield packer.flush()


def _after(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
