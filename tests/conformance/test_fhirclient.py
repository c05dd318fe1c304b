"""The SMART FHIR client of PyPI, fhirclient, over a live socket."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fhirclient.client import FHIRClient
from fhirclient.models.humanname import HumanName
from fhirclient.models.patient import Patient
from fhirclient.server import FHIRNotFoundException
from pymongo.database import Database
from werkzeug.serving import make_server

from fhir_server.access.contracts import Right
from tests.support.doors import Doors, opened


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
def client(doors: Doors) -> FHIRClient:
    token = doors.caller(Right.REGISTER_IMAGES, Right.RECEIVE_IMAGES, name="fhirclient").token
    made = FHIRClient(settings={"app_id": "test", "api_base": f"{doors.server.fhir_url}/"})
    made.server.session.headers["Authorization"] = f"Bearer {token}"
    return made


def test_resources_are_created_found_changed_and_deleted(client: FHIRClient):
    patient = Patient({"name": [HumanName({"family": "Example"}).as_json()]})
    identifier = patient.create(client.server)["id"]

    found = Patient.read(identifier, client.server)
    found.gender = "female"
    changed = found.update(client.server)
    (searched,) = Patient.where({"family": "Example"}).perform_resources(client.server)
    searched.delete(client.server)

    assert (changed["meta"]["versionId"], searched.gender) == ("2", "female")
    with pytest.raises(Exception, match=r"410|GONE|Gone"):
        Patient.read(identifier, client.server)
    with pytest.raises(FHIRNotFoundException):
        Patient.read("unknown", client.server)
