"""What the DICOMweb door can do, for programs: OPTIONS on any of its addresses, in WADL or JSON.

A row of `INTERACTIONS` for each route; a test compares the two. Source: PS3.18 8.9 and annex H, W3C WADL (2009).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from xml.etree import ElementTree

import orjson
from flask import Response
from pydicom.datadict import keyword_for_tag

from fhir_server.deidentified import MATCHED
from fhir_server.web import bulk, qido, rendered, stow, stow_bodies, wado, workitems
from fhir_server.web.dicom_answers import choose
from fhir_server.web.dicom_door import WITHOUT_NAMES, Door
from fhir_server.web.dicom_forms import Pixels, written_syntaxes
from imaging.archive import query
from imaging.dicomweb import Level, Offer
from imaging.dicomweb.negotiation import frame_offers, instance_offers
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

WADL = "application/vnd.sun.wadl+xml"
NAMESPACE = "http://wadl.dev.java.net/2009/02"
OFFERS = (Offer(WADL), Offer("application/json"))

RESOURCES: Mapping[str, tuple[Offer, ...]] = {
    "study, series": instance_offers((), single=False),
    "instance": instance_offers((), single=True),
    "metadata of an instance": wado.METADATA_OF_ONE_OFFERS,
    "metadata of a study or series": wado.METADATA_OFFERS,
    "one frame": frame_offers(frozenset((EXPLICIT_VR_LITTLE_ENDIAN, *written_syntaxes(Pixels.USUAL))), single=True),
    "bulk data": wado.BULKDATA_OFFERS,
    "all bulk data": bulk.BULKDATA_OFFERS,
    "all pixel data": frame_offers(
        frozenset((EXPLICIT_VR_LITTLE_ENDIAN, *written_syntaxes(Pixels.USUAL))), single=False
    ),
    "rendered instance or frame": rendered.SINGLE_OFFERS + rendered.MULTIPART_OFFERS,
    "rendered series": rendered.MULTIPART_OFFERS + rendered.ANIMATED_OFFERS,
    "rendered study": rendered.MULTIPART_OFFERS,
    "thumbnail": rendered.THUMBNAIL_OFFERS,
    "search results": qido.OFFERS,
    "answer to a store request": stow.OFFERS,
    "work item": workitems.OFFERS,
    "work items found": workitems.SEARCH_OFFERS,
}
"""What each resource is offered in, the default first; instances with usual pixels (up to 16 bits, no floats)."""

_SEARCH = ("includefield", "limit", "offset", "fuzzymatching", "emptyvaluematching", "multiplevaluematching")
_STATE = ("presentationUID", "presentationSeriesUID")
_RENDER = ("annotation", "quality", "viewport", "window", "iccprofile", *_STATE)
_URI = (
    "requestType", "studyUID", "seriesUID", "objectUID", "contentType", "transferSyntax", "frameNumber", "annotation",
    "rows", "columns", "region", "windowCenter", "windowWidth", "imageQuality", "anonymize", *_STATE,
)  # fmt: skip
_STORED = tuple(f'multipart/related; type="{form}"' for form in stow_bodies.FORMS) + stow_bodies.FORMS
_NAMES = {
    "study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID", "sop_uid": "SOPInstanceUID",
    "frames": "FrameList", "path": "BulkDataPath", "workitem_uid": "Workitem", "title": "AETitle",
}  # fmt: skip
_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


@dataclass(frozen=True, slots=True)
class Interaction:
    """What a method does at an address: its name in annex H, what it gives and takes, and its parameters.

    gives   a key of `RESOURCES`, "" where the answer has no body, or a media type
    """

    name: str
    gives: str
    query: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    status: str = "200"
    level: Level | None = None

    @property
    def media_types(self) -> list[str]:
        """What the answer comes in, the default first."""
        return [str(offer) for offer in RESOURCES[self.gives]] if self.gives in RESOURCES else [self.gives]

    @property
    def parameters(self) -> list[str]:
        """The query parameters, for a search with the attributes that can be matched."""
        attributes = sorted(query.matched(self.level)) if self.level else []
        return [*self.query, *attributes]


_W, _ITEM = "/workitems/{Workitem}", workitems.TAKEN
_SUBSCRIBED = f"{_W}/subscribers/{{AETitle}}"
_S, _E = "/studies/{StudyInstanceUID}", "/studies/{StudyInstanceUID}/series/{SeriesInstanceUID}"
_I, _F = f"{_E}/instances/{{SOPInstanceUID}}", f"{_E}/instances/{{SOPInstanceUID}}/frames/{{FrameList}}"


def _search(name: str, level: Level) -> Interaction:
    return Interaction(name, "search results", _SEARCH, level=level)


_SEEN: Mapping[tuple[str, str], Interaction] = {
    ("GET", "/studies"): _search("SearchForStudies", Level.STUDIES),
    ("GET", _S): Interaction("RetrieveStudy", "study, series"),
    ("GET", f"{_S}/series"): _search("SearchForStudySeries", Level.SERIES),
    ("GET", f"{_S}/instances"): _search("SearchForStudyInstances", Level.INSTANCES),
    ("GET", _E): Interaction("RetrieveSeries", "study, series"),
    ("GET", f"{_E}/instances"): _search("SearchForStudySeriesInstances", Level.INSTANCES),
    ("GET", _I): Interaction("RetrieveInstance", "instance"),
    ("GET", _F): Interaction("RetrieveFrames", "one frame"),
    ("GET", f"{_S}/metadata"): Interaction("RetrieveStudyMetadata", "metadata of a study or series"),
    ("GET", f"{_E}/metadata"): Interaction("RetrieveSeriesMetadata", "metadata of a study or series"),
    ("GET", f"{_I}/metadata"): Interaction("RetrieveInstanceMetadata", "metadata of an instance"),
    ("GET", f"{_S}/rendered"): Interaction("RetrieveRenderedStudy", "rendered study", _RENDER),
    ("GET", f"{_E}/rendered"): Interaction("RetrieveRenderedSeries", "rendered series", _RENDER),
    ("GET", f"{_I}/rendered"): Interaction("RetrieveRenderedInstance", "rendered instance or frame", _RENDER),
    ("GET", f"{_F}/rendered"): Interaction("RetrieveRenderedFrames", "rendered instance or frame", _RENDER),
    ("GET", f"{_S}/thumbnail"): Interaction("RetrieveStudyThumbnail", "thumbnail", _RENDER),
    ("GET", f"{_E}/thumbnail"): Interaction("RetrieveSeriesThumbnail", "thumbnail", _RENDER),
    ("GET", f"{_I}/thumbnail"): Interaction("RetrieveInstanceThumbnail", "thumbnail", _RENDER),
    ("GET", f"{_F}/thumbnail"): Interaction("RetrieveFramesThumbnail", "thumbnail", _RENDER),
    ("GET", f"{_I}/bulkdata/{{BulkDataPath}}"): Interaction("RetrieveBulkdata", "bulk data"),
    ("GET", f"{_S}/bulkdata"): Interaction("RetrieveStudyBulkdata", "all bulk data"),
    ("GET", f"{_E}/bulkdata"): Interaction("RetrieveSeriesBulkdata", "all bulk data"),
    ("GET", f"{_I}/bulkdata"): Interaction("RetrieveInstanceBulkdata", "all bulk data"),
    ("GET", f"{_S}/pixeldata"): Interaction("RetrieveStudyPixelData", "all pixel data"),
    ("GET", f"{_E}/pixeldata"): Interaction("RetrieveSeriesPixelData", "all pixel data"),
    ("GET", f"{_I}/pixeldata"): Interaction("RetrieveInstancePixelData", "all pixel data"),
}
"""What can be seen in both views."""


def _without_names(interaction: Interaction) -> Interaction:
    verb, what = re.fullmatch(r"(SearchFor|Retrieve)(\w+)", interaction.name).groups()  # type: ignore[union-attr]
    asked = interaction.query
    if interaction.level:
        keywords = (keyword_for_tag(tag) for tag in sorted(MATCHED[interaction.level]))
        asked = ("limit", "offset", *keywords)
    return replace(interaction, name=f"{verb}Deidentified{what}", query=asked, level=None)


INTERACTIONS: Mapping[tuple[str, str], Interaction] = {
    **_SEEN,
    **{(method, f"{WITHOUT_NAMES}{template}"): _without_names(each) for (method, template), each in _SEEN.items()},
    ("POST", "/studies"): Interaction("StoreInstances", "answer to a store request", takes=_STORED),
    ("POST", _S): Interaction("StoreStudyInstances", "answer to a store request", takes=_STORED),
    ("GET", "/series"): _search("SearchForSeries", Level.SERIES),
    ("GET", "/instances"): _search("SearchForInstances", Level.INSTANCES),
    ("GET", f"{_I}/received"): Interaction("RetrieveReceived", "application/dicom"),
    ("GET", "/wado"): Interaction("RetrieveByURI", "application/dicom", _URI),
    ("DELETE", _S): Interaction("DeleteStudy", "", status="204"),
    ("DELETE", _E): Interaction("DeleteSeries", "", status="204"),
    ("DELETE", _I): Interaction("DeleteInstance", "", status="204"),
    ("POST", f"{_S}/undelete"): Interaction("UndeleteStudy", "", status="204"),
    ("POST", f"{_E}/undelete"): Interaction("UndeleteSeries", "", status="204"),
    ("POST", f"{_I}/undelete"): Interaction("UndeleteInstance", "", status="204"),
    ("POST", "/workitems"): Interaction("CreateWorkitem", "", ("workitem",), takes=_ITEM, status="201"),
    ("GET", "/workitems"): Interaction("SearchForWorkitems", "work items found", _SEARCH),
    ("GET", _W): Interaction("RetrieveWorkitem", "work item"),
    ("POST", _W): Interaction("UpdateWorkitem", "", ("transaction-uid",), takes=_ITEM),
    ("PUT", f"{_W}/state"): Interaction("ChangeWorkitemState", "", takes=_ITEM),
    ("POST", f"{_W}/cancelrequest"): Interaction("RequestWorkitemCancellation", "", takes=_ITEM, status="202"),
    ("POST", _SUBSCRIBED): Interaction("SubscribeToWorkitem", "", ("deletionlock", "filter"), status="201"),
    ("DELETE", _SUBSCRIBED): Interaction("UnsubscribeFromWorkitem", ""),
    ("POST", f"{_SUBSCRIBED}/suspend"): Interaction("SuspendGlobalSubscription", ""),
    ("GET", "/subscribers/{AETitle}"): Interaction("OpenEventChannel", "", status="101"),
}


@dataclass(slots=True)
class _Resource:
    """A piece of an address with what can be done there, and the pieces below it."""

    path: str
    methods: dict[str, Interaction] = field(default_factory=dict)
    below: dict[str, "_Resource"] = field(default_factory=dict)


def address_of(rule: str) -> str:
    """Return the template of a route's address, with the standard's names for what varies."""
    return _VARIABLE.sub(lambda found: f"{{{_NAMES[found[1]]}}}", rule)


def describe(door: Door, rule: str, **_: str) -> Response:
    """OPTIONS: what can be done at an address and below it. Open to everybody: it tells of nobody's images."""
    choice = choose(OFFERS)
    address = address_of(rule)
    target, methods = _target(address)
    body = _wadl(door.base_url, target) if choice.media_type == WADL else orjson.dumps(_json(door.base_url, target))
    response = Response(body, content_type=choice.media_type)
    response.headers["Allow"] = ", ".join(sorted({"OPTIONS", *methods, *(["HEAD"] if "GET" in methods else [])}))
    response.headers["Cache-Control"] = "public, max-age=3600"
    response.vary.add("Accept")
    return response


