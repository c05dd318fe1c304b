"""WADO-RS: whole files, frames, bulk data and metadata.

Files that come out as they were received or stored are sent without touching a pixel, with corrected headers where
there are any; anything else is transcoded on the way. What each instance is given in is chosen before the first byte.
Sources: PS3.18 10.4 and 8.7.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import orjson
from flask import Response, request

from fhir_server.web.dicom_answers import (
    DICOM_XML,
    IMMUTABLE,
    JSON_OFFERS,
    REVALIDATE,
    Part,
    choose,
    chooser,
    decoding,
    digest,
    json_array,
    multipart,
    not_modified,
    ranged,
    sliced,
    streamed,
    text_answer,
    validated,
)
from fhir_server.web.dicom_door import Door, Images, Visit
from fhir_server.web.dicom_forms import (
    Pixels,
    file_form,
    file_offers,
    frame_syntax,
    offers_of_frames,
    pixels_of,
    syntax_of,
)
from fhir_server.web.file_set import Chosen, file_set, in_forms
from imaging.archive import RECEIVED, Instance
from imaging.dicomweb import Choice, Offer, packed
from imaging.dicomweb.native_model import native_model
from imaging.dicomweb.negotiation import OCTET_STREAM, ZIP, part_content_type
from imaging.errors import AppError, Category
from imaging.layout import PIXEL_KEYWORDS
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from imaging.zipped import zipped

DICOM = "application/dicom"
METADATA_OFFERS = (*JSON_OFFERS, Offer(DICOM_XML, multipart=True))
METADATA_OF_ONE_OFFERS = (*METADATA_OFFERS, Offer(DICOM_XML))
BULKDATA_OFFERS = tuple(Offer(OCTET_STREAM, form, (EXPLICIT_VR_LITTLE_ENDIAN,)) for form in (True, False))
MOST_FRAMES = 100_000  # in one list
VERSION = 1  # of what transcoding makes: to be raised when the same request gives other bytes

PIXEL_TAGS = {f"{tag:08X}" for tag in PIXEL_KEYWORDS}


def retrieve(door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> Response:
    """GET a study, a series or an instance as DICOM files, one after the other or in a ZIP archive.

    In which form each instance comes follows from its kind: one of every kind is asked before the first byte.
    """
    visit = door.admit(study_uid)
    images = visit.images
    found = held(visit, study_uid, series_uid, sop_uid)
    first = found.samples[0]
    forms = Forms(is_single=sop_uid is not None)
    choice = forms.choice(first)
    tag = digest("files", VERSION, choice, series_uid, found.version, *sorted(map(forms, found.samples)))
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    is_download = choice.media_type == ZIP
    with visit.retrieving(len(found.uids), downloads=int(is_download)), decoding():
        if not choice.multipart and choice.media_type == DICOM:
            return file_by_itself(visit, first, forms(first), tag)
        chosen = ((instance, forms(instance)) for instance in (found.samples if sop_uid else images.each(found.uids)))
        if is_download:
            entries = file_set(images, chosen, images.documents(found.uids), tag)
            response = streamed(packed(zipped(entries)), ZIP)
            response.headers["Content-Disposition"] = f'attachment; filename="{sop_uid or series_uid or study_uid}.zip"'
        else:
            response = streamed(multipart(_files(images, chosen), tag), choice.content_type(tag))
    return visit.told(validated(response, tag, REVALIDATE))


class Held(NamedTuple):
    """What an address stands for: one instance of every kind, and UIDs in reading order.

    What is given of it may be corrected, so that who keeps it has to ask whether it still holds.
    """

    samples: Sequence[Instance]
    uids: Sequence[str]
    version: str


def held(visit: Visit, study_uid: str, series_uid: str | None, sop_uid: str | None) -> Held:
    """Return what a study, a series or an instance is. Raises NOT_FOUND."""
    if series_uid and sop_uid:
        instance = visit.images.with_file(study_uid, series_uid, sop_uid)
        return Held([instance], [sop_uid], f"{instance.sha256_received} {visit.images.decided(study_uid)}")
    found = visit.images.contents(study_uid, series_uid)
    return Held(found.samples, found.sop_uids, found.version)


class Forms:
    """In which form the request at hand wants each instance."""

    def __init__(self, *, is_single: bool) -> None:
        self._choose = chooser()
        self._is_single = is_single
        self._first: Choice | None = None

    def choice(self, instance: Instance) -> Choice:
        """Return what is accepted of the forms of an instance, of the media type that the first had. Raises 406."""
        offers = file_offers(instance, single=self._is_single)
        if self._first is not None:
            alike = (self._first.media_type, self._first.multipart)
            return self._choose(each for each in offers if (each.media_type, each.multipart) == alike)
        self._first = self._choose(offers)
        return self._first

    def __call__(self, instance: Instance) -> str:
        """Return the form as the archive calls it."""
        return file_form(self.choice(instance), instance)


def file_by_itself(visit: Visit, instance: Instance, form: str, tag: str) -> Response:
    """Return one file as a single part, or the bytes of it that are asked for where its length is known."""
    kind, length = part_content_type(DICOM, syntax_of(instance, form)), visit.images.length(instance, form)
    file = packed(visit.images.file(instance, form))
    response = validated(streamed(file, kind, length=length), tag, REVALIDATE)
    return response if length is None else ranged(response, length)


def retrieve_received(door: Door, study_uid: str, series_uid: str, sop_uid: str) -> Response:
    """GET the file as it was received, byte for byte, with its SHA-256 in Repr-Digest (RFC 9530)."""
    visit = door.admit(study_uid)
    instance = visit.images.with_file(study_uid, series_uid, sop_uid)
    if unchanged := not_modified(instance.sha256_received, IMMUTABLE):
        return unchanged
    visit.retrieved()
    kind = part_content_type(DICOM, instance.received_transfer_syntax_uid)
    response = streamed(packed(visit.images.file(instance, RECEIVED)), kind, length=instance.size_received)
    sha256 = base64.b64encode(bytes.fromhex(instance.sha256_received)).decode()
    response.headers["Repr-Digest"] = f"sha-256=:{sha256}:"
    response.headers["Content-Disposition"] = f'attachment; filename="{sop_uid}.dcm"'
    return ranged(validated(response, instance.sha256_received, IMMUTABLE), instance.size_received)


def retrieve_metadata(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
) -> Response:
    """GET what is known of a study, a series or an instance but its pixels; no file is opened for it."""
    visit = door.admit(study_uid)
    choice = choose(METADATA_OF_ONE_OFFERS if sop_uid else METADATA_OFFERS)
    found = visit.images.metadata(study_uid, series_uid, sop_uid)
    documents = (_with_addresses(json, door.address(*uids)) for uids, json in found)
    visit.retrieved(1 if sop_uid else 0)
    if not choice.multipart:
        is_xml = choice.media_type == DICOM_XML
        chunks = (native_model(orjson.loads(json)) for json in documents) if is_xml else json_array(documents)
        return visit.told(text_answer(chunks, choice.media_type))
    boundary = digest("metadata", study_uid, series_uid, sop_uid, door.base_url)
    parts: Iterator[Part] = ((choice.media_type, {}, (native_model(orjson.loads(json)),)) for json in documents)
    return visit.told(text_answer(multipart(parts, boundary), choice.content_type(boundary)))


def retrieve_frames(door: Door, study_uid: str, series_uid: str, sop_uid: str, frames: str) -> Response:
    """GET one or more frames, by a list of numbers from 1, as stored or transcoded."""
    visit = door.admit(study_uid)
    instance = visit.images.instance(study_uid, series_uid, sop_uid)
    return _frames(visit, instance, numbers_from_text(frames, instance))


def retrieve_bulkdata(door: Door, study_uid: str, series_uid: str, sop_uid: str, path: str) -> Response:
    """GET a value that the metadata refers to; pixel data comes as its frames."""
    visit = door.admit(study_uid)
    instance = visit.images.instance(study_uid, series_uid, sop_uid)
    if path.upper() in PIXEL_TAGS and pixels_of(instance) not in (Pixels.ABSENT, Pixels.NATIVE_ONLY):
        numbers = range(1, instance.number_of_frames + 1)
        together = () if pixels_of(instance) is Pixels.OPAQUE else BULKDATA_OFFERS
        return _frames(visit, instance, numbers, together=together)
    choice = choose(BULKDATA_OFFERS)
    tag = digest("bulkdata", choice, instance.sha256_received, path)
    if unchanged := not_modified(tag, visit.caching):
        return unchanged
    visit.retrieved()
    value = visit.images.bulkdata(instance, f"bulkdata/{path}")
    if choice.multipart:
        part = (choice.media_type, {"Content-Location": request.base_url}, sliced(value))
        return validated(streamed(multipart([part], tag), choice.content_type(tag)), tag, visit.caching)
    response = validated(Response(sliced(value), content_type=choice.media_type), tag, visit.caching)
    response.content_length = len(value)
    return ranged(response, len(value))


def numbers_from_text(text: str, instance: Instance) -> list[int]:
    """Read a list of frame numbers. Raises INVALID, and NOT_FOUND for a frame that the instance has not."""
    pieces = text.split(",", MOST_FRAMES)
    if len(pieces) > MOST_FRAMES or not all(piece.isascii() and piece.isdigit() for piece in pieces):
        message = f"frame numbers from 1, separated by commas, at most {MOST_FRAMES}, expected"
        raise AppError(Category.INVALID, message, where="frames")
    numbers = [int(piece[:10]) for piece in pieces]
    total = instance.number_of_frames
    if not all(1 <= number <= total for number in numbers):
        message = f"a frame is asked that is not among the {total} of the instance"
        raise AppError(Category.NOT_FOUND, message, where="frames")
    return numbers


def _frames(visit: Visit, instance: Instance, numbers: Sequence[int], *, together: Sequence[Offer] = ()) -> Response:
    """Return frames as parts; `together` are offers of all of them one after the other in a single part."""
    choice = choose([*offers_of_frames(instance, single=len(numbers) == 1), *together])
    syntax = frame_syntax(choice, instance)
    tag = digest("frames", VERSION, choice, syntax, instance.sha256_stored, numbers)
    if unchanged := not_modified(tag, visit.caching):
        return unchanged
    kind = part_content_type(choice.media_type, syntax)
    with visit.retrieving(), decoding():
        if not choice.multipart:
            line = _Line(lambda n: visit.images.frame(instance, numbers[n], syntax), len(numbers))
            response = validated(Response(line, content_type=kind), tag, visit.caching)
            response.content_length = line.length
            return ranged(response, line.length)
        body = multipart(_frame_parts(visit, instance, numbers, syntax, kind), tag)
        response = Response(b"".join(body)) if len(numbers) == 1 else streamed(body, "")
        response.headers["Content-Type"] = choice.content_type(tag)
    return validated(response, tag, visit.caching)


class _Line:
    """Frames one after the other as one value, which can be begun at any byte; several are of one length."""

    def __init__(self, frame: Callable[[int], bytes], count: int) -> None:
        self._frame = frame
        self._first = frame(0)
        self._at = 0
        self.length = len(self._first) * count

    def seekable(self) -> bool:
        return True

    def seek(self, start: int) -> None:
        self._at = start

    def tell(self) -> int:
        return self._at

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._at >= self.length:
            raise StopIteration
        number, offset = divmod(self._at, len(self._first))
        piece = (self._frame(number) if number else self._first)[offset:]
        self._at += len(piece)
        return piece


def _frame_parts(
    visit: Visit, instance: Instance, numbers: Sequence[int], syntax: str, content_type: str
) -> Iterator[Part]:
    base = visit.door.address(instance.study_uid, instance.series_uid, instance.sop_uid)
    for number in numbers:
        frame = visit.images.frame(instance, number, syntax)
        yield content_type, {"Content-Location": f"{base}/frames/{number}"}, (frame,)


def _files(images: Images, chosen: Iterable[Chosen]) -> Iterator[Part]:
    for instance, form, buffers in in_forms(images, chosen):
        yield part_content_type(DICOM, syntax_of(instance, form)), {}, buffers


def _with_addresses(json: bytes, address: str) -> bytes:
    # Inside a JSON string a quotation mark is escaped, so these bytes are never part of a value.
    return json.replace(b'"BulkDataURI":"@/', f'"BulkDataURI":"{address}/'.encode())
