"""No log of a server holds who the patients are, however much it says and whatever goes wrong."""

import http.client
import json
import os
import re
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from pydicom import config

from tests.support.dicomweb import BOUNDARY, ct, related
from tests.support.serving import Served, answer, fhir_imaging, serving, wait_for

pytestmark = pytest.mark.slow

FAMILY, GIVEN, PATIENT_ID, BIRTH_DATE, ACCESSION = "Zweistein", "Adalbertina", "PID-7294031", "19110823", "ACC-55X93"
SECRETS = (FAMILY, GIVEN, PATIENT_ID, BIRTH_DATE, "1911-08-23", ACCESSION, "Quillfeather", "Kohlrabi-Gasse")
NAME = f"{FAMILY}^{GIVEN}"
STUDY = "1.2.826.0.1.3680043.8.498.1"
NUMBER = "123456789"  # as long as the name that takes its place in a file

PERSON = {
    "PatientName": NAME,
    "PatientID": PATIENT_ID,
    "PatientBirthDate": BIRTH_DATE,
    "AccessionNumber": ACCESSION,
    "ReferringPhysicianName": "Quillfeather",
    "PatientAddress": "Kohlrabi-Gasse 7",
}
FHIR_JSON = "application/fhir+json"
PATIENT = {
    "resourceType": "Patient",
    "name": [{"family": FAMILY, "given": [GIVEN]}],
    "birthDate": "1911-08-23",
    "identifier": [{"value": PATIENT_ID}],
}

FOUND = [
    f"/fhir/Patient?name={FAMILY}",
    f"/fhir/Patient?family:exact={FAMILY}&birthdate=1911-08-23",
    f"/fhir/Patient?identifier={PATIENT_ID}",
    f"/fhir/ImagingStudy?identifier={ACCESSION}",
    f"/fhir/ImagingStudy?patient.name={FAMILY}",
    f"/dicom-web/studies?PatientName={FAMILY}*&PatientBirthDate={BIRTH_DATE}",
    f"/dicom-web/studies?fuzzymatching=true&PatientName={GIVEN}&includefield=all",
    f"/dicom-web/instances?AccessionNumber={ACCESSION}",
    f"/dicom-web/studies/{STUDY}/metadata",
    f"/dicom-web/studies/{STUDY}/rendered",
]
REFUSED = [
    f"/fhir/{FAMILY}",
    f"/fhir/Patient/{FAMILY}",
    f"/fhir/Patient/{FAMILY}/_history/{GIVEN}",
    f"/fhir/Patient?{FAMILY}={GIVEN}",
    f"/fhir/Patient?birthdate={FAMILY}",
    f"/fhir/Patient?name:{FAMILY}={GIVEN}",
    f"/fhir/Patient?_cursor={FAMILY}",
    f"/fhir/Patient?_sort={FAMILY}",
    f"/fhir/Patient?_include={FAMILY}",
    f"/fhir/Patient?_elements={FAMILY}",
    f"/{FAMILY}/{GIVEN}",
    f"/dicom-web/studies/{FAMILY}",
    f"/dicom-web/studies?PatientBirthDate=1911-08-23&PatientName={FAMILY}",
    f"/dicom-web/studies?{FAMILY}={GIVEN}",
    f"/dicom-web/studies?PatientName={FAMILY}&limit={GIVEN}",
    f"/dicom-web/studies?PatientName={quote(FAMILY + '*' * 3 + '?a' * 20)}",
    f"/dicom-web/studies/{STUDY}/rendered?window={FAMILY}",
    f"/dicom-web/studies/{STUDY}?accept={FAMILY}",
    f"/dicom-web/studies/{STUDY}/series/1.2/instances/1.2/frames/{FAMILY}",
]
BAD_BODIES = [
    ("/fhir/Patient", FHIR_JSON, json.dumps({**PATIENT, "birthDate": f"{BIRTH_DATE} {FAMILY}"}).encode()),
    ("/fhir/Patient", FHIR_JSON, json.dumps({**PATIENT, FAMILY: GIVEN}).encode()),
    ("/fhir/Patient", FHIR_JSON, json.dumps(PATIENT).encode()[:-5]),
    ("/fhir/Patient", f"{FHIR_JSON}; charset={FAMILY}", json.dumps(PATIENT).encode()),
    ("/fhir/Patient", FAMILY, json.dumps(PATIENT).encode()),
    ("/fhir/Patient/_search", "application/x-www-form-urlencoded", f"birthdate={FAMILY}&name={GIVEN}".encode()),
    ("/fhir/Task", FHIR_JSON, json.dumps({"resourceType": "Task", "status": FAMILY}).encode()),
    ("/dicom-web/studies", f"multipart/related; boundary={FAMILY}", NAME.encode()),
    ("/dicom-web/studies", f'multipart/related; type="{FAMILY}"; boundary=X', NAME.encode()),
    ("/dicom-web/studies", "application/dicom", NAME.encode() * 99),
    ("/dicom-web/studies", "application/dicom", ct(1, **PERSON)[:-300]),
]
RAW = [
    f"GET /fhir/Patient?name={FAMILY} HTTP/9.9\r\nHost: x\r\n\r\n",
    f"{FAMILY.upper()} /fhir/Patient?name={FAMILY} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /fhir/Patient?name={NAME} {GIVEN} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /fhir/Patient HTTP/1.1\r\nHost: x\r\n{FAMILY} {GIVEN}: 1\r\n\r\n",
    f"POST /fhir/Patient HTTP/1.1\r\nHost: x\r\nContent-Length: {FAMILY}\r\n\r\n",
    f"POST /fhir/Patient HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{FAMILY}\r\n",
    f"GET /{'a' * 9000}{FAMILY} HTTP/1.1\r\nHost: x\r\n\r\n",
]


