"""The commands about processing, run as a user runs them: on a server with its worker."""

import os
import pty
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fhir_server.cli import cli
from tests.support.serving import COMMAND, ENVIRONMENT, serving
from tests.support.user import User
from tests.support.volumes import ct_files

pytestmark = pytest.mark.slow

STUDY = "1.2.3.4"


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory, serving(Path(directory)) as served:
        made = User.let_in(served)
        for file in ct_files(10):
            made.ask("POST", "/dicom-web/studies", file, "application/dicom")
        yield made


def test_an_order_that_is_waited_for_tells_what_was_made(user: User) -> None:
    done = user.run("order", "slab|1", "--as", "radiology", "--study", STUDY, "-p", "thickness_mm=1000", "--wait")

    assert done.returncode == 0, done.stderr
    identifier, *told = done.stdout.splitlines()
    assert "thickness_mm=1000.0" in told[0]
    (series,) = [line.removeprefix("series: ") for line in told if line.startswith("series: ")]
    shown = user.ask("GET", f"/fhir/ImagingStudy/{STUDY}")
    assert series in {each["uid"] for each in shown["series"]}
    assert user.ask("GET", f"/fhir/Task/{identifier}")["status"] == "completed"
    assert "completed" in done.stderr


def test_an_order_that_fails_says_why_and_has_exit_code_1(user: User) -> None:
    region = "0,0,1000,1000"
    done = user.run("order", "median", "--as", "radiology", "--series", f"{STUDY}.5", "--region", region, "--wait")

    assert done.returncode == 1
    assert "is not within 5 columns and 4 rows" in done.stderr


def test_a_wrong_order_is_refused_in_one_line(user: User) -> None:
    done = user.run("order", "slab", "--study", STUDY, "-p", "step_mm=wide", "--as", "radiology")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fhir-imaging: 'wide' is no number (step_mm)\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slb", "--study", STUDY], "'slb' is not known; there are: bilateral"),
        (["slab|9", "--study", STUDY], "version 1 only"),
        (["slab", "--study", STUDY, "-p", "thicknes=1"], "known: projection, thickness_mm, step_mm (thicknes)"),
        (["slab", "--study", STUDY, "-p", "step_mm"], "'step_mm' is not NAME=VALUE"),
        (["slab", "--study", STUDY, "-p", "step_mm=0"], "at least 0.05 mm expected (step_mm)"),
        (["mpr", "--study", STUDY, "-p", "row_direction=1,0"], "3 values expected (row_direction)"),
        (["slab"], "name images"),
        (["slab", "--study", "9.9"], "9.9"),
        (["slab", "--study", STUDY, "--deliver-to", "Endpoint/none"], "not registered by the operator"),
        (["slab", "--study", STUDY, "--deliver-to", "Patient/1"], "an Endpoint or an Organization expected"),
    ],
)
def test_what_is_wrong_with_an_order_is_named(user: User, words: list[str], said: str) -> None:
    options = ["--as", "radiology", "--data-dir", str(user.served.data_dir)]

    done = CliRunner().invoke(cli, ["order", *words, *options])

    assert said in f"{done.exception} {done.output}"


def test_who_is_no_subscriber_or_may_not_order_orders_nothing(user: User) -> None:
    user.run("subscriber", "add", "viewer", "--receive-images")

    nobody = user.run("order", "slab", "--as", "nobody", "--study", STUDY)
    viewer = user.run("order", "slab", "--as", "viewer", "--study", STUDY)

    assert (nobody.returncode, viewer.returncode) == (1, 1)
    assert "no subscriber 'nobody'" in nobody.stderr
    assert "Task" in viewer.stderr


def test_every_way_to_choose_images_is_understood(user: User) -> None:
    ways = (
        ["--search", "ImagingStudy?modality=CT"],
        ["--series", f"{STUDY}.5", "--frames", "1", "--region", "1,0,3,2"],
        ["--instance", f"{STUDY}.5.1", "--instance", f"{STUDY}.5.2"],
    )

    done = [user.run("order", "median", "--as", "radiology", *way, "--priority", "stat", "--wait") for way in ways]

    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]


