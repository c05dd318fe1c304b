"""ICC profiles that tell a printer or a screen what the greys of a page mean.

Hides the profile format. Source: ICC.1:2004-10 (profile version 4.2 and, as here, the monochrome profiles of 2.1).
"""

import struct
from functools import lru_cache

import numpy as np
from PIL import ImageCms

from imaging.film.gsdf import paper_greys

_ENTRIES = 4096  # of the curve; between them readers interpolate
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


def _profile(tags: dict[bytes, bytes]) -> bytes:
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for signature, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += signature + struct.pack(">II", offset + len(body), len(content))
        body += padded
    header = struct.pack(
        ">I4sI4s4s4s6H4s4sI4s4sQI12s4s44x",
        offset + len(body), b"\0\0\0\0", 0x02100000, b"mntr", b"GRAY", b"XYZ ", *_MADE, b"acsp",
        b"\0\0\0\0", 0, b"\0\0\0\0", b"\0\0\0\0", 0, 0, b"".join(map(_fixed, _D50)), b"\0\0\0\0",
    )  # fmt: skip
    return header + table + body


def _description(name: str) -> bytes:
    ascii_name = name.encode("ascii") + b"\0"
    # Of the three forms of the text only the first is given; the other two are empty but have their fixed length.
    return b"desc\0\0\0\0" + struct.pack(">I", len(ascii_name)) + ascii_name + bytes(4 + 4 + 2 + 1 + 67)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65_536))
