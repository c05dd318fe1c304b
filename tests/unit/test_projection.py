"""From study facts to ImagingStudy. Expected values: FHIR R4 ImagingStudy, SMART Imaging Access profiles, PS3.16."""

import copy
import time
from pathlib import Path

import pytest

from fhir_server.access.contracts import RIGHTS_SYSTEM, Right
from fhir_server.access.emergencies import ALARM_SYSTEM
from fhir_server.model.subscriber import SUBSCRIBER_SYSTEM
from fhir_server.model.topics import ALARM
from fhir_server.ownership import OWNED_OF_DEVICE, is_the_servers
from fhir_server.projection import (
    IMAGING_CONDITIONS,
    Surroundings,
    attributes_of,
    endpoint,
    imaging_study_id,
    patient_identifier,
    patient_resource,
    project,
    study_uid_of,
)
from fhir_server.study_elements import OWNED, OWNED_OF_SERIES, changed_by_client, merge
from tests.support.facts import instance, patient, series, study

AROUND = Surroundings(subject="Patient/p", assigner="Organization/a", accession_system="urn:oid:1.2.3.4")


def projected(*args, **given):
    return project(study(*args, **given), AROUND).imaging_study


def test_study_instance_uid_is_the_identifier_and_the_id():
    resource = projected(uid="1.2.840.113619.2.1")

    assert resource["identifier"] == [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.113619.2.1"}]
    assert resource["id"] == imaging_study_id("1.2.840.113619.2.1") == "1.2.840.113619.2.1"
    assert study_uid_of(resource) == "1.2.840.113619.2.1"


def test_accession_number_is_a_typed_identifier_with_its_issuer():
    accession = projected(accession_number="A77")["identifier"][1]

    assert accession["type"]["coding"][0]["code"] == "ACSN"
    assert accession["type"]["coding"][0]["system"] == "http://terminology.hl7.org/CodeSystem/v2-0203"
    assert (accession["system"], accession["value"]) == ("urn:oid:1.2.3.4", "A77")


def test_modalities_are_listed_once_and_sorted():
    resource = projected(series("1.1", modality="PT"), series("1.2", modality="CT"), series("1.3", modality="CT"))

    assert [coding["code"] for coding in resource["modality"]] == ["CT", "PT"]
    assert resource["modality"][0]["system"] == "http://dicom.nema.org/resources/ontology/DCM"


def test_a_series_without_modality_is_other():
    assert projected(series(modality=""))["series"][0]["modality"]["code"] == "OT"


def test_counts_are_those_of_the_images():
    resource = projected(series("1.1", count=3), series("1.2", count=2))

    assert (resource["numberOfSeries"], resource["numberOfInstances"]) == (2, 5)
    assert [each["numberOfInstances"] for each in resource["series"]] == [3, 2]


def test_an_instance_says_its_class_as_a_uri():
    facts = series()
    entry = projected(facts)["series"][0]["instance"][0]

    assert entry["sopClass"] == {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.2"}
    assert (entry["uid"], entry["number"]) == ("1.2.3.1.1", 1)


def test_numbers_that_fhir_cannot_hold_are_left_out():
    facts = series(series_number=-1)
    odd = type(facts)(facts.series, (instance("1.9", instance_number=-5),), ())

    entry = projected(odd)["series"][0]

    assert "number" not in entry
    assert "number" not in entry["instance"][0]


def test_absent_attributes_leave_no_empty_elements():
    resource = projected()

    assert not [name for name, value in resource.items() if value in ("", None, [], {})]
    assert "description" not in resource
    assert "started" not in resource
    assert "referrer" not in resource


@pytest.mark.parametrize(
    ("term", "code", "number", "display"),
    [
        ("CHEST", None, "816094009", "Chest"),  # PS3.16 CID 4031
        ("CSPINE", None, "122494005", "Cervical spine"),
        ("CHEST", ("T-A0100", "SRT", "Brain"), "12738006", "Brain"),  # the code wins; PS3.16 annex L for the old form
        ("", ("69536005", "SCT", "Head"), "69536005", "Head"),
    ],
)
def test_body_site_is_snomed_where_a_table_knows_it(term, code, number, display):
    entry = projected(series(body_part_examined=term, body_part_code=code))["series"][0]

    assert entry["bodySite"] == {"system": "http://snomed.info/sct", "code": number, "display": display}


@pytest.mark.parametrize(
    ("term", "code", "display"),
    [("LEFT BIG THING", None, "LEFT BIG THING"), ("", ("X1", "99LOCAL", "Somewhere"), "Somewhere")],
)
def test_an_unknown_body_part_is_shown_without_a_code(term, code, display):
    entry = projected(series(body_part_examined=term, body_part_code=code))["series"][0]

    assert entry["bodySite"] == {"display": display}


def test_laterality_is_a_code_of_cid_244():
    assert projected(series(laterality="R"))["series"][0]["laterality"]["code"] == "24028007"
    assert "laterality" not in projected(series(laterality="?"))["series"][0]


def test_started_is_the_studys_own_time_with_its_zone():
    resource = projected(study_date="20240301", study_time="101500", timezone_offset_from_utc="+0100")

    assert resource["started"] == "2024-03-01T10:15:00+01:00"


def test_without_a_study_date_the_earliest_series_tells_when_it_started():
    later = series("1.1", series_date="20240301", series_time="1100")
    sooner = series("1.2", series_date="20240301", series_time="0900")

    resource = projected(later, sooner, timezone_offset_from_utc="+0000")

    assert resource["started"] == "2024-03-01T09:00:00+00:00"


def test_equipment_becomes_a_device_that_performed_the_series():
    machine = {"manufacturer": "ACME", "manufacturer_model_name": "Ring 9", "device_serial_number": "S1"}
    result = project(study(series(**machine, station_name="CT-2", software_versions="1.0\\1.1")), AROUND)

    (device,) = result.devices
    actor = result.imaging_study["series"][0]["performer"][0]["actor"]
    assert actor == {"reference": f"Device/{device['id']}"}
    assert device["manufacturer"] == "ACME"
    assert device["serialNumber"] == "S1"
    assert device["version"] == [{"value": "1.0"}, {"value": "1.1"}]
    assert {"name": "CT-2", "type": "user-friendly-name"} in device["deviceName"]


def test_one_machine_in_many_series_is_one_device():
    machine = {"manufacturer": "ACME", "manufacturer_model_name": "Ring 9", "device_serial_number": "S1"}

    result = project(study(series("1.1", **machine), series("1.2", **machine)), AROUND)

    assert len(result.devices) == 1


def test_machines_without_serial_number_of_two_hospitals_stay_apart():
    facts = study(series(manufacturer="ACME", manufacturer_model_name="Ring 9"))
    elsewhere = Surroundings(subject="Patient/p", assigner="Organization/b", accession_system="urn:x")

    assert project(facts, AROUND).devices[0]["id"] != project(facts, elsewhere).devices[0]["id"]


def test_series_with_imaging_conditions_refers_to_their_observation():
    entry = projected(series("1.2.3.1", conditions=("any",)))["series"][0]

    assert entry["extension"] == [{"url": IMAGING_CONDITIONS, "valueReference": {"reference": "Observation/1.2.3.1"}}]


def test_endpoint_conforms_to_smart_imaging_access():
    resource = endpoint("https://images.example/dicom-web")

    assert resource["address"] == "https://images.example/dicom-web"
    assert resource["connectionType"]["code"] == "dicom-wado-rs"
    assert resource["extension"] == [
        {
            "url": "http://fhir.org/argonaut/smart-imaging/StructureDefinition/requires-access-token",
            "valueBoolean": True,
        }
    ]


def test_equal_patient_ids_of_two_hospitals_are_two_patients():
    someone = patient(patient_id="4711", issuer_of_patient_id="HIS")

    here = patient_identifier(someone, "Organization/a")
    there = patient_identifier(someone, "Organization/b")

    assert here["system"] != there["system"]


def test_a_universal_issuer_makes_one_patient_wherever_the_images_come_from():
    someone = patient(patient_id="4711", issuer_of_patient_id="1.2.276.0.76.3")

    here = patient_identifier(someone, "Organization/a")
    there = patient_identifier(someone, "Organization/b")

    assert here == there
    assert here["system"] == "urn:oid:1.2.276.0.76.3"


def test_the_configured_assigner_stands_in_for_an_absent_issuer_only():
    system = "http://hospital.example/mrn"

    assert patient_identifier(patient(patient_id="1"), "Organization/a", system)["system"] == system
    assert (
        patient_identifier(patient(patient_id="1", issuer_of_patient_id="HIS"), "Organization/a", system)["system"]
        != system
    )


@pytest.mark.parametrize("default_system", ["", "urn:oid:1.2.3"])
@pytest.mark.parametrize("issuer", ["", "HIS", "1.2.840.5", "urn:uuid:42284e81-88ae-54e5-b1bb-8ac1fc2999fd"])
@pytest.mark.parametrize(
    "name", ["Doe^Jane", "Doe^Jane^M N^Dr^Jr", "Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田^太郎", "Doe", "^Jane"]
)
def test_what_images_say_of_a_patient_can_be_read_back_from_it(name, issuer, default_system):
    someone = patient(
        patient_id="7", issuer_of_patient_id=issuer, patient_name=name, patient_birth_date="19700131", patient_sex="F"
    )
    identifier = patient_identifier(someone, "Organization/a", default_system)
    old = {"use": "old", "system": "urn:x", "value": "8"}
    made = patient_resource(someone, identifier)
    made["identifier"] = [{"system": "urn:other", "value": "9"}, old, *made["identifier"]]

    told = attributes_of(made, "Organization/a", default_system)

    assert told == {
        "PatientID": ("7",), "IssuerOfPatientID": (issuer,) if issuer else (), "PatientName": (name,),
        "PatientBirthDate": ("19700131",), "PatientSex": ("F",),
    }  # fmt: skip


def test_what_a_patient_does_not_tell_is_without_value():
    written = {"name": [{"text": "Jane ^ Doe"}], "birthDate": "1970-01", "gender": "unknown"}
    empty = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")

    assert attributes_of(written, "Organization/a") == {**dict.fromkeys(empty, ()), "PatientName": ("Jane   Doe",)}


def test_without_patient_id_there_is_no_identifier():
    assert patient_identifier(patient(), "Organization/a") is None


def test_patient_carries_name_gender_and_birth_date():
    someone = patient(patient_name="King^Ada", patient_sex="F", patient_birth_date="18151210")

    resource = patient_resource(someone, None)

    assert resource["name"][0]["family"] == "King"
    assert (resource["gender"], resource["birthDate"]) == ("female", "1815-12-10")


def test_what_a_client_added_survives_the_next_projection():
    stored = projected()
    stored["note"] = [{"text": "seen"}]
    stored["reasonCode"] = [{"text": "cough"}]
    stored["identifier"].append({"system": "http://ris.example", "value": "9"})
    stored["basedOn"] = [{"reference": "ServiceRequest/1"}]
    stored["series"][0]["specimen"] = [{"reference": "Specimen/1"}]
    stored["meta"] = {"versionId": "3", "tag": [{"code": "teaching"}]}

    merged = merge(stored, projected(series(count=2)))

    assert merged["note"] == [{"text": "seen"}]
    assert merged["reasonCode"] == [{"text": "cough"}]
    assert merged["identifier"][-1] == {"system": "http://ris.example", "value": "9"}
    assert merged["basedOn"] == [{"reference": "ServiceRequest/1"}]
    assert merged["series"][0]["specimen"] == [{"reference": "Specimen/1"}]
    assert merged["meta"]["tag"] == [{"code": "teaching"}]
    assert merged["numberOfInstances"] == 2


def test_merging_twice_changes_nothing_more():
    stored = projected(accession_number="1")
    stored["note"] = [{"text": "seen"}]
    new = projected(series(count=2, manufacturer_model_name="Ring 9"), accession_number="1")

    once = merge(stored, new)

    assert merge(once, new) == once


def test_a_series_without_images_any_more_is_gone():
    both = projected(series("1.1"), series("1.2"))

    assert [each["uid"] for each in merge(both, projected(series("1.2")))["series"]] == ["1.2"]


def test_projection_replaces_what_a_client_wrote_before_the_images_came():
    early = {
        "resourceType": "ImagingStudy",
        "id": "1.2.3",
        "status": "registered",
        "subject": {"reference": "Patient/x"},
    }

    merged = merge(early, projected())

    assert merged["status"] == "available"
    assert merged["subject"] == {"reference": "Patient/p"}


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("ImagingStudy.status", lambda r: r.update(status="cancelled")),
        ("ImagingStudy.subject", lambda r: r.update(subject={"reference": "Patient/other"})),
        ("ImagingStudy.numberOfInstances", lambda r: r.pop("numberOfInstances")),
        ("ImagingStudy.identifier", lambda r: r["identifier"].pop(0)),
        ("ImagingStudy.endpoint", lambda r: r["endpoint"].clear()),
        ("ImagingStudy.series", lambda r: r.pop("series")),
        ("ImagingStudy.series[0].modality", lambda r: r["series"][0].update(modality={"code": "MR"})),
        ("ImagingStudy.series[0].instance", lambda r: r["series"][0]["instance"].pop()),
    ],
)
def test_elements_of_the_images_are_named_when_a_client_changes_them(path, change):
    stored = projected(accession_number="1")
    proposed = copy.deepcopy(stored)
    change(proposed)

    assert changed_by_client(stored, proposed) == [path]


