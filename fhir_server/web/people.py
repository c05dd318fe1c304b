"""The pages of people: signing in and out, what is open, and apps to start. `second_factor` has the rest of it."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, redirect, request, url_for

from fhir_server.access.authorization import Launch
from fhir_server.access.people import Person
from fhir_server.sign_on import SignOn
from fhir_server.web import second_factor, signing_in
from fhir_server.web.alarms import REVIEWERS
from fhir_server.web.http import RETRY_AFTER_S
from imaging.errors import AppError, Category

Patients = Callable[[Person, str], list[dict[str, str]]]


def blueprints(found: SignOn, patients: Patients, noted: second_factor.Noted) -> list[Blueprint]:
    """Return the pages, those of second factors among them."""
    pages = _Pages(found, patients, noted)
    routes = Blueprint("people", __name__, url_prefix="/auth")
    routes.add_url_rule("/", "home", pages.home)
    routes.add_url_rule("/sign-in", "sign_in", pages.sign_in, methods=["GET", "POST"])
    routes.add_url_rule("/sign-out", "sign_out", pages.sign_out, methods=["POST"])
    routes.add_url_rule("/sessions", "sessions", pages.end_session, methods=["POST"])
    routes.add_url_rule("/start", "start", pages.start, methods=["POST"])
    return [routes, second_factor.blueprint(found, noted, pages.let_in)]


class _Pages:
    def __init__(self, found: SignOn, patients: Patients, noted: second_factor.Noted) -> None:
        self._authorization = found.authorization
        self._sign_in = found.sign_in
        self._found = found
        self._patients = patients
        self._noted = noted

    def home(self) -> Response:
        """Show who is signed in, where, and which apps can be started."""
        found = signing_in.user()
        if found is None:
            return redirect(url_for("people.sign_in"))  # type: ignore[return-value]
        apps = [
            each
            for each in self._authorization.apps.all()
            if each.organization == found.person.organization and each.launch_uri
        ]
        words = request.args.get("find", "")[:100]
        sessions = self._sign_in.of(found.person)
        rows = self._patients(found.person, words) if apps else []
        return signing_in.page(
            "home.html",
            forms_lead_to=" ".join(sorted({signing_in.source_of_redirect(each.launch_uri) for each in apps})),
            apps=apps,
            sessions=sessions,
            current=found.session.key,
            rows=rows,
            words=words,
            is_reviewer=found.person.role in REVIEWERS,
        )

    def sign_in(self) -> Response:
        """Show the form, or take it."""
        wanted = signing_in.own_path(request.values.get("next", ""))
        if request.method == "GET":
            known = signing_in.user()
            login = known.person.login if known else ""
            return signing_in.page("sign-in.html", wanted=wanted, problem="", login=login)
        signing_in.check_form()
        login = request.form.get("login", "")
        try:
            person = self._authorization.people.sign_in(login, request.form.get("password", ""))
        except AppError as error:
            return self._refused(error, "sign-in.html", wanted=wanted, login=login[:100])
        if person.has_second_factor:
            signing_in.begin_half(person, self._found.clock())
            return second_factor.asked(self._found, person, wanted)
        if self._sign_in.needs_second_factor(person):
            signing_in.begin_half(person, self._found.clock())
            return redirect(url_for("factors.second_factor", next=wanted), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
        return self.let_in(person, "", wanted)

    def let_in(self, person: Person, factor: str, wanted: str) -> Response:
        """Begin a session of who proved all that is needed, and lead on."""
        signing_in.begin(self._sign_in, self._authorization.people.signed_in(person), factor)
        self._noted.signed_in(person.login, person.organization)
        return redirect(wanted, HTTPStatus.SEE_OTHER)  # type: ignore[return-value]

    def _refused(self, error: AppError, template: str, **values: Any) -> Response:
        if error.category not in (Category.UNAUTHENTICATED, Category.BUSY):
            raise error
        self._noted.signed_in("", "", error.message)
        is_busy = error.category is Category.BUSY
        status = HTTPStatus.SERVICE_UNAVAILABLE if is_busy else HTTPStatus.UNAUTHORIZED
        page = signing_in.page(template, status, problem=error.message, **values)
        if is_busy:
            page.headers["Retry-After"] = str(RETRY_AFTER_S)
        return page

    def sign_out(self) -> Response:
        """End this session."""
        signing_in.check_form()
        signing_in.end(self._sign_in)
        return redirect(url_for("people.sign_in"), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]

    def end_session(self) -> Response:
        """End another session of the same person."""
        signing_in.check_form()
        found = signing_in.user()
        if found is not None:
            self._sign_in.end(found.person, request.form.get("session", ""))
        return redirect(url_for("people.home"), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]

    def start(self) -> Response:
        """Start an app about a patient."""
        signing_in.check_form()
        found = signing_in.user()
        app = self._authorization.apps.find(request.form.get("app", ""))
        patient = f"Patient/{request.form.get('patient', '')}"
        if found is None or app is None or app.organization != found.person.organization or not app.launch_uri:
            raise AppError(Category.NOT_FOUND, "this app cannot be started from here", where="app")
        if not self._patients(found.person, patient):
            raise AppError(Category.NOT_FOUND, "there is no such patient among those that you may see", where="patient")
        launch = Launch(patient=patient, more={"need_patient_banner": True})
        value = self._authorization.launch(app, launch, login=found.person.login)
        return redirect(launch_address(app.launch_uri, self._authorization.fhir_url, value), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]


def launch_address(launch_uri: str, fhir_url: str, value: str) -> str:
    """Return where a browser is sent to start an app. Source: SMART 2.2, launch from an EHR."""
    mark = "&" if "?" in launch_uri else "?"
    return f"{launch_uri}{mark}{urlencode({'iss': fhir_url, 'launch': value})}"
