"""Exports in bulk from a real server: by the program of `docs/howto/export-in-bulk.md`, and by smart-fetch, a client of
the SMART team for servers of all makes.
"""

import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import ENVIRONMENT, serving
from tests.support.user import User

PAGE = Path(__file__).parents[2] / "docs/howto/export-in-bulk.md"
LABORATORY = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]
}


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory) / "store", "--set", "access.cache_s=0", "--set", "bulk.settle_s=0.1") as served,
    ):
        yield User.let_in(served)


@pytest.fixture(scope="module")
def patients(user: User) -> list[str]:
    """Ids of three patients, with an Observation each."""
    found = []
    for gender in ("male", "female", "other"):
        made = user.ask("POST", "/fhir/Patient", {"resourceType": "Patient", "gender": gender})
        subject = {"reference": f"Patient/{made['id']}"}
        content = {"status": "final", "category": [LABORATORY], "code": {"text": "x"}, "subject": subject}
        user.ask("POST", "/fhir/Observation", {"resourceType": "Observation", **content})
        found.append(made["id"])
    return found


def run(user: User, *command: object) -> "subprocess.CompletedProcess[str]":
    environment = ENVIRONMENT | {"FHIR": f"{user.served.base_url}/fhir", "TOKEN": user.token}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def copy_in(folder: Path) -> dict[str, Any]:
    return {
        f"{path.parent.name}/{path.name.removesuffix('.json.gz')}": json.loads(gzip.decompress(path.read_bytes()))
        for path in folder.glob("*/*.json.gz")
    }


def test_the_program_of_the_page_keeps_a_copy(user: User, patients: list[str], tmp_path: Path) -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    program, folder = tmp_path / "mirror.py", tmp_path / "mirror"
    program.write_text(text)
    first, second, third = patients

    run(user, program, folder)
    before = copy_in(folder)
    user.ask("PUT", f"/fhir/Patient/{first}", {"resourceType": "Patient", "id": first, "gender": "unknown"})
    user.fetch("DELETE", f"/fhir/Patient/{third}", None, {})
    again = run(user, program, folder)
    after = copy_in(folder)

    assert before[f"Patient/{second}"] == user.ask("GET", f"/fhir/Patient/{second}")
    assert {f"Patient/{each}" for each in patients} <= before.keys()
    assert sum(key.startswith("Observation/") for key in before) == 3
    assert before.keys() - after.keys() == {f"Patient/{third}"}
    assert after[f"Patient/{first}"]["gender"] == "unknown"
    assert after[f"Patient/{second}"] == before[f"Patient/{second}"]
    assert int(again.stdout.split()[0]) < len(before)


def test_smart_fetch_gets_everything(user: User, patients: list[str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(user.token)
    fhir = f"{user.served.base_url}/fhir"

    run(
        user, Path(sys.executable).parent / "smart-fetch", "bulk", "--fhir-url", fhir, "--bearer-token", token,
        "--type", "Patient,Observation", tmp_path / "out",
    )  # fmt: skip

    lines = [
        json.loads(line)
        for path in (tmp_path / "out").glob("*.ndjson.gz")
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    kept = {f"{each['resourceType']}/{each['id']}": each for each in lines}
    for id in patients[:2]:
        assert kept[f"Patient/{id}"] == user.ask("GET", f"/fhir/Patient/{id}")
    assert sum(key.startswith("Observation/") for key in kept) == 3
    logged = [json.loads(line) for line in (tmp_path / "out/log.ndjson").read_text().splitlines()]
    assert logged[-1]["eventId"] == "export_complete"
    assert not [each for each in logged if "error" in each["eventId"]]
