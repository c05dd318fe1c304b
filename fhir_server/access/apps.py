"""Apps: what may be registered, and the register for operators and for apps that register themselves.

Source: SMART App Launch 2.2 (client registration), RFC 7591, RFC 8252 7 (redirects of native apps), RFC 9700 2.1.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import urlsplit

from fhir_server.outbound import jwks
from fhir_server.store.apps import App
from fhir_server.store.apps import Apps as Register
from fhir_server.store.credentials import Client, Credentials, digest
from imaging.errors import AppError, Category

__all__ = ["METHODS", "App", "Apps", "check"]

PUBLIC, SYMMETRIC, ASYMMETRIC = "none", "client_secret_basic", "private_key_jwt"
METHODS = (PUBLIC, SYMMETRIC, ASYMMETRIC)
LAUNCHED = ("authorization_code", "refresh_token")
BACKEND = ("client_credentials",)
SECRET_PREFIX = "fisec_"  # lets secret scanners recognise a leaked secret  # noqa: S105
MOST_REDIRECTS, LONGEST_URI, LONGEST_NAME, LONGEST_SCOPE = 20, 2_000, 200, 8_000
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Apps:
    """Registers apps, finds them, and checks their secrets."""

    def __init__(self, register: Register, credentials: Credentials, is_active: Callable[[str], bool]) -> None:
        self._register = register
        self._credentials = credentials
        self._is_active = is_active

    def add(self, app: App, *, keeps_registering: bool = False) -> tuple[App, str, str]:
        """Register an app under a new client id; return it, its secret and its registration token, "" for none.

        Both are shown once. keeps_registering: it may change or end its registration itself (RFC 7592). Raises INVALID.
        """
        check(app)
        secret = SECRET_PREFIX + secrets.token_urlsafe(32) if app.method == SYMMETRIC else ""
        token = secrets.token_urlsafe(32) if keeps_registering else ""
        made = replace(
            app,
            client_id=f"app-{secrets.token_hex(12)}",
            secret_sha256=digest(secret) if secret else "",
            registration_sha256=digest(token) if token else "",
            origins=tuple(sorted({*app.origins, *map(_origin, filter(_is_web, app.redirect_uris))})),
        )
        # The client first: an app without one would obtain tokens of nobody.
        self._credentials.add_client(Client(made.client_id, made.organization, made.name, suspended=False, is_app=True))
        self._register.put(made)
        return made, secret, token

    def change(self, app: App) -> App:
        """Replace what is registered of an app. Raises INVALID."""
        check(app)
        changed = replace(app, origins=tuple(sorted(set(map(_origin, filter(_is_web, app.redirect_uris))))))
        self._register.put(changed)
        return changed

    def remove(self, client_id: str) -> None:
        """End a registration, with every token that was made for it. Raises NOT_FOUND."""
        if not self._register.remove(client_id):
            raise AppError(Category.NOT_FOUND, "no app of this client id; `app list` shows them", where="client_id")
        self._credentials.remove_client(client_id)

    def find(self, client_id: str) -> App | None:
        """Return the app of this id if there is one and its subscriber is not suspended."""
        app = self._register.find(client_id) if 0 < len(client_id) <= LONGEST_NAME else None
        return app if app and self._is_active(app.organization) else None

    def all(self) -> list[App]:
        """Return every app, by id."""
        return self._register.all()

    def is_origin(self, origin: str) -> bool:
        """Say whether a page of this origin belongs to a registered app."""
        return len(origin) <= LONGEST_URI and self._register.is_origin(origin)


def is_secret_of(app: App, secret: str) -> bool:
    """Say whether this is the secret of a confidential client."""
    return bool(app.secret_sha256) and secrets.compare_digest(app.secret_sha256, digest(secret[:LONGEST_URI]))


def check(app: App) -> None:
    """Raise INVALID, naming what is wrong, unless the app can be registered like this."""
    if not 1 <= len(app.name) <= LONGEST_NAME:
        raise _invalid("client_name", f"a name has 1 to {LONGEST_NAME} characters")
    if app.method not in METHODS:
        raise _invalid("token_endpoint_auth_method", f"one of {', '.join(METHODS)} is expected")
    if not app.grant_types or not set(app.grant_types) <= {*LAUNCHED, *BACKEND}:
        raise _invalid("grant_types", f"some of {', '.join((*LAUNCHED, *BACKEND))} are expected")
    if len(app.scope) > LONGEST_SCOPE or not app.scope.split():
        raise _invalid("scope", f"scopes separated by blanks are expected, up to {LONGEST_SCOPE} characters")
    _check_keys(app)
    if BACKEND[0] in app.grant_types and app.method != ASYMMETRIC:
        raise _invalid("token_endpoint_auth_method", f"client_credentials needs {ASYMMETRIC}")
    if "authorization_code" in app.grant_types:
        _check_redirects(app.redirect_uris)
    elif app.redirect_uris:
        raise _invalid("redirect_uris", "only authorization_code has redirects")
    if app.launch_uri and not _is_safe_web(app.launch_uri):
        raise _invalid("launch_uri", "https is expected, or http on this very machine")


def _check_keys(app: App) -> None:
    if app.method != ASYMMETRIC:
        if app.jwks or app.jwks_uri:
            raise _invalid("jwks", f"only {ASYMMETRIC} has keys")
        return
    if bool(app.jwks) == bool(app.jwks_uri):
        raise _invalid("jwks", "either the public keys themselves or their address (jwks_uri) is needed")
    if app.jwks_uri and (not app.jwks_uri.startswith("https://") or len(app.jwks_uri) > LONGEST_URI):
        raise _invalid("jwks_uri", "an https address is expected")
    if app.jwks:
        keys = jwks.parsed(app.jwks)["keys"]
        if not keys:
            raise _invalid("jwks", "at least one key is needed")
        if any(each.get("kty") not in ("RSA", "EC") or not each.get("kid") for each in keys):
            raise _invalid("jwks", "every key needs a kid, and has to be an RSA or an EC key")
        if any(name in each for each in keys for name in ("d", "p", "q", "k")):
            raise _invalid("jwks", "it holds a private key: send the public half, and take another pair from now on")


def _check_redirects(uris: Iterable[str]) -> None:
    given = list(uris)
    if not 1 <= len(given) <= MOST_REDIRECTS:
        raise _invalid("redirect_uris", f"1 to {MOST_REDIRECTS} redirect URIs are needed")
    for uri in given:
        if len(uri) > LONGEST_URI or "*" in uri:
            raise _invalid("redirect_uris", f"whole addresses without wildcards, up to {LONGEST_URI} characters")
        parts = _split(uri)
        # RFC 8252 7.1: the scheme of a native app is a domain of its maker in reverse, so it holds a dot.
        is_native = "." in parts[0] and parts[0] not in ("http", "https")
        if parts[2] or not (is_native or _is_safe_web(uri)):
            raise _invalid(
                "redirect_uris", "https, http on the user's own machine, or com.example.app:/... without a fragment"
            )


def _is_web(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _is_safe_web(uri: str) -> bool:
    scheme, host, _ = _split(uri)
    return len(uri) <= LONGEST_URI and bool(host) and (scheme == "https" or (scheme == "http" and host in _LOOPBACK))


def _split(uri: str) -> tuple[str, str, str]:
    """Return scheme, host and fragment; user and password in an address make it no address."""
    try:
        parts = urlsplit(uri)
        host = "" if "@" in parts.netloc else parts.hostname or ""
    except ValueError:
        return "", "", ""
    return parts.scheme, host, parts.fragment


def _origin(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def _invalid(where: str, message: str) -> AppError:
    return AppError(Category.INVALID, message, where=where)
