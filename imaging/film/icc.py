"""ICC profiles that tell a printer or a screen what greys and colours mean.

Hides the profile format. Source: ICC.1:2004-10 (profile version 4.2 and, as here, the monochrome and matrix-based
profiles of 2.1).
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

from imaging.film.gsdf import paper_greys

_ENTRIES = 4096  # of the curve; between them readers interpolate
_COLOUR_ENTRIES = 1024
_D50 = (0.9642, 1.0, 0.8249)  # the profile connection space's white. Source: ICC.1, 6.3.4.3
_VERSION_4_2 = bytes((4, 0x20, 0, 0))  # the latest that PDF 1.7 knows
_MADE = (2000, 1, 1, 0, 0, 0)  # the same input gives the same bytes


@lru_cache(maxsize=8)
def grey_profile(*, black: float = 2.0, white: float = 150.0) -> bytes:
    """Return a profile under which evenly spaced P-Values look evenly spaced.

    black, white   luminances of the printed black and of the paper where it is looked at, cd/m2
    """
    reflected = np.clip(paper_greys(np.linspace(0, 1, _ENTRIES), black=black, white=white), 0, 1)
    curve = np.round(reflected * 65_535).astype(">u2")
    name = f"PS3.14 P-Values, {black:g} to {white:g} cd/m2"
    return _profile(
        {
            b"desc": _description(name),
            b"cprt": b"text\0\0\0\0no rights reserved\0",
            b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_fixed, _D50)),
            b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + curve.tobytes(),
        }
    )


@lru_cache(maxsize=1)
def colour_profile() -> bytes:
    """Return the sRGB profile."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[8:12] = _VERSION_4_2
    data[24:36] = struct.pack(">6H", *_MADE)
    data[84:100] = bytes(16)  # the profile's id, a digest that would not fit any more; zeros are "not computed"
    return bytes(data)


Levels = NDArray[np.float64]


class _Space(NamedTuple):
    """An RGB colour space: chromaticities of its primaries and white, and its curve, from 0 ... 1 to light."""

    name: str
    primaries: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    white: tuple[float, float]
    curve: Callable[[Levels], Levels]


_D65_XY, _D50_XY = (0.3127, 0.3290), (0.3457, 0.3585)


def _srgb_curve(levels: Levels) -> Levels:
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _adobergb_curve(levels: Levels) -> Levels:
    return np.asarray(levels ** (563 / 256))


def _rommrgb_curve(levels: Levels) -> Levels:
    return np.where(levels < 16 / 512, levels / 16, levels**1.8)


SPACES = {
    # as PS3.18 8.3.5.1.5 calls them. Sources: Adobe RGB (1998) 4.3, ISO 22028-2, SMPTE EG 432-1 with IEC 61966-2-1
    "adobergb": _Space("Adobe RGB (1998)", ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), _D65_XY, _adobergb_curve),
    "rommrgb": _Space("ROMM RGB", ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), _D50_XY, _rommrgb_curve),
    "displayp3": _Space("Display P3", ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), _D65_XY, _srgb_curve),
}  # fmt: skip


@lru_cache(maxsize=4)
def rgb_profile(space: str) -> bytes:
    """Return the profile of "srgb" or one of `SPACES`."""
    if space == "srgb":
        return colour_profile()
    found = SPACES[space]
    columns = _to_d50(found.white) @ _to_xyz(found)
    curve = np.round(found.curve(np.linspace(0, 1, _COLOUR_ENTRIES)) * 65_535).astype(">u2")
    response = b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + curve.tobytes()
    return _profile(
        {
            b"desc": _description(found.name),
            b"cprt": b"text\0\0\0\0no rights reserved\0",
            b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_fixed, _D50)),
            **{
                name: b"XYZ \0\0\0\0" + b"".join(map(_fixed, column))
                for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T.tolist(), strict=True)
            },
            **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), response),
        },
        colours=b"RGB ",
    )


def _to_xyz(space: _Space) -> Levels:
    """Return the matrix from linear RGB to XYZ, columns red, green and blue. Source: SMPTE RP 177."""
    primaries = np.array([[x / y, 1, (1 - x - y) / y] for x, y in space.primaries]).T
    return primaries * np.linalg.solve(primaries, _white(space.white))


def _to_d50(white: tuple[float, float]) -> Levels:
    """Return the Bradford adaptation from a white to that of the connection space. Source: ICC.1, annex E."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (bradford @ np.array(_D50)) / (bradford @ _white(white))
    return np.asarray(np.linalg.inv(bradford) @ np.diag(scale) @ bradford)


def _white(xy: tuple[float, float]) -> Levels:
    x, y = xy
    return np.array([x / y, 1, (1 - x - y) / y])


def _profile(tags: dict[bytes, bytes], colours: bytes = b"GRAY") -> bytes:
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    places: dict[bytes, int] = {}  # what several tags have in common is written once
    for signature, content in tags.items():
        if content not in places:
            places[content] = offset + len(body)
            body += content + bytes(-len(content) % 4)
        table += signature + struct.pack(">II", places[content], len(content))
    header = struct.pack(
        ">I4sI4s4s4s6H4s4sI4s4sQI12s4s44x",
        offset + len(body), b"\0\0\0\0", 0x02100000, b"mntr", colours, b"XYZ ", *_MADE, b"acsp",
        b"\0\0\0\0", 0, b"\0\0\0\0", b"\0\0\0\0", 0, 0, b"".join(map(_fixed, _D50)), b"\0\0\0\0",
    )  # fmt: skip
    return header + table + body


def _description(name: str) -> bytes:
    ascii_name = name.encode("ascii") + b"\0"
    # Of the three forms of the text only the first is given; the other two are empty but have their fixed length.
    return b"desc\0\0\0\0" + struct.pack(">I", len(ascii_name)) + ascii_name + bytes(4 + 4 + 2 + 1 + 67)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65_536))