class Visitor:
    """Speaks to a server with a token; every answer has a status, none is believed to be a good one."""

    def __init__(self, served: Served, token: str) -> None:
        self._netloc = urlsplit(served.base_url).netloc
        self._token = token

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        connection = http.client.HTTPConnection(self._netloc, timeout=20)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self._token}", **told})
            response = connection.getresponse()
            response.read()
            return response.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def store(self, *files: bytes) -> int:
        kind = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
        return self.ask("POST", "/dicom-web/studies", related(*files), Content_Type=kind)

    def send(self, text: str) -> bytes:
        host, _, port = self._netloc.partition(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection, suppress(OSError):
            connection.sendall(text.encode())
            return connection.recv(100)
        return b""


def odd_images() -> list[bytes]:
    """Images of which a reader complains, quoting the person."""
    changes: list[dict[str, Any]] = [
        {"PatientBirthDate": f"{BIRTH_DATE}X"},
        {"PatientName": f"{NAME}^^^^^={FAMILY}=={GIVEN}", "PatientAge": FAMILY},
        {"SpecificCharacterSet": FAMILY, "StudyDate": FAMILY, "StudyTime": GIVEN},
        {"BodyPartExamined": f"{FAMILY} {GIVEN} {PATIENT_ID}", "PatientSex": FAMILY, "PatientWeight": NUMBER},
        {"KVP": NUMBER, "ExposureTime": NUMBER, "WindowCenter": NUMBER, "PixelSpacing": [NUMBER, NUMBER]},
    ]
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        made = [ct(1, study=f"{STUDY}.{n}", **{**PERSON, **change}) for n, change in enumerate(changes)]
    return [data.replace(NUMBER.encode(), FAMILY.encode()) for data in made]


@pytest.fixture(scope="module")
def logs() -> Iterator[dict[str, str]]:
    """Everything that a busy and troubled server wrote, by where it stands."""
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(
            Path(directory) / "store", "--set", "log.level=debug", "--set", "work.projection_quiet_s=0.1"
        ) as served,
    ):
        here = ("--data-dir", served.data_dir)
        fhir_imaging("subscriber", "add", "r", "--register-images", "--receive-images", *here)
        visitor = Visitor(served, fhir_imaging("token", "r", *here).stdout.strip())
        statuses = work_and_trouble(served, visitor)
        commands = [fhir_imaging(name, *here, "--set", "log.level=debug") for name in ("verify", "reindex")]
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(30)
        yield {
            "statuses": json.dumps(statuses),
            "commands": "".join(each.stdout + each.stderr for each in commands),
            "stdout": served.message + served.process.stdout.read(),
            "stderr": served.log.read_text(),
            **{path.name: path.read_text() for path in served.data_dir.rglob("*.log*")},
        }


def work_and_trouble(served: Served, visitor: Visitor) -> dict[str, list[int]]:
    """Do what makes a server write its logs; return the statuses that came back."""
    statuses = {
        "stored": [visitor.store(ct(1, study=STUDY, **PERSON))],
        "created": [visitor.ask("POST", "/fhir/Patient", json.dumps(PATIENT).encode(), Content_Type=FHIR_JSON)],
        "found": [visitor.ask("GET", path) for path in FOUND],
        "odd": [visitor.store(image) for image in odd_images()],
        "conflict": [visitor.store(ct(1, study=STUDY, **{**PERSON, "PatientName": f"{NAME}^II"}))],
        "refused": [visitor.ask("GET", path) for path in REFUSED],
        "unread": [visitor.ask("POST", path, body, Content_Type=kind) for path, kind, body in BAD_BODIES],
        "headers": [
            visitor.ask("GET", "/fhir/Patient", **{name: f"{FAMILY}; {GIVEN}"})
            for name in ("Accept", "If_None_Match", "Authorization", "Referer", "User_Agent", "X_Request_Id", "Prefer")
        ],
    }
    for text in RAW:
        visitor.send(text)
    os.kill(served.pid_of("mongod"), signal.SIGKILL)
    statuses["without-database"] = [visitor.ask("GET", path) for path in FOUND[:2]]
    assert wait_for(lambda: answer(f"{served.base_url}/health/ready") == 200, 30)
    statuses["again"] = [visitor.ask("GET", path) for path in FOUND[:2]]
    return statuses


def test_the_server_worked_and_refused(logs: dict[str, str]) -> None:
    statuses = json.loads(logs["statuses"])

    assert statuses["stored"] + statuses["created"] == [200, 201]
    assert set(statuses["found"]) == {200}
    assert {status // 100 for status in statuses["refused"] + statuses["unread"]} == {4}
    assert statuses["again"] == [200, 200]


def test_there_is_something_in_each_log(logs: dict[str, str]) -> None:
    assert {"stdout", "stderr", "mongod.log"} <= logs.keys()
    assert '"level": "debug"' in logs["stderr"]
    assert logs["stderr"].count('"event": "request"') > 40
    assert len(logs["mongod.log"].splitlines()) > 100


@pytest.mark.parametrize("secret", SECRETS)
def test_no_log_line_holds_what_tells_a_patient(logs: dict[str, str], secret: str) -> None:
    telling = [
        (place, line)
        for place, text in logs.items()
        for line in text.splitlines()
        if re.search(re.escape(secret), line, re.IGNORECASE)
    ]

    assert telling == []
