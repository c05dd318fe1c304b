"""Client assertions: what SMART's asymmetric authentication takes, and everything it has to refuse."""

import base64
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, RSAKey

from fhir_server.access import assertions
from fhir_server.store.apps import App
from imaging.errors import AppError, Category

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AUDIENCE = "https://images.example.org/auth/token"
RSA = RSAKey.generate_key(2048, auto_kid=True)
EC = ECKey.generate_key("P-384", auto_kid=True)
SMALL = RSAKey.generate_key(1024, auto_kid=True)


def app(*keys: Any, uri: str = "") -> App:
    shown = json.dumps({"keys": [key.as_dict(private=False) for key in keys]}) if keys else ""
    return App("bot", "Organization/1", "Bot", "private_key_jwt", ("client_credentials",), "system/*.rs",
               jwks=shown, jwks_uri=uri)  # fmt: skip


def assertion(key: Any = EC, algorithm: str = "ES384", header: dict[str, Any] | None = None, **claims: Any) -> str:
    now = int(NOW.timestamp())
    given = {"iss": "bot", "sub": "bot", "aud": AUDIENCE, "exp": now + 200, "jti": "j1", **claims}
    shown = {"alg": algorithm, "kid": key.kid, **(header or {})}
    said = {name: value for name, value in given.items() if value is not None}
    return jwt.encode({k: v for k, v in shown.items() if v is not None}, said, key, algorithms=[algorithm])


class Jtis:
    """Remembers as the server does."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, name: str, _: datetime) -> bool:
        is_new = name not in self.seen
        self.seen.add(name)
        return is_new


def verify(text: str, of: App, *, fetch: Any = None, remember: Any = None) -> None:
    assertions.verify(text, of, audiences=(AUDIENCE,), fetch=fetch or no_fetch, remember=remember or Jtis(), now=NOW)


def no_fetch(url: str, _: bool) -> dict[str, Any]:
    raise AssertionError(f"nothing is to be fetched from {url}")


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS384"), (EC, "ES384")])
def test_rs384_and_es384_are_taken(key: Any, algorithm: str) -> None:
    verify(assertion(key, algorithm), app(RSA, EC))


def test_audience_may_be_a_list() -> None:
    verify(assertion(aud=["https://other.example.org", AUDIENCE]), app(EC))


NOW_S = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": NOW_S - 60}, "expired"),
        ({"exp": NOW_S + 400}, "five minutes"),
        ({"exp": None}, "exp"),
        ({"exp": "soon"}, "exp"),
        ({"exp": 10**30}, "no moment"),
        ({"exp": True}, "exp"),
        ({"nbf": NOW_S + 100}, "future"),
        ({"iat": NOW_S + 100}, "future"),
        ({"iss": "other"}, "client id"),
        ({"iss": None}, "iss"),
        ({"sub": "other"}, "client id"),
        ({"aud": "https://other.example.org/token"}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": AUDIENCE + "/"}, "aud"),
        ({"jti": None}, "jti"),
        ({"jti": 7}, "jti"),
        ({"jti": "x" * 600}, "jti"),
    ],
)
def test_claims_that_are_not_right_are_named(claims: dict[str, Any], words: str) -> None:
    with pytest.raises(AppError, match=words) as caught:
        verify(assertion(**claims), app(EC))

    assert caught.value.category is Category.UNAUTHENTICATED


def test_jti_is_good_once() -> None:
    remember = Jtis()
    text = assertion()
    verify(text, app(EC), remember=remember)

    with pytest.raises(AppError, match="used before"):
        verify(text, app(EC), remember=remember)


def test_refused_assertion_uses_no_jti_up() -> None:
    remember = Jtis()
    with pytest.raises(AppError):
        verify(assertion(aud="https://other.example.org"), app(EC), remember=remember)

    assert not remember.seen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no"),
        ("a.b.c", "no"),
        ("x" * 20_000, "at most"),
        (jws.serialize_compact({"alg": "ES384", "kid": EC.kid}, b"[1]", EC, algorithms=["ES384"]), "JSON object"),
    ],
)
def test_what_is_no_assertion_is_refused(text: str, words: str) -> None:
    with pytest.raises(AppError, match="client assertion is refused") as caught:
        assertions.named_client(text)
    assert caught.value.category is Category.UNAUTHENTICATED
    with pytest.raises(AppError):
        verify(text, app(EC))


def test_algorithm_none_is_refused() -> None:
    parts = [json.dumps({"alg": "none", "kid": EC.kid}), json.dumps({"iss": "bot", "sub": "bot"})]
    text = ".".join(_base64url(each.encode()) for each in parts) + "."

    with pytest.raises(AppError, match="alg"):
        verify(text, app(EC))


def test_public_key_is_no_secret_of_hmac() -> None:
    """Algorithm confusion: RFC 8725 2.1."""
    said = {"iss": "bot", "sub": "bot", "aud": AUDIENCE, "exp": NOW_S + 200, "jti": "j1"}
    text = ".".join(_base64url(json.dumps(each).encode()) for each in ({"alg": "HS256", "kid": RSA.kid}, said))
    text += "." + _base64url(hmac.digest(RSA.as_pem(private=False), text.encode(), "sha256"))

    with pytest.raises(AppError, match="alg"):
        verify(text, app(RSA))


@pytest.mark.parametrize("algorithm", ["RS256", "PS384"])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    with pytest.raises(AppError, match="alg"):
        verify(assertion(RSA, algorithm), app(RSA))


def test_key_of_somebody_else_is_refused() -> None:
    other = ECKey.generate_key("P-384", parameters={"kid": EC.kid})

    with pytest.raises(AppError, match="signature"):
        verify(assertion(other), app(EC))


def test_key_inside_the_header_counts_for_nothing() -> None:
    other = ECKey.generate_key("P-384", parameters={"kid": "mine"})
    text = assertion(other, header={"jwk": other.as_dict(private=False)})

    with pytest.raises(AppError, match="signature"):
        verify(text, app(EC))


def test_header_has_to_name_the_key() -> None:
    with pytest.raises(AppError, match="kid"):
        verify(assertion(header={"kid": None}), app(EC))


def test_small_rsa_key_is_refused() -> None:
    with pytest.raises(AppError, match="signature"):
        verify(assertion(SMALL, "RS384"), app(SMALL))


def test_jku_has_to_be_the_registered_address() -> None:
    text = assertion(header={"jku": "https://evil.example.org/jwks"})

    with pytest.raises(AppError, match="jku"):
        verify(text, app(EC))


def test_keys_behind_an_address_are_fetched_again_when_a_key_is_new() -> None:
    asked = []

    def fetch(url: str, is_anew: bool) -> dict[str, Any]:
        asked.append((url, is_anew))
        return {"keys": [EC.as_dict(private=False)] if is_anew else []}

    verify(assertion(), app(uri="https://bot.example.org/jwks"), fetch=fetch)

    assert asked == [("https://bot.example.org/jwks", False), ("https://bot.example.org/jwks", True)]


def test_address_that_does_not_answer_tells_nothing_of_the_network() -> None:
    def fetch(url: str, _: bool) -> dict[str, Any]:
        raise AppError(Category.FORBIDDEN, "its address 10.0.0.7 is not public")

    with pytest.raises(AppError) as caught:
        verify(assertion(), app(uri="https://bot.example.org/jwks"), fetch=fetch)

    assert "10.0.0.7" not in str(caught.value)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
