"""Ordered at a whole server, delivered to Orthanc over HTTP: what is there is what was made, or was sent in."""

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from tests.support.deliveries import SERIES, STUDY, order, outputs
from tests.support.dicomweb import BOUNDARY, related
from tests.support.doors import dicom
from tests.support.orthanc import USER, Orthanc, needs_orthanc
from tests.support.serving import Served, fhir_imaging, serving, wait_for
from tests.support.volumes import ct_files

pytestmark = needs_orthanc

SETTINGS = [
    part
    for setting in (
        "outbound.private_networks=127.0.0.0/8", "outbound.pause_s=0.3", "outbound.longest_pause_s=2",
        "access.cache_s=0", "work.task_workers=1",
    )
    for part in ("--set", setting)
]  # fmt: skip


class Client:
    """A subscriber's program."""

    def __init__(self, served: Served) -> None:
        self._base = served.base_url
        store = ["--data-dir", served.data_dir]
        rights = ["--register-images", "--receive-images", "--order-processing"]
        assert fhir_imaging("subscriber", "add", "clinic", *rights, *store).returncode == 0
        self._token = fhir_imaging("token", "clinic", *store).stdout.strip()

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        sent = {"Authorization": f"Bearer {self._token}"}
        sent |= {name.replace("_", "-"): text for name, text in headers.items()}
        request = urllib.request.Request(f"{self._base}{path}", body, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.code}: {error.read().decode()}") from None

    def store(self, *files: bytes) -> None:
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        self.call("POST", "/dicom-web/studies", related(*files), Content_Type=kind)

    def place(self, task: dict[str, Any]) -> str:
        made = self.call("POST", "/fhir/Task", json.dumps(task).encode(), Content_Type="application/fhir+json")
        return str(json.loads(made)["id"])

    def task(self, identifier: str) -> dict[str, Any]:
        return dict(json.loads(self.call("GET", f"/fhir/Task/{identifier}")))

    def over(self, identifier: str) -> dict[str, Any]:
        """Wait for the end of a Task that has to succeed; return it."""
        assert wait_for(lambda: self.task(identifier)["status"] in ("completed", "failed"), 90), self.task(identifier)
        found = self.task(identifier)
        assert found["status"] == "completed", found["statusReason"]
        return found

    def deliveries_of(self, identifier: str) -> list[str]:
        found = json.loads(self.call("GET", f"/fhir/Task?part-of=Task/{identifier}&code=deliver"))
        return [each["resource"]["id"] for each in found["entry"]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder / "store", *SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    made = Orthanc(tmp_path / "orthanc")
    yield made
    made.stop()


def register(served: Served, orthanc: Orthanc, name: str, *more: str) -> str:
    """Register Orthanc as an operator does; return the reference of its Endpoint."""
    password = served.data_dir / f"{name}.txt"
    password.write_text(USER)
    added = fhir_imaging(
        "endpoint", "add", name, "clinic", orthanc.address, "--way", "stow", "--basic", password, *more,
        "--data-dir", served.data_dir, *SETTINGS,
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    return f"Endpoint/peer-{name}"


def reference(name: str, text: str) -> dict[str, Any]:
    return {"type": {"text": name}, "valueReference": {"reference": text}}


def by_uid(files: list[bytes]) -> dict[str, Any]:
    return {str(ds.SOPInstanceUID): ds for ds in (dcmread(BytesIO(file)) for file in files)}


def test_the_result_of_ordered_processing_is_at_orthanc_pixel_by_pixel(
    served: Served, client: Client, orthanc: Orthanc
) -> None:
    client.store(*ct_files())
    endpoint = register(served, orthanc, "result")
    process = {
        **order(endpoint), "code": {"coding": [{"system": "urn:fhir-imaging:code:task", "code": "process"}]},
        "input": [
            {"type": {"text": "algorithm"}, "valueString": "slab"},
            {"type": {"text": "thickness_mm"}, "valueDecimal": 1000},
            {"type": {"text": "series"}, "valueId": SERIES},
            reference("deliver-to", endpoint),
        ],
    }  # fmt: skip

    placed = client.place(process)
    made = client.over(placed)
    (delivery,) = client.deliveries_of(placed)
    done = client.over(delivery)

    (series,) = outputs(made, "series")
    assert outputs(done, "delivered") == [1]
    (there,) = by_uid(orthanc.files()).values()
    assert there.SeriesInstanceUID == series
    # The highest of the slices, which are -1000 + 20 n HU for n from 0 to 5.
    assert (there.pixel_array * there.RescaleSlope + there.RescaleIntercept == -900).all()
    fetched = client.call("GET", f"/dicom-web/studies/{STUDY}/series/{series}/instances/{there.SOPInstanceUID}",
                          Accept="application/dicom")  # fmt: skip
    assert np.array_equal(there.pixel_array, dcmread(BytesIO(fetched)).pixel_array)


@pytest.mark.parametrize("form", ["native", "stored", "received"])
def test_what_was_sent_in_is_at_orthanc_in_the_form_that_was_registered(
    served: Served, client: Client, orthanc: Orthanc, form: str
) -> None:
    names = ["CT_small.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-lossy.dcm", "test-SR.dcm"]
    study = f"1.2.77.{['native', 'stored', 'received'].index(form)}"
    files = [
        dicom(name, StudyInstanceUID=study, SOPInstanceUID=f"{study}.{number}") for number, name in enumerate(names, 1)
    ]
    client.store(*files)
    endpoint = register(served, orthanc, form, "--form", form)

    done = client.over(client.place(order(endpoint, reference("imaging-study", f"ImagingStudy/{study}"))))

    assert outputs(done, "delivered") == [4]
    there, sent = by_uid(orthanc.files()), by_uid(files)
    assert there.keys() == sent.keys()
    if form == "received":
        assert sorted(orthanc.files()) == sorted(files)
    syntaxes = {uid.rpartition(".")[2]: str(ds.file_meta.TransferSyntaxUID) for uid, ds in there.items()}
    explicit, htj2k, jpeg_ls, lossy = (
        "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.51",
    )  # fmt: skip
    assert (
        syntaxes
        == {
            "native": {"1": explicit, "2": explicit, "3": lossy, "4": explicit},
            "stored": {"1": htj2k, "2": htj2k, "3": lossy, "4": explicit},
            "received": {"1": explicit, "2": jpeg_ls, "3": lossy, "4": explicit},
        }[form]
    )
    if form == "native":
        for uid in (f"{study}.1", f"{study}.2"):
            assert np.array_equal(there[uid].pixel_array, sent[uid].pixel_array)


def test_orthanc_killed_in_the_middle_has_each_instance_once_when_it_is_back(
    served: Served, client: Client, orthanc: Orthanc
) -> None:
    files = ct_files(400, "1.2.88", "1.2.88.1")
    client.store(*files)
    endpoint = register(served, orthanc, "victim")

    placed = client.place(order(endpoint, reference("imaging-study", "ImagingStudy/1.2.88")))
    assert wait_for(orthanc.count, 60)
    orthanc.kill()
    assert client.task(placed)["status"] == "in-progress"
    assert wait_for(lambda: client.task(placed).get("businessStatus", {}).get("coding", [{}])[0].get("code") == "waits")
    orthanc.start()
    done = client.over(placed)

    assert outputs(done, "delivered") == [400]
    assert orthanc.count() == 400
    assert by_uid(orthanc.files()).keys() == by_uid(files).keys()


def test_a_wrong_password_waits_for_the_operator(served: Served, client: Client, orthanc: Orthanc) -> None:
    client.store(*ct_files(2, "1.2.99", "1.2.99.1"))
    password = served.data_dir / "wrong.txt"
    password.write_text("server:wrong")
    words = ["endpoint", "add", "locked", "clinic", orthanc.address, "--way", "stow"]
    more = ["--data-dir", served.data_dir, *SETTINGS]
    assert fhir_imaging(*words, "--basic", password, *more).returncode == 0

    placed = client.place(order("Endpoint/peer-locked", reference("imaging-study", "ImagingStudy/1.2.99")))
    assert wait_for(lambda: "HTTP 401" in client.task(placed).get("businessStatus", {}).get("text", ""), 60)
    register(served, orthanc, "locked")
    done = client.over(placed)

    assert outputs(done, "delivered") == [2]
    assert orthanc.count() == 2
