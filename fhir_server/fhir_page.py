"""The page `docs/reference/fhir-conformance.md`, made of the CapabilityStatement that the server serves.

`python -m fhir_server.fhir_page > docs/reference/fhir-conformance.md`
"""

import sys
import textwrap
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fhir_server.model.capability import capability_statement
from fhir_server.model.query import UNSUPPORTED
from fhir_server.model.resources import RESOURCES, Interaction

Json = dict[str, Any]

_INTRODUCTION = f"""\
# FHIR conformance statement

<!-- Written by `python -m fhir_server.fhir_page`; a test compares. Its source: fhir_server/model/resources.py. -->

What the FHIR door does today: the CapabilityStatement of `GET /fhir/metadata` in words. The test
`tests/conformance/test_fhir_statement.py` reads the served one and tries every interaction, search parameter, modifier,
order and include that it names. `?mode=normative` leaves out what is not normative in R4; `?mode=terminology` tells the
code systems that ship, as TerminologyCapabilities.

Base of all addresses: `/fhir`. FHIR {{version}}, RESTful API, {{formats}}. Every request but `GET /fhir/metadata`
needs a bearer token. What a token allows follows from the contracts of its subscriber that are in force.

## Interactions

| type | {" | ".join(each.value for each in Interaction)} |
|---|{"---|" * len(Interaction)}
"""

_RULES = """\

What is offered of the whole: {whole}.

Reads, creates, updates and deletes may be conditional; [FHIR interactions](fhir-interactions.md) tells how. Resources
are valid by the R4 definitions, or refused with one issue for each finding.
[Operations](fhir-operations.md) have a page of their own.

Elements of an ImagingStudy that come from the images cannot be changed here; what a client adds stays. See
[From DICOM to FHIR](dicom-to-fhir.md).

## Search

[Searching](fhir-search.md) tells how: what is asked in which way, what the values mean, and which bounds there are.
What is searched: a type, everything (`GET /fhir?_type=...`), or a compartment (`GET /fhir/Patient/1/ImagingStudy`,
`GET /fhir/Patient/1/*`); each with `POST` to `_search` as well.

* Sorting: by every parameter that is neither a composite nor `near`, upwards and downwards.
* `_include`: along every reference parameter, and `*`. `_revinclude`: along every reference parameter of every type
  that may refer to the matches, and `Type:*`. The CapabilityStatement lists them.
* Chains, `_has`, `_filter` and `_list` lead along every reference parameter.

Refused:

{refused}

Every type has these parameters beside its own:

{common}"""


def reference_page() -> str:
    """Return the page in Markdown: interactions, rules of searching, then a section for each type."""
    now = datetime.fromtimestamp(0, UTC)
    statement = capability_statement(RESOURCES.values(), base_url="/fhir", version="", date=now)
    rows = statement["rest"][0]["resource"]
    first, *others = ({each["name"]: each for each in row["searchParam"]} for row in rows)
    common = {name: each for name, each in first.items() if all(other.get(name) == each for other in others)}
    whole = ", ".join(_code(each["code"] for each in statement["rest"][0]["interaction"]))
    formats = " or ".join(_code(each for each in statement["format"] if "/" in each))
    return "".join(
        [
            _INTRODUCTION.format(version=statement["fhirVersion"], formats=formats),
            *map(_interactions, rows),
            _RULES.format(whole=whole, refused=_listed(sorted(UNSUPPORTED)), common=_parameters(common.values())),
            *(_section(row, common) for row in rows),
        ]
    )


def _interactions(row: Json) -> str:
    offered = {each["code"] for each in row["interaction"]}
    cells = "".join(" yes |" if each.value in offered else " |" for each in Interaction)
    return f"| [{row['type']}](#{row['type'].lower()}) |{cells}\n"


def _section(row: Json, common: Json) -> str:
    profiles = "".join(f"Conforms to `{each}`.\n\n" for each in row.get("supportedProfile", ()))
    profiles += "".join(f"Operation on one of them: `${each['name']}`.\n\n" for each in row.get("operation", ()))
    own = _parameters(each for each in row["searchParam"] if each["name"] not in common)
    return f"\n## {row['type']}\n\n{profiles}{own}"


def _parameters(parameters: Iterable[Json]) -> str:
    lines = ["| parameter | type | modifiers |", "|---|---|---|"]
    for parameter in parameters:
        modifiers = parameter["documentation"].removeprefix("modifiers: ").split(", ")
        told = "" if modifiers == ["none"] else f" {', '.join(_code(modifiers))}"
        lines.append(f"| `{parameter['name']}` | {parameter['type']} |{told} |")
    return "\n".join(lines) + "\n"


def _listed(names: Iterable[str], title: str = "") -> str:
    text = title + (", ".join(_code(names)) or "none")
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _code(names: Iterable[str]) -> list[str]:
    return [f"`{name}`" for name in names]


if __name__ == "__main__":
    sys.stdout.write(reference_page())
