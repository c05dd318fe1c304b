"""Laws of grants on a real database: a narrower grant never sees or changes more, and what is seen is what was meant.

Who is meant to see what is computed here from the resources alone, by the words of SMART App Launch 2.2: not by the
server's own clauses.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhir_server.access.contracts import Limits, Right, Term
from fhir_server.access.grants import AT_MOST, Grant, Role
from fhir_server.access.policy import only_study, restriction
from fhir_server.access.principals import Principal
from fhir_server.access.scopes import Scopes
from fhir_server.model.query import parse
from fhir_server.store.filters import UNRESTRICTED
from fhir_server.store.repository import Repository
from fhir_server.store.schema import ensure_schema
from imaging.errors import AppError, Category

SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
START = datetime(2026, 1, 1, tzinfo=UTC)
NORTH, SOUTH = "Organization/north", "Organization/south"
PATIENTS = ("a", "b")
MODALITIES = ("CT", "MR")
LETTERS = {"create": "c", "read": "r", "update": "u", "delete": "d", "search": "s"}


def resources():
    yield {"resourceType": "Practitioner", "id": "doctor"}
    yield {"resourceType": "Endpoint", "id": "dicomweb"}
    yield {"resourceType": "Endpoint", "id": "another"}
    yield {"resourceType": "Binary", "id": "whatever", "contentType": "text/plain"}
    yield {"resourceType": "Device", "id": "scanner"}
    yield {
        "resourceType": "Group",
        "id": "all",
        "member": [{"entity": {"reference": f"Patient/{p}"}} for p in PATIENTS],
    }
    for patient in PATIENTS:
        subject = {"reference": f"Patient/{patient}"}
        others = [{"other": {"reference": f"Patient/{p}"}, "type": "seealso"} for p in PATIENTS if p != patient]
        yield {"resourceType": "Patient", "id": patient, "link": others}
        yield {"resourceType": "Task", "id": f"for-{patient}", "for": subject}
        yield {"resourceType": "Device", "id": f"in-{patient}", "patient": subject}
        for modality in MODALITIES:
            name = f"{patient}-{modality.lower()}"
            series = [{"uid": f"1.{len(name)}", "modality": {"code": modality}}]
            yield {"resourceType": "ImagingStudy", "id": name, "subject": subject, "series": series,
                   "endpoint": [{"reference": "Endpoint/dicomweb"}]}  # fmt: skip
            focus = [{"reference": f"ImagingStudy/{name}"}]
            yield {"resourceType": "Observation", "id": name, "subject": subject, "partOf": focus}


def owner_of(resource):
    """Say whose each is: what is about patient a is North's, what is about b South's, the rest is nobody's."""
    about = {resource["id"], *(resource.get(name, {}).get("reference") for name in ("subject", "for", "patient"))}
    owners = {"a": NORTH, "Patient/a": NORTH, "b": SOUTH, "Patient/b": SOUTH}
    return next((owner for name, owner in owners.items() if name in about), "")


ALL = {f"{each['resourceType']}/{each['id']}": each for each in resources()}
TYPES = sorted({key.partition("/")[0] for key in ALL})


@pytest.fixture(scope="module")
def own(module_db):
    ensure_schema(module_db)
    ticks = iter(range(10_000_000))
    made = Repository(module_db, UNRESTRICTED, clock=lambda: START + timedelta(seconds=next(ticks)), client_ids=True)
    for each in ALL.values():
        made.update(each, owner=owner_of(each))
    return made


def principal_with(scopes, *, patient="", user="", role=None, rights=frozenset(Right), limited=()):
    grant = Grant("c", Scopes.parse(scopes), START, patient=patient, user=user, role=role)
    return Principal("Organization/a", "c", "A", rights & AT_MOST[role] if role else rights, grant, limited)


scope_texts = st.builds(
    lambda context, kind, permissions, criteria: f"{context}/{kind}.{permissions}{criteria}",
    st.sampled_from(["patient", "user", "system"]),
    st.sampled_from(["*", *TYPES]),
    st.sampled_from(["r", "s", "rs", "cruds", "cud", "read", "*"]),
    st.just(""),
) | st.builds(
    "{}/ImagingStudy.rs?{}".format,
    st.sampled_from(["patient", "user", "system"]),
    st.sampled_from(["modality=CT", "modality=MR,XA", "patient=Patient/a", "modality=CT&patient=Patient/b"]),
)
scope_lists = st.lists(scope_texts, max_size=3).map(" ".join)
contexts = st.sampled_from(
    [
        {},
        {"patient": "Patient/a"},
        {"patient": "Patient/b", "user": "Practitioner/doctor", "role": Role.PRACTITIONER},
        {"patient": "Patient/a", "user": "Patient/a", "role": Role.PATIENT},
        {"user": "Practitioner/doctor", "role": Role.TECHNOLOGIST},
        {"user": "Practitioner/doctor", "role": Role.OPERATOR},
    ]
)
rights = st.frozensets(st.sampled_from([Right.RECEIVE_IMAGES, Right.REGISTER_IMAGES, Right.DEFINE, Right.AUDIT]))


