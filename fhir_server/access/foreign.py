"""Tokens of another authorization server, such as that of an EHR, whose images are here.

A token is checked with the keys of its issuer where it is a JWT (RFC 9068), or by asking the issuer (RFC 7662). What it
says becomes a `Grant` like any other, within the contracts of the one subscriber that stands for the issuer's users.
The issuer's Patient is the one here that has its id as an identifier of the issuer's system; where there is not exactly
one, the token is about no patient and its `patient/` scopes give nothing.   Source: SMART Imaging Access 0.1.0, tokens.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from fhir_server.access.grants import Grant, Role
from fhir_server.access.scopes import Scopes
from fhir_server.model.criteria import ID_FORM
from fhir_server.outbound.jwks import KeySets
from fhir_server.outbound.remote import Remote, Rules
from imaging.errors import AppError, Category

ALGORITHMS = ("RS256", "RS384", "ES256", "ES384")
LONGEST = 8_192  # characters of a token
LEEWAY = timedelta(seconds=30)  # between two clocks
MOST_BYTES = 65_536  # of an answer to an introspection
WITHIN_S = 10.0  # of asking
# What a user is here, by the type of the resource that the issuer names; nobody else may do anything.
_ROLES = {"Patient": Role.PATIENT, "Practitioner": Role.PRACTITIONER, "PractitionerRole": Role.PRACTITIONER}

Find = Callable[[str, str], str]  # (identifier system, value) -> "Patient/..." of the one that has it, "" for none


@dataclass(frozen=True, slots=True)
class Issuer:
    """Another authorization server.

    url                 its issuer identifier, exactly as tokens have it
    audience            who its tokens have to be for
    jwks_url            address of its keys; then tokens are JWTs
    introspection_url   where it is asked about tokens, as `client_id` with `client_secret`
    subscriber          name of the subscriber whose contracts bound what its tokens open
    patient_system      identifier system of the ids of its Patients
    """

    url: str
    audience: str
    subscriber: str
    jwks_url: str = ""
    introspection_url: str = ""
    client_id: str = ""
    client_secret: str = ""
    patient_system: str = ""


class ForeignTokens:
    """Tells what tokens of an issuer were given for."""

    def __init__(self, issuer: Issuer, find: Find, *, rules: Callable[[], Rules], keys: KeySets | None = None) -> None:
        self.issuer = issuer
        self._find = find
        self._rules = rules
        self._keys = keys or KeySets(rules)

    def grant_of(self, token: str, now: datetime) -> Grant:
        """Return what a token was given for.

        Raises UNAUTHENTICATED unless it is the issuer's, for this server, and active; BUSY where the issuer is silent.
        """
        if len(token) > LONGEST:
            raise _refused(f"it has more than {LONGEST} characters")
        claims = self._signed(token) if self.issuer.jwks_url else self._introspected(token)
        self._check(claims, now)
        return self._grant(claims)

    # ---- what it says

    def _signed(self, token: str) -> Mapping[str, Any]:
        for is_anew in (False, True):
            found = self._keys.get(self.issuer.jwks_url, refresh=is_anew)
            try:
                keys = KeySet.import_key_set({"keys": [_public(each) for each in found["keys"]]})
                return dict(jwt.decode(token, keys, algorithms=list(ALGORITHMS)).claims)
            except (JoseError, ValueError, KeyError, TypeError):
                continue
        raise _refused("its signature is of no key of the issuer")

    def _introspected(self, token: str) -> Mapping[str, Any]:
        issuer = self.issuer
        # RFC 6749 2.3.1: both are form-encoded before they are joined.
        pair = f"{quote(issuer.client_id, safe='')}:{quote(issuer.client_secret, safe='')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        with Remote(
            issuer.introspection_url, self._rules(), name="introspection", authorization=authorization
        ) as remote:
            answer = remote.exchange("POST", "", headers=headers, body=body, most_bytes=MOST_BYTES, within_s=WITHIN_S)
        if answer.status != 200:
            raise AppError(Category.BUSY, "the issuer of the token cannot be asked about it", where="introspection")
        try:
            claims = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            claims = None
        if not isinstance(claims, dict) or claims.get("active") is not True:
            raise _refused("it is not active")
        # Whoever was asked is the issuer, unless the answer says otherwise; and it answers for what is meant for us.
        return {"iss": issuer.url, "aud": issuer.audience, **claims}

    def _check(self, claims: Mapping[str, Any], now: datetime) -> None:
        audience = claims.get("aud")
        if claims.get("iss") != self.issuer.url:
            raise _refused("it is of another issuer")
        if self.issuer.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _refused("it is for another server")
        if _moment(claims, "exp") <= now - LEEWAY:
            raise _refused("it has ended")
        if "nbf" in claims and _moment(claims, "nbf") > now + LEEWAY:
            raise _refused("it has not begun")

    # ---- what that is here

    def _grant(self, claims: Mapping[str, Any]) -> Grant:
        scope = claims.get("scope", "")
        text = " ".join(map(str, scope)) if isinstance(scope, list) else str(scope)
        user, role = _user(claims.get("fhirUser"))
        named = str(claims.get("patient", "")).removeprefix("Patient/")
        patient = self._find(self.issuer.patient_system, named) if named and self.issuer.patient_system else ""
        if role is Role.PATIENT and not patient:
            user, role = "", None
        scopes = Scopes.parse(text)
        if claims.get("fhirUser") and not user:  # somebody signed in who is nobody here: that is no program by itself
            scopes = Scopes(tuple(each for each in scopes.resources if each.context == "patient"), scopes.others)
        return Grant(
            client_id=str(claims.get("client_id") or claims.get("azp") or "unnamed")[:200],
            scopes=scopes,
            expires=_moment(claims, "exp"),
            patient=patient,
            called=f"Patient/{named}" if patient and ID_FORM.fullmatch(named) else "",
            user=user,
            role=role,
        )


def _public(key: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in key.items() if name not in ("key_ops", "use", "alg")}


def _user(reference: Any) -> tuple[str, Role | None]:
    """Return who signed in, as a relative reference, and its role; nobody for what has none here."""
    before, _, identifier = str(reference or "").rpartition("/")
    kind = before.rpartition("/")[2]
    role = _ROLES.get(kind)
    return (f"{kind}/{identifier}", role) if role and ID_FORM.fullmatch(identifier) else ("", None)


def _moment(claims: Mapping[str, Any], name: str) -> datetime:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(f"it has no {name}")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise _refused(f"its {name} is no time") from None


def _refused(why: str) -> AppError:
    return AppError(Category.UNAUTHENTICATED, f"the bearer token is not good here: {why}", where="Authorization")
