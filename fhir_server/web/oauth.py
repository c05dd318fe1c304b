"""The OAuth server of Authlib over our authorisations, with what it gets wrong for SMART put right.

Corrected: client assertions by RS384 and ES384, whose life is bounded and whose keys may be fetched; S256 and nothing
else, for public and confidential clients alike; refresh tokens that are good once. Authlib reads the requests, proves
clients, checks redirects and words the errors.   Source: RFC 6749, RFC 7636, RFC 7009, RFC 7662, RFC 9207.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from authlib.common.urls import add_params_to_uri
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.integrations.flask_oauth2.requests import FlaskOAuth2Payload, FlaskOAuth2Request
from authlib.oauth2.rfc6749 import (
    ClientMixin,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    OAuth2Request,
    grants,
)
from authlib.oauth2.rfc6749.errors import InvalidScopeError, OAuth2Error
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7523.client import ASSERTION_TYPE
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from flask import Flask, request

from fhir_server.access.apps import ASYMMETRIC, METHODS, PUBLIC, App, is_secret_of
from fhir_server.access.authorization import Authorization, is_challenge
from fhir_server.access.principals import Principals
from fhir_server.access.scopes import Scopes
from imaging.errors import AppError, Category

NO_STORE = [("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("Pragma", "no-cache")]
CONFIDENTIAL = tuple(each for each in METHODS if each != PUBLIC)


class _Request(FlaskOAuth2Request):  # type: ignore[misc]
    """A request as Authlib takes it: it asks for https, while TLS may end at a proxy, or be missing on this machine."""

    def __init__(self, incoming: Any) -> None:
        uri = "https" + incoming.url[incoming.url.index(":") :]
        OAuth2Request.__init__(self, method=incoming.method, uri=uri, headers=incoming.headers)
        self._request = incoming
        self.payload = FlaskOAuth2Payload(incoming)


class _Server(AuthorizationServer):  # type: ignore[misc]
    def create_oauth2_request(self, _: Any) -> _Request:
        return _Request(request)


class OAuthClient(ClientMixin):  # type: ignore[misc] # Authlib is untyped
    """An app, as Authlib asks about it."""

    def __init__(self, app: App) -> None:
        self.app = app

    def get_client_id(self) -> str:
        """Return the client id."""
        return self.app.client_id

    def get_default_redirect_uri(self) -> str | None:
        """Return nothing: which redirect is meant has to be said."""
        return None

    def get_allowed_scope(self, scope: str) -> str:
        """Return what was asked; what of it may be granted is told later, when the launch is known."""
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Compare character by character. Source: RFC 9700 2.1."""
        return redirect_uri in self.app.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        """Compare with the digest of the one that was handed out."""
        return is_secret_of(self.app, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """Allow the one method that was registered."""
        return method == self.app.method

    def check_response_type(self, response_type: str) -> bool:
        """Allow codes."""
        return response_type == "code" and self.check_grant_type("authorization_code")

    def check_grant_type(self, grant_type: str) -> bool:
        """Allow the grants that were registered."""
        return grant_type in self.app.grant_types


def oauth_server(
    flask_app: Flask, authorization: Authorization, principals: Principals, token_url: str
) -> AuthorizationServer:
    """Return the OAuth server of an application.

    token_url   address of the token endpoint: the audience of client assertions
    """

    def find(client_id: str) -> OAuthClient | None:
        app = authorization.apps.find(client_id)
        return OAuthClient(app) if app else None

    def by_assertion(_: Any, asked: Any) -> OAuthClient | None:
        form = asked.form
        if form.get("client_assertion_type") != ASSERTION_TYPE or not form.get("client_assertion"):
            return None
        with _worded():
            app = authorization.prove(form["client_assertion"], (token_url,))
        if form.get("client_id", app.client_id) != app.client_id:
            raise InvalidClientError(description="client_id is not the client of the assertion")
        return OAuthClient(app)

    server = _Server(flask_app, query_client=find, save_token=lambda *_: None)
    server.register_client_auth_method(ASYMMETRIC, by_assertion)
    server.register_grant(_grant(_CodeGrant, authorization))
    server.register_grant(_grant(_RefreshGrant, authorization))
    server.register_grant(_grant(_BackendGrant, authorization))
    server.register_endpoint(_Introspection(server, authorization))
    server.register_endpoint(_Revocation(server, authorization, principals))
    return server


def _grant(kind: type, authorization: Authorization) -> type:
    return type(kind.__name__, (kind,), {"authorization": authorization})


class _CodeGrant(grants.AuthorizationCodeGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS
    authorization: Authorization

    def validate_consent_request(self) -> None:
        """Check what Authlib leaves open, before anybody is asked anything; errors go to the redirect address."""
        redirect_uri = self.validate_authorization_request()
        try:
            _check_request(self.request.payload.data, self.authorization.fhir_url)
        except OAuth2Error as error:
            error.redirect_uri = redirect_uri
            raise
        self.redirect_uri = redirect_uri

    def validate_token_request(self) -> None:
        """Prove the client; the rest is checked with the code."""
        client = self.authenticate_token_endpoint_client()
        if not client.check_grant_type(self.GRANT_TYPE):
            raise InvalidGrantError("this client was not registered for codes")
        self.request.client = client

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Redeem the code."""
        form = self.request.form
        with _worded():
            token = self.authorization.redeem(
                form.get("code", ""),
                self.request.client.app,
                redirect_uri=form.get("redirect_uri", ""),
                verifier=form.get("code_verifier", ""),
            )
        return 200, token, NO_STORE


class _RefreshGrant(grants.RefreshTokenGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = METHODS
    authorization: Authorization

    def validate_token_request(self) -> None:
        """Prove the client; the rest is checked with the token."""
        self.request.client = self._validate_request_client()

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Give the next tokens."""
        form = self.request.form
        with _worded():
            token = self.authorization.refresh(
                form.get("refresh_token", ""), self.request.client.app, form.get("scope", "")
            )
        return 200, token, NO_STORE


class _BackendGrant(grants.ClientCredentialsGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = (ASYMMETRIC,)
    authorization: Authorization

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """Give a token to a program without a user."""
        with _worded():
            token = self.authorization.backend(self.request.client.app, self.request.form.get("scope", ""))
        return 200, token, NO_STORE


class _Introspection(IntrospectionEndpoint):  # type: ignore[misc]
    """Says what a token is good for, to confidential clients of the same subscriber. Source: RFC 7662; SMART 2.2."""

    CLIENT_AUTH_METHODS = CONFIDENTIAL

    def __init__(self, server: AuthorizationServer, authorization: Authorization) -> None:
        super().__init__(server)
        self._authorization = authorization

    def authenticate_token(self, asked: Any, client: OAuthClient) -> dict[str, Any]:
        """Return what is said of the token."""
        self.check_params(asked, client)
        return self._authorization.said_of(asked.form["token"], client.app.organization)

    def create_introspection_payload(self, said: dict[str, Any]) -> dict[str, Any]:
        """Return the answer."""
        return said


class _Revocation(RevocationEndpoint):  # type: ignore[misc]
    """Ends tokens for the client that they were issued to. Source: RFC 7009."""

    CLIENT_AUTH_METHODS = METHODS

    def __init__(self, server: AuthorizationServer, authorization: Authorization, principals: Principals) -> None:
        super().__init__(server)
        self._authorization = authorization
        self._principals = principals

    def authenticate_token(self, request: Any, client: OAuthClient) -> None:
        """End the token if it is this client's; whether it was is not told (RFC 7009 2.2)."""
        self.check_params(request, client)
        token = request.form["token"]
        if self._authorization.end_refresh_token(token, client.app):
            return
        grant = self._principals.grant_of(token)
        if grant is not None and grant.client_id == client.app.client_id:
            self._principals.revoke(token)


def error_address(error: OAuth2Error, issuer: str) -> str:
    """Return where the browser is sent with an error, "" when the app's address is not to be trusted."""
    if not error.redirect_uri:
        return ""
    given = [*error.get_body(), ("iss", issuer)]
    return add_params_to_uri(error.redirect_uri, given)  # type: ignore[no-any-return]


def _check_request(data: Any, fhir_url: str) -> None:
    for name in ("state", "aud", "code_challenge", "code_challenge_method", "scope"):
        if not data.get(name):
            raise InvalidRequestError(f"the parameter {name} is missing")
    if data["code_challenge_method"] != "S256":
        raise InvalidRequestError("code_challenge_method has to be S256")
    if not is_challenge(data["code_challenge"]):
        raise InvalidRequestError("code_challenge is no SHA-256 in base64url")
    if data["aud"].rstrip("/") != fhir_url:
        raise InvalidRequestError(f"aud has to be {fhir_url}, the server that the token is for")
    if data.get("response_mode", "query") != "query":
        raise InvalidRequestError("response_mode can only be query")
    if "request" in data or "request_uri" in data:
        raise InvalidRequestError("request objects are not taken")
    Scopes.parse(data["scope"])


@contextmanager
def _worded() -> Iterator[None]:
    """Put what our own code refuses into OAuth's words."""
    try:
        yield
    except AppError as error:
        if error.category is Category.UNAUTHENTICATED:
            raise InvalidClientError(description=ascii_words(error.message)) from error
        if error.category is Category.INVALID and error.where == "scope":
            raise InvalidScopeError(description=ascii_words(error.message)) from error
        if error.category is Category.INVALID:
            raise InvalidGrantError(description=ascii_words(error.message)) from error
        raise


def ascii_words(text: str) -> str:
    """Return a text as an `error_description` may hold it. Source: RFC 6749 5.2."""
    return "".join(each if " " <= each <= "~" and each not in '"\\' else "'" for each in text)
