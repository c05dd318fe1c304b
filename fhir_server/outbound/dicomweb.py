"""DICOMweb as a client: store, search page by page, retrieve as a stream.

Hides multipart bodies, the response module of STOW-RS and how servers differ in paging. Sources: PS3.18 10.4 to 10.6
and annex I.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson

from fhir_server.outbound.remote import Answer, Remote, require_good
from imaging.blobs import Buffer
from imaging.dicomweb import MultipartLimits, iter_parts, multipart_related, packed, parse_content_type, read_body
from imaging.errors import AppError, Category

DICOM, DICOM_JSON = "application/dicom", "application/dicom+json"
MOST_ANSWER_BYTES = 64 << 20
PAGE = 500  # results asked for at a time
NOT_MENTIONED = 0  # in place of a Failure Reason
DUPLICATE = 0x0111  # PS3.7 C.5.6: an instance of this UID is there already
TEMPORARY = frozenset({0xA700, 0x0213})  # out of resources, resource limitation: PS3.18 I.2.2, PS3.7 C.5.14
DOUBTFUL = frozenset({NOT_MENTIONED, 0x0110})  # processing failure (PS3.7 C.5.15), which may be anything
SYNTAX_REFUSED = frozenset({0xC122, 0x0122})  # transfer syntax, SOP class not supported: PS3.18 I.2.2, PS3.7 C.5.18
_REASONS = {
    # reason     what it says                                source
    0x0110: "processing failure",                          # PS3.7 C.5.15
    0x0117: "invalid SOP instance",                        # PS3.7 C.5.8
    0x0122: "SOP class not supported",                     # PS3.7 C.5.18
    0x0124: "not authorized",                              # PS3.7 C.5.23
    0x0213: "resource limitation",                         # PS3.7 C.5.14
    0xA700: "out of resources",                            # PS3.18 I.2.2, as the next three
    0xA900: "the data set does not match the SOP class",
    0xC000: "cannot be understood",
    0xC122: "transfer syntax not supported",
}  # fmt: skip
_SOP_UID, _REASON, _FAILED, _STORED = "00081155", "00081197", "00081198", "00081199"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a receiver says of the instances that it was sent: UIDs that it has, and why it has not the others.

    refused   SOP Instance UID -> Failure Reason, NOT_MENTIONED where it says nothing
    """

    stored: frozenset[str]
    refused: Mapping[str, int]


def store(remote: Remote, files: Iterable[Iterable[bytes]], sop_uids: Sequence[str]) -> Receipt:
    """Send files by STOW-RS while they are made; `sop_uids` are theirs. Raises BUSY and what `require_good` raises."""
    boundary = secrets.token_hex(16)
    parts = (({"Content-Type": DICOM}, chunks) for chunks in files)
    kind = f'multipart/related; type="{DICOM}"; boundary={boundary}'
    answer = remote.exchange(
        "POST",
        "/studies",
        headers={"Content-Type": kind, "Accept": DICOM_JSON},
        body=packed(multipart_related(parts, boundary)),
        most_bytes=MOST_ANSWER_BYTES,
    )
    return receipt(answer, sop_uids, remote.name)


def receipt(answer: Answer, sop_uids: Sequence[str], name: str) -> Receipt:
    """Return what a STOW-RS answer says: 200 all, 202 some, 409 none, and the instances one by one.

    Raises BUSY for an answer that cannot be one: a repetition does no harm, and may be answered better.
    """
    document = _document(answer.body)
    if document is None or not ({_FAILED, _STORED} & document.keys() or answer.status in (200, 202, 409)):
        require_good(answer.status, name)
        raise AppError(Category.BUSY, "the answer is not one of STOW-RS", where=name)
    stored = {uid for uid, _ in _items(document, _STORED)}
    told = dict(_items(document, _FAILED))
    sent = set(sop_uids)
    refused = {uid: told.get(uid, NOT_MENTIONED) for uid in sop_uids if uid not in stored}
    if not (stored & sent) and not (told.keys() & sent):
        if answer.status not in (200, 202, 409):
            require_good(answer.status, name)
        raise AppError(Category.BUSY, "the answer names none of the instances", where=name)
    return Receipt(frozenset(stored & sent), refused)


