"""Pages as PWG Raster, which every IPP Everywhere printer takes: 8-bit sGray or sRGB, dot by dot.

P-Values become the greys of sRGB that look as they should on paper, as the format has no profiles. Landscape pages are
turned upright, as sheets are fed so. Source: PWG 5102.4 (format), IEC 61966-2-1 (sRGB), PS3.14 (P-Values).
"""

import struct
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from imaging.film.compose import Page, Sheets
from imaging.film.gsdf import paper_greys

SYNC = b"RaS2"
_SGRAY, _SRGB = 18, 19
_LONGEST = 128  # samples of a run, or of a stretch of differing ones


def write(
    file: BinaryIO, pages: Iterable[Page], sheets: Sheets, *, media: str = "", black: float = 2.0, white: float = 150.0
) -> int:
    """Write pages that were composed for `sheets`; return how many they are.

    media         PWG self-describing name of the media size
    black, white  luminances of the printed black and of the paper, cd/m2
    """
    file.write(SYNC)
    greys = _table(sheets.white, black, white)
    count = 0
    for page in pages:
        pixels = page.pixels if page.pixels.ndim == 3 else greys[page.pixels]
        if pixels.shape[1] > pixels.shape[0]:
            pixels = np.rot90(pixels)
        file.write(_header(pixels.shape, sheets.dots_per_inch, media, page.of))
        _write_lines(file, np.ascontiguousarray(pixels, dtype=np.uint8))
        count += 1
    return count


def _table(highest: int, black: float, white: float) -> NDArray[np.uint8]:
    """Return the sRGB grey of every P-Value."""
    light = np.clip(paper_greys(np.linspace(0, 1, highest + 1), black=black, white=white), 0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def _header(shape: tuple[int, ...], dots_per_inch: int, media: str, of: int) -> bytes:
    """Return the 1796 bytes before a page. Source: PWG 5102.4, table 2."""
    down, across = shape[:2]
    samples = 3 if len(shape) == 3 else 1
    header = bytearray(1796)
    header[0:10] = b"PwgRaster\0"
    header[1732 : 1732 + 64] = media.encode("ascii", "replace")[:63].ljust(64, b"\0")
    fields = {
        276: dots_per_inch, 280: dots_per_inch,
        352: round(across * 72 / dots_per_inch), 356: round(down * 72 / dots_per_inch),
        372: across, 376: down, 384: 8, 388: 8 * samples, 392: across * samples,
        400: _SRGB if samples == 3 else _SGRAY, 420: samples,
        452: of,  # TotalPageCount
        456: 1, 460: 1,  # CrossFeedTransform, FeedTransform
        472: across, 476: down,  # ImageBoxRight, ImageBoxBottom
        480: 0xFFFFFF,  # AlternatePrimary: white
    }  # fmt: skip
    for at, value in fields.items():
        struct.pack_into(">I", header, at, value)
    return bytes(header)


def _write_lines(file: BinaryIO, pixels: NDArray[np.uint8]) -> None:
    """Write lines; equal ones that follow one another once, with their count."""
    is_new = np.ones(len(pixels), dtype=bool)
    is_new[1:] = [bool(np.any(each)) for each in pixels[1:] != pixels[:-1]]
    starts = np.flatnonzero(is_new)
    for start, end in zip(starts, [*starts[1:], len(pixels)], strict=True):
        line = _line(pixels[start])
        for done in range(int(start), int(end), 256):
            file.write(bytes((min(256, int(end) - done) - 1,)) + line)


def _line(line: NDArray[np.uint8]) -> bytes:
    """Return a line packed: a run is its length less 1 and a sample; others are 257 less their number, then each."""
    samples = line.reshape(len(line), -1)
    if (samples == samples[0]).all():
        lengths = [_LONGEST] * (len(samples) // _LONGEST) + (
            [len(samples) % _LONGEST] if len(samples) % _LONGEST else []
        )
        one = samples[0].tobytes()
        return b"".join(bytes((length - 1,)) + one for length in lengths)
    parts = []
    for start in range(0, len(samples), _LONGEST):
        part = samples[start : start + _LONGEST]
        # A stretch of one sample is written as a run of one.
        parts.append(bytes((257 - len(part) if len(part) > 1 else 0,)) + part.tobytes())
    return b"".join(parts)
