"""What the main header of a JPEG 2000 or HTJ2K codestream says.

Used to check codestreams that come in from outside and those that we have made: each frame that is stored, so that it
reads no more than it tells. Source: ISO/IEC 15444-1 annex A.
"""

from collections.abc import Iterator
from struct import error as StructError
from struct import unpack_from
from typing import Final, NamedTuple

from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout

_CAP, _SIZ, _COD, _SOT = 0xFF50, 0xFF51, 0xFF52, 0xFF90
_HEADER_BYTES: Final = 4096
_MOST_LEVELS: Final = 32
_SIZ_PRECISION = 42  # SOC 2, SIZ marker 2, Lsiz 2, Rsiz 2, eight 32-bit sizes, Csiz 2: then Ssiz of component 0


class CodestreamHeader(NamedTuple):
    """Size in pixels, components, wavelet levels, bits and sign of component 0, colour transform and wavelet."""

    rows: int
    columns: int
    components: int
    levels: int
    precision: int
    signed: bool
    colour_transform: bool
    reversible: bool
    high_throughput: bool


def read_header(codestream: Buffer) -> CodestreamHeader:
    """Return what the main header says. Raises INVALID for what is no codestream."""
    data = bytes(codestream[:_HEADER_BYTES])
    if data[:4] != b"\xff\x4f\xff\x51":
        raise AppError(Category.INVALID, "this is no JPEG 2000 codestream: it does not start with SOC and SIZ")
    try:
        places = dict(_segments(data))
        length, width, height, left, top, *tile, components, first = unpack_from(">H 2x 8I H B", data, places[_SIZ])
        transform, levels, wavelet = unpack_from(">B B 3x B", data, places[_COD] + 6)
    except (StructError, KeyError) as error:
        raise AppError(Category.INVALID, "the codestream's main header is damaged") from error
    tile_width, tile_height, tile_left, tile_top = tile
    is_inside = tile_left <= left < min(width, tile_left + tile_width) and (
        tile_top <= top < min(height, tile_top + tile_height)
    )
    if not is_inside or not components or length != 38 + 3 * components or levels > _MOST_LEVELS:
        raise AppError(Category.INVALID, "the codestream's main header contradicts itself")
    return CodestreamHeader(
        rows=height - top,
        columns=width - left,
        components=components,
        levels=levels,
        precision=(first & 0x7F) + 1,
        signed=bool(first & 0x80),
        colour_transform=bool(transform),
        reversible=wavelet == 1,
        high_throughput=_CAP in places,
    )


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each segment of the main header: its marker, and where its length stands. Raises struct.error, KeyError.

    What lies beyond `_HEADER_BYTES`, such as long tables of tiles, is not looked at.
    """
    position = 2
    while position <= _HEADER_BYTES - 4:
        (marker,) = unpack_from(">H", data, position)
        position += 2
        if marker == _SOT:
            return
        if marker < 0xFF00:
            raise KeyError(marker)
        if 0xFF30 <= marker <= 0xFF3F:  # reserved, without a segment
            continue
        (length,) = unpack_from(">H", data, position)
        yield marker, position
        position += max(2, length)


def precision_of(codestream: Buffer) -> int:
    """Return the bits of component 0 without reading the rest of the header."""
    return (codestream[_SIZ_PRECISION] & 0x7F) + 1


def check_header(header: CodestreamHeader, layout: PixelLayout) -> None:
    """Raise INVALID when a codestream contradicts the dataset's size or samples."""
    found = (header.rows, header.columns, header.components)
    wanted = (layout.rows, layout.columns, layout.samples_per_pixel)
    if found != wanted:
        raise AppError(
            Category.INVALID,
            f"the codestream has {found[0]} x {found[1]} pixels of {found[2]} samples, "
            f"the dataset says {wanted[0]} x {wanted[1]} of {wanted[2]}",
        )
    if header.precision > layout.bits_allocated:
        raise AppError(
            Category.INVALID,
            f"the codestream has {header.precision} bits a sample, the dataset allocates {layout.bits_allocated}",
        )
