"""What can be ordered is found as FHIR: each algorithm is a Device and an ActivityDefinition."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest

from fhir_server.access.contracts import Right
from fhir_server.delivery import value
from fhir_server.model import json
from fhir_server.model.validation import validate
from fhir_server.work import offered
from fhir_server.work.orders import check_order
from imaging.algorithm import Algorithm, Code, Takes
from imaging.algorithms import algorithms
from imaging.errors import AppError
from imaging.parameters import Says
from imaging.plugins import Registry
from tests.support.doors import Caller, Doors


@dataclass(frozen=True)
class Foreign(Algorithm):
    """Do nothing."""

    low: Annotated[float, Says("lowest value", unit="")]
    weight_kg: Annotated[float, Says("weight", unit="kg", low=0.5, is_stated=True)]
    axis: Annotated[tuple[float, float], Says("axis", high=1)] = (0.0, 1.5)

    version: ClassVar[str] = "2.1"
    title = "Nothing"
    source = "nowhere"
    takes = Takes.IMAGE
    derivation = Code("x", "99TEST", "nothing")


@pytest.fixture
def published(doors: Doors) -> Doors:
    offered.publish(doors.server.own)
    return doors


@pytest.fixture
def orderer(doors: Doors) -> Caller:
    return doors.caller(Right.ORDER_PROCESSING, name="orderer")


def found(caller: Caller, path: str) -> list[dict[str, Any]]:
    return [each["resource"] for each in caller.get(path).json.get("entry", [])]


def parameters_of(definition: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (library,) = definition["contained"]
    return {each["name"]: each for each in library.get("parameter", [])}


def details(parameter: dict[str, Any], name: str) -> list[Any]:
    parts = [part for each in parameter.get("extension", []) for part in each["extension"] if part["url"] == name]
    return [content for part in parts for key, content in part.items() if key != "url"]


def test_every_algorithm_is_found_by_who_may_order(published: Doors, orderer: Caller) -> None:
    definitions = found(orderer, "/fhir/ActivityDefinition?_count=100&status=active")
    devices = found(orderer, "/fhir/Device?_count=100")

    assert {each["url"]: each["version"] for each in definitions} == {
        f"urn:fhir-imaging:algorithm:{name}": algorithms.get(name).version for name in algorithms
    }
    assert {each["id"] for each in devices} == {f"algorithm-{name}" for name in algorithms}
    (one,) = found(orderer, "/fhir/ActivityDefinition?url=urn:fhir-imaging:algorithm:slab")
    assert one["title"] == "Slab projection (MIP, MinIP, mean)"


def test_parameters_are_told_with_types_units_ranges_choices_and_defaults(published: Doors, orderer: Caller) -> None:
    slab = parameters_of(orderer.get("/fhir/ActivityDefinition/algorithm-slab").json)
    region = parameters_of(orderer.get("/fhir/ActivityDefinition/algorithm-roi-measure").json)
    suv = parameters_of(orderer.get("/fhir/ActivityDefinition/algorithm-suv").json)

    assert (slab["thickness_mm"]["type"], slab["projection"]["type"]) == ("decimal", "code")
    mm = {"unit": "mm", "system": "http://unitsofmeasure.org", "code": "mm"}
    assert details(slab["thickness_mm"], "range") == [{"low": {"value": 0.05, **mm}}]
    assert details(slab["thickness_mm"], "unit") == ["mm"]
    assert details(slab["projection"], "choice") == ["maximum", "minimum", "mean"]
    assert (details(slab["thickness_mm"], "default"), details(slab["projection"], "default")) == ([10], ["maximum"])
    assert (region["center_mm"]["min"], region["center_mm"]["max"]) == (3, "3")
    assert (suv["weight_kg"]["min"], details(suv["weight_kg"], "stated-by-images")) == (0, [True])


@pytest.mark.parametrize("name", [*algorithms, "foreign"])
def test_what_is_published_is_valid(name: str) -> None:
    algorithm = Foreign if name == "foreign" else algorithms.get(name)
    for resource in (offered.device(name, algorithm), offered.activity_definition(name, algorithm)):
        validate(json.loads(json.dumps(resource)), resource["resourceType"])


def test_values_are_written_as_they_are() -> None:
    told = parameters_of(offered.activity_definition("foreign", Foreign))

    assert "extension" not in told["low"]
    assert details(told["axis"], "default") == [0, Decimal("1.5")]
    assert details(told["weight_kg"], "range")[0]["low"]["value"] == Decimal("0.5")


def test_what_is_published_again_makes_no_version(published: Doors) -> None:
    offered.publish(published.server.own)

    own = published.server.own
    assert own.read("ActivityDefinition", "algorithm-slab").version == 1
    assert own.read("Device", "algorithm-slab").version == 1


def test_an_algorithm_of_another_package_appears_and_is_retired_when_it_is_gone(
    published: Doors, orderer: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as installed:
        installed.setattr(algorithms, "_items", algorithms._items | {"foreign": Foreign})
        offered.publish(published.server.own)
        there = orderer.get("/fhir/ActivityDefinition/algorithm-foreign").json
    offered.publish(published.server.own)

    assert (there["status"], there["version"], there["kind"]) == ("active", "2.1", "Task")
    assert orderer.get("/fhir/ActivityDefinition/algorithm-foreign").json["status"] == "retired"
    assert orderer.get("/fhir/Device/algorithm-foreign").json["status"] == "inactive"


def test_an_algorithm_that_cannot_be_described_keeps_no_other_away(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Foreign):
        parameters = None  # type: ignore[assignment]

    monkeypatch.setattr(algorithms, "_items", {"a-broken": Broken, **algorithms._items})

    offered.publish(doors.server.own)

    assert doors.server.own.read("ActivityDefinition", "algorithm-slab").version == 1


@pytest.mark.parametrize("name", ["", "two words", "a/b", "x" * 51, "-x"])
def test_a_name_that_could_not_be_part_of_an_id_is_refused(name: str) -> None:
    registry: Registry[int] = Registry("test")

    with pytest.raises(AppError, match="is no name"):
        registry.register(name)(1)


def test_clients_change_neither(published: Doors) -> None:
    writer = published.caller(*Right, name="writer")
    device = writer.get("/fhir/Device/algorithm-slab").json
    definition = writer.get("/fhir/ActivityDefinition/algorithm-slab").json

    squatting = {"resourceType": "ActivityDefinition", "status": "active", "url": definition["url"]}
    made = writer.post("/fhir/ActivityDefinition", {"resourceType": "ActivityDefinition", "status": "active"}).json
    answers = [
        writer.put("/fhir/Device/algorithm-slab", device | {"status": "inactive"}),
        writer.delete("/fhir/Device/algorithm-slab"),
        writer.put("/fhir/ActivityDefinition/algorithm-slab", definition | {"status": "retired"}),
        writer.delete("/fhir/ActivityDefinition/algorithm-slab"),
        writer.post("/fhir/ActivityDefinition", squatting),
        writer.put(f"/fhir/ActivityDefinition/{made['id']}", made | {"url": definition["url"]}),
    ]

    assert [each.status_code for each in answers] == [409] * 6


def test_who_may_only_order_sees_no_equipment(published: Doors, orderer: Caller) -> None:
    published.server.own.update({"resourceType": "Device", "id": "equipment-1"}, create=True)

    assert orderer.get("/fhir/Device/equipment-1").status_code == 404
    assert published.caller(Right.REGISTER_IMAGES).get("/fhir/ActivityDefinition").status_code == 403


def test_an_order_may_name_the_definition() -> None:
    images = value("series", "valueId", "1.2.3")
    by_canonical = {"instantiatesCanonical": "urn:fhir-imaging:algorithm:slab|1", "input": [images]}

    check_order(by_canonical)
    with pytest.raises(AppError, match="version 1 only"):
        check_order(by_canonical | {"instantiatesCanonical": "urn:fhir-imaging:algorithm:slab|2"})
    with pytest.raises(AppError, match="name one algorithm"):
        check_order(by_canonical | {"input": [images, value("algorithm", "valueString", "median")]})
