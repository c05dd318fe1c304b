"""The pages of an authorisation: who you are, which patient it is about, what you agree to.

One address, /auth/authorize, with the app's parameters; each step leads back to it until nothing is missing. Errors go
to the app where its address can be trusted, and are shown to the person otherwise. Every answer to the app names this
server (`iss`), so that an app which talks to several is not led astray.   Source: RFC 6749 4.1, RFC 9207; SMART 2.2.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from authlib.common.urls import add_params_to_uri
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749.errors import AccessDeniedError, InvalidScopeError, OAuth2Error
from flask import Blueprint, Response, redirect, request, session, url_for
from werkzeug.datastructures import MultiDict

from fhir_server.access.apps import App
from fhir_server.access.authorization import Launch, chosen, named
from fhir_server.access.emergencies import LONGEST_REASON, SHORTEST_REASON, Emergency, Wanted, in_emergency
from fhir_server.access.grants import ContextItem
from fhir_server.access.people import Person
from fhir_server.access.scopes import Scopes
from fhir_server.access.wording import Line, explained
from fhir_server.rest.launch_contexts import MOST_SHOWN
from fhir_server.sign_on import SignOn
from fhir_server.web import signing_in
from fhir_server.web.oauth import ascii_words, error_address
from imaging.errors import AppError, Category

Contexts = Callable[[Person, str, str], list[dict[str, str]]]  # (who looks, type, "Patient/...") -> id, name of each
Patients = Callable[[Person, str], list[dict[str, str]]]  # (who looks, words) -> id, name, birth date of each
LONGEST_REQUEST = 12_000  # characters of all parameters
_PICKED = (
    "picked"  # in the session: which patient was picked for which request, what else, and by which emergency access
)


class Choice(NamedTuple):
    """What a person may say of an app that was not launched from here, once the patient is known.

    name   of the scope; `kind` is the type of resource that is picked
    """

    name: str
    kind: str
    question: str
    what: str
    legend: str


CHOICES = (
    Choice("launch/encounter", "Encounter", "Which visit?", "visit", "Visits"),
    Choice("launch/imagingstudy", "ImagingStudy", "Which images?", "examination", "Examinations"),
)


class Finds(NamedTuple):
    """How the pages find what they show.

    patients   patients whom a person may see
    in_need    one by reference whom a person may see in an emergency
    contexts   visits or studies of a patient that a person may see
    """

    patients: Patients
    in_need: Patients
    contexts: Contexts


def blueprint(found: SignOn, server: AuthorizationServer, finds: Finds) -> Blueprint:
    """Return the pages."""
    pages = _Pages(found, server, finds)
    routes = Blueprint("authorize", __name__, url_prefix="/auth")
    routes.add_url_rule("/authorize", "authorize", pages.authorize, methods=["GET", "POST"])
    routes.add_url_rule("/patient", "patient", pages.patient, methods=["POST"])
    routes.add_url_rule("/context", "context", pages.context, methods=["POST"])
    routes.add_url_rule("/decision", "decision", pages.decision, methods=["POST"])
    routes.add_url_rule("/emergency", "emergency", pages.emergency, methods=["GET", "POST"])
    return routes


class _Pages:
    def __init__(self, found: SignOn, server: AuthorizationServer, finds: Finds) -> None:
        self._authorization = found.authorization
        self._emergencies = found.emergencies
        self._sign_in = found.sign_in
        self._server = server
        self._patients, self._in_need, self._contexts = finds

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

    def context(self) -> Response:
        """Take the visit or the study that somebody picked, or that it is none."""
        signing_in.check_form()
        return self._tried(self._pick_context)

    def decision(self) -> Response:
        """Take yes or no, and send the browser back to the app."""
        signing_in.check_form()
        return self._tried(self._decide)

    def emergency(self) -> Response:
        """Ask why somebody needs what may not be seen otherwise, and raise the alarm."""
        if request.method == "POST":
            signing_in.check_form()
        return self._tried(self._ask_in_emergency)

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
            return signing_in.page(
                "patient.html",
                app=grant.request.client.app,
                rows=rows,
                words=words,
                asked=_asked(),
                may_ask=self._emergencies.may(found.person),
            )
        if "none" in prompt:
            raise _redirected(OAuth2Error("somebody has to agree", error="consent_required"), grant)
        if self._emergency(grant, found.person, launch):
            scopes = in_emergency(scopes)
        if choice := self._unsaid(grant, scopes):
            return self._ask(choice, grant.request.client.app, found.person, launch.patient)
        return self._consent(grant, scopes, launch, found.person)

    def _consent(self, grant: Any, scopes: Scopes, launch: Launch, person: Person) -> Response:
        said = _said(grant)
        emergency = self._emergency(grant, person, launch)
        shown = self._name(person, launch.patient, self._in_need if emergency else self._patients)
        lines: list[Line] = explained(scopes)
        return signing_in.page(
            "consent.html",
            forms_lead_to=signing_in.source_of_redirect(grant.redirect_uri),
            app=grant.request.client.app,
            lines=lines,
            patient=shown,
            said=[said[each.name]["name"] for each in CHOICES if said.get(each.name, {}).get("name")],
            asked=_asked(),
            emergency_s=int(self._emergencies.life.total_seconds()) if emergency else 0,
            may_ask=bool(launch.patient) and not shown and self._emergencies.may(person),
        )

    def _unsaid(self, grant: Any, scopes: Scopes) -> Choice | None:
        """Return what the person has to be asked next, None for nothing. A launch from here says all that it says."""
        if grant.request.payload.data.get("launch"):
            return None
        said = _said(grant)
        wanted = {named(each) for each in scopes.others}
        return next((each for each in CHOICES if each.name in wanted and each.name not in said), None)

    def _ask(self, choice: Choice, app: App, person: Person, patient: str) -> Response:
        rows = self._contexts(person, choice.kind, patient)
        shown = self._name(person, patient, self._patients)
        return signing_in.page(
            "context.html", app=app, choice=choice, rows=rows, patient=shown, most=MOST_SHOWN, asked=_asked()
        )

    def _name(self, person: Person, patient: str, find: Patients) -> str:
        return next((each["name"] for each in find(person, patient)), "") if patient else ""

    def _pick_context(self, grant: Any) -> Response:
        found = signing_in.user()
        choice = next((each for each in CHOICES if each.name == request.form.get("choice")), None)
        if found is None or choice is None:
            raise AppError(Category.INVALID, "pick one of those that are shown", where="choice")
        launch, _ = self._launch(grant, found.person)
        picked = request.form.get("picked", "")
        if picked:
            rows = self._contexts(found.person, choice.kind, launch.patient) if launch.patient else []
            row = next((each for each in rows if each["id"] == picked), None)
            if row is None:
                raise AppError(Category.INVALID, "pick one of those that are shown", where="picked")
            said = {"reference": f"{choice.kind}/{picked}", "name": row["name"]}
        else:
            said = {"reference": "", "name": ""}
        session[_PICKED] = {"state": _state(grant), "patient": launch.patient, **_said(grant), choice.name: said}
        return redirect(_address(request.args), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]

    def _ask_in_emergency(self, grant: Any) -> Response:
        found = signing_in.user()
        if found is None or not self._sign_in.is_freshly_proved(found.person, found.session):
            back = f"{url_for('authorize.emergency')}?{_asked()}"
            return redirect(url_for("people.sign_in", next=back), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
        launch, scopes = self._launch(grant, found.person)
        app, given = grant.request.client.app, request.form
        if not in_emergency(scopes).resources or not self._emergencies.may(found.person):
            message = "there is no emergency access for you here, or what the app asks for is not about one patient"
            raise AppError(Category.FORBIDDEN, message, where="emergency")
        if request.method == "GET":
            return self._emergency_page(app, launch)
        wanted = Wanted(launch.patient, given.get("number", ""), given.get("family", ""), given.get("born", ""))
        try:
            asked = self._emergencies.ask(found.person, app.client_id, given.get("reason", ""), wanted)
        except AppError as error:
            return self._emergency_page(app, launch, error.message)
        session[_PICKED] = {"state": _state(grant), "patient": asked.patient, "emergency": asked.id}
        return redirect(_address(request.args), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]

    def _emergency_page(self, app: Any, launch: Launch, problem: str = "") -> Response:
        return signing_in.page(
            "emergency.html",
            HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK,
            app=app,
            asked=_asked(),
            problem=problem,
            is_known=bool(launch.patient),
            given=request.form,
            minutes=int(self._emergencies.life.total_seconds()) // 60,
            shortest=SHORTEST_REASON,
            longest=LONGEST_REASON,
        )

    def _emergency(self, grant: Any, person: Person, launch: Launch) -> Emergency | None:
        """Return the emergency access that was asked for with this request, None without one."""
        return self._emergencies.waiting(_picked(grant).get("emergency", ""), person, launch.patient)

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
        emergency = self._emergency(grant, found.person, launch)
        offered = in_emergency(offered) if emergency else offered
        scopes = chosen(offered, request.form.getlist("agreed"))
        if not scopes.resources and not scopes.others:
            raise _redirected(AccessDeniedError("the person agreed to nothing"), grant)
        if self._authorization.needs_patient(scopes) and not launch.patient:
            return redirect(_address(request.args), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
        launch = _agreed(launch, scopes)
        if emergency:
            self._emergencies.take(emergency)
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
            emergency=emergency.id if emergency else "",
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
            known = replace(known, patient=person.fhir_user)
        elif not known.patient and (picked := _picked(grant)):
            known = replace(known, patient=picked["patient"])
        return (known, scopes) if launch else _as_said(known, scopes, _said(grant))


def _as_said(launch: Launch, scopes: Scopes, said: Mapping[str, dict[str, str]]) -> tuple[Launch, Scopes]:
    """Return a launch with what the person said, and the scopes without what it did not want to say."""
    references = {name: each["reference"] for name, each in said.items()}
    unsaid = {name for name, reference in references.items() if not reference}
    others = tuple(each for each in scopes.others if named(each) not in unsaid)
    context = []
    if study := references.get("launch/imagingstudy"):
        roles = [each.partition("?role=")[2] for each in others if named(each) == "launch/imagingstudy"]
        context = [ContextItem(reference=study, type="ImagingStudy", role=role) for role in roles]
    encounter = references.get("launch/encounter", "")
    return replace(launch, encounter=encounter, context=tuple(context)), replace(scopes, others=others)


def _agreed(launch: Launch, scopes: Scopes) -> Launch:
    """Return a launch without what the person unticked of what it had said."""
    kept = {named(each) for each in scopes.others}
    if "launch" in kept:
        return launch
    encounter = launch.encounter if "launch/encounter" in kept else ""
    return replace(launch, encounter=encounter, context=launch.context if "launch/imagingstudy" in kept else ())


class _InvalidLaunch(OAuth2Error):  # type: ignore[misc]
    error = "invalid_request"


def _state(grant: Any) -> str:
    data = grant.request.payload.data
    return f"{data['client_id']} {data['code_challenge']}"


def _picked(grant: Any) -> dict[str, Any]:
    """Return what was picked in this browser for the request at hand."""
    picked: dict[str, Any] = session.get(_PICKED, {})
    return picked if picked.get("state") == _state(grant) else {}


def _said(grant: Any) -> dict[str, dict[str, str]]:
    """Return by scope what a person said of an app, an empty reference where it was none."""
    picked = _picked(grant)
    return {each.name: picked[each.name] for each in CHOICES if each.name in picked}


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
