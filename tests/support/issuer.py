"""Another authorization server, as a process of its own: Authlib's client credentials, introspection and revocation.

`python -m tests.support.issuer` prints its address and serves until it is stopped. The resource server is the client
`images`; the app is `viewer`. What is asked of the token endpoint as `claims` (JSON) is told by introspection as well.
`/asked` says how often introspection was asked.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import requests
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from flask import Flask, request
from werkzeug.serving import make_server

SECRETS = {"images": "secret", "viewer": "v"}


@dataclass
class Token:
    """A token that Authlib made."""

    access_token: str
    expires_at: int
    claims: dict[str, Any] = field(default_factory=dict)
    revoked: bool = False

    def get_client_id(self) -> str:
        return "viewer"

    def check_client(self, client: Any) -> bool:
        return client.get_client_id() == "viewer"

    def is_expired(self) -> bool:
        return self.expires_at <= time.time()

    def is_revoked(self) -> bool:
        return self.revoked


TOKENS: dict[str, Token] = {}  # of the process


@dataclass(frozen=True)
class Issuer:
    """The process as its clients see it."""

    address: str

    def token(self, **claims: Any) -> str:
        data = {"grant_type": "client_credentials", "scope": claims["scope"], "claims": json.dumps(claims)}
        answer = requests.post(f"{self.address}/token", data=data, auth=("viewer", "v"), timeout=10)
        return str(answer.json()["access_token"])

    def revoke(self, token: str) -> None:
        data = {"token": token}
        assert requests.post(f"{self.address}/revoke", data=data, auth=("viewer", "v"), timeout=10).ok

    def asked(self) -> int:
        return int(requests.get(f"{self.address}/asked", timeout=10).text)


@contextmanager
def issuing() -> Iterator[Issuer]:
    """Run the process until the block ends."""
    command = [sys.executable, "-m", "tests.support.issuer"]
    environment = os.environ | {"AUTHLIB_INSECURE_TRANSPORT": "1"}  # on the loopback
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield Issuer(process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


class Client(ClientMixin):
    """One of the two clients."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_client_id(self) -> str:
        return self.name

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_client_secret(self, secret: str) -> bool:
        return secret == SECRETS[self.name]

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_grant_type(self, kind: str) -> bool:
        return kind == "client_credentials"


class Introspection(IntrospectionEndpoint):
    """Answers the resource server."""

    CLIENT_AUTH_METHODS = ("client_secret_basic",)
    asked = 0

    def query_token(self, token_string: str, token_type_hint: str) -> Token | None:
        Introspection.asked += 1
        return TOKENS.get(token_string)

    def check_permission(self, token: Token, client: Client, request: Any) -> bool:
        return client.name == "images"

    def introspect_token(self, token: Token) -> dict[str, Any]:
        return {"active": True, "exp": token.expires_at, "client_id": "viewer", **token.claims}


class Revocation(RevocationEndpoint):
    """Takes back what the app has."""

    CLIENT_AUTH_METHODS = ("client_secret_basic",)

    def query_token(self, token_string: str, token_type_hint: str) -> Token | None:
        return TOKENS.get(token_string)

    def revoke_token(self, token: Token, request: Any) -> None:
        token.revoked = True


def keep(token: dict[str, Any], _: Any) -> None:
    """Keep a token that was made, with the claims that were asked."""
    expires_at = int(time.time()) + token["expires_in"]
    TOKENS[token["access_token"]] = Token(token["access_token"], expires_at, json.loads(request.form["claims"]))


def serve() -> None:
    """Serve until the process is stopped."""
    app = Flask(__name__)
    clients = {name: Client(name) for name in SECRETS}
    server = AuthorizationServer(app, query_client=clients.get, save_token=keep)
    server.register_grant(ClientCredentialsGrant)
    server.register_endpoint(Introspection)
    server.register_endpoint(Revocation)
    answer = server.create_endpoint_response
    app.add_url_rule("/token", "token", server.create_token_response, methods=["POST"])
    app.add_url_rule("/introspect", "introspect", partial(answer, "introspection"), methods=["POST"])
    app.add_url_rule("/revoke", "revoke", partial(answer, "revocation"), methods=["POST"])
    app.add_url_rule("/asked", "asked", lambda: str(Introspection.asked))
    listener = make_server("127.0.0.1", 0, app, threaded=True)
    print(f"http://127.0.0.1:{listener.server_port}", flush=True)
    listener.serve_forever()


if __name__ == "__main__":
    serve()