def _target(address: str) -> tuple[list[_Resource], Iterable[str]]:
    """Return the resources to describe: the one of the address with all below it; at the base, all."""
    root = _Resource("")
    for (method, template), interaction in INTERACTIONS.items():
        at = root
        for piece in template.strip("/").split("/"):
            at = at.below.setdefault(piece, _Resource(piece))
        at.methods[method] = interaction
    pieces = [piece for piece in address.split("/") if piece]
    if not pieces:
        return list(root.below.values()), ()
    at = root
    for piece in pieces:
        at = at.below[piece]
    return [_Resource("/".join(pieces), at.methods, at.below)], at.methods


def _wadl(base: str, resources: Iterable[_Resource]) -> bytes:
    ElementTree.register_namespace("", NAMESPACE)
    application = ElementTree.Element(f"{{{NAMESPACE}}}application")
    inner = ElementTree.SubElement(application, f"{{{NAMESPACE}}}resources", base=base)
    for resource in resources:
        _append(inner, "resource", _told(resource))
    return bytes(ElementTree.tostring(application, encoding="utf-8", xml_declaration=True))


def _append(parent: ElementTree.Element, name: str, told: Mapping[str, Any]) -> None:
    """Write what is told as an element: texts are attributes, lists are elements inside."""
    texts = {key: value for key, value in told.items() if isinstance(value, str)}
    element = ElementTree.SubElement(parent, f"{{{NAMESPACE}}}{name}", texts)
    for key, inside in told.items():
        if isinstance(inside, Mapping):
            _append(element, key, inside)
        elif not isinstance(inside, str):
            for each in inside:
                _append(element, key, each)


