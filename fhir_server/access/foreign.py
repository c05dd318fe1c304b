"""Tokens of another authorization server, such as that of an EHR, whose images are here.

A token is checked with the keys of its issuer where it is a JWT (RFC 9068), or by asking the issuer (RFC 7662). What it
says becomes a `Grant` like any other, within the contracts of the one subscriber that stands for the issuer's users.
The issuer's Patient is the one here that has its id as an identifier of the issuer's system; where there is not exactly
one, the token is about no patient and its `patient/` scopes give nothing.   Source: SMART Imaging Access 0.1.0, tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from fhir_server.access.grants import Grant, Role
from fhir_server.access.introspection import Introspection, refused
from fhir_server.access.scopes import Scopes
from fhir_server.model.criteria import ID_FORM
from fhir_server.outbound.jwks import KeySets
from fhir_server.outbound.remote import Rules

ALGORITHMS = ("RS256", "RS384", "ES256", "ES384")
LONGEST = 8_192  # characters of a token
LEEWAY = timedelta(seconds=30)  # between two clocks
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
        self._keys = keys or KeySets(rules)
        self._introspection = Introspection(issuer.introspection_url, issuer.client_id, issuer.client_secret, rules)

    def grant_of(self, token: str, now: datetime) -> Grant:
        """Return what a token was given for.

        Raises UNAUTHENTICATED unless it is the issuer's, for this server, and active; BUSY where the issuer is silent,
        or too many tokens that are not good are shown: see `introspection`.
        """
        if len(token) > LONGEST:
            raise refused(f"it has more than {LONGEST} characters")
        if self.issuer.jwks_url:
            return self._grant(self._checked(self._signed(token), now))
        with self._introspection.claims(token) as said:
            # Who was asked is the issuer, unless the answer says otherwise; and it answers for what is meant for us.
            claims = self._checked({"iss": self.issuer.url, "aud": self.issuer.audience, **said}, now)
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
        raise refused("its signature is of no key of the issuer")

    def _checked(self, claims: Mapping[str, Any], now: datetime) -> Mapping[str, Any]:
        audience = claims.get("aud")
        if claims.get("iss") != self.issuer.url:
            raise refused("it is of another issuer")
        if self.issuer.audience not in (audience if isinstance(audience, list) else [audience]):
            raise refused("it is for another server")
        if _moment(claims, "exp") <= now - LEEWAY:
            raise refused("it has ended")
        if "nbf" in claims and _moment(claims, "nbf") > now + LEEWAY:
            raise refused("it has not begun")
        return claims

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
            issuer=self.issuer.url,
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
        raise refused(f"it has no {name}")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise refused(f"its {name} is no time") from None
