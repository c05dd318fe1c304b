"""De-identified images under `/deidentified`: searches, files and metadata in which nobody is named.

For who has the right `receive-deidentified`: every UID in addresses and answers is a replaced one.
What a program cannot clean is left out of studies and series, which a Warning says, and refused by itself.
Sources: PS3.15 annex E, PS3.18 9, 10.4 and 10.6.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from http import HTTPStatus

import orjson
from flask import Response, request

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.deidentified import MATCHED, SERIES, SOP, STUDY, Attributes, View
from fhir_server.store.filters import Act
from fhir_server.web.dicom_answers import (
    DICOM_XML,
    JSON_OFFERS,
    REVALIDATE,
    Door,
    Part,
    choose,
    chooser,
    decoding,
    digest,
    json_array,
    multipart,
    not_modified,
    streamed,
    text_answer,
    validated,
)
from fhir_server.web.dicom_forms import Pixels, pixels_of
from fhir_server.web.http import principal_of
from imaging.archive import Instance
from imaging.dicomweb import Choice, Level, Match, Matching, MatchKind, Offer, negotiate, parse_query
from imaging.dicomweb.native_model import native_model
from imaging.dicomweb.negotiation import part_content_type
from imaging.errors import AppError, Category
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, is_encapsulated

PREFIX = "/deidentified"
DICOM = "application/dicom"
RETRIEVE_URL = "00081190"
VERSION = 1  # of what cleaning makes: to be raised when the same request gives other bytes
FILES = (Offer(DICOM, True, (EXPLICIT_VR_LITTLE_ENDIAN,)),)
FILE = (*FILES, Offer(DICOM, False, (EXPLICIT_VR_LITTLE_ENDIAN,)))
TEXTS = (*JSON_OFFERS, Offer(DICOM_XML, multipart=True))
UIDS = {Level.STUDIES: (STUDY,), Level.SERIES: (STUDY, SERIES), Level.INSTANCES: (STUDY, SERIES, SOP)}


def search(level: Level) -> Callable[..., Response]:
    """Return what answers GET ../studies, or of a study ../series and ../instances: 200, or 204 for nothing."""

    def answer(door: Door, study_uid: str | None = None, series_uid: str | None = None) -> Response:
        return _search(door, level, study_uid, series_uid)

    return answer


def _search(door: Door, level: Level, study_uid: str | None, series_uid: str | None) -> Response:
    principal, view = _view(door, Act.SEARCH)
    choice, studies = choose(TEXTS), door.server.studies
    study = view.study(study_uid, Act.SEARCH) if study_uid else None
    if study:
        studies.refresh(study)
    else:
        studies.catch_up()
    matching = _matching(door, view, level, study, series_uid)
    found = view.search(matching) if matching is not None and matching.limit != 0 else []
    most = matching.limit if matching else None
    is_cut = most is not None and len(found) >= most
    found = found[: most - 1] if most else found
    told = {study} if study else set(view.originals([each[STUDY]["Value"][0] for each in found]))
    door.server.audit.record(
        principal, Access.QUERY, studies=dict.fromkeys(told, 0), parameters=[each[:100] for each in request.args]
    )
    if not found:
        return Response(status=HTTPStatus.NO_CONTENT)
    response = _texts(choice, (orjson.dumps(_addressed(door, level, each)) for each in found), request.full_path)
    if is_cut:
        response.headers["Warning"] = f'299 {door.base_url}: "There are additional results that can be requested"'
    return response


def retrieve(door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> Response:
    """GET a study, a series or an instance as DICOM files, cleaned while they are sent."""
    principal, view = _view(door, Act.READ)
    study = view.study(study_uid)
    instances, left_out = _held(view, study, study_uid, series_uid, sop_uid)
    forms = _forms(chooser(), is_single=sop_uid is not None)
    choice, _ = forms(instances[0])
    planned = [(each.sop_uid, forms(each)[1]) for each in instances]
    version = [door.server.archive.decisions.version(study), *(each.sha256_received for each in instances)]
    tag = digest("deidentified", VERSION, view.key.hex(), view.options, choice, left_out, planned, version)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    with door.retrieving(principal, study, len(instances)), decoding():
        if not choice.multipart:
            return validated(_file(view, instances[0], planned[0][1]), tag, REVALIDATE)
        archive = door.server.archive
        found = zip(archive.each([uid for uid, _ in planned]), planned, strict=True)
        parts = (_part(view, instance, form) for instance, (_, form) in found)
        response = streamed(multipart(parts, tag), choice.content_type(tag))
    return _warned(door, validated(response, tag, REVALIDATE), left_out)


def retrieve_metadata(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
) -> Response:
    """GET the cleaned attributes of a study, a series or an instance, without bulk data."""
    principal, view = _view(door, Act.READ)
    choice = choose(TEXTS)
    study = view.study(study_uid)
    instances, left_out = _held(view, study, study_uid, series_uid, sop_uid)
    door.retrieved(principal, study, 1 if sop_uid else 0)
    return _warned(door, _texts(choice, view.metadata(instances), request.full_path), left_out)


def retrieve_by_uri(door: Door, study_uid: str, series_uid: str, sop_uid: str) -> Response:
    """GET /wado with `anonymize=yes`: the cleaned file. Raises FORBIDDEN without the right."""
    principal, view = _view(door, Act.READ)
    study = view.study(study_uid)
    instance = view.instance(study, series_uid, sop_uid)
    wanted = request.args.get("contentType", DICOM)
    if syntax := request.args.get("transferSyntax"):
        wanted = f"{DICOM}; transfer-syntax={syntax}"
    form = _form(negotiate([wanted], None, (Offer(DICOM, False, _syntaxes(instance)),)), instance)
    version = (instance.sha256_received, door.server.archive.decisions.version(study))
    tag = digest("deidentified", VERSION, view.key.hex(), view.options, form, *version)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    with door.retrieving(principal, study, access=Access.RETRIEVE_URI), decoding():
        return validated(_file(view, instance, form), tag, REVALIDATE)


def _view(door: Door, act: Act) -> tuple[Principal, View]:
    principal = principal_of(request)
    return principal, door.server.deidentified.view(principal, act)


def _held(
    view: View, study: str, study_uid: str, series_uid: str | None, sop_uid: str | None
) -> tuple[list[Instance], int]:
    """Return what an address stands for, of a study whose original UID is known, and how much of it is left out."""
    if series_uid and sop_uid:
        return [view.instance(study, series_uid, sop_uid)], 0
    series = view.series(study, series_uid) if series_uid else None
    return view.instances(study, series, series_uid or study_uid)


def _matching(door: Door, view: View, level: Level, study: str | None, series_uid: str | None) -> Matching | None:
    """Return what is asked, of original UIDs and with one more than asked where there is a limit; None for nothing.

    Raises INVALID for what may not be searched for.
    """
    config = door.server.config
    most = None if study else config["limits.search_count"]
    asked = parse_query(level, request.args.items(multi=True), max_limit=most)
    for match in asked.matches:
        if match.tag not in MATCHED[level]:
            message = "this cannot be searched for without names; StudyInstanceUID and a kind of images can"
            raise AppError(Category.INVALID, message, where=match.tag)
    if asked.limit is None and most is not None:
        asked = replace(asked, limit=config["limits.search_count_default"])
    if asked.limit:
        asked = replace(asked, limit=asked.limit + 1)
    matches = [_original(view, each) for each in asked.matches]
    if any(each is None for each in matches):
        return None
    known = tuple(each for each in matches if each is not None)
    series = view.series(study, series_uid) if study and series_uid else None
    return replace(asked, matches=known, include=frozenset()).within(study, series)


def _original(view: View, match: Match) -> Match | None:
    """Return a condition on originals, None where no study has such a UID."""
    if match.tag != STUDY:
        return match
    if match.kind is not MatchKind.ONE_OF:
        raise AppError(Category.INVALID, "Study Instance UIDs expected", where="StudyInstanceUID")
    originals = view.originals(list(match.values))
    return replace(match, values=tuple(originals)) if originals else None


def _addressed(door: Door, level: Level, row: Attributes) -> Attributes:
    here = replace(door, base_url=f"{door.base_url}{PREFIX}")
    address = here.address(*(row[tag]["Value"][0] for tag in UIDS[level]))
    return dict(sorted({**row, RETRIEVE_URL: {"vr": "UR", "Value": [address]}}.items()))


def _texts(choice: Choice, documents: Iterable[bytes], *words: str) -> Response:
    if not choice.multipart:
        return text_answer(json_array(documents), choice.media_type)
    boundary = digest("deidentified", *words)
    parts: Iterator[Part] = ((choice.media_type, {}, (native_model(orjson.loads(each)),)) for each in documents)
    return text_answer(multipart(parts, boundary), choice.content_type(boundary))


def _syntaxes(instance: Instance) -> tuple[str, ...]:
    """Return the transfer syntaxes of a cleaned file, the default first: uncompressed where that can be."""
    received = instance.received_transfer_syntax_uid
    native = () if pixels_of(instance) is Pixels.OPAQUE else (EXPLICIT_VR_LITTLE_ENDIAN,)
    return (*native, *((received,) if is_encapsulated(received) or not native else ()))


def _form(choice: Choice, instance: Instance) -> str:
    """Return the form as the archive calls it; what has no pixels to be compressed is never compressed."""
    syntaxes = _syntaxes(instance)
    syntax = choice.transfer_syntax if choice.transfer_syntax in syntaxes else syntaxes[0]
    is_native = syntax == EXPLICIT_VR_LITTLE_ENDIAN or pixels_of(instance) is Pixels.ABSENT
    return EXPLICIT_VR_LITTLE_ENDIAN if is_native else instance.received_transfer_syntax_uid


def _forms(
    accepted: Callable[[Iterable[Offer]], Choice], *, is_single: bool
) -> Callable[[Instance], tuple[Choice, str]]:
    """Return what chooses for each instance. Raises 406 at the first that cannot be given as asked."""

    @cache
    def choice_of(syntaxes: tuple[str, ...]) -> Choice:
        return accepted(Offer(DICOM, form, syntaxes) for form in ((True, False) if is_single else (True,)))

    def form_of(instance: Instance) -> tuple[Choice, str]:
        choice = choice_of(_syntaxes(instance))
        return choice, _form(choice, instance)

    return form_of


def _file(view: View, instance: Instance, form: str) -> Response:
    return Response(view.file(instance, form), content_type=part_content_type(DICOM, form))


def _part(view: View, instance: Instance, form: str) -> Part:
    return part_content_type(DICOM, form), {}, (view.file(instance, form),)


def _warned(door: Door, response: Response, left_out: int) -> Response:
    if left_out:
        told = f"{left_out} instances are left out, which cannot be cleaned by a program"
        response.headers["Warning"] = f'299 {door.base_url}: "{told}"'
    return response
