"""From the facts of a study to the FHIR resources that show it.

Pure: from what the archive knows to ImagingStudy, Patient, Device and Endpoint. How the result meets what clients wrote
is told in `study_elements`. Profiles: SMART ImagingStudy and SMART WADO-RS Endpoint of SMART Imaging Access 0.1.0, on
FHIR 4.0.1.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

from fhir_server.anatomy import body_site, laterality
from fhir_server.dicom_values import (
    clean,
    display_name,
    fhir_date,
    fhir_datetime,
    human_names,
    identifier_type,
    instant_from_datetime,
    local_system,
    pn_of,
    universal_system,
    unsigned,
)
from fhir_server.model.resources import SMART_IMAGING

if TYPE_CHECKING:
    from imaging.archive import SeriesFacts, StudyFacts
    from imaging.dataset import InstanceAttributes, Patient, SeriesAttributes

Resource = dict[str, Any]

DCM = "http://dicom.nema.org/resources/ontology/DCM"
DICOM_UID = "urn:dicom:uid"
URI = "urn:ietf:rfc:3986"
PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
REQUIRES_ACCESS_TOKEN = f"{SMART_IMAGING}/requires-access-token"
IMAGING_CONDITIONS = (
    "urn:fhir-imaging:extension:imaging-conditions"  # on ImagingStudy.series: valueReference(Observation)
)
FLAGS = "urn:fhir-imaging:code:storage-check"  # of ImagingStudy.meta.tag: checks that images did not pass
OTHER_MODALITY = "OT"  # what DICOM has for a modality that is not known; FHIR wants one

ENDPOINT_ID = "dicomweb"
ENDPOINT = f"Endpoint/{ENDPOINT_ID}"
EQUIPMENT = "equipment-"  # how the id of a Device begins that was made from images
RETRIEVABLE = ("application/dicom", "application/dicom+json", "application/octet-stream", "image/jpeg", "image/png")

_DATE_LENGTH = 8  # of a whole day as DICOM writes it
_GENDERS = {"M": "male", "F": "female", "O": "other"}  # PS3.3 C.7.1.1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a projection needs to know besides the images: the resources around the study, all as references.

    zone          of the place the images come from, None when nobody said
    order         ServiceRequest that the study answers, None when there is none
    accession_system   identifier system of the study's accession number
    assigner      subscriber that registered the study
    flags         checks that images did not pass, by name, each with what it says
    """

    subject: str
    assigner: str
    accession_system: str
    order: str | None = None
    zone: tzinfo | None = None
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Projection:
    """The resources that show one study."""

    imaging_study: Resource
    devices: list[Resource] = field(default_factory=list)


def imaging_study_id(study_uid: str) -> str:
    """Return the id of the ImagingStudy of a study: the UID itself, which is a legal FHIR id of at most 64."""
    return study_uid


def conditions_id(series_uid: str) -> str:
    """Return the id of the Observation that holds the imaging conditions of a series: the series' UID."""
    return series_uid


def study_uid_of(imaging_study: Mapping[str, Any]) -> str | None:
    """Return the Study Instance UID that an ImagingStudy names, None when it names none."""
    for identifier in imaging_study.get("identifier", []):
        if identifier.get("system") == DICOM_UID:
            return str(identifier.get("value", "")).removeprefix("urn:oid:") or None
    return None


def project(facts: "StudyFacts", around: Surroundings) -> Projection:
    """Return the ImagingStudy of a study and the Devices that made its images.

    Series and instances keep the order of the facts. Time grows with the instances, about 3 us each.
    """
    study = facts.study
    devices: dict[str, Resource] = {}
    # De-identified and converted images often lose the study's own date and time; then the first series tells.
    started = fhir_datetime(study.study_date, study.study_time, study.timezone_offset_from_utc, around.zone)
    series = [_series(each, facts, around, devices) for each in facts.series]
    started = started or _earliest(entry["started"] for entry in series if "started" in entry)
    resource = {
        "resourceType": "ImagingStudy",
        "id": imaging_study_id(study.study_instance_uid),
        "meta": _without_empty({"profile": [f"{SMART_IMAGING}/smart-imaging-study"], "tag": _tags(around.flags)}),
        "identifier": _study_identifiers(facts, around),
        "status": "available",
        "modality": [_modality(code) for code in sorted({_modality_code(each.series) for each in facts.series})],
        "subject": {"reference": around.subject},
        "started": started,
        "basedOn": [{"reference": around.order}] if around.order else None,
        "referrer": _practitioner(study.referring_physician_name),
        "endpoint": [{"reference": ENDPOINT}],
        "numberOfSeries": len(series),
        "numberOfInstances": sum(entry["numberOfInstances"] for entry in series),
        "description": clean(study.study_description),
        "series": series,
    }
    return Projection(_without_empty(resource), list(devices.values()))


