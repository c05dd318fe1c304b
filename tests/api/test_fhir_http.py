"""The RESTful API as tools of integration testers check it, by sections of FHIR R4 http (3.1.0) and RFC 9110."""

from typing import Any, ClassVar
from urllib.parse import quote

import pytest

from tests.support.doors import Caller

Json = dict[str, Any]
PATIENT: Json = {"resourceType": "Patient"}


def _made(caller: Caller, **more: Any) -> str:
    return f"/fhir/Patient/{caller.post('/fhir/Patient', {**PATIENT, **more}).json['id']}"


class TestRepresentations:
    """FHIR R4 http 3.1.0.1.8 (return), RFC 9110 8.3: a Content-Type is that of a representation."""

    def test_an_answer_without_content_has_no_type(self, both: Caller) -> None:
        minimal = both.post("/fhir/Patient", PATIENT, headers={"Prefer": "return=minimal"})
        deleted = both.delete(_made(both))

        assert (minimal.status_code, deleted.status_code) == (201, 204)
        assert "Content-Type" not in minimal.headers
        assert "Content-Type" not in deleted.headers

    def test_head_has_the_headers_of_get(self, both: Caller) -> None:
        patient = _made(both)

        got, asked = both.get(patient).headers, both.call("HEAD", patient).headers

        assert {**asked, "X-Request-Id": ""} == {**got, "X-Request-Id": ""}


class TestConditionalRead:
    """FHIR R4 http 3.1.0.2.1, RFC 9110 15.4.5."""

    def test_a_304_varies_as_the_200_would(self, both: Caller) -> None:
        patient = _made(both)

        known = both.get(patient, headers={"If-None-Match": 'W/"1"'})

        assert known.status_code == 304
        assert set(known.vary) == set(both.get(patient).vary)


class TestMethods:
    """FHIR R4 http 3.1.0.1.4, RFC 9110 15.5.6: 405 says what is allowed."""

    def test_what_may_be_got_may_be_headed(self, both: Caller) -> None:
        unknown = both.put("/fhir/Patient/mine", {**PATIENT, "id": "mine"})
        record = both.put("/fhir/AuditEvent/1", {"resourceType": "AuditEvent", "id": "1"})

        assert (unknown.status_code, unknown.headers["Allow"]) == (405, "DELETE, GET, HEAD, PATCH")
        assert (record.status_code, record.headers["Allow"]) == (405, "GET, HEAD")


class TestSearch:
    """FHIR R4 http 3.1.0.9 (search), 3.1.0.1.10 (content types), search 3.1.1.1."""

    FORM: ClassVar[dict[str, str]] = {"Content-Type": "application/x-www-form-urlencoded"}

    @pytest.mark.parametrize("body", [b"name=\xff", b"name=%ff", b"gender=male&\xed\xa0\x80=1", b"name=%ED%A0%80"])
    def test_criteria_that_are_not_utf8_are_refused_and_not_left_out(self, both: Caller, body: bytes) -> None:
        _made(both)

        by_post = both.post("/fhir/Patient/_search", data=body, headers=self.FORM)
        by_get = both.get("/fhir/Patient?" + quote(body, safe="=&%"))

        assert (by_post.status_code, by_get.status_code) == (400, 400)
        assert "UTF-8" in by_post.json["issue"][0]["diagnostics"]

    @pytest.mark.parametrize(
        "address", ["Patient/$everything", "Patient/1/$everything", "$export", "metadata", "_history"]
    )
    def test_no_address_has_parameters_that_cannot_be_read(self, both: Caller, address: str) -> None:
        assert both.get(f"/fhir/{address}?_count=%ff").status_code == 400

    def test_the_format_may_stand_in_the_form(self, both: Caller) -> None:
        xml = both.post("/fhir/Patient/_search", data={"_format": "xml", "name": "x"}, headers=self.FORM)
        unknown = both.post("/fhir/Patient/_search", data={"_format": "ttl"}, headers=self.FORM)
        pretty = both.post("/fhir/Patient/_search", data={"_pretty": "true"}, headers=self.FORM)

        assert (xml.status_code, xml.mimetype) == (200, "application/fhir+xml")
        assert (unknown.status_code, unknown.mimetype) == (406, "application/fhir+json")
        assert pretty.text.startswith('{\n  "resourceType"')

    def test_a_slash_before_the_question_mark_means_the_type(self, both: Caller) -> None:
        patient = _made(both, name=[{"family": "Slash"}]).rpartition("/")[2]

        found = both.get("/fhir/Patient/?name=slash")
        created = both.post("/fhir/Patient/", PATIENT)

        assert [each["resource"]["id"] for each in found.json["entry"]] == [patient]
        assert created.status_code == 201
