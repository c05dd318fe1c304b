"""OperationOutcome: what went wrong, in FHIR's words. Source: FHIR R4 operationoutcome, value set issue-type."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from imaging.errors import AppError, Category

ISSUE_CODES: Mapping[Category, str] = MappingProxyType(
    {
        Category.INVALID: "invalid",
        Category.UNAUTHENTICATED: "login",
        Category.FORBIDDEN: "forbidden",
        Category.NOT_FOUND: "not-found",
        Category.GONE: "deleted",
        Category.CONFLICT: "conflict",
        Category.PRECONDITION: "conflict",
        Category.UNSUPPORTED: "not-supported",
        Category.TOO_LARGE: "too-costly",
        Category.BUSY: "transient",
        Category.FAULT: "exception",
    }
)


@dataclass(frozen=True, slots=True)
class Issue:
    """One finding: `code` of the value set issue-type, a text without patient data, and the element it is about."""

    code: str
    text: str
    expression: str = ""  # FHIRPath of the element, such as `ImagingStudy.series[0].uid`
    severity: str = "error"


class Findings(AppError):
    """An error that has several issues."""

    issues: tuple[Issue, ...]


class InvalidResource(Findings):
    """A resource that is not valid, with every finding."""

    def __init__(self, issues: tuple[Issue, ...], *, where: str) -> None:
        first = "; ".join(f"{issue.expression}: {issue.text}" for issue in issues[:3])
        more = f"; and {len(issues) - 3} more" if len(issues) > 3 else ""
        super().__init__(Category.INVALID, f"the resource is not valid: {first}{more}", where=where)
        self.issues = issues


def outcome(found: AppError | Iterable[Issue]) -> dict[str, Any]:
    """Return the OperationOutcome resource of an error or of issues."""
    return {"resourceType": "OperationOutcome", "issue": [_issue(issue) for issue in issues_of(found)]}


def issues_of(found: AppError | Iterable[Issue]) -> Iterable[Issue]:
    """Return the issues of an error."""
    if isinstance(found, Findings):
        return found.issues
    if isinstance(found, AppError):
        return (Issue(ISSUE_CODES[found.category], str(found)),)
    return found


def _issue(issue: Issue) -> dict[str, Any]:
    made: dict[str, Any] = {"severity": issue.severity, "code": issue.code, "diagnostics": issue.text}
    return {**made, "expression": [issue.expression]} if issue.expression else made
