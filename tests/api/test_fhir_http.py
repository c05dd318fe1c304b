"""The RESTful API as tools of integration testers check it, by sections of FHIR R4 http (3.1.0) and RFC 9110."""

from typing import Any

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
