"""The pages of an authorisation: who you are, which patient it is about, what you agree to.

One address, /auth/authorize, with the app's parameters; each step leads back to it until nothing is missing. Errors go
to the app where its address can be trusted, and are shown to the person otherwise. Every answer to the app names this
server (`iss`), so that an app which talks to several is not led astray.   Source: RFC 6749 4.1, RFC 9207; SMART 2.2.
"""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from authlib.common.urls import add_params_to_uri
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749.errors import AccessDeniedError, InvalidScopeError, OAuth2Error
from flask import Blueprint, Response, redirect, request, session, url_for
from werkzeug.datastructures import MultiDict

from fhir_server.access.authorization import Authorization, Launch, chosen
from fhir_server.access.people import Person
from fhir_server.access.scopes import Scopes
from fhir_server.access.wording import Line, explained
from fhir_server.web import signing_in
from fhir_server.web.oauth import ascii_words, error_address
from imaging.errors import AppError, Category

Patients = Callable[[Person, str], list[dict[str, str]]]  # (who looks, words) -> id, name, birth date of each
LONGEST_REQUEST = 12_000  # characters of all parameters
_PICKED = "picked"  # in the session: which patient was picked for which request


def blueprint(authorization: Authorization, server: AuthorizationServer, patients: Patients) -> Blueprint:
    """Return the pages.

    patients   finds patients whom a person may see
    """
    pages = _Pages(authorization, server, patients)
    routes = Blueprint("authorize", __name__, url_prefix="/auth")
    routes.add_url_rule("/authorize", "authorize", pages.authorize, methods=["GET", "POST"])
    routes.add_url_rule("/patient", "patient", pages.patient, methods=["POST"])
    routes.add_url_rule("/decision", "decision", pages.decision, methods=["POST"])
    return routes


