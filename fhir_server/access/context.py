"""What of each resource type is about one patient, and what is about no patient at all.

Pure. A token that is for one patient sees of each type what `of_patient` says, whatever its scopes are.
Sources: FHIR R4 CompartmentDefinition/patient; SMART App Launch 2.2, scopes: resources that are not about a patient,
such as Practitioner, may be read with `patient/` scopes where they are needed to understand what is.
"""

from functools import cache

from fhir_server.model.criteria import Clause, Missing, Reference, Token
from fhir_server.model.definitions import compartments, parameters
from fhir_server.model.query import Query
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.projection import ENDPOINT_ID
from fhir_server.store.filters import ALLOW, DENY, Access, Act, Within, either

# In the compartment by the standard, but about others too; or none of the patient's business.
SHARED = frozenset({"AuditEvent", "Group", "Contract", "Schedule"})
# Not in the compartment by the standard, but about a patient where they name one.
NAMING = frozenset({"Device", "GuidanceResponse", "Task"})
# Who and what takes part in care: about no patient.
AROUND = frozenset(
    {
        "DeviceDefinition", "DeviceMetric", "Endpoint", "HealthcareService", "Location", "Medication",
        "MedicationKnowledge", "Organization", "OrganizationAffiliation", "Practitioner", "PractitionerRole",
        "Substance",
    }
)  # fmt: skip
BY_PATIENT = frozenset({"patient", "subject"})  # search parameters that name one
READING = frozenset({Act.READ, Act.SEARCH})


@cache
def is_about_nobody(resource_type: str) -> bool:
    """Say whether resources of a type are about no patient: definitions, places, people and things that take part."""
    return resource_type in AROUND or RESOURCES[resource_type].domain is Domain.DEFINITION


def of_patient(resource_type: str, act: Act, patient: str) -> Access:
    """Return what may be done at most with resources of a type for one patient, `Patient/...`."""
    if is_about_nobody(resource_type):
        return ALLOW if act in READING else DENY
    if resource_type == "Patient":
        # By the standard another Patient that is linked to this one is in its compartment: but it is another person's.
        return (Clause("_id", "token", "", (Token(None, patient.removeprefix("Patient/")),)),)
    if resource_type in NAMING:
        named: Access = (Clause("patient", "reference", "", (Reference((patient,)),)),)
        is_read_device = resource_type == "Device" and act in READING
        nobodys: Access = (Clause("patient", "reference", "", (Missing(is_missing=True),)),)
        return either(named, nobodys) if is_read_device else named
    if resource_type in SHARED or "Patient" not in compartments(resource_type):
        return DENY
    return (Within((patient,)),)


def patients_named(query: Query) -> list[tuple[str, ...]]:
    """Return the patients that a search asks for by name, each as every text that may stand for it."""
    named: list[tuple[str, ...]] = [(query.compartment,)] if query.compartment.startswith("Patient/") else []
    for branch in query.asked:
        for clause in branch.clauses:
            if isinstance(clause, Clause) and clause.code in BY_PATIENT and clause.modifier == "":
                named += [value.candidates for value in clause.values if isinstance(value, Reference)]
    return named


def own_endpoint() -> Access:
    """Return access to the Endpoint of this server's DICOMweb: who may see an ImagingStudy may see where it lies."""
    return (Clause("_id", "token", "", (Token(None, ENDPOINT_ID),)),)


assert all("patient" in parameters(each) for each in NAMING)  # noqa: S101
