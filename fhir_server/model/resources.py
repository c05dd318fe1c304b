"""The table of resource types that this server serves: all of R4 but Parameters, which is never stored.

Search parameters, structure and compartments of every R4 type come from the official definitions; a row says which
interactions the FHIR door offers and what is special about the type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Interaction(StrEnum):
    """What a client may do with a type. Source: FHIR R4 CapabilityStatement, TypeRestfulInteraction."""

    READ = "read"
    VREAD = "vread"
    UPDATE = "update"
    PATCH = "patch"
    DELETE = "delete"
    HISTORY = "history-instance"
    HISTORY_TYPE = "history-type"
    CREATE = "create"
    SEARCH = "search-type"


class SystemInteraction(StrEnum):
    """What a client may do with the whole. Source: FHIR R4 CapabilityStatement, SystemRestfulInteraction."""

    TRANSACTION = "transaction"
    BATCH = "batch"
    HISTORY = "history-system"
    SEARCH = "search-system"


class Domain(StrEnum):
    """What a type is about, which decides who may change it."""

    CARE = "care"  # patients, what is done for them, and those who do it
    DEFINITION = "definition"  # what tells everybody here how to work: profiles, search parameters, terminology
    SERVER = "server"  # made by the server or by its operator alone


SUBSCRIPTION_PROFILE = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-subscription"
READ_ONLY = frozenset(
    {Interaction.READ, Interaction.VREAD, Interaction.HISTORY, Interaction.HISTORY_TYPE, Interaction.SEARCH}
)
ALL = frozenset(Interaction)


@dataclass(frozen=True, slots=True)
class ResourceType:
    """How one resource type is served."""

    name: str
    interactions: frozenset[Interaction] = ALL
    domain: Domain = Domain.CARE
    update_create: bool = False  # an update of an absent id creates it: clients may choose ids
    append_only: bool = False  # written once, without version history: no update, no delete
    sorts: tuple[str, ...] = ()  # date parameters with an index of their own for range and order
    profiles: tuple[str, ...] = ()  # profiles that resources of this type conform to
    operations: tuple[str, ...] = ()  # on an instance; defined by OperationDefinition/<type>-<name>


SMART_IMAGING = "http://fhir.org/argonaut/smart-imaging/StructureDefinition"

# Types that have nothing special about them.
_CARE = """
    Account AdverseEvent AllergyIntolerance Appointment AppointmentResponse Basic Binary BiologicallyDerivedProduct
    BodyStructure Bundle CarePlan CareTeam CatalogEntry ChargeItem Claim ClaimResponse ClinicalImpression
    Communication CommunicationRequest Composition Condition Consent Coverage CoverageEligibilityRequest
    CoverageEligibilityResponse DetectedIssue DeviceDefinition DeviceMetric DeviceRequest DeviceUseStatement
    DocumentManifest DocumentReference EffectEvidenceSynthesis EnrollmentRequest EnrollmentResponse EpisodeOfCare
    Evidence EvidenceVariable ExplanationOfBenefit FamilyMemberHistory Flag Goal Group GuidanceResponse
    HealthcareService Immunization ImmunizationEvaluation ImmunizationRecommendation InsurancePlan Invoice Linkage
    List MeasureReport Media Medication MedicationAdministration MedicationDispense MedicationKnowledge
    MedicationRequest MedicationStatement MedicinalProduct MedicinalProductAuthorization
    MedicinalProductContraindication MedicinalProductIndication MedicinalProductIngredient
    MedicinalProductInteraction MedicinalProductManufactured MedicinalProductPackaged MedicinalProductPharmaceutical
    MedicinalProductUndesirableEffect MessageHeader MolecularSequence NutritionOrder OperationOutcome
    OrganizationAffiliation PaymentNotice PaymentReconciliation Person QuestionnaireResponse RelatedPerson
    RequestGroup ResearchStudy ResearchSubject RiskAssessment RiskEvidenceSynthesis Schedule Slot Specimen Substance
    SubstanceNucleicAcid SubstancePolymer SubstanceProtein SubstanceReferenceInformation SubstanceSourceMaterial
    SubstanceSpecification SupplyDelivery SupplyRequest VerificationResult VisionPrescription
"""
_DEFINITIONS = """
    ActivityDefinition CapabilityStatement ChargeItemDefinition CodeSystem CompartmentDefinition ConceptMap
    EventDefinition ExampleScenario GraphDefinition ImplementationGuide Library Measure MessageDefinition
    NamingSystem ObservationDefinition OperationDefinition PlanDefinition Questionnaire ResearchDefinition
    ResearchElementDefinition SearchParameter SpecimenDefinition StructureDefinition StructureMap
    TerminologyCapabilities TestReport TestScript ValueSet
"""

_SPECIAL = (
    ResourceType(
        "AuditEvent",
        frozenset({Interaction.READ, Interaction.SEARCH}),
        Domain.SERVER,
        append_only=True,
        sorts=("date",),
    ),
    ResourceType("Contract", READ_ONLY, Domain.SERVER),  # made by the operator's commands
    ResourceType("Device"),
    ResourceType("DiagnosticReport", sorts=("date",)),
    ResourceType("Encounter"),
    ResourceType("Endpoint", profiles=(f"{SMART_IMAGING}/smart-wado-endpoint",)),
    ResourceType("ImagingStudy", sorts=("started",), profiles=(f"{SMART_IMAGING}/smart-imaging-study",)),
    ResourceType("Location"),
    ResourceType("Observation", sorts=("date",)),
    ResourceType("Organization"),  # subscribers, which are some of them, are made by the operator's commands
    ResourceType("Patient", sorts=("birthdate",)),
    ResourceType("Practitioner"),
    ResourceType("PractitionerRole"),
    ResourceType("Procedure"),
    ResourceType("Provenance", sorts=("recorded",)),
    ResourceType("ServiceRequest", sorts=("authored",)),
    ResourceType("Subscription", domain=Domain.SERVER, profiles=(SUBSCRIPTION_PROFILE,)),  # each subscriber's own
    ResourceType("Task", sorts=("authored-on", "modified"), operations=("preview",)),
)

_ROWS = sorted(
    [
        *_SPECIAL,
        *(ResourceType(name) for name in _CARE.split()),
        *(ResourceType(name, domain=Domain.DEFINITION) for name in _DEFINITIONS.split()),
    ],
    key=lambda row: row.name,
)

RESOURCES: Mapping[str, ResourceType] = MappingProxyType({row.name: row for row in _ROWS})
