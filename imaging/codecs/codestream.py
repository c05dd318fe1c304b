"""What the main header of a JPEG 2000 or HTJ2K codestream says, read by glymur.

Used to check codestreams that come in from outside and those that we have made. Source: ISO/IEC 15444-1 annex A.
"""

from io import BytesIO
from typing import NamedTuple

from imaging.codecs.openjpeg import load_glymur
from imaging.errors import AppError, Category
from imaging.layout import Buffer, PixelLayout

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
    data = bytes(codestream[:4096])
    if data[:4] != b"\xff\x4f\xff\x51":
        raise AppError(Category.INVALID, "this is no JPEG 2000 codestream: it does not start with SOC and SIZ")
    try:
        parsed = load_glymur().codestream.Codestream(BytesIO(data), len(data))
        segments = {type(segment).__name__: segment for segment in parsed.segment}
        siz, cod = segments["SIZsegment"], segments["CODsegment"]
        return CodestreamHeader(
            rows=siz.ysiz - siz.yosiz,
            columns=siz.xsiz - siz.xosiz,
            components=len(siz.bitdepth),
            levels=int(cod.num_res),
            precision=int(siz.bitdepth[0]),
            signed=bool(siz.signed[0]),
            colour_transform=bool(cod.mct),
            reversible=int(cod.xform) == 1,
            high_throughput="CAPsegment" in segments,
        )
    # glymur raises whatever its parsing stumbles over; all of it means a damaged header.
    except Exception as error:
        raise AppError(Category.INVALID, "the codestream's main header is damaged") from error


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
