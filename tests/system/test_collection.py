"""Collection from Orthanc and from a folder by a whole server, as an operator sets it up."""

import hashlib
import http.client
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest

from tests.benchmarks.client import Target, stow
from tests.benchmarks.servers import orthanc, orthanc_program
from tests.support.doors import new_study
from tests.support.serving import Served, fhir_imaging, serving, wait_for

needs_orthanc = pytest.mark.skipif(not orthanc_program(), reason="Debian's packages orthanc and orthanc-dicomweb")
SETTINGS = ("--set", "outbound.private_networks=127.0.0.0/8", "--set", "access.cache_s=0")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with serving(folder / "store", *SETTINGS) as served:
        command(served, "subscriber", "add", "clinic", "--register-images", "--receive-images", "--sees", "all")
        yield served


@pytest.fixture(scope="module")
def peer(folder: Path) -> Iterator[Target]:
    with orthanc(folder / "orthanc", transcode=False) as target:
        yield target


def command(server: Served, *arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = fhir_imaging(*arguments, "--data-dir", server.data_dir, *SETTINGS)
    assert done.returncode == code, done.stderr
    return done


class Reader:
    """Reads at the DICOMweb door."""

    def __init__(self, server: Served) -> None:
        self._address = urlsplit(server.base_url).netloc
        self._token = command(server, "token", "clinic").stdout.strip()

    def get(self, path: str, accept: str = "application/dicom+json") -> bytes:
        with closing(http.client.HTTPConnection(self._address, timeout=20)) as connection:
            headers = {"Authorization": f"Bearer {self._token}", "Accept": accept}
            connection.request("GET", f"/dicom-web{path}", headers=headers)
            response = connection.getresponse()
            return response.read() if response.status == 200 else b""

    def count(self, study_uid: str) -> int:
        return len(orjson.loads(self.get(f"/studies/{study_uid}/instances") or b"[]"))

    def digests(self, study_uid: str) -> set[str]:
        """SHA-256 of the files of a study, byte for byte as they came in."""
        found = orjson.loads(self.get(f"/studies/{study_uid}/instances"))
        return {_digest(self.get(f"{_path(each)}/received", "application/dicom")) for each in found}


def _path(match: dict[str, dict[str, list[str]]]) -> str:
    study, series, instance = (match[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    return f"/studies/{study}/series/{series}/instances/{instance}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def written(files: list[bytes], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.dcm" for number in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    return paths


@needs_orthanc
def test_a_server_collects_from_orthanc_what_is_there_and_what_comes(
    server: Served, peer: Target, folder: Path
) -> None:
    reader = Reader(server)
    first, files = new_study(instances=6, series=2, StudyDate="20260105")
    stow(peer, written(files, folder / "first"))
    address = f"http://127.0.0.1:{peer.port}/dicom-web"
    command(server, "endpoint", "add", "pacs", "clinic", address, "--way", "dicomweb", "--every", "1")

    assert wait_for(lambda: reader.count(first) == 12, 60)
    assert reader.digests(first) == {_digest(each) for each in files}

    late, more = new_study(instances=3, StudyDate="20260103")
    stow(peer, written(more[:2], folder / "late"))
    assert wait_for(lambda: reader.count(late) == 2, 60)
    stow(peer, written(more[2:], folder / "later"))
    assert wait_for(lambda: reader.count(late) == 3, 60)
    assert wait_for(lambda: "in order" in command(server, "sources", "pacs").stdout, 20)
    assert "2026-01-05" in command(server, "sources").stdout
    assert "collect from pacs" in command(server, "tasks").stdout
    command(server, "endpoint", "remove", "pacs")


@needs_orthanc
def test_a_dry_run_shows_what_a_round_then_brings(server: Served, peer: Target, folder: Path) -> None:
    address = f"http://127.0.0.1:{peer.port}/dicom-web"
    wanted, files = new_study(instances=4, Modality="MR", StudyDate="20260201")
    stow(peer, written(files, folder / "mr"))
    stow(peer, written(new_study(Modality="CR", StudyDate="20260201")[1], folder / "cr"))
    # A week is longer than the test: only the command looks.
    command(server, "subscriber", "add", "other", "--receive-images")
    options = ("--way", "dicomweb", "--filter", "Modality=MR", "--every", "604800")
    command(server, "endpoint", "add", "mr-only", "other", address, *options)
    refused = command(server, "collect", "mr-only", "--dry-run", code=1)
    command(server, "subscriber", "add", "other", "--receive-images", "--register-images")

    shown = command(server, "collect", "mr-only", "--dry-run").stdout

    assert "register-images" in refused.stderr
    assert "4 instances of 1 study" in shown
    assert wanted in shown
    assert Reader(server).count(wanted) == 0
    assert "mr-only: 4 images of 1 study stored" in command(server, "collect", "mr-only").stdout
    assert Reader(server).count(wanted) == 4
    assert "mr-only: nothing new" in command(server, "collect", "mr-only").stdout


def test_a_server_collects_from_a_folder(server: Served, folder: Path) -> None:
    reader = Reader(server)
    inbox = folder / "inbox"
    study_uid, files = new_study(instances=3)
    written(files, inbox / "a study")
    (inbox / "readme.txt").write_text("no image")
    command(server, "endpoint", "add", "inbox", "clinic", inbox, "--way", "folder", "--every", "1", "--quiet", "0.5")

    assert wait_for(lambda: reader.count(study_uid) == 3, 60)
    assert wait_for(lambda: (inbox / "refused" / "readme.txt.txt").exists(), 20)
    assert len(list((inbox / "done" / "a study").iterdir())) == 3
    assert "readme.txt" in command(server, "sources", "inbox").stdout


def test_the_commands_say_what_is_wrong(server: Served) -> None:
    command(server, "endpoint", "add", "nowhere", "clinic", "http://127.0.0.1:9/dicom-web", "--way", "dicomweb")

    assert "does not answer" in command(server, "collect", "nowhere", code=1).stderr
    assert "failing" in command(server, "sources", "nowhere").stdout
    assert "no endpoint 'what'" in command(server, "collect", "what", code=1).stderr
    assert "--anew" in command(server, "collect", "nowhere", "--dry-run", "--anew", code=2).stderr
    command(server, "endpoint", "remove", "nowhere")
