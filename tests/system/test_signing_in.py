"""People sign in in a real browser, with a security key (in software) and in an emergency, to a real server."""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.chromium import chromium, violations
from tests.support.serving import fhir_imaging, serving

PASSWORD = "correct horse battery"
CALLBACK = "http://127.0.0.1:9/callback"  # where nobody listens: the browser shows its address
VERIFIER = "v" * 43
RIGHTS = ("--register-images", "--receive-images")
ROLES = "smart.second_factor_roles=operator"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Scene:
    server: str
    data: Path
    log: Path
    browser: Chrome

    def open(self, path: str) -> None:
        self.browser.get(f"{self.server}{path}")

    def sign_out(self) -> None:
        self.browser.find_element(By.XPATH, "//header//button").click()

    def sign_in(self, login: str) -> None:
        self.shows("Sign in")
        self.browser.find_element(By.ID, "login").send_keys(login)
        self.browser.find_element(By.ID, "password").send_keys(PASSWORD)
        self.press("Sign in")

    def press(self, words: str) -> None:
        self.browser.find_element(By.XPATH, f"//main//button[normalize-space()='{words}']").click()

    def shows(self, title: str) -> None:
        WebDriverWait(self.browser, 30).until(lambda browser: title in browser.title)
        assert violations(self.browser) == []

    def run(self, *words: object) -> str:
        done = fhir_imaging(*words, "--data-dir", self.data)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    data = tmp_path_factory.mktemp("data")
    with serving(data, "--host", "localhost", "--set", ROLES) as served, chromium() as browser:
        yield Scene(served.base_url, data, served.log, browser)


@pytest.fixture(scope="module", autouse=True)
def people(scene: Scene) -> None:
    scene.run("subscriber", "add", "radiology", *RIGHTS)
    (scene.data / "password").write_text(PASSWORD)
    for login, role in (("jones", "practitioner"), ("olga", "operator")):
        scene.run("person", "add", login, "radiology", "--role", role, "--password", scene.data / "password")


def test_the_first_page_leads_people_in_and_tells_programs_where_to_go(scene: Scene) -> None:
    scene.open("/")
    scene.shows("FHIR imaging server")
    told = scene.browser.find_element(By.ID, "main").text
    assert {f"{scene.server}/fhir", f"{scene.server}/dicom-web"} <= set(told.split())
    scene.browser.find_element(By.LINK_TEXT, "Sign in").click()
    scene.shows("Sign in")


def plug_in(browser: Chrome) -> None:
    """Give the browser a key. Source: W3C Web Authentication Level 2, 11 (extension of WebDriver)."""
    options = VirtualAuthenticatorOptions(
        protocol="ctap2", transport="usb", has_resident_key=True, has_user_verification=True, is_user_verified=True
    )
    browser.add_virtual_authenticator(options)


def test_key_is_added_signs_in_and_is_lost(scene: Scene) -> None:
    browser = scene.browser
    plug_in(browser)
    scene.open("/auth/")
    scene.sign_in("jones")
    scene.shows("Your account")
    browser.find_element(By.LINK_TEXT, "Set up a second factor").click()
    scene.shows("Second factor")
    browser.find_element(By.ID, "name").send_keys("Blue key")
    scene.press("Add a key")
    scene.shows("Your second factor is set up")
    codes = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "main li")]
    assert len(codes) == 8
    assert "Blue key" in scene.run("person", "keys", "jones")

    browser.find_element(By.LINK_TEXT, "Go on").click()
    scene.shows("Your account")
    scene.sign_out()
    scene.sign_in("jones")
    scene.shows("Prove that it is you")
    scene.press("Use a security key or passkey")
    scene.shows("Your account")
    scene.sign_out()

    browser.remove_virtual_authenticator()
    plug_in(browser)  # another one, which knows nothing of this server
    scene.sign_in("jones")
    scene.shows("Prove that it is you")
    browser.find_element(By.ID, "code").send_keys(codes[0])
    scene.press("Sign in with the code")
    scene.shows("Your account")
    scene.sign_out()

    scene.run("person", "forget-second-factor", "jones", "--key", "Blue key")
    scene.sign_in("jones")
    scene.shows("Your account")
    scene.sign_out()
    browser.remove_virtual_authenticator()


