"""Signing in: sessions of browsers by flask-login, with forms that only our own pages can send.

The cookie holds a random value; what it stands for is kept in the database, so that a session can be ended from
anywhere. A session is new after each sign-in. Forms carry a token of the session they were shown in (Flask-WTF).
"""

from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from flask import Flask, Response, render_template, request, session
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from flask_wtf.csrf import generate_csrf, validate_csrf
from wtforms.validators import ValidationError

from fhir_server.access.people import Person
from fhir_server.access.sessions import Session, SignIn
from imaging.errors import AppError, Category

LONGEST_NEXT = 8_000  # characters of where a person wanted to go
# Nothing but our own style; our own script where a page needs it; where forms lead to is set by each page.
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action "
)
_HALF = "half"  # in the session: who proved the first of two factors
_OFFERED = "offered"  # in the session: the secret that is being set up
_CHALLENGE = "challenge"  # in the session: what the browser was asked to have signed
HALF_LIFE = timedelta(minutes=5)
_FRESH = "fresh"  # in the session: for which authorisation somebody signed in, "" while that is not known


class User(UserMixin):  # type: ignore[misc] # flask-login is untyped
    """A person in a session, as flask-login asks about it."""

    def __init__(self, person: Person, session_of: Session, value: str) -> None:
        self.person = person
        self.session = session_of
        self._value = value

    def get_id(self) -> str:
        """Return what the cookie keeps."""
        return self._value


def install(app: Flask, sign_in: SignIn, *, secret: bytes, is_https: bool) -> None:
    """Give an application sessions."""
    app.secret_key = secret
    app.config.update(
        SESSION_COOKIE_NAME="__Host-session" if is_https else "session",
        SESSION_COOKIE_SECURE=is_https,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_PATH="/",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=12),
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session
        WTF_CSRF_SSL_STRICT=False,
    )
    manager = LoginManager(app)
    manager.session_protection = None  # it would sign out whoever changes the network; the stamp does what it is for

    def load(value: str) -> User | None:
        found = sign_in.of_browser(value)
        return User(found[0], found[1], value) if found else None

    manager.user_loader(load)


def user() -> User | None:
    """Return who is signed in in this browser."""
    return cast("User", current_user) if current_user.is_authenticated else None


def begin(sign_in: SignIn, person: Person, factor: str) -> None:
    """Sign a person in, in a session that did not exist before; `factor` is the second one, "" for none."""
    session.clear()
    value = sign_in.begin(person, request.headers.get("User-Agent", ""), factor=factor)
    found = sign_in.of_browser(value)
    if found is None:
        raise AppError(Category.UNAUTHENTICATED, "the person may not sign in any more", where="sign-in")
    login_user(User(found[0], found[1], value))
    session[_FRESH] = ""


def begin_half(person: Person, now: datetime) -> None:
    """Remember who proved the first of two factors, for a while."""
    session[_HALF] = {"login": person.login, "stamp": person.stamp, "until": (now + HALF_LIFE).timestamp()}


def half(now: datetime) -> tuple[str, str]:
    """Return login and stamp of who proved the first factor a moment ago, empty texts when nobody did."""
    found = session.get(_HALF) or {"login": "", "stamp": "", "until": 0}
    return (found["login"], found["stamp"]) if now.timestamp() < found["until"] else ("", "")


def offer_secret(secret: str) -> None:
    """Remember the secret that a person was shown to set an authenticator up."""
    session[_OFFERED] = secret


def offered_secret() -> str:
    """Return the secret that a person was shown, "" when none was; it is forgotten."""
    return str(session.pop(_OFFERED, ""))


def remember_challenge(challenge: str) -> None:
    """Remember what this browser was asked to have signed by a security key."""
    session[_CHALLENGE] = challenge


def challenge() -> str:
    """Return what this browser was asked to have signed, "" when nothing was; it is forgotten."""
    return str(session.pop(_CHALLENGE, ""))


def is_fresh_for(what: str) -> bool:
    """Say whether somebody signed in just for this; it stays so for this, and for nothing else."""
    if session.get(_FRESH) == "":
        session[_FRESH] = what
    return bool(session.get(_FRESH) == what)


def end(sign_in: SignIn) -> None:
    """Sign out, here and for everything that lasts as long as this session."""
    found = user()
    if found:
        sign_in.end(found.person, found.session.key)
    logout_user()
    session.clear()


def check_form() -> None:
    """Raise FORBIDDEN unless the form was shown by us to this very browser."""
    try:
        validate_csrf(request.form.get("csrf_token", ""))
    except ValidationError:
        message = "the form is too old or was not made by this server: go back, reload the page and send it again"
        raise AppError(Category.FORBIDDEN, message, where="form") from None


def page(
    template: str, status: int = 200, *, forms_lead_to: str = "", with_script: bool = False, **values: Any
) -> Response:
    """Return a page.

    with_script     whether the page has our own script
    forms_lead_to   where an answer to its forms may send the browser, beside this server: origins or schemes
    """
    found = user()
    values = {"person": found.person if found else None, "csrf_token": generate_csrf, **values}
    page = Response(render_template(template, **values), status, mimetype="text/html")
    return shielded(page, forms_lead_to, with_script=with_script)


def shielded(response: Response, forms_lead_to: str = "", *, with_script: bool = False) -> Response:
    """Return a page with the headers that keep others from meddling with it; see `page`."""
    policy = _POLICY + f"'self' {forms_lead_to}".strip()
    response.headers["Content-Security-Policy"] = policy + ("; script-src 'self'" if with_script else "")
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Frame-Options"] = "DENY"
    return response


def own_path(text: str) -> str:
    """Return a path of this server that a person wanted to go to, "/auth/" for anything else."""
    parts = urlsplit(text)
    is_own = text.startswith("/") and not text.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return text if is_own and len(text) <= LONGEST_NEXT and "\\" not in text else "/auth/"


def source_of_redirect(uri: str) -> str:
    """Return how a Content-Security-Policy names where a redirect leads to."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"
