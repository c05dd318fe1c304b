"""Laws of SMART scopes: what is written is read back, and narrowing never widens."""

from hypothesis import given
from hypothesis import strategies as st

from fhir_server.access.scopes import ANY, Context, Permission, ResourceScope, Scopes

TYPES = ("ImagingStudy", "Patient", "Observation")
# Parameters that all of the types have, and values that need escapes in a scope.
CRITERIA = st.tuples(
    st.sampled_from(["identifier", "_tag", "_security"]), st.text("aZ9|,&=+ %ä/:", min_size=1, max_size=6)
).filter(lambda pair: all(part.strip() for part in pair[1].split(",")) and pair[1].count("|") < 2)
resource_scopes = st.builds(
    ResourceScope,
    st.sampled_from(Context),
    st.sampled_from([ANY, *TYPES]),
    st.sets(st.sampled_from(Permission), min_size=1).map(
        lambda some: "".join(each for each in Permission if each in some)
    ),
    st.sets(CRITERIA.filter(lambda pair: pair[1] not in ("|", "|,")), max_size=2).map(
        lambda pairs: tuple(sorted(pairs))
    ),
)
others = st.lists(st.sampled_from(["openid", "fhirUser", "launch/patient", "offline_access"]), unique=True).map(tuple)
scopes = st.builds(Scopes, st.lists(resource_scopes, max_size=4, unique=True).map(tuple), others)
facts = st.tuples(
    st.sampled_from(Context), st.sampled_from(TYPES), st.sampled_from(Permission), st.sets(CRITERIA, max_size=3)
)


def allows(given_scopes, fact):
    """Say whether scopes let one thing be done to a resource of which these criteria hold: the meaning of a scope."""
    context, kind, permission, holds = fact
    return any(
        scope.context is context
        and scope.type in (ANY, kind)
        and permission in scope.permissions
        and set(scope.criteria) <= holds
        for scope in given_scopes.resources
    )


@given(scopes)
def test_what_is_written_is_read_back(some):
    again = Scopes.parse(str(some))

    assert set(again.resources) <= set(some.resources)
    assert {each for each in some.resources if each not in again.resources} == {
        each for each in some.resources if str(each) in dict(again.refused)
    }
    assert again.others == some.others


@given(scopes, scopes, facts)
def test_the_intersection_allows_what_both_allow_and_nothing_else(some, other, fact):
    assert allows(some & other, fact) == (allows(some, fact) and allows(other, fact))


@given(scopes, scopes)
def test_the_intersection_lies_within_both(some, other):
    assert some.covers(some & other)
    assert other.covers(some & other)


@given(scopes, scopes, facts)
def test_what_is_covered_allows_no_more(some, other, fact):
    if some.covers(other) and allows(other, fact):
        assert allows(some, fact)


@given(scopes)
def test_scopes_cover_themselves(some):
    assert some.covers(some)
    assert (some & some).covers(some)