def test_operator_sets_a_key_up_before_anything_else(scene: Scene) -> None:
    plug_in(scene.browser)
    scene.open("/auth/")
    scene.sign_in("olga")
    scene.shows("Set up a second factor")
    scene.browser.find_element(By.PARTIAL_LINK_TEXT, "Use a security key").click()
    scene.shows("Second factor")
    scene.press("Add a key")
    scene.shows("Your second factor is set up")
    scene.browser.find_element(By.LINK_TEXT, "Go on").click()
    scene.shows("Your account")
    scene.sign_out()


def test_emergency_is_asked_for_seen_and_reviewed(scene: Scene) -> None:
    browser = scene.browser
    patient = registered_patient(scene)
    scene.run("subscriber", "add", "radiology", *RIGHTS, "--patient", "nobody", "--break-glass", "own")
    scene.run("person", "add", "audrey", "radiology", "--role", "auditor", "--password", scene.data / "password")
    scope = "launch/patient patient/*.rs"
    shown = scene.run("app", "add", "viewer", "radiology", "--redirect", CALLBACK, "--scope", scope)
    client_id = re.search(r"client_id\s+(\S+)", shown)[1]
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    asked = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": CALLBACK,
        "scope": scope,
        "state": "s" * 22,
    }
    asked |= {"aud": f"{scene.server}/fhir", "code_challenge": challenge, "code_challenge_method": "S256"}

    scene.open(f"/auth/authorize?{urlencode(asked)}")
    scene.sign_in("jones")
    scene.shows("Which patient?")
    browser.find_element(By.LINK_TEXT, "Ask for emergency access").click()
    scene.shows("Emergency access")
    browser.find_element(By.ID, "number").send_keys("4711")
    browser.find_element(By.ID, "reason").send_keys("Unconscious, allergies needed")
    scene.press("Open in an emergency")
    scene.shows("Allow viewer?")
    assert "Emergency access: it ends 15 minutes after you agree" in browser.find_element(By.ID, "main").text
    assert "Ann Roe" in browser.find_element(By.ID, "main").text
    scene.press("Allow")
    WebDriverWait(browser, 30).until(lambda driver: driver.current_url.startswith(CALLBACK))
    code = parse_qs(urlsplit(browser.current_url).query)["code"][0]

    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
    token = requests.post(f"{scene.server}/auth/token", data={**form, "client_id": client_id}, timeout=60).json()
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    seen = requests.get(f"{scene.server}/fhir/Patient/{patient}", headers=headers, timeout=60)
    assert (seen.status_code, token["expires_in"]) == (200, 900)
    listed = fhir_imaging("alarm", "list", "--data-dir", scene.data)
    assert (listed.returncode, "jones" in listed.stdout, "used" in listed.stdout) == (1, True, True)

    scene.open("/auth/")
    scene.sign_out()
    scene.sign_in("audrey")
    scene.shows("Your account")
    browser.find_element(By.PARTIAL_LINK_TEXT, "Review who opened").click()
    scene.shows("Emergency accesses")
    assert "Unconscious, allergies needed" in browser.find_element(By.ID, "main").text
    browser.find_element(By.CSS_SELECTOR, "input[value=justified]").click()
    scene.press("Keep the verdict")
    scene.shows("Emergency accesses")
    assert "There is nothing to review." in browser.find_element(By.ID, "main").text
    assert "Unconscious" not in scene.log.read_text()


def registered_patient(scene: Scene) -> str:
    """Store a Patient as the subscriber that may still register all; return the id."""
    headers = {"Authorization": f"Bearer {scene.run('token', 'radiology').strip()}"}
    number = [{"system": "urn:oid:1.2.3", "value": "4711"}]
    ann = {"resourceType": "Patient", "identifier": number, "name": [{"family": "Roe", "given": ["Ann"]}]}
    headers["Content-Type"] = "application/fhir+json"
    made = requests.post(f"{scene.server}/fhir/Patient", json=ann, headers=headers, timeout=60)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])
