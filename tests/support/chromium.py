"""A real browser without a window, and pages of an app of another origin for it."""

import functools
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

NPM = Path(sys.prefix) / "npm/node_modules"
FHIR_CLIENT = "fhirclient/build/fhir-client.js"
AXE = "axe-core/axe.min.js"


def script(name: str) -> Path:
    """Return a file of an npm package that `make` installs where there is npm."""
    found = NPM / name
    if not found.is_file():
        pytest.skip(f"npm is not installed: {name} is not there")
    return found


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Give a browser."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for each in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1000,900",
    ):
        options.add_argument(each)
    made = webdriver.Chrome(options=options, service=Service(driver))
    made.set_page_load_timeout(60)
    made.implicitly_wait(20)
    try:
        yield made
    finally:
        made.quit()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; give its origin."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def violations(browser: webdriver.Chrome) -> list[Any]:
    """Return what axe finds against WCAG 2.2 AA on the page that is shown, in light and in dark colours."""
    WebDriverWait(browser, 30).until(lambda shown: shown.find_elements(By.CSS_SELECTOR, "main h1"))
    browser.execute_script(script(AXE).read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found: list[Any] = []
    for scheme in ("dark", "light"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        found += browser.execute_async_script(
            "const done = arguments[1]; axe.run({runOnly: arguments[0]}).then(found => done(found.violations))", tags
        )
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
