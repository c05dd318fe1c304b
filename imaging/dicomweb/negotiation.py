"""Content negotiation: which media type and transfer syntax answers an Accept header or an accept parameter.

Follows the order of PS3.18 8.7.8: the best supported media type of the query parameter, else of the header, else, where
a wildcard allows it, the default, which is the first offer; otherwise not acceptable. Ranges are ordered by `q`, then
by how specific they are (RFC 9110 12.5.1), then as the client wrote them. A range with a charset matches texts only
where that is UTF-8, in which all are sent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from imaging.dicomweb.media import ContentType, parse_media_ranges
from imaging.errors import AppError, Category

ANY_TRANSFER_SYNTAX = "*"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
MAX_RANGES = 64
UNICODE = frozenset({"*", "utf-8", "utf8"})  # the character sets that texts in UTF-8 answer to
OCTET_STREAM = "application/octet-stream"
ZIP = "application/zip"

MEDIA_TYPE_OF_TRANSFER_SYNTAX = {
    # one frame, without fragment headers; of each media type the default comes first. PS3.18 Tables 8.7.3-4 and -5
    EXPLICIT_VR_LITTLE_ENDIAN: OCTET_STREAM,
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.201": "image/jphc",  # Supplement 235
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.4.100": "video/mpeg2",
    "1.2.840.10008.1.2.4.101": "video/mpeg2",
    "1.2.840.10008.1.2.4.102": "video/mp4",
    "1.2.840.10008.1.2.4.103": "video/mp4",
    "1.2.840.10008.1.2.4.104": "video/mp4",
    "1.2.840.10008.1.2.4.105": "video/mp4",
    "1.2.840.10008.1.2.4.106": "video/mp4",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A media type that a resource can be given in; the first of its transfer syntaxes is the default."""

    media_type: str
    multipart: bool = False
    transfer_syntaxes: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether characters are sent, always in UTF-8."""
        return self.media_type.endswith(("json", "xml")) or self.media_type.startswith("text/")

    def __str__(self) -> str:
        return f'multipart/related; type="{self.media_type}"' if self.multipart else self.media_type


@dataclass(frozen=True, slots=True)
class Choice:
    """What to answer with. `transfer_syntax` is "*" when the client takes any, None when the type has none."""

    media_type: str
    transfer_syntax: str | None = None
    multipart: bool = False

    def content_type(self, boundary: str) -> str:
        """Return the Content-Type of the response; `boundary` counts for multipart only."""
        if self.multipart:
            return f'multipart/related; type="{self.media_type}"; boundary="{boundary}"'
        return part_content_type(self.media_type, self.transfer_syntax)


def part_content_type(media_type: str, transfer_syntax: str | None) -> str:
    """Return the Content-Type of a part or of a single-part response. Source: PS3.18 8.7.3.5.2."""
    return f"{media_type}; transfer-syntax={transfer_syntax}" if transfer_syntax else media_type


def instance_offers(transfer_syntaxes: Iterable[str], *, single: bool) -> tuple[Offer, ...]:
    """Return the offers for Part 10 files. A single file by itself is for one instance only (PS3.18 10.4.4)."""
    syntaxes = tuple(transfer_syntaxes)
    alone = (Offer("application/dicom", False, syntaxes),) if single else ()
    return (Offer("application/dicom", True, syntaxes), *alone, Offer(ZIP, False, syntaxes))


@lru_cache(maxsize=256)
def frame_offers(transfer_syntaxes: frozenset[str], *, single: bool) -> tuple[Offer, ...]:
    """Return the offers for frames that can be had in these transfer syntaxes; uncompressed is the default.

    As application/octet-stream any of them may be asked for by name; real clients do so.
    """
    known = [uid for uid in MEDIA_TYPE_OF_TRANSFER_SYNTAX if uid in transfer_syntaxes]
    other = sorted(transfer_syntaxes.difference(known))
    types = {OCTET_STREAM: (*known, *other)}
    for media_type, uids in groupby(known, key=MEDIA_TYPE_OF_TRANSFER_SYNTAX.__getitem__):
        types.setdefault(media_type, tuple(uids))
    multipart = tuple(Offer(media_type, True, syntaxes) for media_type, syntaxes in types.items())
    return multipart + tuple(Offer(offer.media_type, False, offer.transfer_syntaxes) for offer in multipart if single)


def negotiate(accept: Iterable[str], query_accept: str | None, offered: Iterable[Offer]) -> Choice:
    """Return what to answer with, given the Accept headers, the `accept` query parameter and what there is.

    No header at all accepts everything. The first offer is the default. Raises UNSUPPORTED (not acceptable), naming
    what is available, and INVALID when a header is malformed.
    """
    return _negotiate(tuple(accept), query_accept, tuple(offered))


@lru_cache(maxsize=256)
def _negotiate(accept: tuple[str, ...], query_accept: str | None, offered: tuple[Offer, ...]) -> Choice:
    asked = []
    if query_accept:
        # A plus sign that the client did not escape reaches us as a space.
        asked.append(_ranges([query_accept.replace("dicom ", "dicom+").replace("svg ", "svg+")], where="accept"))
    # A parameter that nothing supports falls back to the header, but not to an absent one: something was asked for.
    if any(header.strip() for header in accept):
        asked.append(_ranges(accept, where="Accept"))
    elif not asked:
        asked.append(_ranges(["*/*"], where="Accept"))
    for ranges in asked:
        choice = _choose(ranges, offered)
        if choice:
            return choice
    available = ", ".join(map(str, offered))
    syntaxes = ", ".join(dict.fromkeys(uid for offer in offered for uid in offer.transfer_syntaxes))
    message = f"nothing that is accepted is available; available: {available}"
    raise AppError(
        Category.UNSUPPORTED, message + (f"; transfer syntaxes: {syntaxes}" if syntaxes else ""), where="Accept"
    )


@dataclass(frozen=True, slots=True)
class _Range:
    """An acceptable media range: of the parts when multipart, else of the payload."""

    media_range: str
    multipart: bool
    anything: bool  # "*/*": single part or multipart
    transfer_syntax: str | None
    quality: float
    charset: str = "*"

    @property
    def specificity(self) -> int:
        if self.anything:
            return 0
        return 1 if self.media_range.endswith("/*") else 2

    def matches(self, offer: Offer) -> bool:
        if not self.anything and self.multipart != offer.multipart:
            return False
        if self.charset not in UNICODE and offer.is_text:
            return False
        main, _, sub = self.media_range.partition("/")
        offer_main, _, offer_sub = offer.media_type.lower().partition("/")
        return main in ("*", offer_main) and sub in ("*", offer_sub)

    def choice(self, offer: Offer) -> Choice | None:
        if not self.matches(offer):
            return None
        syntax = self.transfer_syntax
        if not offer.transfer_syntaxes:
            syntax = None
        elif syntax is None:
            syntax = offer.transfer_syntaxes[0]
        elif syntax not in (ANY_TRANSFER_SYNTAX, *offer.transfer_syntaxes):
            return None
        return Choice(offer.media_type, syntax, offer.multipart)


def _choose(ranges: list[_Range], offered: tuple[Offer, ...]) -> Choice | None:
    refused = [one for one in ranges if one.quality == 0]
    for one in ranges:
        if one.quality == 0:
            continue
        for offer in offered:
            choice = one.choice(offer)
            if choice and not any(no.specificity > one.specificity and no.matches(offer) for no in refused):
                return choice
    return None


def _ranges(headers: Iterable[str], *, where: str) -> list[_Range]:
    found = [_range(media, where) for header in headers for media in _bounded(header, where)]
    return sorted(found, key=lambda one: (-one.quality, -one.specificity))


def _bounded(header: str, where: str) -> Iterator[ContentType]:
    for count, media in enumerate(parse_media_ranges(header, where=where)):
        if count == MAX_RANGES:
            raise AppError(Category.INVALID, f"more than {MAX_RANGES} media ranges", where=where)
        yield media


def _range(media: ContentType, where: str) -> _Range:
    try:
        quality = float(media.parameters.get("q", "1"))
    except ValueError:
        quality = -1
    if not 0 <= quality <= 1:
        raise AppError(Category.INVALID, "a quality is not a number from 0 to 1", where=where)
    multipart = media.media_type.startswith("multipart/")
    return _Range(
        (media.related_type or "*/*") if multipart else media.media_type,
        multipart,
        media.media_type == "*/*",
        media.parameters.get("transfer-syntax"),
        quality,
        media.parameters.get("charset", "*").lower(),
    )
