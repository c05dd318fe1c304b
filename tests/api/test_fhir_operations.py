"""Operations of the FHIR door. Source: FHIR R4 resource-operations, valueset-, codesystem- and patient-operations."""

from typing import Any, ClassVar

import pytest

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors, new_study

Json = dict[str, Any]
CORE = "http://hl7.org/fhir/StructureDefinition/"
BASIC: Json = {"resourceType": "Basic", "code": {"text": "x"}}
DCM = "http://dicom.nema.org/resources/ontology/DCM"
GENDERS = "http://hl7.org/fhir/ValueSet/administrative-gender"


@pytest.fixture
def everybody(doors: Doors) -> Caller:
    return doors.caller(*Right, name="everybody")


def _parameters(**values: Any) -> Json:
    rows = [{"name": name, **value} for name, value in values.items()]
    return {"resourceType": "Parameters", "parameter": rows}


def _patient(caller: Caller, **more: Any) -> str:
    return f"Patient/{caller.post('/fhir/Patient', {'resourceType': 'Patient', **more}).json['id']}"


def _severities(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 200, answer.json
    return [(each["severity"], each.get("expression", [""])[0]) for each in answer.json["issue"]]


class TestConvert:
    XML = '<Patient xmlns="http://hl7.org/fhir"><active value="true"/><birthDate value="1970-01-01"/></Patient>'
    PATIENT: ClassVar[Json] = {"resourceType": "Patient", "active": True, "birthDate": "1970-01-01"}

    def test_both_ways_and_nothing_is_stored(self, everybody: Caller) -> None:
        xml, json = ({"Content-Type": f"application/fhir+{form}"} for form in ("xml", "json"))

        to_json = everybody.call(
            "POST", "/fhir/$convert", data=self.XML, headers={**xml, "Accept": "application/fhir+json"}
        )
        to_xml = everybody.post("/fhir/$convert", self.PATIENT, headers={**json, "Accept": "application/fhir+xml"})
        within = everybody.post("/fhir/$convert?_format=xml", _parameters(input={"resource": self.PATIENT}))

        assert to_json.json == self.PATIENT
        assert (to_xml.text, to_xml.mimetype) == (within.text, within.mimetype)
        assert to_xml.mimetype == "application/fhir+xml"
        assert self.XML in to_xml.text.replace("\n", "")
        assert everybody.get("/fhir/Patient?_summary=count").json["total"] == 0

    @pytest.mark.parametrize(
        "body",
        [
            {"resourceType": "Patient", "active": "yes"},
            {"resourceType": "Spaceship"},
            {"resourceType": ["Patient"]},
            {"resourceType": "Parameters"},
            {"resourceType": "Parameters", "parameter": [{"name": "input", "valueString": "x"}]},
            [1],
        ],
    )
    def test_what_is_no_valid_resource_is_refused(self, everybody: Caller, body: Any) -> None:
        assert everybody.post("/fhir/$convert?_format=xml", body).status_code == 400

    def test_it_is_an_entry_of_a_batch_as_well(self, everybody: Caller) -> None:
        entry = {"request": {"method": "POST", "url": "$convert"}, "resource": self.PATIENT}

        answer = everybody.post("/fhir", {"resourceType": "Bundle", "type": "batch", "entry": [entry]}).json["entry"][0]

        assert (answer["response"]["status"][:3], answer["resource"]) == ("200", self.PATIENT)


class TestMeta:
    def test_labels_are_added_and_removed_as_versions(self, everybody: Caller) -> None:
        patient = _patient(everybody, meta={"tag": [{"system": "s", "code": "a"}]})
        added = {"valueMeta": {"tag": [{"system": "s", "code": "a"}, {"code": "b"}], "profile": ["http://p"]}}

        one = everybody.post(f"/fhir/{patient}/$meta-add", _parameters(meta=added)).json["parameter"][0]["valueMeta"]
        gone = {"valueMeta": {"tag": [{"system": "s", "code": "a"}]}}
        other = everybody.post(f"/fhir/{patient}/$meta-delete", _parameters(meta=gone)).json["parameter"][0][
            "valueMeta"
        ]
        read = everybody.get(f"/fhir/{patient}/$meta").json["parameter"][0]["valueMeta"]

        assert one["tag"] == [{"system": "s", "code": "a"}, {"code": "b"}]
        assert (read, read["tag"], read["profile"]) == (other, [{"code": "b"}], ["http://p"])
        assert read["versionId"] == "3"
        assert everybody.get("/fhir/Patient?_tag=b").json["total"] == 1

    def test_the_labels_of_a_type_and_of_everything_are_told_once_each(self, doors: Doors, everybody: Caller) -> None:
        tag, label = {"system": "s", "code": "a"}, {"system": "l", "code": "R"}
        for _ in range(2):
            _patient(everybody, meta={"tag": [tag], "security": [label], "profile": ["http://p"]})
        everybody.post(
            "/fhir/Basic", {"resourceType": "Basic", "code": {"text": "x"}, "meta": {"tag": [{"code": "b"}]}}
        )
        auditor = doors.caller(Right.AUDIT, name="auditor")

        patients = everybody.get("/fhir/Patient/$meta").json["parameter"][0]["valueMeta"]
        every = everybody.post("/fhir/$meta", _parameters()).json["parameter"][0]["valueMeta"]
        seen = auditor.get("/fhir/$meta").json["parameter"][0]["valueMeta"]

        assert patients == {"profile": ["http://p"], "security": [label], "tag": [tag]}
        assert [each for each in every["tag"] if each in ({"code": "b"}, tag)] == [{"code": "b"}, tag]
        assert seen == {}
        assert auditor.get("/fhir/Patient/$meta").status_code == 403

    def test_who_may_not_change_does_not(self, doors: Doors, everybody: Caller) -> None:
        patient, reader = _patient(everybody), doors.caller(Right.RECEIVE_IMAGES, name="reader")
        label = _parameters(meta={"valueMeta": {"tag": [{"code": "x"}]}})

        assert reader.get(f"/fhir/{patient}/$meta").status_code == 200
        assert reader.post(f"/fhir/{patient}/$meta-add", label).status_code == 403
        assert everybody.get(f"/fhir/{patient}/$meta-add").status_code == 405
        assert everybody.post(f"/fhir/{patient}/$meta-add", _parameters()).status_code == 400
        wrong = _parameters(meta={"valueMeta": {"tag": [{"code": 1}]}})
        assert everybody.post(f"/fhir/{patient}/$meta-add", wrong).status_code == 400


class TestValidate:
    def test_findings_are_told_and_nothing_is_stored(self, everybody: Caller) -> None:
        wrong = {"resourceType": "Patient", "gender": "nonsense"}

        answer = everybody.post("/fhir/Patient/$validate", wrong)

        assert ("error", "Patient.gender") in _severities(answer)
        assert everybody.get("/fhir/Patient").json["total"] == 0

    def test_a_second_reader_is_asked_as_well(self, everybody: Caller) -> None:
        answer = everybody.post("/fhir/Patient/$validate", {"resourceType": "Patient", "birthDate": "2019-02-29"})

        assert {("error", "Patient.birthDate"), ("warning", "Patient.birthDate")} <= set(_severities(answer))

    def test_a_stored_resource_and_modes(self, everybody: Caller) -> None:
        patient = _patient(everybody)
        other = {"resource": {"resourceType": "Patient", "id": "other"}}

        assert "error" not in {each for each, _ in _severities(everybody.get(f"/fhir/{patient}/$validate"))}
        answer = everybody.post(f"/fhir/{patient}/$validate?mode=update", _parameters(resource=other))
        assert ("error", "Patient.id") in _severities(answer)
        assert everybody.post("/fhir/Patient/$validate?mode=x", {"resourceType": "Patient"}).status_code == 400
        assert everybody.post("/fhir/Patient/$validate", _parameters()).status_code == 400

    def test_profiles_that_ship_and_that_were_uploaded(self, everybody: Caller) -> None:
        smart = "http://fhir.org/argonaut/smart-imaging/StructureDefinition/smart-imaging-study"
        study = {"resourceType": "ImagingStudy", "status": "available", "subject": {"reference": "Patient/1"}}
        profile = {"resourceType": "StructureDefinition", "url": "http://mine", "name": "Mine", "status": "active"}
        profile |= {"kind": "resource", "abstract": False, "type": "Patient", "derivation": "constraint"}
        profile |= {"baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient"}
        rows = [{"id": "Patient", "path": "Patient"}, {"id": "Patient.name", "path": "Patient.name", "min": 1}]
        created = everybody.post("/fhir/StructureDefinition", {**profile, "differential": {"element": rows}})
        assert created.status_code == 201, created.json

        by_smart = everybody.post(f"/fhir/ImagingStudy/$validate?profile={smart}", study)
        by_mine = everybody.post("/fhir/Patient/$validate?profile=http://mine", {"resourceType": "Patient"})
        declared = {"resourceType": "Patient", "meta": {"profile": ["http://mine", "http://unknown"]}}
        by_declared = everybody.post("/fhir/Patient/$validate", declared)
        by_unknown = everybody.post("/fhir/Patient/$validate?profile=http://unknown", {"resourceType": "Patient"})

        assert ("error", "ImagingStudy.endpoint") in _severities(by_smart)
        assert ("error", "Patient.name") in _severities(by_mine)
        assert {("error", "Patient.name"), ("information", "Patient.meta.profile")} <= set(_severities(by_declared))
        assert by_unknown.status_code == 404

    def test_what_images_made_conforms_to_the_profile_that_it_claims(self, doors: Doors, everybody: Caller) -> None:
        doors.ingest(*new_study()[1])
        study = everybody.get("/fhir/ImagingStudy").json["entry"][0]["resource"]["id"]

        found = _severities(everybody.get(f"/fhir/ImagingStudy/{study}/$validate"))

        assert "error" not in {each for each, _ in found}

    @pytest.mark.parametrize("name", ["Patient", "Patient|4.0.1", "DomainResource", "Resource"])
    def test_the_definition_of_the_type_itself_is_a_profile(self, everybody: Caller, name: str) -> None:
        url = f"http://hl7.org/fhir/StructureDefinition/{name}"

        answer = everybody.post(f"/fhir/Patient/$validate?profile={url}", {"resourceType": "Patient"})
        other = everybody.post(f"/fhir/Basic/$validate?profile={CORE}Patient", {**BASIC, "meta": {"profile": [url]}})

        assert not [each for each in _severities(answer) if each[0] == "error"]
        assert ("error", "Basic") in _severities(other)


class TestInvocation:
    """FHIR R4 operations 3.2.0.2: how operations are invoked."""

    def test_a_body_may_be_left_out(self, everybody: Caller) -> None:
        patient = _patient(everybody)

        for name in ("$everything", "$validate", "$meta"):
            assert everybody.post(f"/fhir/{patient}/{name}").status_code == 200, name
        assert everybody.post("/fhir/Patient/$validate").status_code == 400
        assert everybody.post(f"/fhir/ValueSet/$expand?url={GENDERS}").status_code == 200

    @pytest.mark.parametrize(
        ("address", "row", "named"),
        [
            ("CodeSystem/$lookup", {"name": "code", "valueCode": 1}, "Parameters.parameter[0].valueCode"),
            ("CodeSystem/$lookup", {"name": "code", "value": "x"}, "Parameters.parameter[0]"),
            ("ValueSet/$validate-code", {"name": "codeableConcept", "valueCodeableConcept": {"coding": "x"}}, "coding"),
            ("ValueSet/$expand", {"name": "url", "valueCoding": {"code": "x"}}, "url"),
            ("ValueSet/$expand", {"name": "count", "part": [{"name": "x", "valueString": "y"}]}, "count"),
            ("$usage", {"name": "per", "valueMeta": {"tag": [{"code": "x"}]}}, "per"),
            ("$usage", {"name": "per", "value": []}, "Parameters.parameter[0]"),
            ("Patient/$merge", {"name": "reason"}, "Parameters.parameter[0]"),
        ],
    )
    def test_a_parameter_that_is_none_is_named(self, everybody: Caller, address: str, row: Json, named: str) -> None:
        fitting = [{"name": "system", "valueUri": "http://hl7.org/fhir/administrative-gender"}]
        rows = [row, *fitting] if address.startswith("CodeSystem") else [row]

        answer = everybody.post(f"/fhir/{address}", {"resourceType": "Parameters", "parameter": rows})

        assert (answer.status_code, named in answer.text) == (400, True), answer.text

    def test_a_value_is_the_same_in_the_address_and_in_parameters(self, everybody: Caller) -> None:
        rows = {"url": {"valueUri": GENDERS}, "count": {"valueInteger": 1}, "activeOnly": {"valueBoolean": True}}

        by_get = everybody.get(f"/fhir/ValueSet/$expand?url={GENDERS}&count=1&activeOnly=true").json["expansion"]
        by_post = everybody.post("/fhir/ValueSet/$expand", _parameters(**rows)).json["expansion"]

        assert by_get["contains"] == by_post["contains"]
        assert by_get["parameter"] == by_post["parameter"]

    @pytest.mark.parametrize(
        ("method", "address", "status", "allow"),
        [
            ("GET", "$convert", 405, "POST"),
            ("GET", "Patient/1/$meta-add", 405, "POST"),
            ("GET", "Patient/$validate", 405, "POST"),
            ("GET", "$nonsense", 501, None),
            ("POST", "$nonsense", 501, None),
            ("GET", "Patient/$nonsense", 501, None),
            ("POST", "Patient/$nonsense", 501, None),
            ("POST", "Patient/1/$nonsense", 501, None),
            ("GET", "ImagingStudy/1/$everything", 501, None),
            ("GET", "Encounter/1/$everything", 501, None),
            ("DELETE", "Patient/1/$everything", 405, "GET, HEAD, POST"),
        ],
    )
    def test_what_cannot_be_invoked_is_told(
        self, everybody: Caller, method: str, address: str, status: int, allow: str | None
    ) -> None:
        answer = everybody.call(method, f"/fhir/{address}")

        assert (answer.status_code, answer.headers.get("Allow")) == (status, allow)
        assert answer.json["issue"][0]["code"] == "not-supported"


class TestTerminology:
    def test_expansion_with_filter_and_pages(self, everybody: Caller) -> None:
        whole = everybody.get(f"/fhir/ValueSet/$expand?url={GENDERS}").json["expansion"]
        part = everybody.get(f"/fhir/ValueSet/$expand?url={GENDERS}&filter=MALE&offset=1&count=1").json["expansion"]

        assert [each["code"] for each in whole["contains"]] == ["male", "female", "other", "unknown"]
        assert (part["total"], [each["code"] for each in part["contains"]]) == (2, ["female"])

    def test_an_uploaded_value_set_over_a_system_that_ships(self, everybody: Caller) -> None:
        include = [{"system": DCM, "concept": [{"code": "CT"}, {"code": "MR"}]}]
        value_set = {
            "resourceType": "ValueSet",
            "url": "http://mine",
            "status": "active",
            "compose": {"include": include},
        }
        made = everybody.post("/fhir/ValueSet", value_set).json["id"]

        by_url = everybody.get("/fhir/ValueSet/$expand?url=http://mine").json["expansion"]["contains"]
        by_id = everybody.get(f"/fhir/ValueSet/{made}/$expand").json["expansion"]["contains"]
        sent = everybody.post("/fhir/ValueSet/$expand", _parameters(valueSet={"resource": value_set}))

        assert by_url == by_id == sent.json["expansion"]["contains"]
        assert by_url[0] == {"system": DCM, "code": "CT", "display": "Computed Tomography"}

    @pytest.mark.parametrize(
        ("query", "result"),
        [
            ("code=male", True),
            ("code=male&system=http://hl7.org/fhir/administrative-gender&display=Male", True),
            ("code=male&display=Woman", False),
            ("code=male&system=http://other", False),
            ("code=nonsense", False),
        ],
    )
    def test_membership(self, everybody: Caller, query: str, result: bool) -> None:
        answer = everybody.get(f"/fhir/ValueSet/$validate-code?url={GENDERS}&{query}")

        assert answer.json["parameter"][0] == {"name": "result", "valueBoolean": result}

    def test_lookup(self, everybody: Caller) -> None:
        act = "http://terminology.hl7.org/CodeSystem/v3-ActCode"

        found = everybody.get(f"/fhir/CodeSystem/$lookup?system={act}&code=IMP").json["parameter"]
        coding = {"valueCoding": {"system": DCM, "code": "CT"}}
        posted = everybody.post("/fhir/CodeSystem/$lookup", _parameters(coding=coding)).json["parameter"]

        assert {"name": "display", "valueString": "inpatient encounter"} in found
        assert {each["part"][1]["valueCode"] for each in found if each["name"] == "property"} >= {"ACUTE", "NONAC"}
        assert {"name": "display", "valueString": "Computed Tomography"} in posted

    def test_an_expansion_without_what_is_not_wanted(self, everybody: Caller) -> None:
        value = {"resourceType": "CodeSystem", "url": "http://scans", "status": "active", "content": "complete"}
        gone = {"code": "gone", "property": [{"code": "status", "valueCode": "retired"}]}
        group = {"code": "group", "property": [{"code": "notSelectable", "valueBoolean": True}]}
        words = {"code": "scan", "display": "Scan", "designation": [{"language": "de", "value": "Aufnahme"}]}
        everybody.post("/fhir/CodeSystem", {**value, "concept": [words, gone, group]})
        system = {"include": [{"system": "http://scans"}]}
        everybody.post(
            "/fhir/ValueSet", {"resourceType": "ValueSet", "url": "http://all", "status": "active", "compose": system}
        )

        def codes(query: str) -> list[str]:
            answer = everybody.get(f"/fhir/ValueSet/$expand?url=http://all{query}")
            assert answer.status_code == 200, answer.json
            return [each["code"] for each in answer.json["expansion"].get("contains", ())]

        assert codes("") == ["scan", "gone", "group"]
        assert codes("&activeOnly=true") == ["scan", "group"]
        assert codes("&excludeNotForUI=true") == ["scan", "gone"]
        assert codes("&exclude-system=http://scans") == []
        assert codes("&excludeNested=true&excludePostCoordinated=true&displayLanguage=de") == ["scan", "gone", "group"]

    def test_an_expansion_with_what_is_wanted_beside_the_codes(self, everybody: Caller) -> None:
        concept = {"code": "male", "designation": [{"language": "de", "value": "männlich"}]}
        include = [{"system": "http://hl7.org/fhir/administrative-gender", "concept": [concept]}]
        value_set = {"resourceType": "ValueSet", "status": "active", "compose": {"include": include}}

        answer = everybody.post(
            "/fhir/ValueSet/$expand?includeDesignations=true",
            _parameters(valueSet={"resource": value_set}, includeDefinition={"valueBoolean": True}),
        ).json

        assert answer["expansion"]["contains"][0]["designation"] == concept["designation"]
        assert answer["compose"] == value_set["compose"]
        assert {"name": "includeDefinition", "valueBoolean": True} in answer["expansion"]["parameter"]

    def test_a_lookup_of_what_is_wanted(self, everybody: Caller) -> None:
        act = "http://terminology.hl7.org/CodeSystem/v3-ActCode"

        names = everybody.get(f"/fhir/CodeSystem/$lookup?system={act}&code=IMP&property=display&displayLanguage=en")
        parents = everybody.get(f"/fhir/CodeSystem/$lookup?system={act}&code=IMP&property=parent").json["parameter"]

        assert "property" not in [each["name"] for each in names.json["parameter"]]
        assert {each["part"][0]["valueCode"] for each in parents if each["name"] == "property"} == {"parent"}

    @pytest.mark.parametrize(
        ("address", "status"),
        [
            (f"ValueSet/$expand?url={GENDERS}&activeOnly=perhaps", 400),
            (f"ValueSet/$expand?url={GENDERS}&valueSetVersion=4.0.1", 200),
            (f"ValueSet/$expand?url={GENDERS}&valueSetVersion=3", 404),
            (f"ValueSet/$expand?url={GENDERS}&date=2020-01-01", 400),
            (f"CodeSystem/$lookup?system={DCM}&code=CT&version=99", 404),
            ("ValueSet/$expand", 400),
            ("ValueSet/$expand?url=http://unknown", 404),
            ("ValueSet/$expand?url=http://loinc.org/vs", 404),
            ("ValueSet/$expand?nonsense=1", 400),
            (f"ValueSet/$validate-code?url={GENDERS}", 400),
            ("CodeSystem/$lookup?code=x", 400),
            (f"CodeSystem/$lookup?system={DCM}&code=nonsense", 404),
            ("Patient/$expand", 501),
        ],
    )
    def test_what_cannot_be_told_is_refused(self, everybody: Caller, address: str, status: int) -> None:
        answer = everybody.get(f"/fhir/{address}")

        assert answer.status_code == status


class TestEverything:
    def _keys(self, answer: Any) -> list[str]:
        assert answer.status_code == 200, answer.json
        return [each["fullUrl"].removeprefix("http://images.test/fhir/") for each in answer.json.get("entry", ())]

    def test_the_patient_comes_first_with_images_and_their_endpoints(self, doors: Doors, everybody: Caller) -> None:
        doors.ingest(*new_study()[1])
        patient = everybody.get("/fhir/Patient").json["entry"][0]["resource"]["id"]

        keys = self._keys(everybody.get(f"/fhir/Patient/{patient}/$everything"))

        assert keys[0] == f"Patient/{patient}"
        assert {"ImagingStudy", "Endpoint"} <= {key.partition("/")[0] for key in keys}
        assert len(keys) == len(set(keys))

    def test_pages_types_and_times(self, everybody: Caller) -> None:
        patient, other = _patient(everybody), _patient(everybody)
        made = []
        for number in range(5):
            study = {"resourceType": "ImagingStudy", "status": "registered", "started": f"202{number}"}
            owner = {"subject": {"reference": patient if number else other}}
            made.append(f"ImagingStudy/{everybody.post('/fhir/ImagingStudy', {**study, **owner}).json['id']}")

        seen: list[str] = []
        address = f"/fhir/{patient}/$everything?_count=2"
        while address:
            page = everybody.get(address)
            seen += self._keys(page)
            following = [each["url"] for each in page.json["link"] if each["relation"] == "next"]
            address = following[0].removeprefix("http://images.test") if following else ""

        assert seen == [patient, *made[:0:-1]]
        assert self._keys(everybody.get(f"/fhir/{patient}/$everything?_type=Observation")) == []
        assert self._keys(everybody.get(f"/fhir/{patient}/$everything?start=2023")) == [patient, made[4], made[3]]
        assert self._keys(everybody.get(f"/fhir/{patient}/$everything?end=2021&_type=ImagingStudy")) == [made[1]]

    def test_what_may_not_be_read_is_not_told(self, doors: Doors, everybody: Caller) -> None:
        patient = _patient(everybody)
        auditor = doors.caller(Right.AUDIT, name="auditor")

        assert auditor.get(f"/fhir/{patient}/$everything").status_code == 403
        assert everybody.get("/fhir/Patient/none/$everything").status_code == 404
        assert doors.stranger.get(f"/fhir/{patient}/$everything").status_code == 401


def test_the_statement_names_the_operations(doors: Doors) -> None:
    stated = doors.stranger.get("/fhir/metadata").json["rest"][0]["operation"]

    assert {each["name"] for each in stated} >= {
        *("meta", "meta-add", "meta-delete", "validate", "everything", "expand", "validate-code", "lookup")
    }
