"""Rendered images and thumbnails of WADO-RS.

Hides which frame stands for an instance, a series or a study, and decoding at the resolution that is asked for.
Sources: PS3.18 10.4.1.1.3, 10.4.1.1.4, 8.3.5 and 8.7.4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from flask import Response, request

from fhir_server.web.dicom_answers import (
    REVALIDATE,
    Door,
    Part,
    choose,
    decoding,
    digest,
    multipart,
    not_modified,
    streamed,
    validated,
)
from fhir_server.web.wado import numbers_from_text
from imaging.archive import Instance
from imaging.dicomweb import Offer
from imaging.display import DisplayAttributes, Window
from imaging.errors import AppError, Category
from imaging.render import DEFAULT_QUALITY, MEDIA_TYPES, Viewport, quality_from_text, reduce_levels, render

SINGLE_OFFERS = tuple(map(Offer, MEDIA_TYPES))
MULTIPART_OFFERS = tuple(Offer(media_type, multipart=True) for media_type in MEDIA_TYPES)
THUMBNAIL = Viewport(128, 128)
REPRESENTATIVE_FRAME = "00286010"
NOT_SUPPORTED = ("annotation", "iccprofile", "charset")
VERSION = 1  # of how images look: to be raised when the same request gives another picture

Images = Sequence[tuple[Instance, Sequence[int]]]  # instances and frame numbers; none: its representative frame


@dataclass(frozen=True, slots=True)
class Look:
    """How an image is asked to look."""

    window: Window | None
    viewport: Viewport | None
    quality: int

    @classmethod
    def asked(cls, viewport: Viewport | None = None) -> "Look":
        """Read the look from the request's parameters; `viewport` is the one where none is given."""
        window, view, quality = (request.args.get(name) for name in ("window", "viewport", "quality"))
        return cls(
            Window.from_text(window) if window else None,
            Viewport.from_text(view) if view else viewport,
            quality_from_text(quality) if quality else DEFAULT_QUALITY,
        )


def retrieve_rendered(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None, frames: str | None = None
) -> Response:
    """GET images for people to look at: one by itself, several as multipart.

    An instance by itself is its representative frame; in multipart it is all of its frames (PS3.18 10.4.4).
    """
    principal = door.admit(study_uid)
    instances = [each for each in door.server.archive.instances(study_uid, series_uid, sop_uid) if each.frames]
    _require_image(instances)
    numbers = numbers_from_text(frames, instances[0]) if frames else []
    is_single = sop_uid is not None and len(numbers) <= 1
    choice = choose(SINGLE_OFFERS + MULTIPART_OFFERS if is_single else MULTIPART_OFFERS)
    look = Look.asked()
    images = [
        (each, numbers or (range(1, each.number_of_frames + 1) if choice.multipart else [])) for each in instances
    ]
    tag = digest("rendered", VERSION, choice, look, *(f"{each.sha256_stored} {frames}" for each in instances))
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    door.retrieved(principal, study_uid, len(instances))
    if choice.multipart:
        pictures = _pictures(door, images, look, choice.media_type)
        parts: Iterator[Part] = ((choice.media_type, {}, (picture,)) for picture in pictures)
        response = streamed(multipart(parts, tag), choice.content_type(tag))
    else:
        (picture,) = _pictures(door, images, look, choice.media_type)
        response = Response(picture, content_type=choice.media_type)
    return _warned(door, validated(response, tag, REVALIDATE))


def retrieve_thumbnail(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None, frames: str | None = None
) -> Response:
    """GET one small image that stands for a study, a series, an instance or a frame."""
    principal = door.admit(study_uid)
    instances = [each for each in door.server.archive.instances(study_uid, series_uid, sop_uid) if each.frames]
    _require_image(instances)
    # The middle of the first series shows more of a body than its edge.
    first = [each for each in instances if each.series_uid == instances[0].series_uid]
    instance = first[len(first) // 2]
    numbers = numbers_from_text(frames, instance)[:1] if frames else []
    choice = choose(SINGLE_OFFERS)
    look = Look.asked(THUMBNAIL)
    tag = digest("thumbnail", VERSION, choice, look, instance.sha256_stored, numbers)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    door.retrieved(principal, study_uid)
    (picture,) = _pictures(door, [(instance, numbers)], look, choice.media_type)
    return _warned(door, validated(Response(picture, content_type=choice.media_type), tag, REVALIDATE))


def _pictures(door: Door, images: Images, look: Look, media_type: str) -> Iterator[bytes]:
    for instance, numbers in images:
        document = _document(door, instance)
        for number in numbers or [_representative(document, instance)]:
            yield _picture(door, instance, document, number, look, media_type)


def _picture(
    door: Door, instance: Instance, document: dict[str, Any], number: int, look: Look, media_type: str
) -> bytes:
    archive = door.server.archive

    def fetch(uri: str) -> bytes:
        return bytes(archive.bulkdata(instance, uri.removeprefix("@/")))

    attributes = DisplayAttributes.from_json(document, number, bulkdata=fetch)
    levels = reduce_levels(attributes, look.viewport)
    with decoding():
        decoded = archive.pixels(instance, number, reduce_levels=levels)
    # Decoding may have turned luma and chroma into RGB.
    attributes = replace(attributes, photometric_interpretation=decoded.photometric_interpretation)
    return render(
        decoded.pixels,
        attributes,
        window=look.window,
        viewport=look.viewport,
        quality=look.quality,
        media_type=media_type,
    )


def _document(door: Door, instance: Instance) -> dict[str, Any]:
    ((_, json),) = door.server.archive.metadata(instance.study_uid, instance.series_uid, instance.sop_uid)
    document: dict[str, Any] = orjson.loads(json)
    return document


def _representative(document: dict[str, Any], instance: Instance) -> int:
    told = document.get(REPRESENTATIVE_FRAME, {}).get("Value") or [1]
    is_frame = isinstance(told[0], int) and 1 <= told[0] <= instance.number_of_frames
    return int(told[0]) if is_frame else 1


def _require_image(instances: list[Instance]) -> None:
    if not instances:
        raise AppError(Category.NOT_FOUND, "there is no image to render", where="rendered")


def _warned(door: Door, response: Response) -> Response:
    """Say which parameters were not heeded. Source: PS3.18 8.3.5."""
    ignored = [name for name in NOT_SUPPORTED if name in request.args]
    if ignored:
        response.headers["Warning"] = f'299 {door.base_url}: "not supported and ignored: {", ".join(ignored)}"'
    return response
