"""Capability URLs of a real server: by `docs/howto/open-images-by-url.md`, and by a client that sends no token."""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dicomweb_client.api import DICOMwebClient

from tests.support.doors import new_study
from tests.support.serving import ENVIRONMENT, answer, serving
from tests.support.user import User

PAGE = Path(__file__).parents[2] / "docs/howto/open-images-by-url.md"
STOW = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=X'}


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory) / "store", "--set", "access.cache_s=0", "--set", "log.level=debug") as served,
    ):
        yield User.let_in(served)


def test_the_page_can_be_followed(user: User, tmp_path: Path) -> None:
    study, files = new_study(instances=2)
    parts = (b"--X\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files)
    user.fetch("POST", "/dicom-web/studies", b"".join(parts) + b"--X--\r\n", STOW)
    add, find, retrieve = re.findall(r"```bash\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    shell = ENVIRONMENT | {"TOKEN": user.token, "SERVER": user.served.base_url, "STUDY": study, "ADDRESS": ""}

    def curl(line: str) -> bytes:
        command = line.replace("curl ", "curl -sSf ", 1)
        return subprocess.run(["bash", "-c", command], env=shell, cwd=tmp_path, capture_output=True, check=True).stdout

    done = user.run(*add.split()[1:])
    assert done.returncode == 0, done.stderr
    (endpoint,) = [each["resource"] for each in json.loads(curl(find))["entry"] if each["search"]["mode"] == "include"]
    shell["ADDRESS"] = address = endpoint["address"]
    curl(retrieve)
    client = DICOMwebClient(url=address)
    taken = client.retrieve_study(study)
    (found,) = client.search_for_studies()
    place = {"study_instance_uid": study, "series_instance_uid": taken[0].SeriesInstanceUID}
    (frame,) = client.retrieve_instance_frames(
        **place, sop_instance_uid=taken[0].SOPInstanceUID, frame_numbers=[1], media_types=("application/octet-stream",)
    )
    described = client.retrieve_study_metadata(study)
    suspended = user.run("subscriber", "suspend", "radiology")

    assert (tmp_path / "study.multipart").read_bytes().count(b"DICM") == 2
    assert {each.StudyInstanceUID for each in taken} == {found["0020000D"]["Value"][0]} == {study}
    assert len(described) == len(taken) == 2
    assert frame == taken[0].PixelData
    assert suspended.returncode == 0
    assert answer(f"{address}/studies/{study}/metadata") == 401
    assert address.rpartition("/")[2] not in user.served.log.read_text()
