"""The TerminologyCapabilities: which code systems ship with this server, and what can be asked of them. Pure.

Source: FHIR R4 terminologycapabilities, http 3.1.0.8 (`mode=terminology`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

Json = dict[str, Any]

# parameters of ValueSet/$expand
EXPANSION = (
    "url", "valueSet", "valueSetVersion", "filter", "offset", "count", "includeDesignations", "includeDefinition",
    "activeOnly", "excludeNested", "excludeNotForUI", "excludePostCoordinated", "displayLanguage", "exclude-system",
)  # fmt: skip


def terminology_capabilities(statement: Mapping[str, Any], systems: Iterable[Mapping[str, Any]]) -> Json:
    """Return the TerminologyCapabilities of the server that a CapabilityStatement is of, with these CodeSystems."""
    kept = ("version", "status", "date", "kind", "software", "implementation")
    return {
        "resourceType": "TerminologyCapabilities",
        "url": f"{statement['url']}?mode=terminology",
        "name": f"{statement['name']}Terminology",
        "title": f"Terminology of {statement['title']}",
        **{name: statement[name] for name in kept},
        "codeSystem": [_system(each) for each in sorted(systems, key=lambda each: str(each["url"]))],
        "expansion": {
            "hierarchical": False,
            "paging": True,
            "incomplete": False,
            "parameter": [{"name": name} for name in EXPANSION],
            "textFilter": "The codes that have every word of the filter in their display or code, in any case.",
        },
        "codeSearch": "all",
        "validateCode": {"translations": False},
    }


def _system(system: Mapping[str, Any]) -> Json:
    made: Json = {"uri": system["url"]}
    return {**made, "version": [{"code": system["version"], "isDefault": True}]} if "version" in system else made
