"""The doors of the authorization server and the first page, installed in an application."""

from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from flask import Blueprint, Flask, Response, request, send_file

from fhir_server.access import backing
from fhir_server.access.people import People, Person
from fhir_server.access.principals import Principal
from fhir_server.rest import launch_contexts, patients
from fhir_server.rest.statuses import TooOften
from fhir_server.sign_on import SignOn
from fhir_server.store.rates import Rates
from fhir_server.store.repository import Repository
from fhir_server.studies import Studies
from fhir_server.web import alarms, authorize, oauth, people, signing_in, smart
from fhir_server.web.http import RETRY_AFTER_S
from imaging.errors import AppError, Category

_STATIC = Path(__file__).parent / "static"


class Backing(backing.Backing, Protocol):
    """What these doors need of the server."""

    @property
    def sign_on(self) -> SignOn: ...  # noqa: D102

    @property
    def studies(self) -> Studies:
        """The studies of this server."""

    def secret(self, name: str) -> bytes: ...  # noqa: D102
    @property
    def rates(self) -> Rates: ...  # noqa: D102


def install(app: Flask, server: Backing) -> None:
    """Add the addresses of the authorization server to an application."""
    found = server.sign_on
    issuer = found.authorization.issuer

    def signed_in() -> Principal | None:
        user = signing_in.user()
        return found.reader(user.person) if user else None

    app.extensions["signed_in"] = signed_in
    signing_in.install(app, found.sign_in, secret=server.secret("sessions"), is_https=issuer.startswith("https://"))
    oauth_server = oauth.oauth_server(app, found.authorization, found.principals, f"{issuer}/auth/token")

    def shown_to(principal: Principal) -> Repository:
        """Return what a principal may see, with the images that have just come."""
        server.studies.catch_up()
        return server.repository_for(principal)

    def seen(person: Person, words: str) -> list[dict[str, str]]:
        return patients.find(shown_to(found.principal_of(person)), words)

    def contexts(person: Person, resource_type: str, patient: str) -> list[dict[str, str]]:
        return launch_contexts.find(shown_to(found.principal_of(person)), resource_type, patient)

    def in_need(person: Person, reference: str) -> list[dict[str, str]]:
        return patients.find(shown_to(found.emergencies.finder(person)), reference)

    def reads(principal: Principal, reference: str) -> None:
        kind, _, identifier = reference.partition("/")
        repository: Repository = server.repository_for(principal)
        try:
            repository.read(kind, identifier)
        except AppError as error:
            if error.category in (Category.NOT_FOUND, Category.GONE):
                message = f"the launch names a {kind} that is not here, or that you may not read"
                raise AppError(Category.INVALID, message, where="launch") from error
            raise

    is_open = server.config["smart.registration"] == "subscribers"
    _turn_away(app, found.people)
    _limit(app, server.rates)
    app.register_blueprint(_pages(server.config["web.base_url"]))
    for each in people.blueprints(found, seen, server.audit):
        app.register_blueprint(each)
    finds = authorize.Finds(seen, in_need, contexts)
    app.register_blueprint(alarms.blueprint(found))
    app.register_blueprint(authorize.blueprint(found, oauth_server, finds))
    app.register_blueprint(
        smart.blueprint(found.authorization, oauth_server, reads=reads, is_registration_open=is_open)
    )


def _turn_away(app: Flask, people: People) -> None:
    """Answer who cannot be signed in at the moment, before that costs anything: images come first."""

    def check() -> Response | None:
        if not (request.method == "POST" and request.path == "/auth/sign-in" and people.are_too_many()):
            return None
        # Not `render_template`, which looks for who is signed in.
        page = app.jinja_env.get_template("busy.html").render(person=None, retry_s=RETRY_AFTER_S)
        response = Response(page, HTTPStatus.SERVICE_UNAVAILABLE, mimetype="text/html")
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return signing_in.shielded(response)

    app.before_request(check)


def _limit(app: Flask, rates: Rates) -> None:
    """Turn away a network address that tries to get in too often; images and resources are not concerned."""

    def check() -> None:
        if request.method == "POST" and request.path.startswith("/auth/"):
            wait_s = rates.wait_s("auth", str(request.environ["fhir_imaging.address"]))
            if wait_s:
                message = f"there are too many requests from your network; try again in {wait_s} seconds"
                raise TooOften(message, retry_s=wait_s, where="auth")

    app.before_request(check)


def _pages(base_url: str) -> Blueprint:
    routes = Blueprint("pages", __name__)

    def welcome() -> Response:
        return signing_in.page("welcome.html", base_url=base_url)

    def style() -> Response:
        return send_file(_STATIC / "pages.css", mimetype="text/css", max_age=3600)

    def script() -> Response:
        return send_file(_STATIC / "keys.js", mimetype="text/javascript", max_age=3600)

    routes.add_url_rule("/", "welcome", welcome, provide_automatic_options=False)
    routes.add_url_rule("/auth/pages.css", "style", style)
    routes.add_url_rule("/auth/keys.js", "script", script)
    return routes