def test_orders_are_listed_latest_first_and_by_status(user: User) -> None:
    first, second = (
        user.run("order", "median", "--as", "radiology", "--instance", f"{STUDY}.5.{n}", "--wait").stdout.split()[0]
        for n in (3, 4)
    )

    everything, failed, one = (user.run("tasks", *words) for words in ((), ("--status", "failed"), ("--limit", "1")))

    assert everything.stdout.index(second) < everything.stdout.index(first)
    assert re.search(rf"{second} +median +completed +━+ 100 %", everything.stdout)
    assert first not in failed.stdout
    assert len(one.stdout.splitlines()) == 2
    wrong = user.run("tasks", "--status", "done")
    assert wrong.returncode == 2
    assert "completed" in wrong.stderr


def test_one_order_is_shown_with_its_inputs_and_what_came_of_it(user: User) -> None:
    identifier = user.run("order", "median", "--as", "radiology", "--series", f"{STUDY}.5", "--wait").stdout.split()[0]

    shown = user.run("tasks", identifier)
    unknown = user.run("tasks", "nothing")

    assert f"input series: {STUDY}.5" in shown.stdout
    assert "output performed: Median filter (median 1: radius=1)" in shown.stdout
    assert unknown.returncode == 1


def owned_task(user: User) -> dict[str, Any]:
    """Return a Task that the subscriber does itself, and reports on."""
    (listed,) = [line for line in user.run("subscriber", "list").stdout.splitlines() if "radiology" in line]
    owner = {"reference": listed.split()[-1]}
    code = {"coding": [{"code": "count-nodules"}]}
    task = {"resourceType": "Task", "status": "requested", "intent": "order", "code": code, "owner": owner}
    return user.ask("POST", "/fhir/Task", task)  # type: ignore[no-any-return]


def report(user: User, task: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/fhir+json", "If-Match": f'W/"{task["meta"]["versionId"]}"'}
    user.fetch("PUT", f"/fhir/Task/{task['id']}", task, headers)


def at(task: dict[str, Any], percent: int, step: str) -> dict[str, Any]:
    parts = [{"url": "percent", "valueUnsignedInt": percent}, {"url": "step", "valueString": step}]
    told = [{"url": "urn:fhir-imaging:extension:progress", "extension": parts}]
    return task | {"status": "in-progress", "extension": told}


def test_the_progress_that_is_reported_is_shown(user: User) -> None:
    task = owned_task(user)
    report(user, at(task, 40, "[bold]slice 4 of 10"))

    shown = user.run("tasks", task["id"])

    assert re.search(r"count-nodules +in-progress +━━━━ +40 % .*\[bold\]slice 4 of 10", shown.stdout)


def test_what_is_watched_follows_until_ctrl_c_and_that_is_no_failure(user: User) -> None:
    task = owned_task(user)
    terminal, inside = pty.openpty()
    words = [*COMMAND, "tasks", "--watch", "--limit", "3", "--data-dir", str(user.served.data_dir)]
    with subprocess.Popen(
        words, stdout=inside, stderr=inside, env={**ENVIRONMENT, "COLUMNS": "150", "TERM": "xterm"}
    ) as process:
        os.close(inside)
        try:
            assert seen(terminal, f"{task['id']} +count-nodules +requested")
            report(user, at(task, 70, "nearly"))
            assert seen(terminal, "70 %")
            process.send_signal(signal.SIGINT)
            code = process.wait(20)
        finally:
            process.kill()
    os.close(terminal)

    assert code == 0


def seen(terminal: int, pattern: str, within_s: float = 20) -> bool:
    """Read what a terminal shows until it holds the pattern, colours left out."""
    text, deadline = "", time.monotonic() + within_s
    while time.monotonic() < deadline:
        text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(terminal, 4096).decode(errors="replace"))
        if re.search(pattern, text):
            return True
    return False
