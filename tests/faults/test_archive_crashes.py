"""Crash after every single write of an ingest: nothing acknowledged is lost, nothing half-made is visible."""

import io
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pymongo.database import Database

from imaging.archive import RECEIVED, Archive
from imaging.blobs.gridfs import GridFsBlobs
from tests.faults.storing import KILLED

MOST_WRITES = 40  # of storing two batches; the loop ends at the first run that survives


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two instances of two studies, and one of a syntax whose received file is kept beside the stored one."""
    made = {}
    for n, name in enumerate(("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm")):
        ds = dcmread(str(get_testdata_file(name)))
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
        out = io.BytesIO()
        ds.save_as(out)
        made[ds.SOPInstanceUID] = tmp_path / f"{n}.dcm"
        made[ds.SOPInstanceUID].write_bytes(out.getvalue())
    return made


def test_no_crash_loses_what_was_acknowledged_or_shows_what_was_not(
    db: Database[dict[str, Any]], engine_uri: str, files: dict[str, Path]
) -> None:
    now = datetime.now(UTC)
    archive = Archive(db, GridFsBlobs(db), clock=lambda: now)
    archive.ensure_indexes()
    command = [sys.executable, "-m", "tests.faults.storing", engine_uri, db.name]
    survived = False
    crashes = 0
    while not survived:
        crashes += 1
        assert crashes < MOST_WRITES

        run = subprocess.run(
            [*command, str(crashes), *map(str, files.values())], capture_output=True, text=True, check=False
        )

        assert run.returncode in (0, KILLED), run.stderr
        *acknowledged, last = run.stdout.split() or [""]
        survived = last == "done"
        assert set(acknowledged) <= set(files)
        _check_visible(archive, db, files, acknowledged)
        now = datetime.now(UTC) + timedelta(days=1)
        archive.sweep()
        _check_swept(archive, db)
        _empty(db)
        now = datetime.now(UTC)
    assert crashes > 5
    archive.close()


def _check_visible(
    archive: Archive, db: Database[dict[str, Any]], files: dict[str, Path], acknowledged: list[str]
) -> None:
    rows = {row["_id"]: row for row in db.instances.find({}, {"study": 1, "series": 1})}
    assert set(acknowledged) <= set(rows)
    for uid, row in rows.items():
        instance = archive.instance(row["study"], row["series"], uid)
        assert b"".join(archive.file(instance, RECEIVED)) == files[uid].read_bytes()
    assert list(archive.verify()) == []


def _check_swept(archive: Archive, db: Database[dict[str, Any]]) -> None:
    """After a sweep the blobs are those of the instances, and every study of an instance is known."""
    rows = list(db.instances.find({}, {"blob": 1, "received.blob": 1, "study": 1}))
    wanted = {row["blob"] for row in rows} | {row["received"]["blob"] for row in rows if "blob" in row["received"]}
    assert {row["_id"] for row in db["blobs.files"].find({}, {"_id": 1})} == wanted
    assert set(db["blobs.chunks"].distinct("files_id")) == wanted
    assert db.garbage.count_documents({}) == 0
    assert set(archive.behind(100)) == {row["study"] for row in rows}


def _empty(db: Database[dict[str, Any]]) -> None:
    for name in ("instances", "series", "studies", "garbage", "blobs.files", "blobs.chunks"):
        db[name].delete_many({})
