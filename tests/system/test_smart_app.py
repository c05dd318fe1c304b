"""The sample app of the tutorial, with SMART's own JavaScript client, in a real browser, against a real server."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.support.chromium import FHIR_CLIENT, chromium, pages, script, violations
from tests.support.doors import dicom
from tests.support.serving import fhir_imaging, serving

SAMPLE = Path(__file__).parents[2] / "docs/tutorial/smart-app"
PASSWORD = "correct horse battery"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Scene:
    server: str
    app: str
    browser: Chrome
    client_id: str

    def sign_in(self) -> None:
        self.browser.find_element(By.ID, "login").send_keys("dr.jones")
        self.browser.find_element(By.ID, "password").send_keys(PASSWORD)
        self.browser.find_element(By.CSS_SELECTOR, "main button").click()

    def press(self, words: str) -> None:
        self.browser.find_element(By.XPATH, f"//button[normalize-space()='{words}']").click()

    def shows(self, title: str) -> None:
        WebDriverWait(self.browser, 30).until(lambda browser: title in browser.title)
        assert violations(self.browser) == []

    def is_back(self) -> None:
        WebDriverWait(self.browser, 30).until(lambda browser: browser.current_url.startswith(self.app))

    def width_of_image(self) -> int:
        WebDriverWait(self.browser, 30).until(
            lambda browser: "Looking" not in browser.find_element(By.ID, "study").text
        )
        assert "first of them" in self.browser.find_element(By.ID, "study").text
        return int(self.browser.execute_script("return document.getElementById('image').naturalWidth"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    client = script(FHIR_CLIENT)
    folder = tmp_path_factory.mktemp("app")
    shutil.copytree(SAMPLE, folder, dirs_exist_ok=True)
    shutil.copy(client, folder / "fhir-client.js")
    data = tmp_path_factory.mktemp("data")
    with serving(data) as served, pages(folder) as origin, chromium() as browser:
        client_id = prepared(data, origin)
        settings = f'const CLIENT_ID = "{client_id}", FHIR_URL = "{served.base_url}/fhir";'
        (folder / "settings.js").write_text(settings)
        store(data, served.base_url)
        yield Scene(served.base_url, origin, browser, client_id)


def prepared(data: Path, origin: str) -> str:
    """Register a subscriber, an app and somebody who uses it; return the client id."""
    run("subscriber", "add", "radiology", "--register-images", "--receive-images", data=data)
    scope = "launch launch/patient launch/imagingstudy openid fhirUser offline_access patient/*.rs"
    given = ("--redirect", f"{origin}/index.html", "--launch", f"{origin}/launch.html", "--scope", scope)
    shown = run("app", "add", "newest-image", "radiology", *given, data=data)
    (data / "password").write_text(PASSWORD)
    person = ("dr.jones", "radiology", "--role", "practitioner", "--name", "Dr. Ada Jones")
    run("person", "add", *person, "--password", data / "password", data=data)
    return re.search(r"client_id\s+(\S+)", shown)[1]


def run(*words: object, data: Path) -> str:
    done = fhir_imaging(*words, "--data-dir", data)
    assert done.returncode == 0, done.stderr
    return done.stdout


def store(data: Path, server: str) -> None:
    token = run("token", "radiology", data=data).strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/dicom"}
    stored = requests.post(f"{server}/dicom-web/studies", data=dicom(), headers=headers, timeout=60)
    assert stored.status_code == 200, stored.text


def test_person_signs_in_picks_a_patient_agrees_and_sees_an_image(scene: Scene) -> None:
    scene.browser.get(f"{scene.app}/standalone.html")
    scene.shows("Sign in")
    scene.sign_in()
    scene.shows("Which patient?")
    scene.browser.find_element(By.CSS_SELECTOR, "input[name=patient]").click()
    scene.press("Continue")
    scene.shows("Allow newest-image?")
    scene.press("Allow")

    assert scene.width_of_image() == 128  # columns of CT_small
    assert scene.browser.find_element(By.ID, "patient").text


def test_app_is_started_from_the_page_about_a_patient(scene: Scene) -> None:
    scene.browser.get(f"{scene.server}/auth/")
    if "Sign in" in scene.browser.title:
        scene.sign_in()
    scene.shows("Your account")
    Select(scene.browser.find_element(By.ID, "app")).select_by_visible_text("newest-image")
    scene.press("Start")
    scene.press("Allow")

    assert scene.width_of_image() == 128


def test_person_says_which_study_the_app_is_started_about(scene: Scene) -> None:
    asked = {
        "response_type": "code", "client_id": scene.client_id, "redirect_uri": f"{scene.app}/index.html", "state": "s",
        "scope": "launch/patient launch/imagingstudy patient/*.rs", "aud": f"{scene.server}/fhir",
        "code_challenge": "A" * 43, "code_challenge_method": "S256",
    }  # fmt: skip
    scene.browser.get(f"{scene.server}/auth/authorize?{urlencode(asked)}")
    if "Sign in" in scene.browser.title:
        scene.sign_in()
    scene.shows("Which patient?")
    scene.browser.find_element(By.CSS_SELECTOR, "input[name=patient]").click()
    scene.press("Continue")
    scene.shows("Which images?")
    scene.browser.find_element(By.CSS_SELECTOR, "input[name=picked]").click()
    scene.press("Continue")
    scene.shows("Allow newest-image?")

    assert "It is started about: 2004-01-19, CT" in scene.browser.find_element(By.TAG_NAME, "main").text
    scene.press("Do not allow")
    scene.is_back()


def test_person_who_does_not_agree_comes_back_to_the_app_with_nothing(scene: Scene) -> None:
    scene.browser.get(f"{scene.server}/auth/")
    if "Sign in" in scene.browser.title:
        scene.sign_in()
    scene.shows("Your account")
    Select(scene.browser.find_element(By.ID, "app")).select_by_visible_text("newest-image")
    scene.press("Start")
    scene.press("Do not allow")
    scene.is_back()

    assert "error=access_denied" in scene.browser.current_url
