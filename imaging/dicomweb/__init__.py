"""DICOMweb without sockets: multipart bodies, content negotiation and QIDO-RS queries as pure functions.

Hides the grammars of PS3.18 and of the RFCs it leans on. Knows no database, no web framework and no pixels.
"""

from imaging.dicomweb.media import ContentType, parse_content_type
from imaging.dicomweb.multipart import (
    PIECE_BYTES,
    MultipartLimits,
    MultipartReader,
    Part,
    PartTooLargeError,
    iter_parts,
    multipart_related,
    packed,
    part_head,
    read_body,
)
from imaging.dicomweb.negotiation import Choice, Offer, negotiate
from imaging.dicomweb.query import ALL, Level, Match, Matching, MatchKind, parse_query

__all__ = [
    "ALL",
    "PIECE_BYTES",
    "Choice",
    "ContentType",
    "Level",
    "Match",
    "MatchKind",
    "Matching",
    "MultipartLimits",
    "MultipartReader",
    "Offer",
    "Part",
    "PartTooLargeError",
    "iter_parts",
    "multipart_related",
    "negotiate",
    "packed",
    "parse_content_type",
    "parse_query",
    "part_head",
    "read_body",
]