def test_clinical_elements_may_be_changed_by_a_client():
    stored = projected(accession_number="1")
    proposed = copy.deepcopy(stored)
    proposed["note"] = [{"text": "seen"}]
    proposed["identifier"].append({"system": "http://ris.example", "value": "9"})
    proposed["series"][0]["extension"] = [{"url": "http://x.example", "valueBoolean": True}]
    proposed["series"][0]["instance"][0]["extension"] = [{"url": "http://x.example", "valueBoolean": True}]

    assert changed_by_client(stored, proposed) == []


@pytest.mark.parametrize(
    ("resource_type", "resource_id", "expected"),
    [
        ("Observation", "1.2.3.4", True),
        ("Observation", "0b0e6cf8-8a1d-4d5c-9a3a-111111111111", False),
        ("Endpoint", "dicomweb", True),
        ("Endpoint", "peer-clinic", True),
        ("Endpoint", "clinic", False),
        ("Device", "equipment-00", True),
        ("ImagingStudy", "1.2.3", False),
    ],
)
def test_ids_that_only_the_server_gives(resource_type, resource_id, expected):
    assert is_the_servers(resource_type, resource_id) is expected


def test_the_time_of_a_projection_grows_with_the_instances_and_not_faster():
    def took(instances: int) -> float:
        facts = study(*(series(f"1.2.{number}", count=instances // 10) for number in range(10)))
        started = time.process_time()
        result = project(facts, AROUND).imaging_study
        merge(copy.copy(result), result)
        assert result["numberOfInstances"] == instances
        return time.process_time() - started

    few, many = min(took(1_000) for _ in range(5)), min(took(10_000) for _ in range(5))

    assert many < 40 * few  # ten times where it is in proportion, a hundred times where each looks at each


PAGE = (Path(__file__).parents[2] / "docs/reference/dicom-to-fhir.md").read_text()


@pytest.mark.parametrize("element", [*OWNED, *OWNED_OF_SERIES, *OWNED_OF_DEVICE])
def test_the_reference_page_names_every_element_of_the_images(element):
    assert f"`{element}`" in PAGE


@pytest.mark.parametrize(
    "name",
    [
        IMAGING_CONDITIONS,
        RIGHTS_SYSTEM,
        SUBSCRIBER_SYSTEM,
        ALARM["system"],
        ALARM_SYSTEM,
        *(right.value for right in Right),
    ],
)
def test_the_reference_page_has_our_own_names(name):
    assert f"`{name}`" in PAGE
