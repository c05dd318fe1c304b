"""Every real file of pydicom's wheel that is stored becomes valid FHIR, by a validator that knows no projection."""

from pathlib import Path

import pydicom
import pytest

from fhir_server.access.contracts import Right
from fhir_server.model.validation import validate
from fhir_server.store.documents import resource_of
from imaging.archive import Stored
from tests.support.doors import Doors

FILES = sorted((Path(pydicom.__file__).parent / "data").rglob("*.dcm"))


@pytest.fixture
def stored(doors: Doors) -> set[str]:
    """Studies of all files that can be stored."""
    doors.server.principals.add("sender", [Right.REGISTER_IMAGES])
    principal = doors.server.principals.authenticate(doors.server.principals.mint("sender"))
    outcomes = doors.server.studies.ingest((file.read_bytes() for file in FILES), principal)
    studies = {outcome.summary.study_uid for outcome in outcomes if isinstance(outcome, Stored)}
    while doors.server.studies.catch_up():
        pass
    return studies


def test_every_study_of_real_files_becomes_valid_resources(doors: Doors, stored: set[str]):
    found = [
        resource_of(each["_id"], each) for each in doors.server.database.resources.find({"type": {"$exists": True}})
    ]

    assert {each.id for each in found if each.type == "ImagingStudy"} == stored
    assert len(stored) > 30
    for each in found:
        validate(each.json(), each.type)
