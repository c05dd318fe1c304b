"""Our XML beside that of fhir.resources, another implementation: each reads what the other writes."""

from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class
from pydantic import ValidationError

from fhir_server.model import json
from fhir_server.model.definitions import elements, resource_types
from fhir_server.model.primitives import is_primitive
from fhir_server.model.properties import choices
from fhir_server.model.xml import from_xml, to_xml
from tests.support.least import VALUES, least

EXTENSION = {"url": "http://e.test/x", "valueString": 'a "b" <c> & d\n e'}


def most(kind: str) -> dict[str, Any]:
    """Every element of a type once, one level deep, with a value of its first data type."""
    made: dict[str, Any] = {"resourceType": kind, "extension": [EXTENSION]}
    for element in elements(kind).values():
        key, inner = choices(element)[0]
        if key in made or inner in ("Resource", "Narrative") or (not is_primitive(inner) and inner not in VALUES):
            continue
        value = VALUES.get(inner, "12:00:00")
        made[key] = [value, value] if element.is_array else value
    return {**made, **least(kind)}


def model_of(kind: str, resource: dict[str, Any]) -> Any:
    """The resource as a model of fhir.resources, which knows R4B; None where R4B is different or dropped the type."""
    try:
        return get_fhir_model_class(kind).model_validate_json(json.dumps(resource))
    except (ValueError, KeyError, ValidationError):
        return None


def as_json(model: Any) -> Any:
    return json.loads(model.model_dump_json())


# fhir.resources writes the id of an ElementDefinition as an element; the definition says `xmlAttr`.
DIFFERENT = {"StructureDefinition"}
# R4B dropped these types or changed elements of theirs. Told here, since to find it out takes a model of every type.
NOT_IN_R4B = frozenset(
    {
        "Binary", "Bundle", "EffectEvidenceSynthesis", "Evidence", "EvidenceVariable", "MedicinalProduct",
        "MedicinalProductAuthorization", "MedicinalProductContraindication", "MedicinalProductIndication",
        "MedicinalProductIngredient", "MedicinalProductInteraction", "MedicinalProductManufactured",
        "MedicinalProductPackaged", "MedicinalProductPharmaceutical", "MedicinalProductUndesirableEffect",
        "Parameters", "RiskEvidenceSynthesis", "SubstanceNucleicAcid", "SubstancePolymer", "SubstanceProtein",
        "SubstanceReferenceInformation", "SubstanceSourceMaterial", "SubstanceSpecification",
    }
)  # fmt: skip
KNOWN = sorted(resource_types() - DIFFERENT - NOT_IN_R4B)


def test_most_types_are_compared():
    assert len(KNOWN) > 90


@pytest.mark.parametrize("kind", KNOWN)
def test_they_read_what_we_write(kind):
    model = model_of(kind, most(kind))

    read = type(model).model_validate_xml(to_xml(most(kind)))

    assert as_json(read) == as_json(model)


@pytest.mark.parametrize("kind", KNOWN)
def test_we_read_what_they_write(kind):
    model = model_of(kind, most(kind))

    read = from_xml(model.model_dump_xml(), most_levels=64)

    assert as_json(model_of(kind, read)) == as_json(model)