def endpoint(dicomweb_url: str) -> Resource:
    """Return this server's WADO-RS Endpoint; `dicomweb_url` is what `/studies/...` is appended to."""
    return {
        "resourceType": "Endpoint",
        "id": ENDPOINT_ID,
        "meta": {"profile": [f"{SMART_IMAGING}/smart-wado-endpoint"]},
        "extension": [{"url": REQUIRES_ACCESS_TOKEN, "valueBoolean": True}],
        "status": "active",
        "connectionType": {
            "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
            "code": "dicom-wado-rs",
            "display": "DICOM WADO-RS",
        },
        "name": "DICOMweb of this server",
        "payloadType": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/endpoint-payload-type",
                        "code": "any",
                        "display": "Any",
                    }
                ]
            }
        ],
        "payloadMimeType": list(RETRIEVABLE),
        "address": dicomweb_url,
    }


def patient_identifier(patient: "Patient", assigner: str, default_system: str = "") -> Resource | None:
    """Return the identifier of a patient, None when the images carry no Patient ID.

    An issuer that is universal (OID, UUID, URI) is the system. Otherwise the numbers belong to the subscriber that
    registered the images, so that equal Patient IDs of two hospitals never meet; a local issuer name divides them
    further. `default_system`, for a server of one institution, replaces the subscriber where no issuer is given.
    """
    number = clean(patient.patient_id)
    if not number:
        return None
    issuer = clean(patient.issuer_of_patient_id)
    fallback = default_system if default_system and not issuer else local_system("patient", assigner, issuer)
    identifier = {"type": identifier_type("MR"), "system": universal_system(issuer) or fallback, "value": number}
    return {**identifier, "assigner": {"display": issuer}} if issuer else identifier


def patient_resource(patient: "Patient", identifier: Resource | None) -> Resource:
    """Return the Patient that images describe, without an id."""
    resource = {
        "resourceType": "Patient",
        "identifier": [identifier] if identifier else None,
        "name": human_names(patient.patient_name),
        "gender": _GENDERS.get(patient.patient_sex.strip().upper()),
        "birthDate": fhir_date(patient.patient_birth_date),
    }
    return _without_empty(resource)


def attributes_of(patient: Mapping[str, Any], assigner: str, default_system: str = "") -> dict[str, tuple[str, ...]]:
    """Return what images say of a Patient, as texts by keyword: what `patient_identifier` and `patient_resource` read.

    Of several identifiers it is the first by which images of the assigner are found, else the first that is not old.
    What the Patient does not tell is without value.
    """
    numbers = [each for each in patient.get("identifier", []) if each.get("value") and each.get("use") != "old"]
    others = [(each, _issuers(each)[-1]) for each in numbers]
    pairs = ((each, issuer) for each in numbers for issuer in _issuers(each))
    ours = [pair for pair in pairs if _finds(*pair, assigner, default_system)]
    nothing: tuple[Mapping[str, Any], str] = {}, ""
    number, issuer = next(iter(ours or others), nothing)
    sex = {gender: code for code, gender in _GENDERS.items()}.get(str(patient.get("gender")), "")
    born = str(patient.get("birthDate", "")).replace("-", "")
    told = {
        "PatientID": str(number.get("value", "")),
        "IssuerOfPatientID": issuer,
        "PatientName": pn_of(patient.get("name", [])),
        "PatientBirthDate": born if len(born) == _DATE_LENGTH else "",
        "PatientSex": sex,
    }
    return {keyword: (text,) if text else () for keyword, text in told.items()}


def _issuers(identifier: Mapping[str, Any]) -> list[str]:
    """Return the Issuers of Patient ID that an identifier may have come from."""
    if named := identifier.get("assigner", {}).get("display"):
        return [str(named)]
    system = str(identifier.get("system", ""))
    return ["", system.removeprefix("urn:oid:")] if system.startswith("urn:oid:") else [""]


def _finds(identifier: Mapping[str, Any], issuer: str, assigner: str, default_system: str) -> bool:
    local = default_system if default_system and not issuer else local_system("patient", assigner, issuer)
    return identifier.get("system") == (universal_system(issuer) or local)


def accession_system(issuer: str, assigner: str) -> str:
    """Return the identifier system of accession numbers; as for patients, a merely local issuer stays local."""
    return universal_system(clean(issuer)) or local_system("accession", assigner, clean(issuer))


