"""The stock FHIR client of PyPI, fhirpy, over a live socket."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fhirpy import SyncFHIRClient
from fhirpy.base.exceptions import OperationOutcome, ResourceNotFound
from pymongo.database import Database
from werkzeug.serving import make_server

from fhir_server.access.contracts import Right
from tests.support.doors import Doors, new_study, opened


@pytest.fixture
def doors(db: Database[dict[str, Any]]) -> Iterator[Doors]:
    listener = make_server("127.0.0.1", 0, lambda *_: [], threaded=True)
    with opened(db, web__base_url=f"http://127.0.0.1:{listener.server_port}") as made:
        listener.app = made.flask.application
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield made
        listener.shutdown()
        thread.join()
        listener.server_close()


@pytest.fixture
def client(doors: Doors) -> SyncFHIRClient:
    token = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="fhirpy").token
    return SyncFHIRClient(doors.server.fhir_url, authorization=f"Bearer {token}")


def test_resources_are_saved_read_changed_and_deleted(client: SyncFHIRClient):
    patient = client.resource("Patient", name=[{"family": "Example"}])
    patient.save()

    again = client.resources("Patient").search(name="Example").get()
    again["gender"] = "female"
    again.save()
    assert client.reference("Patient", patient["id"]).to_resource()["gender"] == "female"

    again.delete()
    with pytest.raises((ResourceNotFound, OperationOutcome)):
        client.reference("Patient", patient["id"]).to_resource()


def test_all_pages_of_a_search_are_followed(client: SyncFHIRClient):
    for _ in range(5):
        client.resource("Patient", gender="other").save()

    assert len(client.resources("Patient").search(gender="other").limit(2).fetch_all()) == 5


def test_the_study_of_images_is_found_with_its_endpoint(doors: Doors, client: SyncFHIRClient):
    study_uid, files = new_study(instances=2)
    doors.ingest(*files)

    search = client.resources("ImagingStudy").search(identifier=f"urn:oid:{study_uid}")
    bundle = search.include("ImagingStudy", "endpoint").fetch_raw()

    found = {entry["resource"]["resourceType"]: entry["resource"] for entry in bundle["entry"]}
    assert found["ImagingStudy"]["numberOfInstances"] == 2
    assert found["Endpoint"]["connectionType"]["code"] == "dicom-wado-rs"


def test_an_invalid_resource_is_an_operation_outcome(client: SyncFHIRClient):
    with pytest.raises(OperationOutcome, match="gender"):
        client.resource("Patient", gender="sometimes").save()
