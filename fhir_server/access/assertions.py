"""Client assertions: how a confidential client proves who it is with a key of its own.

Checks a JWT of RFC 7523 by the rules of SMART's asymmetric authentication: RS384 or ES384, a key that was registered,
`iss` and `sub` are the client, `aud` is the token endpoint, `exp` at most five minutes away, and a `jti` that was not
used before. The header's `alg` chooses among the algorithms that are allowed and nothing else; `jku` has to be the
address that was registered, and keys inside the header are not looked at.   Source: SMART App Launch 2.2,
client-confidential-asymmetric.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from orjson import JSONDecodeError, loads

from fhir_server.outbound import jwks
from fhir_server.store.apps import App
from imaging.errors import AppError, Category

ALGORITHMS = ("RS384", "ES384")
LONGEST_LIFE = timedelta(minutes=5)
LEEWAY = timedelta(seconds=30)  # between two clocks
LONGEST_ASSERTION = 16_384  # characters
LONGEST_JTI = 512  # characters
LEAST_RSA_BITS = 2048
_KEY_TYPES = {"RS384": "RSA", "ES384": "EC"}

Fetch = Callable[[str, bool], Mapping[str, Any]]  # (address, fetch it although it is known) -> {"keys": [...]}
Remember = Callable[[str, datetime], bool]  # (what is to be seen once, until when) -> whether it was new


def named_client(assertion: str) -> str:
    """Return the client id that an assertion claims; nothing of it is verified. Raises UNAUTHENTICATED."""
    claims = _claims(_parsed(assertion).payload)
    return _text(claims, "sub")


def verify(
    assertion: str, app: App, *, audiences: tuple[str, ...], fetch: Fetch, remember: Remember, now: datetime
) -> None:
    """Return when the assertion proves that `app` made it, now and for this server. Raises UNAUTHENTICATED."""
    header = _parsed(assertion).headers()
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise _refused(f"the header's alg has to be one of {', '.join(ALGORITHMS)}")
    if not isinstance(key_id, str) or not key_id:
        raise _refused("the header names no key (kid)")
    if "jku" in header and header["jku"] != app.jwks_uri:
        raise _refused("the header's jku is not the address registered for the keys of this client")
    claims = _verified(assertion, _candidates(app, algorithm, key_id, fetch), algorithm)
    _check_claims(claims, app.client_id, audiences, now)
    until = _moment(claims, "exp") + LEEWAY
    if not remember(f"{app.client_id} {_text(claims, 'jti')}", until):
        raise _refused("this jti was used before; each assertion is good once")


def _parsed(assertion: str) -> Any:
    if len(assertion) > LONGEST_ASSERTION:
        raise _refused(f"an assertion has at most {LONGEST_ASSERTION} characters")
    try:
        return jws.extract_compact(assertion.encode())
    except (JoseError, ValueError):
        raise _refused("it is not a signed JWT") from None


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = loads(payload)
    except JSONDecodeError:
        claims = None
    if not isinstance(claims, dict):
        raise _refused("its claims are not a JSON object")
    return claims


def _candidates(app: App, algorithm: str, key_id: str, fetch: Fetch) -> list[dict[str, Any]]:
    """Return the registered keys of this id and type; keys behind an address are fetched anew when it is not there."""
    if not app.jwks_uri:
        return _matching(jwks.parsed(app.jwks), algorithm, key_id)
    for is_anew in (False, True):
        try:
            found = fetch(app.jwks_uri, is_anew)
        except AppError as error:
            # The reason may tell about a network that is nobody's business.
            raise _refused("the keys of this client cannot be fetched from the address registered for them") from error
        if keys := _matching(found, algorithm, key_id):
            return keys
    return []


def _matching(keys: Mapping[str, Any], algorithm: str, key_id: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in key.items() if name not in ("key_ops", "use", "alg")}
        for key in keys["keys"]
        if key.get("kid") == key_id and key.get("kty") == _KEY_TYPES[algorithm] and key.get("use", "sig") == "sig"
    ]


def _verified(assertion: str, keys: list[dict[str, Any]], algorithm: str) -> dict[str, Any]:
    for key in keys:
        try:
            known = KeySet.import_key_set({"keys": [key]})
            if key["kty"] == "RSA" and known.keys[0].public_key.key_size < LEAST_RSA_BITS:  # type: ignore[union-attr]
                continue
            return dict(jwt.decode(assertion, known, algorithms=[algorithm]).claims)
        except (JoseError, ValueError, KeyError, TypeError):
            continue
    raise _refused("its signature is of no key registered for this client")


def _check_claims(claims: Mapping[str, Any], client_id: str, audiences: tuple[str, ...], now: datetime) -> None:
    if _text(claims, "iss") != client_id or _text(claims, "sub") != client_id:
        raise _refused("iss and sub have to be the client id")
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not any(each in audiences for each in named):
        raise _refused(f"aud has to be {audiences[0]}")
    end = _moment(claims, "exp")
    if end <= now - LEEWAY:
        raise _refused("it has expired (exp)")
    if end > now + LONGEST_LIFE + LEEWAY:
        raise _refused("exp is more than five minutes away")
    for name in ("nbf", "iat"):
        if name in claims and _moment(claims, name) > now + LEEWAY:
            raise _refused(f"its {name} lies in the future")
    if len(_text(claims, "jti")) > LONGEST_JTI:
        raise _refused(f"a jti has at most {LONGEST_JTI} characters")


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise _refused(f"the claim {name} is missing or no text")
    return value


def _moment(claims: Mapping[str, Any], name: str) -> datetime:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(f"the claim {name} is missing or no number of seconds")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise _refused(f"the claim {name} is no moment in time") from None


def _refused(why: str) -> AppError:
    return AppError(Category.UNAUTHENTICATED, f"the client assertion is refused: {why}", where="client_assertion")