def _series(
    facts: "SeriesFacts", study: "StudyFacts", around: Surroundings, devices: dict[str, Resource]
) -> dict[str, Any]:
    series = facts.series
    device = _device(series, around.assigner)
    if device is not None:
        devices[device["id"]] = device
    entry = {
        "uid": series.series_instance_uid,
        "number": unsigned(series.series_number),
        "modality": _modality(_modality_code(series)),
        "description": clean(series.series_description),
        "numberOfInstances": len(facts.instances),
        "endpoint": [{"reference": ENDPOINT}],
        "bodySite": body_site(series.body_part_examined, series.body_part_code),
        "laterality": laterality(series.laterality),
        "started": _series_started(series, study.study.timezone_offset_from_utc, around.zone),
        "performer": _performers(series, device),
        "instance": [_instance(each) for each in facts.instances],
    }
    if facts.conditions:
        reference = {"reference": f"Observation/{conditions_id(series.series_instance_uid)}"}
        entry["extension"] = [{"url": IMAGING_CONDITIONS, "valueReference": reference}]
    return _without_empty(entry)


def _instance(instance: "InstanceAttributes") -> dict[str, Any]:
    entry: dict[str, Any] = {
        "uid": instance.sop_instance_uid,
        "sopClass": {"system": URI, "code": f"urn:oid:{instance.sop_class_uid}"},
    }
    if (number := unsigned(instance.instance_number)) is not None:
        entry["number"] = number
    if instance.title:
        entry["title"] = clean(instance.title)
    return entry


def _series_started(series: "SeriesAttributes", offset: str, zone: tzinfo | None) -> str | None:
    if started := fhir_datetime(series.series_date, series.series_time, offset, zone):
        return started
    date, time = series.performed_procedure_step_start_date, series.performed_procedure_step_start_time
    return fhir_datetime(date, time, offset, zone)


def _performers(series: "SeriesAttributes", device: Resource | None) -> list[dict[str, Any]]:
    # "PRF: a person, non-person living subject, organization or device that actually and principally carries out
    # the action" (v3 ParticipationType), hence for both.
    function = {"coding": [{"system": PARTICIPATION, "code": "PRF", "display": "performer"}]}
    actors = [{"reference": f"Device/{device['id']}"}] if device else []
    physician = _practitioner(series.performing_physician_name.split("\\")[0])
    return [{"function": function, "actor": actor} for actor in (*actors, physician) if actor]


def _practitioner(pn: str) -> dict[str, Any] | None:
    name = display_name(pn)
    return {"type": "Practitioner", "display": name} if name else None


def _device(series: "SeriesAttributes", assigner: str) -> Resource | None:
    """The equipment as it was configured when it made these images: another software version is another Device.

    Without a serial number the same words may mean two machines, so the subscriber is part of the identity.
    """
    manufacturer, model = clean(series.manufacturer), clean(series.manufacturer_model_name)
    serial, station = clean(series.device_serial_number), clean(series.station_name)
    versions = [version for each in series.software_versions.split("\\") if (version := clean(each))]
    if not (model or serial or station):
        return None
    identity = chr(0).join((manufacturer, model, serial, station, *versions, "" if serial else assigner))
    names = (("model-name", model), ("user-friendly-name", station))
    resource = {
        "resourceType": "Device",
        "id": f"{EQUIPMENT}{hashlib.sha256(identity.encode()).hexdigest()[:32]}",
        "identifier": [{"type": identifier_type("SNO"), "value": serial}] if serial else None,
        "manufacturer": manufacturer,
        "serialNumber": serial,
        "deviceName": [{"name": name, "type": kind} for kind, name in names if name],
        "modelNumber": model,
        "version": [{"value": version} for version in versions],
    }
    return _without_empty(resource)


def _tags(flags: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"system": FLAGS, "code": name, "display": text} for name, text in flags.items()]


def _study_identifiers(facts: "StudyFacts", around: Surroundings) -> list[dict[str, Any]]:
    identifiers: list[dict[str, Any]] = [{"system": DICOM_UID, "value": f"urn:oid:{facts.study.study_instance_uid}"}]
    number = clean(facts.study.accession_number)
    if number:
        # "official" marks ours: a client may add further accession numbers.
        accession = {"use": "official", "type": identifier_type("ACSN"), "system": around.accession_system}
        identifiers.append({**accession, "value": number})
    return identifiers


def _modality_code(series: "SeriesAttributes") -> str:
    return series.modality.strip() or OTHER_MODALITY


def _modality(code: str) -> dict[str, Any]:
    return {"system": DCM, "code": code}


def _earliest(moments: Iterable[str]) -> str | None:
    """The earliest of FHIR dateTimes; dates and moments are not mixed, because their order is not known."""
    times = list(moments)
    if not times:
        return None
    instants = [(instant_from_datetime(time), time) for time in times]
    if all(instant for instant, _ in instants):
        return min(instants, key=lambda pair: str(pair[0]))[1]
    return min(time[:10] for time in times)


def _without_empty(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if value not in (None, "", [], {})}