def words_of(reason: int) -> str:
    """Return what a Failure Reason says."""
    if reason == NOT_MENTIONED:
        return "the answer does not mention it"
    # The low bits of A7xx, A9xx and Cxxx are the receiver's own.
    known = next((each for each in (reason, reason & 0xFF00, reason & 0xF000) if each in _REASONS), None)
    return f"failure reason {reason:04X}H" + (f", {_REASONS[known]}" if known else "")


def is_temporary(reason: int) -> bool:
    """Say whether a later try may go better."""
    return reason in TEMPORARY or reason & 0xFF00 == 0xA700


def search(
    remote: Remote, path: str, params: Sequence[tuple[str, str]], key: str, *, most: int
) -> Iterator[dict[str, Any]]:
    """Yield the matches of a QIDO-RS search, each once, page by page; `key` is the tag of the UID that names them.

    A page of another length than asked ends it (a longer one comes from a server that knows no `limit` and gives all),
    unless the server says by a Warning that there is more (PS3.18 8.3.4.4). Raises BUSY, TOO_LARGE beyond `most`
    matches, and UNSUPPORTED for a server that gives the same page again and again.
    """
    seen: set[str] = set()
    offset = 0
    while True:
        query = urlencode([*params, ("limit", str(PAGE)), ("offset", str(offset))])
        answer = remote.exchange("GET", f"{path}?{query}", headers={"Accept": DICOM_JSON}, most_bytes=MOST_ANSWER_BYTES)
        require_good(answer.status, remote.name)
        # No body where none was told is how an answer looks that broke off in its header.
        is_empty = answer.status == 204 or answer.headers.get("content-length") == "0"
        page = [] if is_empty else _matches(answer.body, remote.name)
        before = len(seen)
        for each in page:
            if text(each, key) and text(each, key) not in seen:
                if len(seen) == most:
                    raise AppError(Category.TOO_LARGE, f"the search finds more than {most}", where=remote.name)
                seen.add(text(each, key))
                yield each
        is_cut = len(page) == PAGE or "299" in answer.headers.get("warning", "")
        if not page or not is_cut:
            return
        if len(seen) == before:
            raise AppError(Category.UNSUPPORTED, "the search knows no `offset`: its pages repeat", where=remote.name)
        offset += len(page)


def retrieve(remote: Remote, path: str, limits: MultipartLimits, *, within_s: float) -> Iterator[Buffer]:
    """Yield the files below an address as they come, in the syntax in which they are kept there.

    Raises BUSY when that breaks off or takes longer than `within_s`, INVALID for a body that is malformed, TOO_LARGE
    beyond the limits, and what `require_good` raises; the files before it have been yielded.
    """
    accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
    with remote.incoming(path, {"Accept": accept}, within_s=within_s) as (headers, blocks):
        read = _reader(blocks)
        kind = parse_content_type(headers.get("content-type", ""))
        if kind.media_type == DICOM:
            yield read_body(read, limits.part_bytes)
            return
        if kind.media_type != "multipart/related":
            raise AppError(Category.UNSUPPORTED, "the answer is not one of WADO-RS", where=remote.name)
        for part in iter_parts(read, kind.parameters.get("boundary", ""), limits):
            yield part.body


def values(match: Mapping[str, Any], tag: str) -> list[str]:
    """Return the values of an element of DICOM JSON that are text or whole numbers, as text."""
    element = match.get(tag)
    given = element.get("Value") if isinstance(element, dict) else None
    return [str(each) for each in given if isinstance(each, str | int)] if isinstance(given, list) else []


def text(match: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an element of DICOM JSON as text, "" without one."""
    return next(iter(values(match, tag)), "")


def count(match: Mapping[str, Any], tag: str) -> int:
    """Return the first value of an element as a number, 0 without one."""
    found = text(match, tag)
    return int(found) if found.isascii() and found.isdigit() and len(found) < 10 else 0


def _reader(blocks: Iterator[bytes]) -> Any:
    """Return `read(n)`; a block is given as it came, which may be more than n: nobody here minds."""
    return lambda _: next((block for block in blocks if block), b"")


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _matches(body: bytes, name: str) -> list[dict[str, Any]]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise AppError(Category.BUSY, "the answer is not one of QIDO-RS", where=name)
    return found


def _items(document: Mapping[str, Any], tag: str) -> Iterator[tuple[str, int]]:
    element = document.get(tag)
    for item in (element.get("Value") or []) if isinstance(element, dict) else []:
        if isinstance(item, dict) and (uid := text(item, _SOP_UID)):
            yield uid, count(item, _REASON)
