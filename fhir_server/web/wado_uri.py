"""WADO-URI: one object by the parameters of an address, as a DICOM file or as a picture.

Its parameters are turned into those of WADO-RS, so that both give the same. Source: PS3.18 section 9.
"""

import re
from dataclasses import replace

import orjson
from flask import Response, request

from fhir_server.access.audit import Access
from fhir_server.web import documents
from fhir_server.web.dicom_answers import REVALIDATE, decoding, digest, not_modified, validated
from fhir_server.web.dicom_door import Door, Visit
from fhir_server.web.dicom_forms import file_form, file_offers
from fhir_server.web.looks import Look, Pictures, Shown, annotation_from
from fhir_server.web.rendered import SINGLE_OFFERS, all_frames, is_still, named_state, picture_file
from fhir_server.web.wado import DICOM, VERSION, file_by_itself, numbers_from_text
from imaging.archive import Instance
from imaging.dicomweb import Choice, Offer, negotiate
from imaging.dicomweb.negotiation import ZIP
from imaging.display import Window
from imaging.errors import AppError, Category
from imaging.image_files import DEFAULT_QUALITY
from imaging.render import MAX_SIDE, Viewport, quality_from_text

_UID = re.compile(r"[0-9.]{1,64}")
PICTURES_ONLY = (
    "annotation", "rows", "columns", "region", "windowCenter", "windowWidth", "frameNumber", "imageQuality",
    "presentationUID", "presentationSeriesUID",
)  # fmt: skip
"""Parameters that say how a picture looks: not for a DICOM file (PS3.18 9.1.2.2)."""


def retrieve(door: Door) -> Response:
    """GET one object, unless asked otherwise an image as JPEG, a report as HTML, and all else as a DICOM file."""
    if request.args.get("requestType") != "WADO":
        raise AppError(Category.INVALID, "requestType=WADO expected", where="requestType")
    study_uid, series_uid, sop_uid = (_uid(name) for name in ("studyUID", "seriesUID", "objectUID"))
    visit = _view(door).admit(study_uid)
    instance, json = visit.images.described(study_uid, series_uid, sop_uid)
    document = orjson.loads(json)
    texts = () if instance.frames else documents.offers_of(instance, document)
    choice = _choice(instance, texts)
    if choice.media_type == DICOM:
        return _file(visit, instance, choice)
    if "transferSyntax" in request.args:
        message = f"transferSyntax is for contentType={DICOM}"
        raise AppError(Category.INVALID, message, where="transferSyntax")
    if texts:
        return documents.rendered(visit, instance, document, choice, Access.RETRIEVE_URI)
    return _picture(visit, instance, choice)


def _view(door: Door) -> Door:
    """Return the door as it is seen: with anonymize=yes behind pseudonyms, for replaced UIDs (PS3.18 9.1.2.1.4)."""
    asked = request.args.get("anonymize")
    if asked not in (None, "yes"):
        raise AppError(Category.INVALID, "anonymize=yes expected, or nothing", where="anonymize")
    return door.without_names if asked else door


def _file(visit: Visit, instance: Instance, choice: Choice) -> Response:
    form = file_form(choice, instance)
    tag = digest("file", VERSION, instance.sha256_received, form, visit.images.decided(instance.study_uid))
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    with visit.retrieving(access=Access.RETRIEVE_URI), decoding():
        return file_by_itself(visit, instance, form, tag)


def _picture(visit: Visit, instance: Instance, choice: Choice) -> Response:
    look = replace(_look(instance), state=named_state(visit.images, instance.study_uid))
    look.check()
    frame = request.args.get("frameNumber")
    shown = Shown(instance, numbers_from_text(frame, instance)[:1] if frame else [])
    shown = shown if is_still(choice) else all_frames(shown)
    decided = visit.images.decided(instance.study_uid)
    tag = digest("picture", choice, *look.words, instance.sha256_stored, shown.numbers, decided)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    pictures = Pictures(visit.images, look, choice.media_type)
    with visit.retrieving(access=Access.RETRIEVE_URI):
        response = Response(picture_file(pictures, choice, [shown]), content_type=choice.media_type)
    return validated(response, tag, REVALIDATE)


def _uid(name: str) -> str:
    text = request.args.get(name, "")
    if not _UID.fullmatch(text):
        raise AppError(Category.INVALID, "a UID is needed", where=name)
    return text


def _choice(instance: Instance, texts: tuple[Offer, ...]) -> Choice:
    """Return what is given: by `contentType`, else by the Accept headers, else by what the object is."""
    files = tuple(each for each in file_offers(instance, single=True) if not each.multipart and each.media_type != ZIP)
    pictures = SINGLE_OFFERS if instance.frames else ()
    is_still_image = instance.number_of_frames == 1 or "frameNumber" in request.args
    offers: tuple[Offer, ...] = (*pictures, *files) if is_still_image else (*texts, *files, *pictures)
    wanted = request.args.get("contentType")
    choice = negotiate([wanted] if wanted else request.headers.getlist("Accept"), None, offers)
    if choice.media_type != DICOM:
        return choice
    unfit = [name for name in PICTURES_ONLY if name in request.args]
    if unfit:
        raise AppError(Category.INVALID, f"{unfit[0]} is for pictures, not for {DICOM}", where=unfit[0])
    syntax = request.args.get("transferSyntax")
    return negotiate([f"{DICOM}; transfer-syntax={syntax}"], None, files) if syntax else choice


def _look(instance: Instance) -> Look:
    quality = request.args.get("imageQuality")
    return Look(
        _window(),
        _viewport(instance),
        quality_from_text(quality) if quality else DEFAULT_QUALITY,
        annotation_from(request.args.get("annotation", "")),
    )


def _window() -> Window | None:
    center, width = (request.args.get(name) for name in ("windowCenter", "windowWidth"))
    if center is None and width is None:
        return None
    if center is None or width is None:
        raise AppError(Category.INVALID, "windowCenter and windowWidth are given together", where="windowCenter")
    return Window.from_text(f"{center},{width}")


def _viewport(instance: Instance) -> Viewport | None:
    """Read `rows`, `columns` and `region`; who gives no size gets a pixel for each pixel."""
    rows, columns, region = (request.args.get(name) for name in ("rows", "columns", "region"))
    layout = instance.layout
    if not (rows or columns or region) or layout is None:
        return None
    left, top, right, bottom = _region(region) if region else (0.0, 0.0, 1.0, 1.0)
    width, height = (right - left) * layout.columns, (bottom - top) * layout.rows
    free = MAX_SIDE if rows or columns else None  # a side that is not asked for follows from the other
    return Viewport(
        _side("columns", columns) or free or max(1, round(width)),
        _side("rows", rows) or free or max(1, round(height)),
        *((left * layout.columns, top * layout.rows, width, height) if region else ()),
    )


def _side(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MAX_SIDE):
        raise AppError(Category.INVALID, f"a number of pixels from 1 to {MAX_SIDE} expected", where=name)
    return int(text)


def _region(text: str) -> tuple[float, float, float, float]:
    """Read left, top, right and bottom in parts of the image, 0 to 1. Source: PS3.18 9.1.2.2.2 (Region)."""
    try:
        left, top, right, bottom = (float(piece) for piece in text.split(","))
    except ValueError:
        left, top, right, bottom = 1.0, 1.0, 0.0, 0.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        message = "left,top,right,bottom in parts of the image, from 0 to 1, expected"
        raise AppError(Category.INVALID, message, where="region")
    return left, top, right, bottom
