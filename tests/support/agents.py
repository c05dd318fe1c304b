"""Runs the print agent beside a server, and orders what it prints."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid

from fhir_server.delivery import value
from tests.support.doors import dicom
from tests.support.serving import ENVIRONMENT, Served, fhir_imaging

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Site:
    """A server with a subscriber that orders, and the agent of the printer `ward`."""

    served: Served
    token: str
    folder: Path

    @property
    def device(self) -> dict[str, Any]:
        return self.call("GET", "/fhir/Device/printer-ward")

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/fhir+json") -> Any:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(f"{self.served.base_url}{path}", data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.token}")
        if data:
            request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or b"null")

    def store(self, count: int = 1, **changes: Any) -> str:
        """Store images of a new study and return its UID."""
        study, series = generate_uid(), generate_uid()
        for number in range(1, count + 1):
            changed = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "InstanceNumber": number} | changes
            self.call(
                "POST", "/dicom-web/studies", dicom(SOPInstanceUID=generate_uid(), **changed), "application/dicom"
            )
        return study

    def order(self, study: str, *inputs: dict[str, Any], **more: Any) -> str:
        task = {
            "resourceType": "Task", "status": "requested", "intent": "order",
            "code": {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "hard-copy"}]},
            "input": [
                value("imaging-study", "valueReference", {"reference": f"ImagingStudy/{study}"}),
                value("device", "valueReference", {"reference": "Device/printer-ward"}), *inputs,
            ],
        }  # fmt: skip
        return str(self.call("POST", "/fhir/Task", task | more)["id"])

    def task(self, identifier: str) -> dict[str, Any]:
        return self.call("GET", f"/fhir/Task/{identifier}")


def site(served: Served, folder: Path) -> Site:
    """Register `clinic`, which orders, and `ward-site`, whose agent may serve the printer `ward` and no more."""
    where = ("--data-dir", served.data_dir)
    rights = ("--order-hard-copy", "--register-images", "--receive-images", "--sees", "all")
    for command in (
        ("subscriber", "add", "clinic", *rights, *where),
        ("subscriber", "add", "ward-site", "--serve-printers", *where),
        ("printer", "add", "ward", "agent", "--agent", "ward-site", "--title", "Ward 3", *where),
    ):
        done = fhir_imaging(*command)
        assert done.returncode == 0, done.stderr
    token = fhir_imaging("token", "clinic", *where).stdout.strip()
    folder.mkdir(exist_ok=True)
    (folder.parent / "token").write_text(fhir_imaging("token", "ward-site", *where).stdout.strip())
    return Site(served, token, folder)


@contextmanager
def agent(at: Site, *arguments: object, kind: str = "fragile") -> Iterator["subprocess.Popen[str]"]:
    """Run the agent until the block ends, with a printer into the site's folder."""
    command = [
        sys.executable, "-m", "tests.support.presses", "print-agent", "ward", kind, "-o", f"folder={at.folder}",
        "-o", "dots_per_inch=100", "--server", at.served.base_url, "--token", at.folder.parent / "token",
        "--state", at.folder.parent / "state", "--poll", 0.2, *arguments,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT), ENVIRONMENT.get("PYTHONPATH", "")]))
    with (at.folder.parent / "agent.log").open("a") as log:
        process = subprocess.Popen(
            [str(word) for word in command], env=ENVIRONMENT | {"PYTHONPATH": path}, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
