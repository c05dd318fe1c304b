"""A browser as far as the pages of the authorization server need one, and apps that are launched in it."""

import base64
import hashlib
import html
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from flask.testing import FlaskClient
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from werkzeug.test import TestResponse

from fhir_server.access.apps import BACKEND, LAUNCHED, App
from tests.support.doors import BASE_URL, FHIR, Doors

PASSWORD = "correct horse battery"
CALLBACK = "https://app.example.org/callback"


@dataclass
class Browser:
    """Keeps cookies, follows links of our own pages and fills in their forms."""

    flask: FlaskClient

    def open(self, path: str) -> TestResponse:
        return self._settled(self.flask.get(path, base_url=BASE_URL))

    def submit(self, shown: TestResponse, action: str = "", **values: Any) -> TestResponse:
        """Send the form of a page with other values; `action` picks one of several forms."""
        form = next(each for each in forms(shown) if action in each.action and each.method == "post")
        data = {**form.values, **values}
        address = form.action or shown.request.full_path
        return self._settled(self.flask.post(address, data=data, base_url=BASE_URL))

    def sign_in(self, login: str, password: str = PASSWORD) -> TestResponse:
        return self.submit(self.open("/auth/sign-in"), login=login, password=password)

    def _settled(self, response: TestResponse) -> TestResponse:
        while response.status_code in (302, 303) and response.location.startswith("/"):
            response = self.flask.get(response.location, base_url=BASE_URL)
        return response


@dataclass
class Form:
    """A form of a page."""

    method: str
    action: str
    values: dict[str, Any] = field(default_factory=dict)


def forms(response: TestResponse) -> list[Form]:
    """Return the forms of a page with what is filled in: hidden and text fields, ticked boxes."""
    found = []
    for attributes, content in re.findall(r"<form([^>]*)>(.*?)</form>", response.text, re.DOTALL):
        form = Form(_attribute(attributes, "method") or "get", _attribute(attributes, "action"))
        for tag in re.findall(r"<input([^>]*)>", content, re.DOTALL):
            kind, name = _attribute(tag, "type"), _attribute(tag, "name")
            if kind == "checkbox" and "checked" in tag:
                form.values.setdefault(name, []).append(_attribute(tag, "value"))
            elif kind not in ("checkbox", "radio"):
                form.values[name] = _attribute(tag, "value")
        found.append(form)
    return found


def _attribute(tag: str, name: str) -> str:
    match = re.search(rf'\b{name}="([^"]*)"', tag)
    return html.unescape(match[1]) if match else ""


@dataclass
class TestApp:
    """An app: what it registered, and what it does to get in."""

    __test__ = False
    doors: Doors
    app: App
    secret: str
    key: RSAKey | ECKey | None
    verifier: str = ""

    @property
    def client_id(self) -> str:
        return self.app.client_id

    def request(self, scope: str, **changes: str) -> str:
        """Return the address that the app sends the browser to; parameters changed to "" are left out."""
        self.verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(self.verifier.encode()).digest()
        given = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": CALLBACK,
            "scope": scope,
            "state": "a-state-of-the-app",
            "aud": FHIR,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            **changes,
        }
        return "/auth/authorize?" + urlencode({name: value for name, value in given.items() if value})

    def token(self, **form: str) -> TestResponse:
        """Ask the token endpoint, proving who it is as it registered."""
        headers = {}
        if self.app.method == "client_secret_basic":
            headers["Authorization"] = "Basic " + base64.b64encode(f"{self.client_id}:{self.secret}".encode()).decode()
        elif self.app.method == "private_key_jwt":
            form = {**proof(self.assertion()), **form}
        else:
            form = {"client_id": self.client_id, **form}
        self.doors.clock.forward(milliseconds=1)
        return self.doors.flask.post("/auth/token", data=form, headers=headers)

    def redeem(self, code: str, **changes: str) -> TestResponse:
        given = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        return self.token(**{**given, "code_verifier": self.verifier, **changes})

    def refresh(self, token: str, **changes: str) -> TestResponse:
        return self.token(grant_type="refresh_token", refresh_token=token, **changes)

    def assertion(self, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a client assertion; claims of the value None are left out."""
        assert self.key is not None
        now = int(self.doors.clock().timestamp())
        given = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": f"{BASE_URL}/auth/token",
            "exp": now + 240,
            "jti": secrets.token_urlsafe(8),
            **claims,
        }
        algorithm = "RS384" if isinstance(self.key, RSAKey) else "ES384"
        shown = {"alg": algorithm, "kid": self.key.kid, "typ": "JWT", **(header or {})}
        said = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(shown, said, self.key, algorithms=[shown["alg"]])

    def through(self, browser: Browser, scope: str, login: str = "", **changes: str) -> TestResponse:
        """Walk through sign-in and consent, agreeing to all; return the answer of the token endpoint."""
        page = browser.open(self.request(scope, **changes))
        if "password" in page.text and login:
            page = browser.submit(page, login=login, password=PASSWORD)
        left = browser.submit(page, "/auth/decision", decision="allow")
        return self.redeem(answer(left)["code"])


def proof(assertion: str) -> dict[str, str]:
    """Return the parameters of a client assertion."""
    kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    return {"client_assertion_type": kind, "client_assertion": assertion}


def answer(response: TestResponse) -> dict[str, str]:
    """Return the parameters with which the browser is sent back to the app."""
    assert response.status_code in (302, 303), (response.status_code, response.text[:2000])
    assert response.location.startswith(CALLBACK), response.location
    return {name: values[0] for name, values in parse_qs(urlsplit(response.location).query).items()}


def registered(
    doors: Doors, subscriber: str, scope: str, *, method: str = "none", backend: bool = False, **changes: Any
) -> TestApp:
    """Return an app of a subscriber that is there."""
    key: RSAKey | ECKey | None = None
    if method == "private_key_jwt":
        key = changes.pop("key", None) or ECKey.generate_key("P-384", auto_kid=True)
    given = App(
        client_id="",
        organization=doors.server.principals.named(subscriber),
        name=changes.pop("name", "Growth charts"),
        method=method,
        grant_types=BACKEND if backend else LAUNCHED,
        scope=scope,
        redirect_uris=() if backend else (CALLBACK,),
        jwks=changes.pop("jwks", _public(key) if key else ""),
        **changes,
    )
    app, secret, _ = doors.server.sign_on.apps.add(given)
    return TestApp(doors, app, secret, key)


def _public(key: RSAKey | ECKey) -> str:
    return json.dumps({"keys": [{**key.as_dict(private=False), "use": "sig"}]})