class _Pages:
    def __init__(self, authorization: Authorization, server: AuthorizationServer, patients: Patients) -> None:
        self._authorization = authorization
        self._server = server
        self._patients = patients

    def authorize(self) -> Response:
        """Take a request of an app, and show what is missing for an answer."""
        asked = request.form if request.method == "POST" else request.args
        if sum(len(name) + len(value) for name, value in asked.items(multi=True)) > LONGEST_REQUEST:
            raise AppError(Category.TOO_LARGE, f"a request has at most {LONGEST_REQUEST} characters", where="authorize")
        if request.method == "POST":
            # As an address, to which the steps lead back. Source: SMART 2.2, authorize-post.
            return redirect(_address(asked), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
        return self._tried(self._step)

    def patient(self) -> Response:
        """Take the patient that somebody picked."""
        signing_in.check_form()
        return self._tried(self._pick)

    def decision(self) -> Response:
        """Take yes or no, and send the browser back to the app."""
        signing_in.check_form()
        return self._tried(self._decide)

    def _tried(self, step: Callable[[Any], Response]) -> Response:
        try:
            return step(self._server.get_consent_grant(end_user=signing_in.user()))
        except OAuth2Error as error:
            address = error_address(error, self._authorization.issuer)
            if address:
                return _leave(address)
            return signing_in.page("refused.html", HTTPStatus.BAD_REQUEST, reason=error.description or error.error)

    def _step(self, grant: Any) -> Response:
        found, prompt = signing_in.user(), request.args.get("prompt", "").split()
        if found is None or ("login" in prompt and not signing_in.is_fresh_for(_state(grant))):
            if "none" in prompt:
                raise _redirected(OAuth2Error("somebody has to sign in", error="login_required"), grant)
            return redirect(url_for("people.sign_in", next=_address(request.args)))  # type: ignore[return-value]
        launch, scopes = self._launch(grant, found.person)
        if self._authorization.needs_patient(scopes) and not launch.patient:
            words = request.args.get("find", "")[:100]
            rows = self._patients(found.person, words)
            return signing_in.page("patient.html", app=grant.request.client.app, rows=rows, words=words, asked=_asked())
        if "none" in prompt:
            raise _redirected(OAuth2Error("somebody has to agree", error="consent_required"), grant)
        return self._consent(grant, scopes, launch, found.person)

    def _consent(self, grant: Any, scopes: Scopes, launch: Launch, person: Person) -> Response:
        shown = next((each["name"] for each in self._patients(person, launch.patient)), "") if launch.patient else ""
        lines: list[Line] = explained(scopes)
        return signing_in.page(
            "consent.html",
            forms_lead_to=signing_in.source_of_redirect(grant.redirect_uri),
            app=grant.request.client.app,
            lines=lines,
            patient=shown,
            asked=_asked(),
        )

    def _pick(self, grant: Any) -> Response:
        found = signing_in.user()
        picked = request.form.get("patient", "")
        if found is None or not self._patients(found.person, f"Patient/{picked}"):
            raise AppError(Category.INVALID, "pick one of the patients that are shown", where="patient")
        session[_PICKED] = {"state": _state(grant), "patient": f"Patient/{picked}"}
        return redirect(_address(request.args), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]

    def _decide(self, grant: Any) -> Response:
        found = signing_in.user()
        if found is None:
            raise _redirected(AccessDeniedError("nobody is signed in"), grant)
        if request.form.get("decision") != "allow":
            session.pop(_PICKED, None)
            raise _redirected(AccessDeniedError("the person did not agree"), grant)
        launch, offered = self._launch(grant, found.person)
        scopes = chosen(offered, request.form.getlist("agreed"))
        if not scopes.resources and not scopes.others:
            raise _redirected(AccessDeniedError("the person agreed to nothing"), grant)
        if self._authorization.needs_patient(scopes) and not launch.patient:
            return redirect(_address(request.args), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
        data = grant.request.payload.data
        code = self._authorization.code(
            grant.request.client.app,
            found.person,
            scopes,
            launch,
            launch_value=data.get("launch", ""),
            redirect_uri=grant.redirect_uri,
            challenge=data["code_challenge"],
            nonce=data.get("nonce", "")[:500],
            session=found.session.key,
            signed_in=found.session.began,
        )
        session.pop(_PICKED, None)
        answer = [("code", code), ("state", data["state"]), ("iss", self._authorization.issuer)]
        return _leave(add_params_to_uri(grant.redirect_uri, answer))

    def _launch(self, grant: Any, person: Person) -> tuple[Launch, Scopes]:
        """Return what the app is launched about, as far as it is known, and what can be granted to it."""
        app, data = grant.request.client.app, grant.request.payload.data
        if app.organization != person.organization:
            raise _redirected(AccessDeniedError("this app is registered for people of another subscriber"), grant)
        value = data.get("launch", "")
        try:
            launch = self._authorization.launched(value, app, person) if value else None
            scopes = self._authorization.offered(app, data["scope"], launch)
        except AppError as error:
            kind = InvalidScopeError if error.where == "scope" else _InvalidLaunch
            raise _redirected(kind(ascii_words(error.message)), grant) from error
        known = launch or Launch()
        if person.role == "patient":
            if known.patient not in ("", person.fhir_user):
                raise _redirected(AccessDeniedError("the launch is about another patient"), grant)
            return replace(known, patient=person.fhir_user), scopes
        picked = session.get(_PICKED, {})
        if not known.patient and picked.get("state") == _state(grant):
            known = replace(known, patient=picked["patient"])
        return known, scopes


class _InvalidLaunch(OAuth2Error):  # type: ignore[misc]
    error = "invalid_request"


def _state(grant: Any) -> str:
    data = grant.request.payload.data
    return f"{data['client_id']} {data['code_challenge']}"


def _asked() -> str:
    return urlencode([each for each in request.args.items(multi=True) if each[0] != "find"])


def _address(asked: "MultiDict[str, str]") -> str:
    pairs = [each for each in asked.items(multi=True) if each[0] not in ("find", "csrf_token")]
    return f"{url_for('authorize.authorize')}?{urlencode(pairs)}"


def _redirected(error: OAuth2Error, grant: Any) -> OAuth2Error:
    """Have an error go to the app, whose address was checked."""
    error.redirect_uri = grant.redirect_uri
    error.state = grant.request.payload.state
    return error


def _leave(address: str) -> Response:
    response = redirect(address, HTTPStatus.SEE_OTHER)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response  # type: ignore[return-value]
