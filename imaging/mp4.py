"""What an MP4 file says of its video: codec, profile, size, frames. Nothing is decoded.

Sources: ISO/IEC 14496-12 (boxes), 14496-15 (avcC, hvcC), PS3.5 8.2.7 to 8.2.11 (which streams DICOM takes).
"""

from collections.abc import Iterator
from struct import error as StructError
from struct import unpack_from
from typing import Final, NamedTuple

from imaging.errors import AppError, Category
from imaging.layout import Buffer

_MOST_BOXES: Final = 10_000
_SAMPLE_ENTRY: Final = 78  # bytes of a visual sample entry before its boxes
_CODECS: Final = {b"avc1": "avc", b"avc3": "avc", b"hvc1": "hevc", b"hev1": "hevc"}


class Video(NamedTuple):
    """The video track: codec "avc" or "hevc", profile and level as coded, size in pixels, duration of a frame in ms."""

    codec: str
    profile: int
    level: int
    rows: int
    columns: int
    frames: int
    frame_time_ms: float


class _Box(NamedTuple):
    kind: bytes
    start: int  # of the payload
    end: int


def read(data: Buffer) -> Video:
    """Return what the first video track says. Raises INVALID for what is no MP4, UNSUPPORTED for other codecs."""
    view = memoryview(data)
    try:
        tracks = [box for moov in _named(view, 0, len(view), b"moov") for box in _named(view, *moov[1:], b"trak")]
        for track in tracks:
            if (media := _path(view, track, b"mdia")) and _handler(view, media) == b"vide":
                return _video(view, media)
    except (StructError, IndexError, ZeroDivisionError) as error:
        raise AppError(Category.INVALID, "the MP4 file is damaged", where="video/mp4") from error
    raise AppError(Category.INVALID, "this is no MP4 file with a video track", where="video/mp4")


def _video(view: memoryview, media: _Box) -> Video:
    header, table = _path(view, media, b"mdhd"), _path(view, media, b"minf", b"stbl")
    described = _path(view, table, b"stsd") if table else None
    sizes = _path(view, table, b"stsz") if table else None
    if header is None or described is None or sizes is None:
        raise AppError(Category.INVALID, "the MP4 file does not describe its video", where="video/mp4")
    entry = next(_boxes(view, described.start + 8, described.end))
    codec = _CODECS.get(entry.kind)
    if codec is None:
        raise AppError(Category.UNSUPPORTED, "the video is neither H.264 nor H.265", where="video/mp4")
    columns, rows = unpack_from(">HH", view, entry.start + 24)
    profile, level = _profile(view, entry, codec)
    (frames,) = unpack_from(">I", view, sizes.start + 8)
    timescale, duration = (
        unpack_from(">IQ", view, header.start + 20)
        if view[header.start] == 1
        else unpack_from(">II", view, header.start + 12)
    )
    return Video(codec, profile, level, rows, columns, frames, 1000 * duration / timescale / max(1, frames))


def _profile(view: memoryview, entry: _Box, codec: str) -> tuple[int, int]:
    """Return profile_idc and level_idc of the decoder's configuration."""
    kind = b"avcC" if codec == "avc" else b"hvcC"
    for box in _boxes(view, entry.start + _SAMPLE_ENTRY, entry.end):
        if box.kind == kind:
            if codec == "avc":
                return view[box.start + 1], view[box.start + 3]
            return view[box.start + 1] & 0x1F, view[box.start + 12]
    raise AppError(Category.INVALID, "the MP4 file does not tell the profile of its video", where="video/mp4")


def _handler(view: memoryview, media: _Box) -> bytes:
    box = _path(view, media, b"hdlr")
    return bytes(view[box.start + 8 : box.start + 12]) if box else b""


def _path(view: memoryview, box: _Box, *kinds: bytes) -> _Box | None:
    found: _Box | None = box
    for kind in kinds:
        found = next(_named(view, found.start, found.end, kind), None) if found else None
    return found


def _named(view: memoryview, start: int, end: int, kind: bytes) -> Iterator[_Box]:
    return (box for box in _boxes(view, start, end) if box.kind == kind)


def _boxes(view: memoryview, start: int, end: int) -> Iterator[_Box]:
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        size, kind = unpack_from(">I4s", view, start)
        head = 8
        if size == 1:
            (size,) = unpack_from(">Q", view, start + 8)
            head = 16
        size = size or end - start
        if size < head or start + size > end:
            raise AppError(Category.INVALID, "the MP4 file ends inside a box", where="video/mp4")
        yield _Box(kind, start + head, start + size)
        start += size
    raise AppError(Category.TOO_LARGE, f"more than {_MOST_BOXES} boxes", where="video/mp4")
