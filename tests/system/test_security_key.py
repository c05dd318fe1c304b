"""A security key in a real browser, which has one in software, against a real server."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.virtual_authenticator import VirtualAuthenticatorOptions
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.chromium import chromium, violations
from tests.support.serving import fhir_imaging, serving

PASSWORD = "correct horse battery"
ROLES = "smart.second_factor_roles=operator"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Scene:
    server: str
    data: Path
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
        yield Scene(served.base_url, data, browser)


@pytest.fixture(scope="module", autouse=True)
def people(scene: Scene) -> None:
    scene.run("subscriber", "add", "radiology", "--receive-images")
    (scene.data / "password").write_text(PASSWORD)
    for login, role in (("jones", "practitioner"), ("olga", "operator")):
        scene.run("person", "add", login, "radiology", "--role", role, "--password", scene.data / "password")


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