owners = st.none() | st.frozensets(st.sampled_from(["Organization/a", NORTH, SOUTH]))
limits = st.builds(
    Limits,
    owners,
    st.frozensets(st.sampled_from(MODALITIES)),
    st.frozensets(st.sampled_from([f"Patient/{each}" for each in PATIENTS])),
)


def receiving(*limits):
    return tuple(Term(Right.RECEIVE_IMAGES, each) for each in limits)


# ---- what is meant, from the resources alone


def is_of(resource, patient):
    kind = resource["resourceType"]
    if kind == "Patient":
        return f"Patient/{resource['id']}" == patient
    named = {resource.get(name, {}).get("reference") for name in ("subject", "for", "patient")} - {None}
    return patient in named if named else kind in {"Practitioner", "Endpoint", "Device"}


def meets(resource, criteria):
    tests = {
        "modality": lambda values: {each["modality"]["code"] for each in resource.get("series", [])} & set(values),
        "patient": lambda values: resource.get("subject", {}).get("reference") in values,
    }
    return all(tests[name](value.split(",")) for name, value in criteria)


def is_meant(principal, resource, letter):
    """Say whether the scopes of the grant are meant to let the principal do this to the resource."""
    grant, kind = principal.grant, resource["resourceType"]
    for scope in grant.scopes.resources:
        if scope.type not in ("*", kind) or letter not in scope.permissions or not can_meet(kind, scope.criteria):
            continue
        by_context = {
            "patient": bool(grant.patient) and is_of(resource, grant.patient),
            "user": bool(grant.user) and (grant.role is not Role.PATIENT or is_of(resource, grant.patient)),
            "system": not grant.user,
        }
        if by_context[scope.context] and meets(resource, scope.criteria):
            return True
    return False


def can_meet(kind, criteria):
    return not criteria or kind == "ImagingStudy"


# ---- what is so


def searched(repository):
    found = set()
    for kind in TYPES:
        found |= keys_of(lambda kind=kind: repository.search(parse(kind, [("_count", "100")])).matches)
    return found


def read(repository):
    return {key for key in ALL if keys_of(lambda key=key: [repository.read(*key.split("/"))])}


def past(repository):
    return {key for key in ALL if keys_of(lambda key=key: repository.history(*key.split("/")))}


def keys_of(tried):
    try:
        return {each.key for each in tried()}
    except AppError as error:
        if error.category not in (Category.FORBIDDEN, Category.NOT_FOUND):
            raise
        return set()


@SOME
@given(scope_lists, contexts)
def test_what_is_seen_is_what_the_scopes_mean(own, scopes, context):
    principal = principal_with(scopes, **context, rights=frozenset({Right.RECEIVE_IMAGES}))
    if Right.RECEIVE_IMAGES not in principal.rights:
        return
    repository = own.opened_for(restriction(principal))
    own_endpoint = {"Endpoint/dicomweb"}

    for found, letter in ((searched(repository), "s"), (read(repository), "r"), (past(repository), "r")):
        meant = {key for key, each in ALL.items() if is_meant(principal, each, letter)}
        assert found - own_endpoint == meant - own_endpoint


@SOME
@given(scope_lists, scope_lists, contexts, rights, rights)
def test_a_narrower_grant_never_sees_more(own, some, more, context, few, others):
    narrow = principal_with(some, **context, rights=few)
    wide = principal_with(f"{some} {more}", **context, rights=few | others)
    repository, wider = (own.opened_for(restriction(each)) for each in (narrow, wide))

    assert searched(repository) <= searched(wider)
    assert read(repository) <= read(wider)
    changes = keys_of(lambda: repository.changes(TYPES, count=100).found)
    assert changes <= keys_of(lambda: wider.changes(TYPES, count=100).found)


@SOME
@given(limits, limits, scope_lists)
def test_a_narrower_contract_never_shows_more(own, narrow, more, scopes):
    """Whose, modalities and patients each narrow; a second term widens."""
    rights = frozenset({Right.RECEIVE_IMAGES})
    plain = {name: it for name, it in (("modalities", narrow.modalities), ("patients", narrow.patients)) if it}
    wider = [replace(narrow, **{name: frozenset()}) for name in plain] + [replace(narrow, whose=None), more]
    seen = searched(own.opened_for(restriction(principal_with(scopes, rights=rights, limited=receiving(narrow)))))

    for each in wider:
        limited = receiving(narrow, each) if each is more else receiving(each)
        wide = principal_with(scopes, rights=rights, limited=limited)
        assert seen <= searched(own.opened_for(restriction(wide)))


