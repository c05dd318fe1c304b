"""The operation `Task/[id]/$preview`: a hard copy as it will be printed, as PNG, PDF or a FHIR Binary.

The pages are composed by the code that prints them, coarser. Source: FHIR R4 operations 3.1.1 (an operation whose one
result is a resource answers with it), Binary 2.40.1 (a Binary goes out as its content where that is asked for).
"""

import base64
import io
from datetime import UTC, datetime
from http import HTTPStatus

import numpy as np
from flask import Blueprint, Response, request
from PIL import Image

from fhir_server import hardcopies
from fhir_server.access.audit import Access, Metered
from fhir_server.access.contracts import Right
from fhir_server.hardcopies import RESOLUTION, Preview
from fhir_server.model import json
from fhir_server.web.formats import JSON_TYPES, shown
from fhir_server.web.http import principal_of, tries
from imaging.errors import AppError, Category

PNG, PDF = "image/png", "application/pdf"
PARAMETERS = frozenset({"page", "resolution", "_format", "_pretty"})
_SHORT = {"png": PNG, "pdf": PDF, "json": JSON_TYPES[0]}


def blueprint(server: hardcopies.Backing) -> Blueprint:
    """Return the door for one server."""
    routes = Blueprint("preview", __name__, url_prefix="/fhir")

    def preview(task_id: str) -> Response:
        tries(Access.READ)
        principal = principal_of(request)
        unknown = set(request.args) - PARAMETERS
        if unknown:
            name = sorted(unknown)[0][:64]
            raise AppError(Category.INVALID, f"the parameter {name} is not known", where=name)
        media = _media_type()
        found = hardcopies.preview(server, principal, task_id, dots_per_inch=_number("resolution", RESOLUTION))
        content = (_png if media != PDF else _pdf)(found)
        metered = Metered(Right.ORDER_HARD_COPY)
        named = [f"Task/{task_id}"]
        server.audit.record(principal, Access.RETRIEVE, resources=named, studies=found.studies, metered=metered)
        return _answer(content, media, found)

    routes.add_url_rule(
        "/Task/<task_id>/$preview", "preview", preview, methods=["GET"], provide_automatic_options=False
    )
    return routes


def _media_type() -> str:
    """Return the form that is wanted. Raises UNSUPPORTED (406) where it is none of ours."""
    asked = request.args.get("_format", "").replace(" ", "+").lower()
    if asked:
        media = _SHORT.get(asked, asked)
        if media in (PNG, PDF, *JSON_TYPES):
            return media
    else:
        best = request.accept_mimetypes.best_match([PNG, PDF, *JSON_TYPES])
        if best or not request.headers.get("Accept", "").strip():
            return best or PNG
    raise AppError(Category.UNSUPPORTED, f"a preview is {PNG}, {PDF} or {JSON_TYPES[0]}", where="Accept")


def _png(found: Preview) -> bytes:
    number = _number("page", 1)
    (page,) = found.pages(number, number)
    file = io.BytesIO()
    dots = float(found.job.sheets.dots_per_inch)
    Image.fromarray(np.ascontiguousarray(page.samples)).save(file, "PNG", dpi=(dots, dots), compress_level=3)
    return file.getvalue()


def _pdf(found: Preview) -> bytes:
    from imaging.film import pdf  # takes a while, and most processes never show one

    number = _number("page", 0)
    first, last = (number, number) if number else (1, found.plan.pages)
    file = io.BytesIO()
    pdf.write(file, found.pages(first, last), found.job.sheets, made=datetime.now(UTC), title=found.job.title)
    return file.getvalue()


def _answer(content: bytes, media: str, found: Preview) -> Response:
    if media in JSON_TYPES:
        binary = {"resourceType": "Binary", "contentType": PNG, "data": base64.b64encode(content).decode()}
        response = shown(json.dumps(binary))
    else:
        response = Response(content, HTTPStatus.OK, content_type=media)
    number = _number("page", 1)
    links = [("next", number + 1)] if media != PDF and number < found.plan.pages else []
    links += [("last", found.plan.pages)] if media != PDF else []
    if links:
        told = (f'<{request.base_url}?page={page}>; rel="{relation}"' for relation, page in links)
        response.headers["Link"] = ", ".join(told)
    response.headers["Cache-Control"] = "no-store"
    return response


def _number(name: str, default: int) -> int:
    text = request.args.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise AppError(Category.INVALID, "a whole number expected", where=name)
    return int(text)
