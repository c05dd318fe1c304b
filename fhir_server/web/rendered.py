"""Rendered images and thumbnails of WADO-RS.

Hides which frame stands for an instance, a series or a study, which images a presentation state shows, and what becomes
an animation. Sources: PS3.18 10.4.1.1.3, 10.4.1.1.4, 8.3.5 and 8.7.4.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import orjson
from flask import Response, request

from fhir_server.web import documents
from fhir_server.web.dicom_answers import (
    REVALIDATE,
    Part,
    choose,
    digest,
    multipart,
    not_modified,
    streamed,
    validated,
)
from fhir_server.web.dicom_door import Door, Images, Visit
from fhir_server.web.looks import Look, Pictures, Shown, look_from
from fhir_server.web.wado import numbers_from_text
from imaging.archive import Instance
from imaging.dicomweb import Choice, Offer
from imaging.errors import AppError, Category
from imaging.image_files import ANIMATED, STILL
from imaging.presentation import GRAYSCALE_STATE, references
from imaging.render import Viewport

SINGLE_OFFERS = tuple(map(Offer, (*STILL, "image/apng")))
ANIMATED_OFFERS = tuple(map(Offer, ANIMATED))
MULTIPART_OFFERS = tuple(Offer(media_type, multipart=True) for media_type in STILL)
THUMBNAIL_OFFERS = tuple(map(Offer, STILL))
THUMBNAIL = Viewport(128, 128)
NOT_SUPPORTED = ("charset",)


class Sight(NamedTuple):
    """What is there to be shown at an address: its version, how many instances, and one after the other."""

    version: str
    total: int
    every: Iterable[Shown]


def retrieve_rendered(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None, frames: str | None = None
) -> Response:
    """GET images for people to look at: one by itself, several as multipart or as an animation.

    A report is text, and an encapsulated document what it is. An instance by itself is its representative frame, or all
    of its frames where the media type moves; in multipart it is all of its frames (PS3.18 10.4.4). A presentation state
    is the images that it refers to, as it shows them.
    """
    visit = door.admit(study_uid)
    images = visit.images
    if series_uid and sop_uid:
        instance, json = images.described(study_uid, series_uid, sop_uid)
        if not instance.frames and not frames and instance.sop_class_uid != GRAYSCALE_STATE:
            return _document(visit, instance, orjson.loads(json))
        shown = _of_instance(images, instance, json, frames)
        version = str([*map(_words, shown), images.decided(study_uid)])
        sight = Sight(version, len(shown), shown)
        is_one = len(shown) == 1 and len(shown[0].numbers) <= 1
    else:
        sight, is_one = _of_many(images, study_uid, series_uid), False
    look = asked(images, study_uid)
    choice = choose(_offers(is_one=is_one, is_study=series_uid is None))
    every = sight.every if is_still(choice) else map(all_frames, sight.every)
    tag = digest("rendered", choice, *look.words, sight.version, series_uid)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    pictures = Pictures(images, look, choice.media_type)
    with visit.retrieving(sight.total):
        if choice.multipart:
            parts: Iterator[Part] = ((choice.media_type, {}, (picture,)) for picture in pictures.files(every))
            response = streamed(multipart(parts, tag), choice.content_type(tag))
        else:
            response = Response(picture_file(pictures, choice, every), content_type=choice.media_type)
    return _warned(visit, validated(response, tag, REVALIDATE))


def retrieve_thumbnail(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None, frames: str | None = None
) -> Response:
    """GET one small image that stands for a study, a series, an instance or a frame."""
    visit = door.admit(study_uid)
    images = visit.images
    if series_uid and sop_uid:
        shown = _of_instance(images, *images.described(study_uid, series_uid, sop_uid), frames)[0]
        shown = shown._replace(numbers=shown.numbers[:1])
    else:
        shown = Shown(_middle(images, study_uid, series_uid))
    choice = choose(THUMBNAIL_OFFERS)
    look = asked(images, study_uid, viewport=THUMBNAIL)
    tag = digest("thumbnail", choice, *look.words, _words(shown), images.decided(study_uid))
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    pictures = Pictures(images, look, choice.media_type)
    with visit.retrieving():
        (picture,) = pictures.files([shown])
    return _warned(visit, validated(Response(picture, content_type=choice.media_type), tag, REVALIDATE))


def asked(images: Images, study_uid: str, *, viewport: Viewport | None = None) -> Look:
    """Return the look of the request's parameters, with the presentation state that they name. Raises NOT_FOUND."""
    look = look_from(request.args, viewport=viewport)
    state = named_state(images, study_uid)
    look = replace(look, state=state) if state else look
    look.check()
    return look


