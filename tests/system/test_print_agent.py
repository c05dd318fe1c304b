"""The print agent beside a real server: orders are fetched, printed and reported, through outages, and each once."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fhir_server.delivery import value
from fhir_server.model.task import name_of
from tests.support.agents import Site, agent, site
from tests.support.presses import MUTE, PLAN, STEPS, plan, printed
from tests.support.serving import fhir_imaging, serving, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving(tmp_path_factory.mktemp("agent") / "data") as made:
        yield made


@pytest.fixture(scope="module")
def shared(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with one study; tests that share it run one agent after the other on one state directory."""
    return site(served, tmp_path_factory.mktemp("site") / "films")


def ready(at: Site) -> bool:
    return "property" in at.device


def make_ready(at: Site) -> None:
    """Have an agent tell what its printer can do, without which nothing can be ordered, unless one did."""
    if not ready(at):
        with agent(at):
            assert wait_for(lambda: ready(at), 30)


def over(at: Site, *tasks: str) -> bool:
    return all(at.task(each)["status"] in ("completed", "failed", "cancelled") for each in tasks)


def outputs(task: dict[str, Any]) -> dict[str, Any]:
    return {name_of(each): next(v for k, v in each.items() if k.startswith("value")) for each in task["output"]}


def test_an_order_is_fetched_printed_and_reported(shared: Site) -> None:
    with agent(shared):
        assert wait_for(lambda: ready(shared), 30)
        study = shared.store(3)
        task = shared.order(study, value("copies", "valuePositiveInt", 2))
        assert wait_for(lambda: over(shared, task), 60), (shared.folder.parent / "agent.log").read_text()

    done = shared.task(task)
    assert done["status"] == "completed"
    assert done["owner"] == {"reference": "Device/printer-ward"}
    assert (outputs(done)["pages"], outputs(done)["sheets"]) == (3, 6)
    assert task in printed(shared.folder)
    counted = fhir_imaging("printer", "pages", "--data-dir", shared.served.data_dir).stdout
    assert "clinic" in counted
    assert "ward" in counted
    assert used_pages(shared, "clinic") >= 3
    assert not any((shared.folder.parent / "state/orders").iterdir())


def used_pages(site: Site, subscriber: str) -> int:
    words = ["usage", "--form", "csv", "--by", "contract", "--subscriber", subscriber]
    rows = csv.DictReader(fhir_imaging(*words, "--data-dir", site.served.data_dir).stdout.splitlines())
    return sum(int(row["pages"]) for row in rows if row["contract"].startswith("Contract/"))


@pytest.mark.parametrize("step", STEPS)
def test_an_agent_that_is_killed_at_any_step_prints_once(shared: Site, step: str) -> None:
    make_ready(shared)
    study = shared.store()
    plan(shared.folder, f"die {step}")
    task = shared.order(study)

    with agent(shared) as first:
        assert wait_for(lambda: first.poll() is not None, 60)
    assert first.returncode == -9
    with agent(shared):
        assert wait_for(lambda: over(shared, task), 60)

    assert shared.task(task)["status"] == "completed"
    assert printed(shared.folder).count(task) == 1


@pytest.mark.parametrize("step", ["reserve", "send", "kept", "outcome"])
def test_a_printer_that_fails_at_any_step_is_waited_for(shared: Site, step: str) -> None:
    with agent(shared):
        assert wait_for(lambda: ready(shared), 30)
        plan(shared.folder, f"fail {step}")
        task = shared.order(shared.store())
        assert wait_for(lambda: over(shared, task), 60)

    assert shared.task(task)["status"] == "completed"
    assert printed(shared.folder).count(task) == 1


def test_what_is_cancelled_before_it_is_printed_is_not_printed(shared: Site) -> None:
    study = shared.store()
    make_ready(shared)
    task = shared.order(study)
    read = shared.task(task)
    shared.call("PUT", f"/fhir/Task/{task}", read | {"status": "cancelled"})
    other = shared.order(study)

    with agent(shared):
        assert wait_for(lambda: over(shared, other), 60)

    assert task not in printed(shared.folder)
    assert shared.task(task)["status"] == "cancelled"


def test_an_agent_that_lost_its_memory_prints_nothing_on_a_guess(shared: Site) -> None:
    study = shared.store()
    task = shared.order(study)
    plan(shared.folder, "die sent")
    with agent(shared) as first:
        assert wait_for(lambda: first.poll() is not None, 60)
    (shared.folder.parent / "state").rename(shared.folder.parent / f"lost-{task}")

    with agent(shared):
        assert wait_for(lambda: over(shared, task), 60)

    failed = shared.task(task)
    assert failed["status"] == "failed"
    assert "look at the printer" in failed["statusReason"]["text"]
    assert printed(shared.folder).count(task) == 1


def test_an_order_is_renewed_while_it_is_worked_on_though_the_printer_says_nothing(shared: Site) -> None:
    """Each version that the agent writes renews its claim, which would lapse after `work.claim_s` without one."""
    study = shared.store()
    plan(shared.folder, MUTE)
    task = shared.order(study)
    version = lambda: int(shared.task(task)["meta"]["versionId"])  # noqa: E731

    with agent(shared, "--beat", 0.2, "--poll", 0.2):
        assert wait_for(lambda: shared.task(task)["status"] == "in-progress", 60)
        claimed = version()
        assert wait_for(lambda: version() >= claimed + 3, 60)
        held = shared.task(task)
        (shared.folder.parent / PLAN).unlink()
        assert wait_for(lambda: over(shared, task), 60)

    assert held["status"] == "in-progress"
    assert shared.task(task)["status"] == "completed"


def test_the_server_goes_away_while_orders_wait_and_all_are_printed_once(tmp_path: Path) -> None:
    """Orders are fetched, the server stops, they are printed meanwhile, and reported when it is back."""
    data = tmp_path / "data"
    with serving(data) as first:
        at = site(first, tmp_path / "films")
        port = first.base_url.rpartition(":")[2]
        with agent(at):
            assert wait_for(lambda: ready(at), 30)
        study = at.store()
        made = [at.order(study) for _ in range(3)]
        plan(at.folder, "fail reserve")
        running = agent(at, "--beat", 0.5)
        running.__enter__()
        fetched = lambda: len(list((tmp_path / "state/orders").glob("*/fetched")))  # noqa: E731
        assert wait_for(lambda: fetched() == 3 or printed(at.folder), 30)

    try:
        assert wait_for(lambda: printed(at.folder) == sorted(made), 60)
        with serving(data, "--set", f"web.port={port}") as second:
            back = Site(second, at.token, at.folder)
            # The address is another one: the agent is told by a restart, with the same memory.
            running.__exit__(None, None, None)
            with agent(back):
                assert wait_for(lambda: over(back, *made), 60)
            assert {back.task(each)["status"] for each in made} == {"completed"}
    finally:
        running.__exit__(None, None, None)
    assert printed(at.folder) == sorted(made)
