"""Studies as ZIP archives with a DICOMDIR. pydicom, zipfile and unzip are the second opinion."""

import io
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.fileset import FileSet
from pymongo import MongoClient

from tests.support.dicomweb import EXPLICIT_LE, HTJ2K_RPCL, Site, address_of, ct, sample, site_of_a_module

STUDY = "/studies/1.2.3"


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        assert one.store(ct(2), ct(1, series=2, frames=3), ct(1), report()).status_code == 200
        yield one


def report() -> bytes:
    ds = dcmread(io.BytesIO(sample("test-SR.dcm")))
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = "1.2.3", "1.2.3.9", 9
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def archive_of(here: Site, path: str, accept: str = "application/zip") -> zipfile.ZipFile:
    answer = here.get(path, accept)
    assert answer.status_code == 200, answer.get_data()
    assert answer.content_type == "application/zip"
    return zipfile.ZipFile(io.BytesIO(answer.get_data()))


def test_a_study_is_a_file_set_that_pydicom_reads(here: Site, tmp_path: Path) -> None:
    archive_of(here, STUDY).extractall(tmp_path)

    found = FileSet(tmp_path / "DICOMDIR")

    assert [each.SOPInstanceUID for each in found] == [
        "1.2.3.1.1", "1.2.3.1.2", "1.2.3.2.1", dcmread(io.BytesIO(report())).SOPInstanceUID,
    ]  # fmt: skip
    assert {each.path for each in found} == {str(path) for path in tmp_path.glob("DICOM/S*/I*")}
    assert np.array_equal(next(iter(found)).load().pixel_array, dcmread(io.BytesIO(ct(1))).pixel_array)
    found._stage["t"].cleanup()


def test_the_names_are_file_ids_of_the_standard(here: Site) -> None:
    names = archive_of(here, STUDY).namelist()

    assert names[:2] == ["DICOM/S0000001/I0000001", "DICOM/S0000001/I0000002"]
    assert names[-1] == "DICOMDIR"


def test_files_come_in_the_transfer_syntax_that_is_asked(here: Site) -> None:
    def syntaxes(accept: str) -> set[str]:
        with archive_of(here, f"{STUDY}/series/1.2.3.1", accept) as archive:
            files = [dcmread(archive.open(name)) for name in archive.namelist() if name != "DICOMDIR"]
        return {str(file.file_meta.TransferSyntaxUID) for file in files}

    assert syntaxes("application/zip") == {EXPLICIT_LE}
    assert syntaxes("application/zip; transfer-syntax=*") == {HTJ2K_RPCL}
    assert here.get(STUDY, "application/zip; transfer-syntax=1.2.3").status_code == 406


def test_the_received_syntax_gives_the_received_bytes(here: Site) -> None:
    with archive_of(here, f"{STUDY}/series/1.2.3.1", f"application/zip; transfer-syntax={EXPLICIT_LE}") as archive:
        assert archive.read("DICOM/S0000001/I0000001") == ct(1)


@pytest.mark.parametrize("accept", ["application/zip", "application/zip; transfer-syntax=*"])
def test_the_archive_is_whole_for_other_readers(here: Site, tmp_path: Path, accept: str) -> None:
    if not shutil.which("unzip"):
        pytest.skip("unzip is not installed")
    path = tmp_path / "study.zip"
    path.write_bytes(here.get(STUDY, accept).get_data())

    tested = subprocess.run(["unzip", "-t", str(path)], capture_output=True, text=True, check=False)

    assert tested.returncode == 0, tested.stdout


def test_an_archive_has_a_validator_and_a_name(here: Site) -> None:
    first = here.get(STUDY, "application/zip")

    again = here.get(STUDY, "application/zip", If_None_Match=first.headers["ETag"])

    assert again.status_code == 304
    assert first.headers["Content-Disposition"] == 'attachment; filename="1.2.3.zip"'
    assert here.get(STUDY, "application/zip").get_data() == first.get_data()


def test_the_query_parameter_asks_for_it_as_a_link_does(here: Site) -> None:
    assert here.get(f"{STUDY}?accept=application/zip").content_type == "application/zip"


def test_one_instance_may_come_in_an_archive(here: Site) -> None:
    assert archive_of(here, address_of(ct(2))).namelist() == ["DICOM/S0000001/I0000001", "DICOMDIR"]


def test_an_archive_is_given_to_those_who_may_receive(here: Site) -> None:
    assert here.web.get(f"/dicom-web{STUDY}?accept=application/zip", headers=here.hospital).status_code == 403
