"""A processor elsewhere, as two pages of `docs/howto` have it: their programs do an order, by FHIR and by UPS-RS."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from tests.support.serving import ENVIRONMENT, Served, fhir_imaging, serving

HOW_TO = Path(__file__).parents[2] / "docs/howto"
PAGE, UPS_PAGE = HOW_TO / "process-outside.md", HOW_TO / "work-by-ups.md"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory) / "store", "--set", "access.cache_s=0") as served,
    ):
        yield served


def block(language: str, page: Path = PAGE, *, of: int = 1) -> str:
    """The first block of a language on a page, which has so many of them."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
    assert len(found) == of
    return str(found[0])


def let_in(server: Served, name: str, *rights: str) -> str:
    fhir_imaging("subscriber", "add", name, *rights, "--data-dir", server.data_dir)
    return fhir_imaging("token", name, "--data-dir", server.data_dir).stdout.strip()


def asked(server: Served, token: str, path: str, body: bytes = b"", kind: str = "application/fhir+json") -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    request = urllib.request.Request(f"{server.base_url}/{path}", data=body or None, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_the_program_of_the_page_does_an_order(server: Served, tmp_path: Path) -> None:
    commands = re.findall(r"^fhir-imaging subscriber add (\S+) (.*)$", PAGE.read_text(), re.M)
    ((name, rights),) = commands
    processor = let_in(server, name, *rights.split())
    requester = let_in(server, "clinic", "--register-images", "--receive-images", "--order-processing")
    image = Path(get_testdata_file("CT_small.dcm"))
    asked(server, requester, "dicom-web/studies", image.read_bytes(), "application/dicom")
    ds = dcmread(image)
    order = json.loads(block("json").replace("ImagingStudy/1.2.3", f"ImagingStudy/{ds.StudyInstanceUID}"))
    placed = asked(server, requester, "fhir/Task", json.dumps(order).encode())
    program = tmp_path / "processor.py"
    program.write_text(block("python"))

    environment = ENVIRONMENT | {"SERVER": server.base_url, "TOKEN": processor, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout == f"{placed['id']} completed\n", done.stderr
    task = asked(server, requester, f"fhir/Task/{placed['id']}")
    assert task["status"] == "completed"
    observation = asked(server, requester, f"fhir/{task['output'][0]['valueReference']['reference']}")
    assert observation["valueQuantity"]["value"] == pytest.approx(float(ds.pixel_array.mean()))
    assert observation["device"] == task["owner"]
    versions = asked(server, requester, f"fhir/Task/{placed['id']}/_history")["entry"]
    assert [each["resource"]["status"] for each in versions] == ["completed", "in-progress", "requested"]


def test_the_program_of_the_page_does_a_work_item(server: Served, tmp_path: Path) -> None:
    commands = dict(re.findall(r"^fhir-imaging subscriber add (\S+) (.*)$", UPS_PAGE.read_text(), re.M))
    requester, performer = (let_in(server, name, *rights.split()) for name, rights in commands.items())
    image = Path(get_testdata_file("MR_small.dcm"))
    asked(server, requester, "dicom-web/studies", image.read_bytes(), "application/dicom")
    ds = dcmread(image)
    order = block("json", UPS_PAGE).replace('"1.2.3"', f'"{ds.StudyInstanceUID}"')
    (path,) = re.findall(r'8080/(dicom-web/workitems\?[0-9.]+)"', UPS_PAGE.read_text())
    post(server, requester, path, order.encode())
    program = tmp_path / "performer.py"
    program.write_text(block("python", UPS_PAGE, of=2))

    environment = ENVIRONMENT | {"SERVER": server.base_url, "TOKEN": performer, "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, program],
        env=environment | {"LABEL": "LUNG CAD"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    uid = path.rpartition("?")[2]
    assert done.stdout.splitlines() == [f"1 instances of {ds.StudyInstanceUID}", f"{uid} completed"], done.stderr
    assert asked(server, requester, f"fhir/Task/{uid}")["status"] == "completed"
    item = asked(server, requester, f"dicom-web/workitems/{uid}")
    assert item["00741000"]["Value"] == ["COMPLETED"]


def post(server: Served, token: str, path: str, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/dicom+json"}
    request = urllib.request.Request(f"{server.base_url}/{path}", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 201