@SOME
@given(limits)
def test_what_is_shown_of_patients_is_what_the_contract_names(own, limit):
    """By the words of `docs/howto/share-one-server.md`."""
    agreed = Principal("Organization/a", "c", "A", frozenset({Right.RECEIVE_IMAGES}), None, receiving(limit))
    whose = limit.whose
    found = searched(own.opened_for(restriction(agreed)))

    for key in ("Patient/a", "Patient/b", "Observation/a-ct", "ImagingStudy/a-ct", "ImagingStudy/b-mr"):
        resource = ALL[key]
        is_image = resource["resourceType"] == "ImagingStudy"
        meant = (
            (whose is None or owner_of(resource) in whose)
            and (
                not limit.modalities or (is_image and bool(meets(resource, [("modality", ",".join(limit.modalities))])))
            )
            and (not limit.patients or any(is_of(resource, each) for each in limit.patients))
        )
        assert (key in found) is meant, key


@SOME
@given(scope_lists, scope_lists, contexts)
def test_what_two_grants_have_in_common_sees_no_more_than_either(own, some, other, context):
    both = principal_with(str(Scopes.parse(some) & Scopes.parse(other)), **context)
    seen = searched(own.opened_for(restriction(both)))

    for each in (some, other):
        assert seen <= searched(own.opened_for(restriction(principal_with(each, **context))))


QUESTIONS = [
    ("ImagingStudy", [("_include", "ImagingStudy:*")]),
    ("ImagingStudy", [("_include:iterate", "*")]),
    ("Patient", [("_revinclude", "ImagingStudy:patient"), ("_revinclude", "Observation:patient")]),
    ("Patient", [("_has:ImagingStudy:patient:modality", "MR")]),
    ("Observation", [("part-of:ImagingStudy.modality", "MR")]),
    ("ImagingStudy", [("patient:Patient.link:Patient._id", "a")]),
    ("ImagingStudy", [("modality:not", "CT")]),
    ("ImagingStudy", [("_filter", "modality eq MR or modality eq CT")]),
    ("ImagingStudy", [("_elements", "id"), ("_sort", "-_lastUpdated")]),
    ("ImagingStudy", [("_contained", "both")]),
    ("Group", [("member", "Patient/b")]),
]


@SOME
@given(scope_lists, contexts, st.sampled_from(QUESTIONS))
def test_nothing_else_comes_along_with_a_search(own, scopes, context, question):
    """Whatever a search asks: what comes could be read or found by itself, and only that decides or is counted."""
    principal = principal_with(scopes, **context)
    repository = own.opened_for(restriction(principal))
    visible, findable = read(repository) | searched(repository), searched(repository)
    kind, parameters = question

    try:
        page = repository.search(parse(kind, parameters))
    except AppError as error:
        if error.category is not Category.FORBIDDEN:
            raise
        return

    counted = [each for each in parameters if each[0] != "_elements"]
    assert {each.key for each in page.matches} <= findable
    assert {each.key for each in page.includes} <= visible
    assert repository.search(parse(kind, [*counted, ("_summary", "count")])).total == len(page.matches)


@SOME
@given(scope_lists, contexts, st.sampled_from(sorted(ALL)), st.sampled_from(["update", "delete", "create"]))
def test_nothing_is_written_beyond_the_scopes(own, scopes, context, key, act):
    principal = principal_with(scopes, **context)
    repository = own.opened_for(restriction(principal))
    resource = ALL[key]
    tried = {
        "update": lambda: repository.update(resource),
        "delete": lambda: repository.delete(*key.split("/")),
        "create": lambda: repository.create({name: it for name, it in resource.items() if name != "id"}),
    }[act]

    try:
        tried()
    except AppError as error:
        if error.category not in (Category.FORBIDDEN, Category.NOT_FOUND):
            raise
        return
    if act == "delete":
        own.update(resource)
    elif act == "create":
        made = [each for each in own.search(parse(resource["resourceType"], [("_count", "500")])).matches
                if each.key not in ALL]  # fmt: skip
        for each in made:
            own.delete(*each.key.split("/"))
        assert resource["resourceType"] != "Patient" or not principal.grant.patient or is_wide(principal)
        resource = {**resource, "id": "new"} if resource["resourceType"] == "Patient" else resource
    assert is_meant(principal, resource, LETTERS[act])


def is_wide(principal):
    """Say whether something but the patient of the grant is in its scopes."""
    return any(each.context != "patient" for each in principal.grant.scopes.resources)


@SOME
@given(scope_lists, contexts, st.lists(limits, max_size=2), rights)
def test_what_is_narrowed_to_one_study_is_that_study_as_far_as_it_was_seen(own, scopes, context, limits, rights):
    principal = principal_with(scopes, **context, rights=rights, limited=receiving(*limits))
    key = "ImagingStudy/a-ct"

    whole, one = (own.opened_for(restriction(each)) for each in (principal, only_study(principal, "a-ct")))

    seeing = {key} if Right.RECEIVE_IMAGES in principal.rights else set()
    assert read(one) - {"Endpoint/dicomweb"} == read(whole) & seeing
    assert searched(one) - {"Endpoint/dicomweb"} == searched(whole) & seeing
