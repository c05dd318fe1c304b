"""What rights allow. Expected values: the meaning of the rights as the contracts state them."""

import pytest

from fhir_server.access.contracts import Right
from fhir_server.access.policy import require, restriction
from fhir_server.access.principals import Principal
from fhir_server.model.resources import RESOURCES, Domain
from fhir_server.store.filters import ALLOW, DENY, Act
from imaging.errors import AppError, Category

WRITES = (Act.CREATE, Act.UPDATE, Act.DELETE)


def principal(*rights: Right) -> Principal:
    return Principal("Organization/a", "client", "A", frozenset(rights))


@pytest.mark.parametrize("resource_type", sorted(RESOURCES))
@pytest.mark.parametrize("act", list(Act))
def test_without_rights_nothing_is_allowed(resource_type, act):
    assert restriction(principal()).access(resource_type, act) is DENY


@pytest.mark.parametrize("resource_type", sorted(RESOURCES))
def test_registering_never_reads(resource_type):
    assert restriction(principal(Right.REGISTER_IMAGES)).access(resource_type, Act.READ) is DENY


@pytest.mark.parametrize("resource_type", sorted(RESOURCES))
@pytest.mark.parametrize("act", WRITES)
def test_receiving_never_writes(resource_type, act):
    access = restriction(principal(Right.RECEIVE_IMAGES)).access(resource_type, act)

    # Whoever receives says by Subscriptions of its own what it wants to be told.
    assert access is DENY if resource_type != "Subscription" else access is ALLOW or access[0].code == "_tag"


@pytest.mark.parametrize("act", WRITES)
@pytest.mark.parametrize("resource_type", ["Contract", "AuditEvent"])
def test_nobody_writes_contracts_or_the_audit_record(resource_type, act):
    assert restriction(principal(*Right)).access(resource_type, act) is DENY


def test_registering_writes_clinical_resources():
    rules = restriction(principal(Right.REGISTER_IMAGES))

    assert all(rules.access("ImagingStudy", act) is ALLOW for act in WRITES)


def test_receiving_reads_only_its_own_contracts():
    access = restriction(principal(Right.RECEIVE_IMAGES)).access("Contract", Act.READ)

    assert [clause.code for clause in access] == ["subject"]
    assert access[0].values[0].candidates == ("Organization/a",)


def test_only_auditors_read_the_audit_record():
    assert restriction(principal(Right.RECEIVE_IMAGES)).access("AuditEvent", Act.READ) is DENY
    assert restriction(principal(Right.AUDIT)).access("AuditEvent", Act.READ) is ALLOW


def test_auditors_see_nothing_clinical():
    rules = restriction(principal(Right.AUDIT))

    assert {name for name in RESOURCES if rules.access(name, Act.READ) is not DENY} == {
        "AuditEvent",
        "Contract",
        "Organization",
        "Provenance",
    }


def test_a_type_that_is_not_served_is_denied_to_everyone():
    assert restriction(principal(*Right)).access("Parameters", Act.READ) is DENY


def test_a_missing_right_is_named():
    with pytest.raises(AppError) as caught:
        require(principal(Right.RECEIVE_IMAGES), Right.REGISTER_IMAGES, "store images")

    assert caught.value.category is Category.FORBIDDEN
    assert "register-images" in caught.value.message


def test_ordering_reads_its_own_orders_and_what_can_be_ordered():
    rules = restriction(principal(Right.ORDER_PROCESSING))

    assert [clause.code for clause in rules.access("Task", Act.READ)] == ["requester"]
    assert rules.access("Task", Act.READ)[0].values[0].candidates == ("Organization/a",)
    assert all(rules.access("Task", act) is ALLOW for act in WRITES)
    assert rules.access("Provenance", Act.READ)[0].values[0].candidates == ("Organization/a",)
    assert [clause.code for clause in rules.access("Endpoint", Act.READ)] == ["organization"]
    assert rules.access("Endpoint", Act.READ)[0].values[0].candidates == ("Organization/a",)
    assert rules.access("Endpoint", Act.CREATE) is DENY
    assert rules.access("ImagingStudy", Act.READ) is DENY
    assert rules.access("ImagingStudy", Act.CREATE) is DENY


def test_who_defines_writes_and_reads_definitions_and_nothing_about_patients():
    rules = restriction(principal(Right.DEFINE))

    readable = {name for name in RESOURCES if rules.access(name, Act.READ) is not DENY}
    writable = {name for name in RESOURCES if all(rules.access(name, act) is ALLOW for act in WRITES)}
    assert readable == writable == {name for name, row in RESOURCES.items() if row.domain is Domain.DEFINITION}
    assert {"SearchParameter", "StructureDefinition", "ValueSet", "CodeSystem"} <= readable
    assert not {"Patient", "Observation", "Binary", "Contract", "Subscription"} & readable


def test_who_registers_images_does_not_define_how_others_work():
    rules = restriction(principal(Right.REGISTER_IMAGES))

    assert rules.access("SearchParameter", Act.CREATE) is DENY
    assert rules.access("MedicationRequest", Act.CREATE) is ALLOW
