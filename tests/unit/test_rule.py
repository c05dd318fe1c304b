"""A processing rule means what it says, or is refused with the place of what is not understood."""

from typing import Any

import pytest

from fhir_server.model.rule import Code, Series, is_rule, owned, owner_of, rule_of
from imaging.errors import AppError
from tests.support.rules import DCM, SCT, action, coded, described, rule, task_input

CHEST = Code(SCT, "51185008")
CT = Series("1.2", Code(DCM, "CT"), CHEST, "Thorax  1.0  B30f", frozenset({"Organization/a"}))


@pytest.mark.parametrize(
    ("filters", "acts"),
    [
        ([], True),
        ([coded("series.modality", "CT", system=DCM)], True),
        ([coded("series.modality", "MR", "CT")], True),
        ([coded("series.modality", "MR")], False),
        ([coded("series.modality", "CT", system="http://other")], False),
        ([coded("series.bodySite", "51185008", system=SCT)], True),
        ([coded("series.bodySite", "69536005")], False),
        ([described("thorax*")], True),
        ([described("*lung*", "*B30?")], True),
        ([described("B30f")], False),
        ([coded("series.modality", "CT"), described("*abdomen*")], False),
        ([coded("series.modality", "CT"), coded("series.bodySite", "51185008"), described("*1.0*")], True),
    ],
)  # fmt: skip
def test_all_conditions_and_one_value_of_each_have_to_hold(filters: list[Any], acts: bool) -> None:
    (one,) = rule_of(rule(action(*filters))).actions

    assert one.acts_on(CT) is acts


def test_who_registered_the_images_is_a_condition() -> None:
    ours, theirs = (
        rule_of(rule(action(registered_by=[each]))).actions[0] for each in ("Organization/a", "Organization/b")
    )

    assert (ours.acts_on(CT), theirs.acts_on(CT)) == (True, False)


def test_a_series_without_body_site_or_description_is_none_of_those_asked_for() -> None:
    bare = Series("1.2", Code(DCM, "CT"), None, "", frozenset())

    asked = [coded("series.bodySite", "51185008"), described("?*")]

    assert not any(rule_of(rule(action(each))).actions[0].acts_on(bare) for each in asked)


def changed(plan: dict[str, Any], path: str, content: Any) -> dict[str, Any]:
    """Return the rule with an element set, `action.0.trigger.0.type`, in place."""
    place: Any = plan
    *steps, last = path.split(".")
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    place[last] = content
    return plan


DATA = "action.0.trigger.0.data.0"


@pytest.mark.parametrize(
    ("path", "content", "where"),
    [
        ("type", {"text": "rule"}, "type"),
        ("goal", [{}], "goal"),
        ("action", [], "action"),
        ("action.0.condition", [{}], "action[0].condition"),
        ("action.0.action", [{}], "action[0].action"),
        ("action.0.relatedAction", [{}], "action[0].relatedAction"),
        ("action.0.trigger", [], "action[0].trigger"),
        ("action.0.trigger.0.type", "data-modified", "action[0].trigger"),
        ("action.0.trigger.0.condition", {}, "action[0].trigger[0].condition"),
        (f"{DATA}.type", "Patient", "action[0].trigger[0].data[0].type"),
        (f"{DATA}.dateFilter", [{}], "action[0].trigger[0].data[0].dateFilter"),
        (f"{DATA}.mustSupport", ["x"], "action[0].trigger[0].data[0].mustSupport"),
        (f"{DATA}.codeFilter", [coded("modality", "CT")], "codeFilter[0].path"),
        (f"{DATA}.codeFilter", [coded("series.modality")], "codeFilter[0].code"),
        (f"{DATA}.codeFilter", [coded("series.modality", *["CT"] * 51)], "codeFilter[0].code"),
        (f"{DATA}.codeFilter", [coded("series.modality", "CT"), coded("series.modality", "MR")], "codeFilter[1]"),
        (f"{DATA}.codeFilter", [coded("series.modality", "CT") | {"valueSet": "http://x"}], "codeFilter[0].valueSet"),
        (f"{DATA}.codeFilter", [described()], "codeFilter[0].extension"),
        (f"{DATA}.codeFilter", [described("x" * 65)], "codeFilter[0].extension"),
        (f"{DATA}.codeFilter", [described(*["x"] * 21)], "codeFilter[0].extension"),
        (f"{DATA}.extension", [{"url": "http://other", "valueString": "x"}], "data[0].extension"),
        ("action.0.extension", [{"url": "http://other", "valueString": "x"}], "action[0].extension"),
        ("action.0.extension", [task_input("", "valueString", "x")], "action[0].extension"),
        ("action.0.definitionCanonical", None, "action[0].definitionCanonical"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(path: str, content: Any, where: str) -> None:
    plan = changed(rule(action(coded("series.modality", "CT"))), path, content)
    if content is None:
        del plan["action"][0]["definitionCanonical"]

    with pytest.raises(AppError) as refused:
        rule_of(plan)

    assert refused.value.where.startswith("PlanDefinition.")
    assert refused.value.where.endswith(where)


def test_a_rule_without_a_url_or_with_too_many_actions_is_refused() -> None:
    nameless = rule(action())
    del nameless["url"]

    for plan in (nameless, rule(*[action()] * 21)):
        with pytest.raises(AppError):
            rule_of(plan)


def test_words_do_not_change_what_a_rule_is_and_acts_do() -> None:
    plain, worded, other = (
        rule_of(rule(each)).actions[0].digest
        for each in (action(), action(title="MIP", description="for the lung"), action(algorithm="median"))
    )

    assert plain == worded != other


def test_the_owner_is_who_the_server_says_and_not_who_the_rule_says() -> None:
    forged = rule(action())
    forged["meta"]["tag"] = [{"system": "urn:fhir-imaging:owner", "code": "Organization/else"}, {"code": "mine"}]

    assert owner_of(owned(forged, "Organization/me")) == "Organization/me"
    assert owned(forged, "Organization/me")["meta"]["tag"][0] == {"code": "mine"}
    assert owner_of(owned(forged, "")) == ""
    assert is_rule(owned(forged, ""))


def test_the_time_in_which_a_rule_is_in_force_is_read() -> None:
    found = rule_of(rule(action(), effectivePeriod={"start": "2026-01-01", "end": "2026-01-31"}, version="2"))

    assert (found.start.day, found.end.month, found.canonical.rpartition("|")[2]) == (1, 2, "2")
