"""Laws of rights: fewer rights never see or do more."""

from hypothesis import given
from hypothesis import strategies as st

from fhir_server.access.contracts import Right
from fhir_server.access.policy import restriction
from fhir_server.access.principals import Principal
from fhir_server.model.resources import RESOURCES
from fhir_server.store.filters import ALLOW, DENY, Access, Act

rights = st.frozensets(st.sampled_from(list(Right)))
types = st.sampled_from([*RESOURCES, "Parameters"])
acts = st.sampled_from(list(Act))


def access(of: frozenset[Right], resource_type: str, act: Act) -> Access:
    return restriction(Principal("Organization/a", "c", "A", of)).access(resource_type, act)


def is_no_wider(narrow: Access, wide: Access) -> bool:
    """Clauses lie between nothing and everything; two sets of clauses are comparable when one holds the other."""
    if narrow is DENY or wide is ALLOW:
        return True
    if wide is DENY or narrow is ALLOW:
        return False
    return set(wide) <= set(narrow)


@given(rights, rights, types, acts)
def test_fewer_rights_never_allow_more(some, others, resource_type, act):
    assert is_no_wider(access(some, resource_type, act), access(some | others, resource_type, act))


@given(rights, types, acts)
def test_rights_are_the_sum_of_single_rights(some, resource_type, act):
    allowed = access(some, resource_type, act) is not DENY

    assert allowed == any(access(frozenset({right}), resource_type, act) is not DENY for right in some)


@given(rights, types)
def test_no_set_of_rights_without_receiving_auditing_or_defining_reads_what_is_not_its_own(some, resource_type):
    reading = access(some - {Right.RECEIVE_IMAGES, Right.AUDIT, Right.DEFINE}, resource_type, Act.READ)

    # Who orders sees its own orders, and what can be ordered.
    own = {
        "Task": ["requester"], "Provenance": ["_on-behalf-of"], "Endpoint": ["organization"],
        "PlanDefinition": ["_tag"], "Device": ["identifier"]
    }.get(resource_type)  # fmt: skip
    is_own = isinstance(reading, tuple) and [clause.code for clause in reading] == own
    assert reading is DENY or is_own or resource_type == "ActivityDefinition"
