"""The pages of second factors: proving one at sign-in, setting one up, taking one away.

What changes how somebody signs in asks for a sign-in of a moment ago, so that a browser left open does not give an
account away. Who has to have a second factor and has none sets one up between the password and the first session.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from flask import Blueprint, Response, redirect, request, url_for

from fhir_server.access.people import Person
from fhir_server.access.second_factor import Factor
from fhir_server.sign_on import SignOn
from fhir_server.web import signing_in
from imaging.errors import AppError, Category

LetIn = Callable[[Person, str, str], Response]  # person, second factor, where the person wanted to go


class Noted(Protocol):
    """Takes note of what concerns how somebody signs in."""

    def signed_in(self, login: str, organization: str, failure: str = "") -> None:
        """Somebody signed in, or failed to."""

    def factor_changed(self, login: str, organization: str, what: str) -> None:
        """Somebody set a second factor up or took one away."""


@dataclass(frozen=True, slots=True)
class _Owner:
    """Who may change second factors now; `is_half` between the password and the first session."""

    person: Person
    is_half: bool


def blueprint(found: SignOn, noted: Noted, let_in: LetIn) -> Blueprint:
    """Return the pages."""
    pages = _Pages(found, noted, let_in)
    routes = Blueprint("factors", __name__, url_prefix="/auth")
    routes.add_url_rule("/code", "code", pages.code, methods=["POST"])
    routes.add_url_rule("/key", "key", pages.key, methods=["POST"])
    routes.add_url_rule("/second-factor", "second_factor", pages.second_factor, methods=["GET", "POST"])
    routes.add_url_rule("/remove-code", "remove_code", pages.remove_code, methods=["POST"])
    routes.add_url_rule("/keys", "keys", pages.keys, methods=["GET", "POST"])
    routes.add_url_rule("/remove-key", "remove_key", pages.remove_key, methods=["POST"])
    return routes


def asked(found: SignOn, person: Person, wanted: str, status: int = HTTPStatus.OK, problem: str = "") -> Response:
    """Return the page that asks for a second factor of who has proved the first."""
    options = ""
    if person.keys and found.security_keys.is_possible:
        ask = found.security_keys.ask(person)
        signing_in.remember_challenge(ask.challenge)
        options = ask.options
    return signing_in.page(
        "code.html", status, with_script=bool(options), wanted=wanted, problem=problem, options=options, owner=person
    )


class _Pages:
    def __init__(self, found: SignOn, noted: Noted, let_in: LetIn) -> None:
        self._found = found
        self._people = found.people
        self._noted = noted
        self._let_in = let_in

    # --- proving one

    def code(self) -> Response:
        """Take a code of the second factor from who has proved the first."""
        return self._proving(lambda person: self._found.second_factor.check(person, request.form.get("code", "")))

    def key(self) -> Response:
        """Take the answer of a security key from who has proved the first factor."""

        def check(person: Person) -> Factor:
            self._found.security_keys.check(person, signing_in.challenge(), request.form.get("answer", ""))
            return Factor.KEY

        return self._proving(check)

    def _proving(self, check: Callable[[Person], Factor]) -> Response:
        signing_in.check_form()
        wanted = signing_in.own_path(request.form.get("next", ""))
        person = self._half()
        if person is None:
            return _to("people.sign_in", wanted)
        try:
            self._people.check_hold(person)
            factor = check(person)
        except AppError as error:
            if error.category is not Category.UNAUTHENTICATED:
                raise
            self._noted.signed_in(person.login, person.organization, error.message)
            return asked(self._found, person, wanted, HTTPStatus.UNAUTHORIZED, error.message)
        return self._let_in(person, factor, wanted)

    def _half(self) -> Person | None:
        login, stamp = signing_in.half(self._found.clock())
        person = self._people.find(login) if login else None
        return person if person and person.stamp == stamp else None

    # --- setting one up

    def second_factor(self) -> Response:
        """Set codes of an authenticator app up."""
        owner, wanted = self._owner(), _wanted()
        if owner is None:
            return _to("people.sign_in", url_for("factors.second_factor"))
        problem = ""
        if request.method == "POST":
            signing_in.check_form()
            try:
                codes = self._found.second_factor.confirm(
                    owner.person, signing_in.offered_secret(), request.form.get("code", "").replace(" ", "")
                )
            except AppError as error:
                problem = _problem(error)
            else:
                return self._set_up(owner, Factor.CODE, codes, wanted)
        offer = self._found.second_factor.offer(owner.person)
        signing_in.offer_secret(offer.secret)
        return signing_in.page("second-factor.html", offer=offer, problem=problem, wanted=wanted, owner=owner)

    def keys(self) -> Response:
        """Show the security keys of somebody, and add one."""
        owner, wanted = self._owner(), _wanted()
        if owner is None:
            return _to("people.sign_in", url_for("factors.keys"))
        if request.method == "GET":
            return self._keys(owner, wanted)
        signing_in.check_form()
        try:
            key = self._found.security_keys.add(
                owner.person,
                signing_in.challenge(),
                request.form.get("answer", ""),
                request.form.get("name", "")[:1000],
            )
        except AppError as error:
            return self._keys(owner, wanted, _problem(error))
        codes = [] if owner.person.has_second_factor else self._found.second_factor.recovery_codes(owner.person)
        return self._set_up(owner, Factor.KEY, codes, wanted, key.name)

    def _keys(self, owner: _Owner, wanted: str, problem: str = "") -> Response:
        person, options, hindrance = owner.person, "", ""
        try:
            offer = self._found.security_keys.offer(person)
            signing_in.remember_challenge(offer.challenge)
            options = offer.options
        except AppError as error:
            if error.category not in (Category.UNSUPPORTED, Category.CONFLICT):
                raise
            hindrance = error.message
        status = HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK
        values: dict[str, Any] = {"options": options, "hindrance": hindrance, "problem": problem, "wanted": wanted}
        return signing_in.page("keys.html", status, with_script=bool(options), owner=owner, **values)

    def _set_up(self, owner: _Owner, factor: Factor, codes: list[str], wanted: str, name: str = "") -> Response:
        person = owner.person
        self._noted.factor_changed(person.login, person.organization, f"{factor} added")
        if owner.is_half:
            self._let_in(person, factor, wanted)
        if codes:
            return signing_in.page("recovery.html", codes=codes, wanted=wanted, factor=factor, name=name)
        return _to("factors.keys")

    # --- taking one away

    def remove_code(self) -> Response:
        """Ask for no codes of the authenticator app any more."""
        return self._removing(
            lambda person: self._people.set_second_factor(
                person.login, "", 0, list(person.recovery_codes) if person.keys else []
            ),
            lambda person: bool(person.keys),
            "code removed",
        )

    def remove_key(self) -> Response:
        """Forget a security key."""
        key = request.form.get("key", "")[:2000]
        return self._removing(
            lambda person: self._people.remove_key(person.login, key),
            lambda person: bool(person.totp_secret) or any(each.id != key for each in person.keys),
            "key removed",
        )

    def _removing(self, act: Callable[[Person], object], is_left: Callable[[Person], bool], what: str) -> Response:
        """Take a factor away, but not the last one of who has to have one; `is_left` says whether there is another."""
        signing_in.check_form()
        owner = self._owner()
        if owner is None or owner.is_half:
            return _to("people.sign_in", url_for("factors.keys"))
        person = owner.person
        if self._found.sign_in.needs_second_factor(person) and not is_left(person):
            return self._keys(owner, "/auth/", "your role needs a second factor: set another one up first")
        act(person)
        self._noted.factor_changed(person.login, person.organization, what)
        return _to("factors.keys")

    def _owner(self) -> _Owner | None:
        """Return who may change second factors now, None when somebody has to sign in (again) for that."""
        found = signing_in.user()
        if found is not None:
            return _Owner(found.person, is_half=False) if self._found.sign_in.is_fresh(found.session) else None
        person = self._half()
        if person is None or person.has_second_factor or not self._found.sign_in.needs_second_factor(person):
            return None
        return _Owner(person, is_half=True)


def _wanted() -> str:
    return signing_in.own_path(request.values.get("next", ""))


def _problem(error: AppError) -> str:
    if error.category not in (Category.INVALID, Category.CONFLICT):
        raise error
    return error.message


def _to(endpoint: str, then: str = "") -> Response:
    address = url_for(endpoint, next=then) if then else url_for(endpoint)
    return redirect(address, HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
