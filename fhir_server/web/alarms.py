"""The page of emergency accesses: operators and auditors review those that concern their own subscriber."""

from http import HTTPStatus

from flask import Blueprint, Response, redirect, request, url_for

from fhir_server.access.emergencies import LONGEST_NOTE, Verdict
from fhir_server.access.grants import Role
from fhir_server.access.people import Person
from fhir_server.sign_on import SignOn
from fhir_server.web import signing_in
from imaging.errors import AppError, Category

REVIEWERS = frozenset({Role.OPERATOR, Role.AUDITOR})
MOST_SHOWN = 100


def blueprint(found: SignOn) -> Blueprint:
    """Return the page."""
    routes = Blueprint("alarms", __name__, url_prefix="/auth")
    emergencies = found.emergencies

    def alarms() -> Response:
        """Show what is to be reviewed, or all; take a verdict."""
        person = _reviewer()
        if person is None:
            return redirect(url_for("people.sign_in", next=url_for("alarms.alarms")))  # type: ignore[return-value]
        if request.method == "POST":
            signing_in.check_form()
            form = request.form
            emergencies.review_by(
                person, form.get("alarm", ""), _verdict(form.get("verdict", "")), form.get("note", "")
            )
            return redirect(url_for("alarms.alarms"), HTTPStatus.SEE_OTHER)  # type: ignore[return-value]
        all_of_them = request.args.get("show") == "all"
        rows = emergencies.listed(all_of_them=all_of_them, most=MOST_SHOWN, concerning=person.organization)
        return signing_in.page(
            "alarms.html",
            rows=rows,
            names={login: found.people.named(login).name for login in {each.login for each in rows}},
            all_of_them=all_of_them,
            verdicts=list(Verdict),
            longest=LONGEST_NOTE,
            most=MOST_SHOWN,
            home=person.organization,
        )

    routes.add_url_rule("/alarms", "alarms", alarms, methods=["GET", "POST"])
    return routes


def _reviewer() -> Person | None:
    found = signing_in.user()
    if found is None:
        return None
    if found.person.role not in REVIEWERS:
        raise AppError(Category.FORBIDDEN, "alarms are reviewed by operators and auditors", where="role")
    return found.person


def _verdict(text: str) -> Verdict:
    try:
        return Verdict(text)
    except ValueError:
        raise AppError(Category.INVALID, f"a verdict is one of {', '.join(Verdict)}", where="verdict") from None
