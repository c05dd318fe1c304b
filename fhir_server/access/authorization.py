"""Authorisations: from what an app asks for, and what a person agrees to, to the tokens that it gets.

Hides codes, refresh tokens and their rotation, launches, and what is granted of what was asked. Knows no HTTP: `web`
reads requests, proves clients and shows pages. An authorisation has a family: the code, all refresh tokens and all
access tokens that descend from it. When a code or a refresh token comes a second time, somebody has a copy, and the
whole family ends.   Sources: RFC 6749, RFC 7636, RFC 9700; SMART App Launch 2.2.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

from fhir_server.access import assertions
from fhir_server.access.apps import App, Apps
from fhir_server.access.audit import BREAK_GLASS
from fhir_server.access.grants import ContextItem, Grant, Role, context_items, new_family
from fhir_server.access.people import People, Person
from fhir_server.access.principals import Principals
from fhir_server.access.scopes import Context, Scopes
from fhir_server.outbound.jwks import KeySets
from fhir_server.store.signing_keys import ALGORITHM, SigningKeys
from fhir_server.store.tickets import Kind, Ticket, Tickets
from imaging.errors import AppError, Category

CODE_LIFE = timedelta(seconds=60)
LAUNCH_LIFE = timedelta(minutes=5)
ID_TOKEN_LIFE = timedelta(minutes=10)
LONGEST_SECRET = 512  # characters of a code or a refresh token
_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")  # RFC 7636 4.1
_CHALLENGE = re.compile(r"[A-Za-z0-9\-_]{43}")  # of SHA-256, RFC 7636 4.2
ONLINE, OFFLINE = "online_access", "offline_access"
# What people say for an app that they start themselves; all else under `launch` only a launch from here can tell.
SAID = ("launch/patient", "launch/encounter", "launch/imagingstudy")


@dataclass(frozen=True, slots=True)
class Lives:
    """How long tokens are good for."""

    token: timedelta
    backend_token: timedelta
    refresh: timedelta
    emergency: timedelta


@dataclass(frozen=True, slots=True)
class Launch:
    """What an app is launched about.

    patient, encounter   references, "" without one
    more                 further parameters of the token response, such as `intent` and `need_patient_banner`
    """

    patient: str = ""
    encounter: str = ""
    context: tuple[ContextItem, ...] = ()
    more: Mapping[str, str | bool] | None = None

    def document(self) -> dict[str, Any]:
        """Return the launch as it is kept."""
        context = [each.document() for each in self.context]
        return {"patient": self.patient, "encounter": self.encounter, "context": context, "more": dict(self.more or {})}


def launch_from(document: Mapping[str, Any]) -> Launch:
    """Return the launch that was kept as `Launch.document`."""
    context = context_items(document["context"])
    return Launch(document["patient"], document["encounter"], context, document["more"])


class Authorization:
    """Hands out what apps are authorised to, and takes it back."""

    def __init__(
        self,
        principals: Principals,
        apps: Apps,
        people: People,
        tickets: Tickets,
        keys: SigningKeys,
        *,
        key_sets: KeySets,
        subject_key: bytes,
        issuer: str,
        fhir_url: str,
        lives: Lives,
        is_session: Callable[[str], bool],
        clock: Callable[[], datetime],
    ) -> None:
        self.apps = apps
        self.people = people
        self.keys = keys
        self.issuer = issuer
        self.fhir_url = fhir_url
        self._principals = principals
        self._tickets = tickets
        self._key_sets = key_sets
        self._subject_key = subject_key
        self._lives = lives
        self._is_session = is_session
        self._clock = clock

    # --- clients

    def prove(self, assertion: str, audiences: tuple[str, ...]) -> App:
        """Return the app that a client assertion proves. Raises UNAUTHENTICATED."""
        app = self.apps.find(assertions.named_client(assertion))
        if app is None or app.method != "private_key_jwt":
            message = "the client assertion is refused: no client of this id has keys here"
            raise AppError(Category.UNAUTHENTICATED, message, where="client_assertion")
        assertions.verify(
            assertion,
            app,
            audiences=audiences,
            fetch=lambda url, is_anew: self._key_sets.get(url, refresh=is_anew),
            remember=lambda name, until: self._tickets.put(Kind.ASSERTION, name, {}, expires=until),
            now=self._clock(),
        )
        return app

    # --- launches from here

    def launch(self, app: App, launch: Launch, *, login: str = "") -> str:
        """Return the value of the parameter `launch` for an app, good once and for `LAUNCH_LIFE`.

        login   of who may use it, "" for everybody of the app's subscriber
        """
        value = secrets.token_urlsafe(32)
        content = {"client_id": app.client_id, "login": login, **launch.document()}
        self._tickets.put(Kind.LAUNCH, value, content, expires=self._clock() + LAUNCH_LIFE)
        return value

    def launched(self, value: str, app: App, person: Person) -> Launch:
        """Return what a launch is about, without using it. Raises INVALID when it is none for this app and person."""
        ticket = self._tickets.find(Kind.LAUNCH, value[:LONGEST_SECRET], now=self._clock())
        return self._opened(ticket, app, person)

    def _opened(self, ticket: Ticket | None, app: App, person: Person) -> Launch:
        is_right = (
            ticket is not None
            and not ticket.is_used
            and ticket.content["client_id"] == app.client_id
            and ticket.content["login"] in ("", person.login)
        )
        if ticket is None or not is_right:
            message = "this launch is over, was used, or is for another app or person: start the app again"
            raise AppError(Category.INVALID, message, where="launch")
        return launch_from(ticket.content)

    # --- scopes

    def offered(self, app: App, asked: str, launch: Launch | None) -> Scopes:
        """Return what of the asked scopes an app may be given for a person who agrees. Raises INVALID for nothing."""
        scopes = Scopes.parse(asked) & Scopes.parse(app.scope)
        others = [each for each in scopes.others if launch or not each.startswith("launch") or named(each) in SAID]
        resources = tuple(each for each in scopes.resources if each.context is not Context.SYSTEM)
        if not resources and not others:
            raise AppError(Category.INVALID, "nothing of what is asked can be granted to this app", where="scope")
        return replace(scopes, resources=resources, others=tuple(others))

    def needs_patient(self, scopes: Scopes) -> bool:
        """Say whether somebody has to say which patient this is about."""
        is_said = any(named(each) in SAID for each in scopes.others)
        return is_said or any(each.context is Context.PATIENT for each in scopes.resources)

    # --- codes

    def code(
        self,
        app: App,
        person: Person,
        scopes: Scopes,
        launch: Launch,
        *,
        launch_value: str,
        redirect_uri: str,
        challenge: str,
        nonce: str,
        session: str,
        signed_in: datetime,
        emergency: str = "",
    ) -> str:
        """Return an authorization code for what a person agreed to; a launch is used up. Raises INVALID.

        emergency   id of the emergency access that it is for, "" for none
        """
        now = self._clock()
        if launch_value:
            ticket = self._tickets.use(Kind.LAUNCH, launch_value[:LONGEST_SECRET], now=now)
            self._opened(ticket, app, person)
        code, family = secrets.token_urlsafe(32), emergency or new_family()
        content = {
            "client_id": app.client_id,
            "login": person.login,
            "stamp": person.stamp,
            "scope": str(scopes),
            "redirect_uri": redirect_uri,
            "challenge": challenge,
            "nonce": nonce,
            "session": session,
            "signed_in": signed_in,
            "emergency": emergency,
            **launch.document(),
        }
        # Kept until its tokens may have ended: a second use has to be seen as long as there is something to end.
        self._tickets.put(
            Kind.CODE, code, {**content, "until": now + CODE_LIFE}, expires=now + self._lives.refresh, family=family
        )
        return code

    def redeem(self, code: str, app: App, *, redirect_uri: str, verifier: str) -> dict[str, Any]:
        """Return the token response for a code. Raises INVALID (`invalid_grant`)."""
        now = self._clock()
        ticket = self._used(Kind.CODE, code, app)
        content = ticket.content
        if now >= content["until"]:
            raise _invalid_grant("the code has expired")
        if redirect_uri != content["redirect_uri"]:
            raise _invalid_grant("redirect_uri is not the one that the code was sent to")
        if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(challenge_of(verifier), content["challenge"]):
            raise _invalid_grant("code_verifier does not belong to the code_challenge of the request")
        return self._answer(app, content, ticket.family, Scopes.parse(content["scope"]))

    def refresh(self, token: str, app: App, scope: str) -> dict[str, Any]:
        """Return the token response for a refresh token, with the next one. Raises INVALID (`invalid_grant`)."""
        ticket = self._used(Kind.REFRESH, token, app)
        content = ticket.content
        granted = Scopes.parse(content["scope"])
        wanted = Scopes.parse(scope) if scope.strip() else granted
        if wanted.refused or not granted.covers(wanted):
            self.end(ticket.family)
            raise AppError(Category.INVALID, "more is asked for than was granted", where="scope")
        if content["session"] and not self._is_session(content["session"]):
            self.end(ticket.family)
            raise _invalid_grant("the person has signed out, or the session has ended")
        return self._answer(app, content, ticket.family, wanted)

    def _used(self, kind: Kind, secret: str, app: App) -> Ticket:
        """Use a code or a refresh token up. What comes twice, or from another client, ends its whole family."""
        ticket = self._tickets.use(kind, secret, now=self._clock()) if 0 < len(secret) <= LONGEST_SECRET else None
        if ticket is None:
            raise _invalid_grant("it is unknown or has expired")
        if ticket.is_used or ticket.content["client_id"] != app.client_id:
            self.end(ticket.family)
            raise _invalid_grant("it was used before, or is another client's; everything granted with it has ended")
        return ticket

    def end(self, family: str) -> None:
        """End an authorisation with all of its tokens."""
        self._tickets.end_family(family)
        self._principals.revoke_family(family)

    def end_all_of(self, login: str) -> None:
        """End every authorisation that a person gave, with all of its tokens."""
        for family in self._tickets.families_of(login):
            self.end(family)

    def end_refresh_token(self, token: str, app: App) -> bool:
        """End the authorisation that a refresh token of this app belongs to; say whether there was one."""
        ticket = self._tickets.find(Kind.REFRESH, token[:LONGEST_SECRET], now=self._clock())
        if ticket is None or ticket.content["client_id"] != app.client_id:
            return False
        self.end(ticket.family)
        return True

    def said_of(self, token: str, organization: str) -> dict[str, Any]:
        """Return what introspection says of a token, to somebody of a subscriber. Source: RFC 7662 2.2; SMART 2.2.

        Of tokens of apps of another subscriber it says what it says of none: that it is not active.
        """
        grant = self._principals.grant_of(token)
        said: dict[str, Any] = {}
        if grant is not None:
            said = {"token_type": "Bearer", "exp": int(grant.expires.timestamp()), "aud": self.fhir_url}
            said |= {"scope": str(grant.scopes), "client_id": grant.client_id, **grant.launch_context()}
            said |= {"fhirUser": f"{self.fhir_url}/{grant.user}"} if grant.user else {}
            said |= {"iss": self.issuer, "sub": grant.subject} if grant.subject else {}
            said |= _for_emergency() if grant.emergency else {}
        else:
            ticket = self._tickets.find(Kind.REFRESH, token[:LONGEST_SECRET], now=self._clock())
            if ticket is not None and not ticket.is_used:
                said = {"scope": ticket.content["scope"], "client_id": ticket.content["client_id"]}
        app = self.apps.find(said["client_id"]) if said else None
        if app is None or app.organization != organization:
            return {"active": False}
        return {"active": True, **said}

    # --- tokens

    def backend(self, app: App, scope: str) -> dict[str, Any]:
        """Return the token response for a program without a user. Raises INVALID when nothing can be granted."""
        both = Scopes.parse(scope) & Scopes.parse(app.scope)
        scopes = Scopes(tuple(each for each in both.resources if each.context is Context.SYSTEM))
        if not scopes.resources:
            message = "none of the scopes asked for was agreed for this client; it needs some of system/..."
            raise AppError(Category.INVALID, message, where="scope")
        life = self._lives.backend_token
        token = self._principals.issue(Grant(app.client_id, scopes, self._clock() + life))
        return _response(token, scopes, life)

    def _answer(self, app: App, content: Mapping[str, Any], family: str, scopes: Scopes) -> dict[str, Any]:
        now, launch, emergency = self._clock(), launch_from(content), content.get("emergency", "")
        life = min(self._lives.token, self._lives.emergency) if emergency else self._lives.token
        person = self.people.find(content["login"])
        if person is None or person.stamp != content["stamp"] or person.organization != app.organization:
            self.end(family)
            raise _invalid_grant("the person who agreed may not sign in any more")
        grant = Grant(
            app.client_id,
            scopes,
            now + life,
            patient=launch.patient,
            encounter=launch.encounter,
            context=launch.context,
            user=person.fhir_user,
            role=Role(person.role),
            family=family,
            more=tuple((launch.more or {}).items()),
            subject=self.subject_of(person.login) if scopes.has("openid") else "",
            emergency=emergency,
        )
        answer = _response(self._principals.issue(grant), scopes, life)
        answer |= grant.launch_context()
        if scopes.has("openid"):
            answer["id_token"] = self._id_token(app, person, content, scopes, answer["access_token"])
        granted = Scopes.parse(content["scope"])  # a refresh may ask for less now, and for all of it next time
        if emergency:
            return answer | _for_emergency()
        if "refresh_token" in app.grant_types and (granted.has(OFFLINE) or granted.has(ONLINE)):
            answer["refresh_token"] = self._refresh_token(content, family, is_online=not granted.has(OFFLINE))
        return answer

    def _refresh_token(self, content: Mapping[str, Any], family: str, *, is_online: bool) -> str:
        token = secrets.token_urlsafe(32)
        kept = {**content, "session": content["session"] if is_online else ""}
        self._tickets.put(Kind.REFRESH, token, kept, expires=self._clock() + self._lives.refresh, family=family)
        return token

    def _id_token(self, app: App, person: Person, content: Mapping[str, Any], scopes: Scopes, access_token: str) -> str:
        now, key = self._clock(), self.keys.current()
        claims = {
            "iss": self.issuer,
            "sub": self.subject_of(person.login),
            "aud": app.client_id,
            "exp": int((now + ID_TOKEN_LIFE).timestamp()),
            "iat": int(now.timestamp()),
            "auth_time": int(content["signed_in"].timestamp()),
            "at_hash": _half_hash(access_token),
        }
        if content["nonce"]:
            claims["nonce"] = content["nonce"]
        if scopes.has("fhirUser") and person.fhir_user:
            claims["fhirUser"] = f"{self.fhir_url}/{person.fhir_user}"
        if scopes.has("profile"):
            claims["name"] = person.name
        header = {"alg": ALGORITHM, "kid": key.key_id, "typ": "JWT"}
        return jwt.encode(header, claims, RSAKey.import_key(key.private), algorithms=[ALGORITHM])

    def subject_of(self, login: str) -> str:
        """Return the name by which apps know a person: always the same, and nothing that says who it is."""
        return hmac.new(self._subject_key, login.encode(), hashlib.sha256).hexdigest()[:32]


def named(scope: str) -> str:
    """Return a scope that is not about resources without the role behind its `?`."""
    return scope.partition("?")[0]


def challenge_of(verifier: str) -> str:
    """Return the S256 code challenge of a verifier. Source: RFC 7636 4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def is_challenge(text: str) -> bool:
    """Say whether this can be an S256 code challenge."""
    return bool(_CHALLENGE.fullmatch(text))


def chosen(scopes: Scopes, kept: Iterable[str]) -> Scopes:
    """Return the scopes that a person left ticked, by how they are written."""
    names = frozenset(kept)
    resources = tuple(each for each in scopes.resources if str(each) in names)
    return Scopes(resources, tuple(each for each in scopes.others if each in names))


def _response(token: str, scopes: Scopes, life: timedelta) -> dict[str, Any]:
    expires_in = int(life.total_seconds())
    return {"access_token": token, "token_type": "Bearer", "expires_in": expires_in, "scope": str(scopes)}


def _for_emergency() -> dict[str, Any]:
    """Return what tells an app that this is emergency access. Source: IHE ITI IUA, extension `ihe_iua`."""
    return {"extensions": {"ihe_iua": {"purpose_of_use": [BREAK_GLASS]}}}


def _half_hash(token: str) -> str:
    """Return `at_hash`. Source: OpenID Connect Core 1.0, 3.1.3.6, for an algorithm with SHA-256."""
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()[:16]).rstrip(b"=").decode()


def _invalid_grant(why: str) -> AppError:
    return AppError(Category.INVALID, why, where="grant")
