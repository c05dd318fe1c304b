"""Discovery, tokens, launches and registration: the addresses of the authorization server that programs use.

Source: SMART App Launch 2.2 (conformance), RFC 6749, RFC 7591, RFC 7592, RFC 7662, RFC 7009, RFC 8414.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from flask import Blueprint, Response, request

from fhir_server.access.apps import BACKEND, App
from fhir_server.access.authorization import Authorization, Launch
from fhir_server.access.discovery import configuration
from fhir_server.access.grants import context_items
from fhir_server.access.principals import Principal
from fhir_server.access.scopes import Context
from fhir_server.model import json
from fhir_server.store.credentials import digest
from fhir_server.web.http import principal_of
from fhir_server.web.people import launch_address
from imaging.errors import AppError, Category

MOST_BODY_BYTES = 1 << 18
LONGEST_INTENT = 200  # characters
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

Reads = Callable[[Principal, str], None]  # raises unless a principal may read the resource of this reference


def blueprint(
    authorization: Authorization, server: AuthorizationServer, *, reads: Reads, is_registration_open: bool
) -> Blueprint:
    """Return the addresses."""
    door = _Door(authorization, server, reads, is_registration_open)
    routes = Blueprint("smart", __name__)
    for number, path in enumerate(("/fhir/.well-known/smart-configuration", "/.well-known/smart-configuration")):
        routes.add_url_rule(path, f"smart-{number}", door.smart_configuration)
    for number, path in enumerate(("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")):
        routes.add_url_rule(path, f"oauth-{number}", door.oauth_configuration)
    routes.add_url_rule("/auth/jwks", "jwks", door.jwks)
    routes.add_url_rule("/auth/token", "token", door.token, methods=["POST"])
    routes.add_url_rule("/auth/introspect", "introspect", door.introspect, methods=["POST"])
    routes.add_url_rule("/auth/revoke", "revoke", door.revoke, methods=["POST"])
    routes.add_url_rule("/auth/launch", "launch", door.launch, methods=["POST"])
    if is_registration_open:
        routes.add_url_rule("/auth/register", "register", door.register, methods=["POST"])
        routes.add_url_rule(
            "/auth/register/<client_id>", "registered", door.registered, methods=["GET", "PUT", "DELETE"]
        )
    return routes


class _Door:
    def __init__(
        self, authorization: Authorization, server: AuthorizationServer, reads: Reads, is_registration_open: bool
    ) -> None:
        self._authorization = authorization
        self._server = server
        self._reads = reads
        self._is_registration_open = is_registration_open

    def smart_configuration(self) -> Response:
        found = configuration(self._authorization.issuer, is_registration_open=self._is_registration_open)
        return _public(found)

    def oauth_configuration(self) -> Response:
        found = configuration(self._authorization.issuer, is_registration_open=self._is_registration_open)
        return _public({name: value for name, value in found.items() if name != "capabilities"})

    def jwks(self) -> Response:
        return _public({"keys": self._authorization.keys.published()})

    def token(self) -> Response:
        _check_form()
        return self._said(self._server.create_token_response())

    def introspect(self) -> Response:
        """Say what a token is good for: to a client that proves itself, or to a bearer of the same subscriber."""
        _check_form()
        if request.headers.get("Authorization", "").lower().startswith("bearer "):
            principal = principal_of(request)
            if principal.grant and not any(each.context is Context.SYSTEM for each in principal.grant.scopes.resources):
                message = "a token of a program by itself (system/...) is needed to ask about tokens"
                raise AppError(Category.FORBIDDEN, message, where="Authorization")
            organization = principal.subscriber
            return _private(self._authorization.said_of(request.form.get("token", ""), organization))
        return self._said(self._server.create_endpoint_response("introspection"))

    def revoke(self) -> Response:
        _check_form()
        return self._said(self._server.create_endpoint_response("revocation"))

    def _said(self, response: Response) -> Response:
        response.headers.update(NO_STORE)
        return response

    def launch(self) -> Response:
        """Take from an EHR what an app is to be launched about, and return the launch."""
        principal, body = principal_of(request), _body()
        app = self._authorization.apps.find(str(body.get("client_id", "")))
        if app is None or app.organization != principal.subscriber or "authorization_code" not in app.grant_types:
            raise AppError(Category.NOT_FOUND, "no app of this client id can be launched by you", where="client_id")
        launch = _launch(body)
        for reference in (launch.patient, launch.encounter, *(each.reference for each in launch.context)):
            if reference and "://" not in reference:
                self._reads(principal, reference)
        value = self._authorization.launch(app, launch)
        answer = {"launch": value}
        if app.launch_uri:
            answer["url"] = launch_address(app.launch_uri, self._authorization.fhir_url, value)
        return _private(answer, HTTPStatus.CREATED)

    def register(self) -> Response:
        """Register an app for the subscriber whose bearer token is sent with it. Source: RFC 7591 3."""
        principal = principal_of(request)
        if principal.grant is not None:
            message = "an app is registered with a token of the subscriber itself, not with one that an app obtained"
            raise AppError(Category.FORBIDDEN, message, where="Authorization")
        try:
            app, secret, token = self._authorization.apps.add(
                app_from_metadata(_body(), principal.subscriber), keeps_registering=True
            )
        except AppError as error:
            return _refused_metadata(error)
        return _private(self._metadata(app, secret, token), HTTPStatus.CREATED)

    def registered(self, client_id: str) -> Response:
        """Show, change or end a registration. Source: RFC 7592."""
        app = self._authorization.apps.find(client_id)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        is_right = app is not None and scheme.lower() == "bearer" and app.registration_sha256
        if app is None or not is_right or not hmac.compare_digest(digest(token.strip()), app.registration_sha256):
            message = "the registration access token of this app is needed"
            raise AppError(Category.UNAUTHENTICATED, message, where="Authorization")
        if request.method == "DELETE":
            self._authorization.apps.remove(client_id)
            return Response(status=HTTPStatus.NO_CONTENT, headers=NO_STORE)
        if request.method == "PUT":
            try:
                wanted = app_from_metadata(_body(), app.organization)
                if wanted.method != app.method:
                    message = "it cannot change; register anew"
                    raise AppError(Category.INVALID, message, where="token_endpoint_auth_method")
                app = self._authorization.apps.change(
                    replace(
                        wanted,
                        client_id=app.client_id,
                        secret_sha256=app.secret_sha256,
                        registration_sha256=app.registration_sha256,
                    )
                )
            except AppError as error:
                return _refused_metadata(error)
        return _private(self._metadata(app, "", token.strip()))

    def _metadata(self, app: App, secret: str, token: str) -> dict[str, Any]:
        address = f"{self._authorization.issuer}/auth/register/{app.client_id}"
        return {
            "client_id": app.client_id,
            "client_name": app.name,
            "token_endpoint_auth_method": app.method,
            "grant_types": list(app.grant_types),
            "response_types": ["code"] if "authorization_code" in app.grant_types else [],
            "redirect_uris": list(app.redirect_uris),
            "scope": app.scope,
            **({"launch_uri": app.launch_uri} if app.launch_uri else {}),
            **({"jwks": json.loads(app.jwks.encode())} if app.jwks else {}),
            **({"jwks_uri": app.jwks_uri} if app.jwks_uri else {}),
            **({"client_secret": secret, "client_secret_expires_at": 0} if secret else {}),
            "registration_access_token": token,
            "registration_client_uri": address,
        }


def app_from_metadata(said: Mapping[str, Any], organization: str) -> App:
    """Return the app that client metadata describes. Raises INVALID. Source: RFC 7591 2."""
    method = _text(said, "token_endpoint_auth_method", "client_secret_basic")
    grant_types = tuple(_texts(said, "grant_types")) or ("authorization_code",)
    keys = said.get("jwks")
    if keys is not None and not isinstance(keys, dict):
        raise AppError(Category.INVALID, "a key set is an object with a list `keys`", where="jwks")
    return App(
        client_id="",
        organization=organization,
        name=_text(said, "client_name", "app"),
        method=method,
        grant_types=grant_types,
        scope=_text(said, "scope", "system/*.rs" if grant_types == BACKEND else "openid fhirUser launch patient/*.rs"),
        redirect_uris=tuple(_texts(said, "redirect_uris")),
        launch_uri=_text(said, "launch_uri", _text(said, "initiate_login_uri", "")),
        jwks=json.dumps(keys).decode() if keys else "",
        jwks_uri=_text(said, "jwks_uri", ""),
    )


def _launch(body: Mapping[str, Any]) -> Launch:
    patient, encounter = _text(body, "patient", ""), _text(body, "encounter", "")
    more: dict[str, Any] = {}
    if (banner := body.get("need_patient_banner")) is not None:
        if not isinstance(banner, bool):
            raise AppError(Category.INVALID, "true or false is expected", where="need_patient_banner")
        more["need_patient_banner"] = banner
    for name in ("intent", "tenant"):
        if value := _text(body, name, ""):
            more[name] = value[:LONGEST_INTENT]
    return Launch(
        patient=patient and f"Patient/{patient.removeprefix('Patient/')}",
        encounter=encounter and f"Encounter/{encounter.removeprefix('Encounter/')}",
        context=context_items(body.get("fhirContext", [])),
        more=more,
    )


def _body() -> dict[str, Any]:
    if (request.content_length or 0) > MOST_BODY_BYTES:
        raise AppError(Category.TOO_LARGE, f"a body has at most {MOST_BODY_BYTES} bytes", where="body")
    body = json.loads(request.get_data(cache=False))
    if not isinstance(body, dict):
        raise AppError(Category.INVALID, "a JSON object is expected", where="body")
    return body


def _text(said: Mapping[str, Any], name: str, default: str) -> str:
    value = said.get(name, default)
    if not isinstance(value, str):
        raise AppError(Category.INVALID, "a text is expected", where=name)
    return value


def _texts(said: Mapping[str, Any], name: str) -> list[str]:
    value = said.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise AppError(Category.INVALID, "a list of texts is expected", where=name)
    return value


def _check_form() -> None:
    if request.mimetype != "application/x-www-form-urlencoded":
        message = "application/x-www-form-urlencoded is expected"
        raise AppError(Category.UNSUPPORTED, message, where="Content-Type")
    if (request.content_length or 0) > MOST_BODY_BYTES:
        raise AppError(Category.TOO_LARGE, f"a body has at most {MOST_BODY_BYTES} bytes", where="body")


def _refused_metadata(error: AppError) -> Response:
    if error.category not in (Category.INVALID, Category.TOO_LARGE):
        raise error
    code = "invalid_redirect_uri" if error.where == "redirect_uris" else "invalid_client_metadata"
    said = {"error": code, "error_description": f"{error.where}: {error.message}"}
    return _private(said, HTTPStatus.BAD_REQUEST)


def _public(said: dict[str, Any]) -> Response:
    """Return what everybody may know, to pages of every origin. Source: SMART 2.2, CORS."""
    headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "public, max-age=300"}
    return Response(json.dumps(said), headers=headers, mimetype="application/json")


def _private(said: dict[str, Any], status: int = HTTPStatus.OK) -> Response:
    return Response(json.dumps(said), status, headers=NO_STORE, mimetype="application/json")
