"""De-identified images of a real server: by `docs/howto/give-deidentified-images.md`, and by a client."""

import io
import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image

from fhir_server.cli import cli
from tests.support.doors import dicom, new_study
from tests.support.serving import ENVIRONMENT, serving
from tests.support.user import User

PAGE = Path(__file__).parents[2] / "docs/howto/give-deidentified-images.md"
NAMES = (b"CompressedSamples", b"1CT1", b"20040119", b"JFK IMAGING")


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory) / "store", "--set", "access.cache_s=0") as served,
    ):
        yield User.let_in(served)


def lines_of_the_page() -> list[str]:
    return [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()
    ]


def store(user: User, *files: bytes) -> None:
    parts = (b"--X\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files)
    kind = 'multipart/related; type="application/dicom"; boundary=X'
    user.fetch("POST", "/dicom-web/studies", b"".join(parts) + b"--X--\r\n", {"Content-Type": kind})


def test_the_page_can_be_followed(user: User, tmp_path: Path) -> None:
    study, files = new_study(instances=2)
    store(user, dicom(), *files)
    add, mint, find, retrieve, describe, pack, show = lines_of_the_page()

    done = [user.run(*line.split()[1:]) for line in (add, mint)]
    assert [each.returncode for each in done] == [0, 0], done
    assert "keeping modified-dates" in done[0].stdout
    token = done[1].stdout.strip()
    shell = ENVIRONMENT | {"TOKEN": token, "SERVER": user.served.base_url, "RETRIEVE_URL": ""}

    def curl(line: str) -> bytes:
        command = line.replace("curl ", "curl -sSf ", 1)
        return subprocess.run(["bash", "-c", command], env=shell, cwd=tmp_path, capture_output=True, check=True).stdout

    found = json.loads(curl(find))
    shell["RETRIEVE_URL"] = found[0]["00081190"]["Value"][0]
    curl(retrieve)
    told = json.loads(curl(describe))
    curl(pack)
    curl(show)
    packed = zipfile.ZipFile(tmp_path / "study.zip")
    contents = b"".join(packed.read(each) for each in packed.namelist())
    body = (tmp_path / "study.multipart").read_bytes()
    client = DICOMwebClient(
        url=f"{user.served.base_url}/dicom-web/deidentified",
        session=_session(token),
    )
    uids = [(each["0020000D"], each["0020000E"], each["00080018"]) for each in told]
    study_uid, series_uid, sop_uid = (each["Value"][0] for each in uids[0])
    frames = client.retrieve_instance_frames(study_uid, series_uid, sop_uid, frame_numbers=[1])
    rendered = client.retrieve_instance_rendered(study_uid, series_uid, sop_uid, media_types=("image/png",))
    bulk = client.retrieve_bulkdata(told[0]["7FE00010"]["BulkDataURI"])
    taken = [each for row in found for each in client.retrieve_study(row["0020000D"]["Value"][0])]

    assert len(found) == 2
    assert body.count(b"DICM") == len(told)
    assert not [each for each in NAMES if each in body + contents + json.dumps([found, told]).encode()]
    assert "DICOMDIR" in packed.namelist()
    assert frames == bulk
    rows, columns = (told[0][tag]["Value"][0] for tag in ("00280010", "00280011"))
    assert len(frames[0]) == 2 * rows * columns
    assert Image.open(io.BytesIO(rendered)).size == (columns, rows)
    assert max(Image.open(io.BytesIO((tmp_path / "study.png").read_bytes())).size) == 128
    log = user.served.log.read_bytes()
    assert b"/dicom-web/deidentified/studies" in log
    assert not [each for each in (*NAMES, study.encode()) if each in log]
    assert len(taken) == 3
    assert {each.PatientID for each in taken} == {found[0]["00100020"]["Value"][0]}
    assert study not in {each.StudyInstanceUID for each in taken}
    assert all(NAMES[0].decode() not in str(each) for each in taken)


def _session(token: str):
    session = create_session()
    session.headers["Authorization"] = f"Bearer {token}"
    return session


@pytest.mark.parametrize(
    ("rights", "problem"),
    [
        (("--receive-images", "--receive-deidentified"), "instead of"),
        (("--receive-images", "--keep", "modified-dates"), "--keep is for"),
    ],
)
def test_rights_that_do_not_go_together_are_refused(rights: tuple[str, ...], problem: str) -> None:
    done = CliRunner().invoke(cli, ["subscriber", "add", "both", *rights])

    assert done.exit_code == 2
    assert problem in done.output
