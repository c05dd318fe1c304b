"""Corrections laid over a file while it is given: its header is written anew, its pixels pass as they are.

Hides where the header ends, which is found while the file streams by, and what becomes of character sets. Where text
beyond ASCII is written into a file that is not in UTF-8, all of its text becomes UTF-8. Values that need no change keep
their bytes. Sources: PS3.3 C.12.1, PS3.5 section 6.1 and 7.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from struct import error as StructError
from typing import Any, Final

from imaging.coercion import ORIGINAL_ATTRIBUTES
from imaging.conversion import file_of
from imaging.correction import Corrections, corrected, replaced
from imaging.dataset import Limits, Received, read_head
from imaging.dataset_from_model import elements, is_ascii
from imaging.dicom_json import attributes_of, bulkdata
from imaging.elements import Encoding, scan
from imaging.errors import AppError, Category
from imaging.layout import Buffer
from imaging.part10 import Edits, Value, file_start, write_elements
from imaging.syntaxes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from imaging.values import WIDE_TEXT_VRS, Values

_FIRST_BYTES: Final = 64 << 10  # in which the end of the header is looked for at first
_UTF_8: Final = ["utf8"]


def corrected_file(
    pieces: Iterable[Buffer], corrections: Corrections, *, deflated: bool = False, limits: Limits | None = None
) -> Iterator[bytes]:
    """Yield a Part 10 file with corrections laid over it, in the transfer syntax that it is in.

    deflated   the file, in Explicit VR Little Endian, is to be given deflated
    Holds the header and a piece. Raises UNSUPPORTED for big endian.
    """
    stream = iter(pieces)
    received = _head(stream, limits or Limits())
    if not received.encoding.little_endian:
        message = "a corrected file cannot be given in big endian; ask for another transfer syntax"
        raise AppError(Category.UNSUPPORTED, message, where=received.summary.sop_uid)
    values, encoding = received.values, received.encoding
    body = write_elements(values, encoding, implicit_vr=encoding.implicit_vr, edits=_edits(received, corrections))
    rest = memoryview(received.data)[received.body_end :]
    if deflated:
        start = file_start(values, received.meta_values, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
        yield from file_of(start, chain(body, [rest], stream), deflated=True)
        return
    yield b"".join((received.data[: received.body_start], *body, rest))
    yield from map(bytes, stream)


def _head(stream: Iterator[Buffer], limits: Limits) -> Received:
    """Return the header, with what has been taken beyond it. Raises TOO_LARGE, INVALID."""
    taken, enough = bytearray(), _FIRST_BYTES
    for piece in stream:
        taken += piece
        if len(taken) < enough:
            continue
        # It may end inside of an element.
        with suppress(AppError, StructError):
            if head := read_head(bytes(taken), is_whole=False, limits=limits):
                return head
        if len(taken) > limits.max_header_bytes:
            raise AppError(Category.TOO_LARGE, f"more than {limits.max_header_bytes} bytes before the pixels")
        enough = 2 * len(taken)
    head = read_head(bytes(taken), is_whole=True, limits=limits)
    assert head is not None  # noqa: S101 -- the whole is never too short for itself
    return head


def _edits(received: Received, corrections: Corrections) -> Edits:
    """Return the new values of a header, each in the encoding of the file."""
    touched = {int(tag, 16) for one in corrections for tag in one.changes} | {int(ORIGINAL_ATTRIBUTES, 16)}
    model, summary = attributes_of(received, touched), received.summary
    was = replaced(model, corrections, summary.series_uid, summary.sop_uid)
    told = corrected(model, corrections, summary.series_uid, summary.sop_uid)
    # What a later correction set back has left its trace, though nothing else.
    if told == model:
        return {}
    written = {tag: told[tag] for tag in (*was, ORIGINAL_ATTRIBUTES)}
    if not is_ascii(written) and received.values.encodings != _UTF_8:
        others = attributes_of(received, _beyond_ascii(received))
        written = {tag: element for tag, element in others.items() if not is_ascii(element)} | written
    return _encoded(received, written)


def _beyond_ascii(received: Received) -> list[int]:
    """Return the elements in which there is text beyond ASCII, or may be."""
    body = received.body
    return [
        tag
        for tag, each in received.elements.items()
        if (each.items is not None or each.vr in WIDE_TEXT_VRS)
        and (not (raw := bytes(body[each.start : each.start + each.length])).isascii() or b"\x1b" in raw)
    ]


def _encoded(received: Received, written: Mapping[str, Any]) -> Edits:
    def bulk(uri: str) -> Buffer:
        return bulkdata(received, uri.removeprefix("@/"))[0]

    edits: dict[int, Value | None] = {}
    for tag, element in written.items():
        explicit = b"".join(chain.from_iterable(pieces for _, pieces in _writable(tag, element, bulk)))
        found = scan(explicit, 0, len(explicit), Encoding(), Limits()).elements
        values = Values(explicit, found, little_endian=True)
        for number, each in found.items():
            raw = values.raw(each)
            if received.encoding.implicit_vr:
                told = write_elements(
                    values, Encoding(), implicit_vr=True, edits={}, above=number - 1, below=number + 1
                )
                raw = b"".join(map(bytes, told))[8:]
            edits[number] = Value(values.vr(each), raw)
    return edits


def _writable(tag: str, element: Any, bulk: Any) -> Iterable[tuple[int, list[Buffer]]]:
    """Return an attribute as bytes; a received value that breaks the rules of its VR is left out of a sequence."""
    try:
        return list(elements({tag: element}, bulk))
    except AppError:
        if element["vr"] != "SQ":
            return []
        items = [{name: _bare(name, value, bulk) for name, value in item.items()} for item in element["Value"]]
        return list(elements({tag: {"vr": "SQ", "Value": items}}, bulk))


def _bare(tag: str, element: Any, bulk: Any) -> Any:
    if element["vr"] == "SQ" and element.get("Value"):
        items = [{name: _bare(name, value, bulk) for name, value in item.items()} for item in element["Value"]]
        return {"vr": "SQ", "Value": items}
    try:
        list(elements({tag: element}, bulk))
    except AppError:
        return {"vr": element["vr"]}
    return element
