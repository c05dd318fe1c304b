"""Cross-origin requests. Expected values: WHATWG Fetch, CORS protocol."""

from typing import Any

import pytest

from fhir_server import config
from fhir_server.access.contracts import Right
from imaging.errors import AppError
from tests.support.doors import opened

PAGE = "https://viewer.test"
ASKS = {"Origin": PAGE, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}


def headers_of(response: Any) -> dict[str, str]:
    return {name: value for name, value in response.headers if name.startswith("Access-Control")}


def test_without_the_setting_no_page_of_another_origin_may_call(both, doors):
    assert headers_of(both.get("/fhir/Patient", headers={"Origin": PAGE})) == {}
    assert doors.stranger.call("OPTIONS", "/fhir/Patient", headers=ASKS).status_code == 405


def test_pages_of_the_origins_that_are_named_may_call(db):
    with opened(db, web__cors_origins=f"{PAGE}, http://localhost:3000") as doors:
        both = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES)

        answered = both.get("/fhir/Patient", headers={"Origin": PAGE})
        refused = doors.stranger.get("/fhir/Patient", headers={"Origin": PAGE})
        foreign = both.get("/fhir/Patient", headers={"Origin": "https://viewer.test.evil.test"})
        studies = both.get("/dicom-web/studies", headers={"Origin": "http://localhost:3000"})

        assert headers_of(answered)["Access-Control-Allow-Origin"] == PAGE
        assert "X-Request-Id" in headers_of(answered)["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answered.headers
        assert (refused.status_code, headers_of(refused)["Access-Control-Allow-Origin"]) == (401, PAGE)
        assert headers_of(foreign) == {}
        assert all("Origin" in each.headers["Vary"] for each in (answered, foreign))
        assert headers_of(studies)["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert doors.stranger.get("/fhir/metadata").json["rest"][0]["security"]["cors"] is True


def test_a_browser_may_ask_first_without_a_token(db):
    with opened(db, web__cors_origins=PAGE) as doors:
        allowed = doors.stranger.call("OPTIONS", "/fhir/Patient/1", headers=ASKS)
        foreign = doors.stranger.call("OPTIONS", "/fhir/Patient/1", headers={**ASKS, "Origin": "https://evil.test"})

        assert allowed.status_code == 204
        assert "PATCH" in headers_of(allowed)["Access-Control-Allow-Methods"]
        assert "Authorization" in headers_of(allowed)["Access-Control-Allow-Headers"]
        assert headers_of(allowed)["Access-Control-Allow-Origin"] == PAGE
        assert (foreign.status_code, headers_of(foreign)) == (405, {})


def test_every_origin_may_be_allowed(db):
    with opened(db, web__cors_origins="*") as doors:
        response = doors.stranger.get("/fhir/metadata", headers={"Origin": "https://anywhere.test"})

        assert headers_of(response)["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("text", ["viewer.test", "https://viewer.test/path", "https://*.test", "ftp://x.test", "null"])
def test_what_is_no_origin_is_refused_at_the_start(text):
    with pytest.raises(AppError, match=r"web\.cors_origins"):
        config.load({"web.cors_origins": text}, environment={})


def test_origins_reach_the_processes_that_the_server_starts():
    given = config.load({"web.cors_origins": f"http://localhost:3000,{PAGE}"}, environment={})

    assert f"web.cors_origins=http://localhost:3000,{PAGE}" in given.arguments()
