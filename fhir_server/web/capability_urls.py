"""The DICOMweb door below a capability URL: searches and retrievals of one study, without a token.

Everything is answered as at the door itself, for a principal that sees this one study. The address is a secret: it is
in no log, and every address within an answer begins with it.   Source: SMART Imaging Access 0.1.0, retrieving images.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from flask import Blueprint, Response, g, request
from flask.blueprints import BlueprintSetupState
from werkzeug.routing import BaseConverter

from fhir_server.access.audit import Access
from fhir_server.access.capability_urls import FORM, Capability, CapabilityUrls
from fhir_server.access.contracts import Right
from fhir_server.rest.capability_endpoints import PATH
from fhir_server.rest.statuses import TooOften
from fhir_server.store.rates import Rates
from fhir_server.web import dicom_door
from fhir_server.web.dicom_door import Door
from fhir_server.web.http import note_caller, tries
from imaging.errors import AppError, Category

Route = tuple[str, str, Callable[..., Response]]


class Backing(dicom_door.Backing, Protocol):
    """What this door needs of the server."""

    @property
    def capability_urls(self) -> CapabilityUrls: ...  # noqa: D102
    @property
    def rates(self) -> Rates: ...  # noqa: D102


class SecretConverter(BaseConverter):
    """What looks like the secret of a capability URL; anything else is an address where nothing is."""

    regex = FORM


def blueprint(server: Backing, door: Door, prefix: str, reading: Iterable[Route]) -> Blueprint:
    """Return the routes below capability URLs: those of `door` that read, where the door is at `prefix`."""
    routes = Blueprint("capability_urls", __name__, url_prefix=f"{prefix}{PATH}/<capability:secret>")
    rates = server.rates

    def add_converter(state: BlueprintSetupState) -> None:
        state.app.url_map.converters["capability"] = SecretConverter

    def opened(secret: str) -> Capability:
        try:
            return server.capability_urls.open(secret)
        except AppError as error:
            # Those that are good go on being good, whoever guesses from the same network.
            if error.category is Category.UNAUTHENTICATED and (wait_s := rates.wait_s("capability", _address())):
                message = "too many addresses that open nothing were tried from this network address"
                raise TooOften(message, retry_s=wait_s, where="capability URL") from error
            raise

    def view(answer: Callable[..., Response]) -> Callable[..., Response]:
        def answered(secret: str, **named: str) -> Response:
            tries(Access.RETRIEVE)
            found = opened(secret)
            g.principal = found.principal
            note_caller(request, found.principal)
            server.studies.authorise(found.study_uid, found.by_url)
            g.capability_s = max(0, int((found.expires - server.clock()).total_seconds()))
            return answer(
                replace(door, base_url=f"{door.base_url}{PATH}/{secret}", right=Right.RECEIVE_BY_URL), **named
            )

        return answered

    routes.record(add_converter)
    routes.after_request(_kept_private)
    for number, (method, rule, answer) in enumerate(reading):
        routes.add_url_rule(rule, f"route-{number}", view(answer), methods=[method], provide_automatic_options=False)
    return routes


def _kept_private(response: Response) -> Response:
    """Keep the address from other sites, and answers from being kept for longer than the address is good."""
    response.headers["Referrer-Policy"] = "no-referrer"
    if response.cache_control.max_age is not None:
        response.headers["Cache-Control"] = f"private, max-age={g.capability_s}"
    return response


def _address() -> str:
    return str(request.environ["fhir_imaging.address"])