def named_state(images: Images, study_uid: str) -> Instance | None:
    """Return the presentation state that `presentationUID` and `presentationSeriesUID` name, None for none."""
    uid, series_uid = request.args.get("presentationUID"), request.args.get("presentationSeriesUID")
    if not uid and not series_uid:
        return None
    if not uid or not series_uid:
        message = "presentationUID and presentationSeriesUID are given together"
        raise AppError(Category.INVALID, message, where="presentationUID")
    state = images.instance(study_uid, series_uid, uid)
    if state.sop_class_uid != GRAYSCALE_STATE:
        message = "this is not a grayscale softcopy presentation state"
        raise AppError(Category.INVALID, message, where="presentationUID")
    return state


def is_still(choice: Choice) -> bool:
    """Say whether an answer shows one frame of each instance."""
    return not choice.multipart and choice.media_type not in ANIMATED


def picture_file(pictures: Pictures, choice: Choice, shown: Iterable[Shown]) -> bytes:
    """Return one picture, or an animation where there are several."""
    if not is_still(choice):
        return pictures.animation(shown)
    (picture,) = pictures.files(shown)
    return picture


def all_frames(shown: Shown) -> Shown:
    """Return the same with all frames where none are named."""
    return shown if shown.numbers else shown._replace(numbers=range(1, shown.instance.number_of_frames + 1))


def _offers(*, is_one: bool, is_study: bool) -> tuple[Offer, ...]:
    if is_one:
        return SINGLE_OFFERS + MULTIPART_OFFERS
    # The series of a study have nothing in common that one animation could show.
    return MULTIPART_OFFERS + (() if is_study else ANIMATED_OFFERS)


def _of_instance(images: Images, instance: Instance, json: bytes, frames: str | None) -> list[Shown]:
    if instance.sop_class_uid == GRAYSCALE_STATE and not frames:
        return _under_state(images, instance, json)
    if not instance.frames:
        raise _no_image()
    return [Shown(instance, numbers_from_text(frames, instance) if frames else [], json=json)]


def _document(visit: Visit, instance: Instance, document: documents.Document) -> Response:
    offers = documents.offers_of(instance, document)
    if not offers:
        raise _no_image()
    return documents.rendered(visit, instance, document, choose(offers))


def _of_many(images: Images, study_uid: str, series_uid: str | None) -> Sight:
    found = images.contents(study_uid, series_uid)
    if not any(each.frames for each in found.samples):
        raise _no_image()
    every = (Shown(each) for each in images.each(found.sop_uids) if each.frames)
    return Sight(found.version, len(found.members), every)


def _middle(images: Images, study_uid: str, series_uid: str | None) -> Instance:
    """Return an image that stands for many: the middle of the first series shows more of a body than its edge."""
    found = images.contents(study_uid, series_uid)
    shown = {each.series_uid for each in found.samples if each.frames}
    first = next((series for series, _ in found.members if series in shown), None)
    uids = [uid for series, uid in found.members if series == first]
    middle = len(uids) // 2
    for instance in images.each(uids[middle:] + uids[:middle]):
        if instance.frames:
            return instance
    raise _no_image()


def _no_image() -> AppError:
    return AppError(Category.NOT_FOUND, "there is nothing to render", where="rendered")


def _under_state(images: Images, state: Instance, json: bytes) -> list[Shown]:
    found = []
    for each in references(orjson.loads(json)):
        instance = images.instance(state.study_uid, each.series_uid, each.sop_uid)
        numbers = [number for number in each.frames if 1 <= number <= instance.number_of_frames]
        if instance.frames and bool(numbers) == bool(each.frames):
            found.append(Shown(instance, numbers, state))
    if not found:
        raise AppError(Category.NOT_FOUND, "the presentation state refers to no image", where="rendered")
    return found


def _words(shown: Shown) -> str:
    state = shown.state.sha256_stored if shown.state else ""
    return f"{shown.instance.sha256_stored} {shown.numbers} {state}"


def _warned(visit: Visit, response: Response) -> Response:
    """Say which parameters were not heeded. Source: PS3.18 8.3.5."""
    ignored = [name for name in NOT_SUPPORTED if name in request.args]
    if ignored:
        response.headers["Warning"] = f'299 {visit.door.base_url}: "not supported and ignored: {", ".join(ignored)}"'
    return visit.told(response)