def _json(base: str, resources: Iterable[_Resource]) -> dict[str, Any]:
    """Return the same tree: attributes and elements are members, elements that repeat are arrays."""
    return {"application": {"resources": {"base": base, "resource": [_told(each) for each in resources]}}}


def _told(resource: _Resource) -> dict[str, Any]:
    variables = [_parameter(name, "template", "xs:string") for name in re.findall(r"\{(\w+)\}", resource.path)]
    return {
        "path": resource.path,
        **({"param": variables} if variables else {}),
        **({"method": list(_methods(resource))} if resource.methods else {}),
        **({"resource": [_told(each) for each in resource.below.values()]} if resource.below else {}),
    }


def _methods(resource: _Resource) -> Iterator[dict[str, Any]]:
    for method, interaction in sorted(resource.methods.items()):
        accept = {**_parameter("Accept", "header"), "option": [{"value": each} for each in interaction.media_types]}
        asked: dict[str, Any] = {"param": [accept] if interaction.gives else []}
        asked["param"] += [_parameter(name, "query") for name in interaction.parameters]
        if interaction.takes:
            asked["representation"] = [{"mediaType": each} for each in interaction.takes]
        answer: dict[str, Any] = {"status": interaction.status}
        if interaction.gives:
            answer["representation"] = [{"mediaType": each} for each in interaction.media_types]
        yield {"name": method, "id": interaction.name, "request": asked, "response": [answer]}


def _parameter(name: str, style: str, kind: str = "") -> dict[str, str]:
    return {"name": name, "style": style, **({"type": kind, "required": "true"} if kind else {})}
