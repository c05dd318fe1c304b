"""Bodies made to hurt: each gets a clear answer of the 400s, and costs little memory. Source: RFC 2046, PS3.18 10.5."""

import json
import tracemalloc
from collections.abc import Iterator
from io import RawIOBase
from typing import Any

import pytest
from pymongo import MongoClient

from tests.support.dicomweb import BOUNDARY, Site, ct, related, site_of_a_module

DICOM = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
JSON = f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'
DELIMITER = f"--{BOUNDARY}\r\n".encode()
LIMIT_BYTES = 64 << 20
PIECE = 1 << 20


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site"), limits__parts="2000") as made:
        made.store(ct(9))
        yield made


class Endless(RawIOBase):
    """A body that begins as it is told, and goes on with one piece again and again."""

    def __init__(self, first: bytes, piece: bytes, size: int) -> None:
        self._first = first
        self._piece = piece * max(1, PIECE // len(piece))
        self._at = 0
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = (self._first or self._piece[self._at :])[: min(len(buffer), self.left)]
        if self._first:
            self._first = self._first[len(data) :]
        else:
            self._at = (self._at + len(data)) % len(self._piece)
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def post(here: Site, body: bytes | Endless, content_type: str = DICOM) -> tuple[int, str, int]:
    """Status and message of the answer, and the most memory that the request took, in bytes."""
    headers = {**here.hospital, "Accept": "application/dicom+json"}
    endless = {"environ_overrides": {"wsgi.input": body, "CONTENT_LENGTH": str(getattr(body, "left", 0))}}
    sized: dict[str, Any] = {"data": body} if isinstance(body, bytes) else endless
    tracemalloc.start()
    answer = here.web.post("/dicom-web/studies", headers=headers, content_type=content_type, **sized)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return answer.status_code, answer.get_data(as_text=True), peak


EMPTY_PART = DELIMITER + b"Content-Type: application/dicom\r\n\r\n\r\n"
NESTED = b"Content-Type: multipart/related; boundary=inner\r\n\r\n--inner\r\n\r\nx\r\n--inner--\r\n"
METADATA = DELIMITER + b"Content-Type: application/dicom+json\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (related(ct()), DICOM.replace(f"; boundary={BOUNDARY}", ""), 400),
        (related(ct()), DICOM.replace(BOUNDARY, "another"), 400),
        (related(ct()), DICOM.replace(BOUNDARY, '"' + "x" * 300 + '"'), 400),
        (related(ct())[: len(ct()) // 2], DICOM, 400),
        (b"", DICOM, 400),
        (DELIMITER + NESTED + f"--{BOUNDARY}--".encode(), DICOM, 415),
        (Endless(DELIMITER + b"X-A: ", b"a", 200 << 20), DICOM, 413),
        (Endless(DELIMITER, b"X-A: a\r\n", 200 << 20), DICOM, 413),
        (Endless(b"", b"no boundary at all ", 200 << 20), DICOM, 413),
        (Endless(b"", EMPTY_PART, 64 << 20), DICOM, 413),
        (Endless(METADATA + b"[", b'{"00080018":{"vr":"UI"}},', 8 << 20), JSON, 400),
        (Endless(METADATA, b"[", 32 << 20), JSON, 400),
        (Endless(METADATA, b'{"a":', 32 << 20), JSON, 400),
        (METADATA + json.dumps([{}] * 3_000).encode() + f"\r\n--{BOUNDARY}--".encode(), JSON, 413),
    ],
    ids=[
        "no boundary", "another boundary", "long boundary", "truncated", "empty", "nested", "endless header",
        "endless headers", "endless preamble", "a million parts", "endless metadata", "deep arrays", "deep objects",
        "many instances",
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused_in_bounded_memory(
    here: Site, body: bytes | Endless, content_type: str, status: int
) -> None:
    answered, text, peak = post(here, body, content_type)

    assert answered == status or (answered == 409 and status == 413), text[:300]
    assert peak < LIMIT_BYTES
    assert here.server.archive.count() == 1


def test_bulk_data_that_waits_is_bounded(here: Site) -> None:
    """What nobody asked for yet may not pile up."""
    part = b"".join([DELIMITER, b"Content-Type: image/jls\r\nContent-Location: x\r\n\r\n", bytes(7 << 20), b"\r\n"])

    answered, text, peak = post(here, Endless(METADATA + b"[]\r\n", part, 600 << 20), JSON)

    assert answered == 413, text[:300]
    assert peak < 4 * LIMIT_BYTES
