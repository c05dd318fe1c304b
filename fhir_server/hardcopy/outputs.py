"""What is told at the end of a `hard-copy` Task. Pure."""

from fhir_server.delivery import value
from fhir_server.model.task import Json, Parameter
from imaging.printer import Outcome, Progress

OUTPUTS = (
    Parameter("pages", "valueUnsignedInt", least=1),
    Parameter("sheets", "valueUnsignedInt", least=1),
    Parameter("device", "valueReference", least=1),
    Parameter("detail", "valueString"),
)
MEANINGS = {
    "pages": "pages of one copy that are printed for certain",
    "sheets": "sheets of all copies: what is metered",
    "device": "the Device that printed",
    "detail": "what the printer said",
}
MOST_DETAIL = 500  # characters


def printed(pages: int, copies: int, device: str, detail: str) -> list[Json]:
    """Return the outputs of an order that was printed, or in part.

    pages   of one copy, that are printed for certain
    """
    found = [
        value("pages", "valueUnsignedInt", pages),
        value("sheets", "valueUnsignedInt", pages * copies),
        value("device", "valueReference", {"reference": device}),
    ]
    return [*found, value("detail", "valueString", detail[:MOST_DETAIL])] if detail else found


def why(outcome: Outcome) -> str:
    """Return in words why an order failed, and what is known of what was printed."""
    said = outcome.detail or ", ".join(outcome.reasons) or "the printer gave no reason"
    if outcome.progress is Progress.UNKNOWN:
        return f"look at the printer before you order again, pages may have been printed: {said}"
    return f"the printer failed: {said}"
