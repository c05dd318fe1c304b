"""`fhir-imaging algorithms` tells what the registry knows, and `task_of` writes orders that are right."""

from datetime import UTC, datetime
from io import StringIO

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from fhir_server.cli import cli
from fhir_server.delivery import value
from fhir_server.model.dates import to_instant
from fhir_server.order_table import order_table, text_of_entry
from fhir_server.work.orders import check_order, order_of, task_of
from imaging.algorithms import algorithms
from imaging.errors import AppError

STUDY = value("imaging-study", "valueReference", {"reference": "ImagingStudy/1.2.3"})


def shown(*words: str) -> Result:
    return CliRunner().invoke(cli, ["algorithms", *words], env={"COLUMNS": "200"}, catch_exceptions=True)


def test_every_algorithm_is_listed_with_its_version_and_what_it_does() -> None:
    lines = {line.split()[0]: line for line in shown().output.splitlines()}

    for name in algorithms:
        found = algorithms.get(name)
        assert found.description() in lines[name]
        assert f" {found.version} " in lines[name]


def test_every_parameter_is_told_with_unit_range_and_default() -> None:
    for name in algorithms:
        lines = shown(name).output.splitlines()
        table = lines[next(n for n, line in enumerate(lines) if line.startswith("parameter ")) :]
        for each in algorithms.get(name).parameters():
            (row,) = [line for line in table if line.startswith(f"{each.name} ")]
            assert all(word in row for word in (each.unit, each.help, each.range_in_words()))


def test_an_algorithm_that_is_not_there_is_refused_with_what_there_is() -> None:
    assert "there are: bilateral" in str(shown("slb").exception)
    assert "version 1 only" in str(shown("slab|2").exception)


def test_an_algorithm_of_another_package_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algorithms.failures, "foreign", "ImportError: no such library")

    assert "foreign could not be loaded: ImportError: no such library" in shown().output


@pytest.mark.parametrize(
    ("algorithm", "given", "read"),
    [
        ("slab", {"thickness_mm": "20.5", "projection": "mean"}, {"thickness_mm": 20.5, "projection": "mean"}),
        ("mpr|2", {"plane": "oblique", "row_direction": "1, 0,0", "column_direction": "0,0,-1"},
         {"plane": "oblique", "row_direction": [1, 0, 0], "column_direction": [0, 0, -1]}),
        ("median", {"radius": "2"}, {"radius": 2}),
    ],
)  # fmt: skip
def test_parameters_as_a_person_writes_them_become_typed(
    algorithm: str, given: dict[str, str], read: dict[str, object]
) -> None:
    task = task_of(algorithm, given, [STUDY], priority="stat")

    check_order(task)
    assert order_of(task).parameters == read
    assert task["priority"] == "stat"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"thickness_mm": "thick"}, "'thick' is no number"),
        ({"thick": "1"}, "known: projection, thickness_mm, step_mm"),
    ],
)
def test_what_a_person_writes_wrongly_is_named(given: dict[str, str], words: str) -> None:
    with pytest.raises(AppError, match=words):
        task_of("slab", given, [STUDY])


def test_where_there_is_little_room_an_order_has_its_whole_id_and_what_somebody_else_calls_it() -> None:
    now = to_instant(datetime.now(UTC))
    task = {
        "id": "1e7c4240-63aa-484f-96c0-c5b172dbd154", "status": "requested", "meta": {"lastUpdated": now},
        "code": {"coding": [{"system": "https://vendor.example/codes", "code": "lung-nodules"}]},
    }  # fmt: skip
    console = Console(file=StringIO(), width=100)

    console.print(order_table([task]))

    assert console.file.getvalue().splitlines()[1].split()[:3] == [task["id"], "lung-nodules", "requested"]


def test_a_quantity_is_told_with_its_unit() -> None:
    assert text_of_entry(value("thickness_mm", "valueQuantity", {"value": 20, "code": "mm"})) == "20 mm"
