"""The transfer syntaxes by name: their UIDs and what follows from each. Source: PS3.5 annex A, PS3.6 annex A."""

from typing import Final

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS: Final = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS: Final = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
JPEG_2000: Final = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL: Final = "1.2.840.10008.1.2.4.202"
HTJ2K: Final = "1.2.840.10008.1.2.4.203"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"

GE_PRIVATE_IMPLICIT: Final = "1.2.840.113619.5.2"
"""Implicit VR little endian with big endian pixels; nobody else writes it, so that it is kept as received."""

IMPLICIT_VR: Final = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, GE_PRIVATE_IMPLICIT})
"""Syntaxes in which elements carry no VR."""

NATIVE: Final = IMPLICIT_VR | {
    EXPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
}
"""Syntaxes whose pixel data is not encapsulated. Any other UID is taken as encapsulated (PS3.5 A.4)."""

JPEG_2000_FAMILY: Final = frozenset({JPEG_2000_LOSSLESS, JPEG_2000, HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K})
"""Syntaxes whose frames are JPEG 2000 or HTJ2K codestreams."""


def is_encapsulated(transfer_syntax_uid: str) -> bool:
    """Tell whether pixel data in this syntax is encapsulated."""
    return transfer_syntax_uid not in NATIVE
