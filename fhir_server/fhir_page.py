"""The page `docs/reference/fhir-conformance.md`, made of the CapabilityStatement that the server serves.

`python -m fhir_server.fhir_page > docs/reference/fhir-conformance.md`
"""

import sys
import textwrap
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from fhir_server.model.capability import capability_statement
from fhir_server.model.query import SUMMARIES, TOTALS, UNSUPPORTED, sortable
from fhir_server.model.resources import RESOURCES, Interaction

Json = dict[str, Any]

_INTRODUCTION = f"""\
# FHIR conformance statement

<!-- Written by `python -m fhir_server.fhir_page`; a test compares. Its source: fhir_server/model/resources.py. -->

What the FHIR door does today: the CapabilityStatement of `GET /fhir/metadata` in words. The test
`tests/conformance/test_fhir_statement.py` reads the served one and tries every interaction, search parameter, modifier,
order and include that it names.

Base of all addresses: `/fhir`. FHIR {{version}}, RESTful API, {{formats}}. Every request but `GET /fhir/metadata`
needs a bearer token. What a token allows follows from the contracts of its subscriber that are in force.

## Interactions

| type | {" | ".join(each.value for each in Interaction)} |
|---|{"---|" * len(Interaction)}
"""

_RULES = f"""\

What is offered of the whole: {{whole}}.

Reads, creates, updates and deletes may be conditional; [FHIR interactions](fhir-interactions.md) tells how. Resources
are valid by the R4 definitions, or refused with one issue for each finding. Not offered: operations.

Elements of an ImagingStudy that come from the images cannot be changed here; what a client adds stays. See
[From DICOM to FHIR](dicom-to-fhir.md).

## Search

`GET /fhir/TYPE?...` or `POST /fhir/TYPE/_search` with a form. Parameters must all match; of values with commas between,
one must. An unknown parameter is refused, unless `Prefer: handling=lenient` is sent: then the bundle tells what was
left out.

| parameter | meaning |
|---|---|
| `_count` | matches on a page; the links of the bundle lead on |
| `_sort` | up to three of the keys that the type's section names, `-` before one reverses it |
| `_include`, `_revinclude` | what comes with the matches, along a reference parameter; `:iterate` goes on |
| `_total` | {", ".join(f"`{each}`" for each in TOTALS)} |
| `_summary` | {", ".join(f"`{each}`" for each in SUMMARIES)} |
| `_elements` | top elements to give, with commas between |
| `_format`, `_pretty` | `json` or `xml`; `_pretty=true` for people |

Values of dates, numbers and quantities take the prefixes of the standard. Every reference parameter can be followed by
`_include`, and `*` follows all of a type. Refused: chained parameters, and the following.

{{refused}}

Every type has these parameters beside its own:

{{common}}"""


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
    sorts = _listed(sorted(sortable(row["type"])), "`_sort`: ")
    reverse = _listed(row.get("searchRevInclude", ()), "`_revinclude`: ")
    own = _parameters(each for each in row["searchParam"] if each["name"] not in common)
    return f"\n## {row['type']}\n\n{profiles}{sorts}\n\n{reverse}\n\n{own}"


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
