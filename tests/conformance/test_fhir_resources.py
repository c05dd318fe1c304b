"""A client that is made of the models of fhir.resources: what it writes is taken, what it gets are its models."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from fhir.resources.R4B.endpoint import Endpoint
from fhir.resources.R4B.imagingstudy import ImagingStudy
from fhir.resources.R4B.operationoutcome import OperationOutcome
from fhir.resources.R4B.patient import Patient
from pymongo.database import Database

from fhir_server.access.contracts import Right
from tests.support.doors import Caller, Doors, new_study, opened

XML = "application/fhir+xml"


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


@pytest.fixture(scope="module")
def client(doors: Doors) -> Caller:
    return doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="client")


def sent(client: Caller, method: str, path: str, model: Any, kind: str = "application/fhir+json") -> bytes:
    """Send a model in one of the forms, and return what comes back in the same."""
    body = model.model_dump_json() if kind != XML else model.model_dump_xml()
    answer = client.call(method, path, data=body, headers={"Content-Type": kind, "Accept": kind})
    assert answer.status_code in (200, 201), answer.text
    return bytes(answer.data)


def test_resources_are_created_read_and_changed_as_models(client: Caller) -> None:
    made = Patient.model_validate_json(
        sent(client, "POST", "/fhir/Patient", Patient(birthDate="1970-01-01", name=[{"family": "Example"}]))
    )
    made.gender = "female"
    sent(client, "PUT", f"/fhir/Patient/{made.id}", made)

    read = Patient.model_validate_json(client.get(f"/fhir/Patient/{made.id}").data)

    assert (read.gender, read.name[0].family, read.meta.versionId) == ("female", "Example", "2")


def test_the_study_of_images_and_its_endpoint_are_models(doors: Doors, client: Caller) -> None:
    uid, files = new_study(instances=2)
    doors.ingest(*files, name="client")

    answer = client.get(f"/fhir/ImagingStudy?identifier=urn:dicom:uid|urn:oid:{uid}&_include=ImagingStudy:endpoint")
    study, endpoint = (entry.resource for entry in Bundle.model_validate_json(answer.data).entry)

    assert isinstance(study, ImagingStudy)
    assert isinstance(endpoint, Endpoint)
    assert (study.numberOfInstances, study.series[0].instance[1].number) == (2, 2)
    assert study.endpoint[0].reference == f"Endpoint/{endpoint.id}"


@pytest.mark.parametrize("kind", ["application/fhir+json", XML])
def test_a_transaction_is_a_model_and_so_is_its_answer(client: Caller, kind: str) -> None:
    urn = f"urn:uuid:{uuid4()}"
    study = ImagingStudy(status="registered", subject={"reference": urn})
    entries = [
        {"fullUrl": urn, "resource": Patient(active=True), "request": {"method": "POST", "url": "Patient"}},
        {"resource": study, "request": {"method": "POST", "url": "ImagingStudy"}},
    ]

    body = sent(client, "POST", "/fhir", Bundle(type="transaction", entry=entries), kind)
    answer = Bundle.model_validate_xml(body) if kind == XML else Bundle.model_validate_json(body)

    patient, made = (entry.resource for entry in answer.entry)
    assert [entry.response.status for entry in answer.entry] == ["201 Created"] * 2
    assert made.subject.reference == f"Patient/{patient.id}"


def test_errors_and_the_statement_are_models(client: Caller) -> None:
    wrong = client.post("/fhir/Patient", {"resourceType": "Patient", "gender": "x"})
    served = client.get("/fhir/metadata")

    outcome = OperationOutcome.model_validate_json(wrong.data)
    statement = CapabilityStatement.model_validate_json(served.data)

    assert outcome.issue[0].expression == ["Patient.gender"]
    assert "ImagingStudy" in {row.type for row in statement.rest[0].resource}
