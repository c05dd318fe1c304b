"""Studies of many instances: answered in pieces, held a few at a time, listed from the index."""

import io
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pymongo import MongoClient

from tests.support.dicomweb import HTJ2K_RPCL, Site, ct, parts_of, sample, site_of_a_module

FILES = 'multipart/related; type="application/dicom"'
SIDE = 256  # pixels: 128 KiB a slice
FEW, MANY = "1.2.20", "1.2.80"


@pytest.fixture(scope="module")
def here(mongo: MongoClient[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_of_a_module(mongo, tmp_path_factory.mktemp("site")) as one:
        for study, count in ((FEW, 20), (MANY, 80)):
            assert one.store(*(noise(number, study) for number in range(1, count + 1))).status_code == 200
        yield one


def noise(number: int, study: str) -> bytes:
    """Return a slice that no compression makes small."""
    pixels = np.random.default_rng(number).integers(0, 4096, SIDE * SIDE, dtype="<u2")
    return ct(number, study=study, side=SIDE, PixelData=pixels.tobytes())


def peak_of(here: Site, study: str, accept: str) -> tuple[int, int]:
    """Return how many bytes an answer has, and how many were held at most while it was read and thrown away."""
    headers = {**here.clinic, "Accept": accept}
    answer = here.web.get(f"/dicom-web/studies/{study}", headers=headers, buffered=False)
    tracemalloc.start()
    try:
        size = sum(len(piece) for piece in answer.iter_encoded())
        return size, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        answer.close()


@pytest.mark.parametrize(
    "accept", [FILES, f"{FILES}; transfer-syntax=*", "application/zip", "application/zip; transfer-syntax=*"]
)
def test_the_memory_that_an_answer_takes_does_not_grow_with_it(here: Site, accept: str) -> None:
    peak_of(here, FEW, accept)  # what is made once

    (few, low), (many, high) = (peak_of(here, study, accept) for study in (FEW, MANY))

    assert many > 3.5 * few
    assert high - low < 0.15 * (many - few)


def test_nobody_waits_for_more_than_a_few_rows(here: Site) -> None:
    here.server.studies.refresh(MANY)
    contents = here.server.archive.contents(MANY)
    first = next(here.server.archive.each(contents.sop_uids))
    explained = here.server.database.command(
        "explain",
        {
            "find": "instances", "filter": {"study": MANY}, "projection": {"series": 1},
            "sort": {"study": 1, "series_number": 1, "series": 1, "number": 1, "_id": 1}, "hint": "reading_order",
        },
        verbosity="executionStats",
    )  # fmt: skip

    assert len(contents.members) == 80
    assert contents.sop_uids == [f"{MANY}.1.{number}" for number in range(1, 81)]
    assert first.sop_uid == f"{MANY}.1.1"
    assert [each.stored_transfer_syntax_uid for each in contents.samples] == [HTJ2K_RPCL]
    # The list of what there is comes from the index: no instance is read for it.
    assert explained["executionStats"]["totalDocsExamined"] == 0


def test_every_kind_of_instance_is_known_before_the_first_byte(here: Site) -> None:
    study = "1.2.50"
    here.store(*(ct(number, study=study) for number in range(1, 30)))
    here.server.studies.refresh(study)
    samples = [here.server.archive.contents(study).samples]
    here.store(ct(40, study=study, frames=2), color(study))
    samples.append(here.server.archive.contents(study).samples)  # the summary does not tell yet
    here.server.studies.refresh(study)
    samples.append(here.server.archive.contents(study).samples)

    kinds = [{each.stored_transfer_syntax_uid for each in some} for some in samples]

    assert kinds[0] == {HTJ2K_RPCL}
    assert kinds[1] == kinds[2] == {HTJ2K_RPCL, "1.2.840.10008.1.2.4.50"}


def color(study: str) -> bytes:
    """Return an instance of the study that is kept in JPEG baseline."""
    ds = dcmread(io.BytesIO(sample("SC_rgb_small_odd_jpeg.dcm")))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.2"
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def test_the_validator_of_a_study_changes_with_its_instances(here: Site) -> None:
    study = "1.2.60"
    here.store(ct(1, study=study))
    first = here.get(f"/studies/{study}", FILES).headers["ETag"]
    here.store(ct(2, study=study))

    answer = here.get(f"/studies/{study}", FILES, If_None_Match=first)

    assert (answer.status_code, len(parts_of(answer))) == (200, 2)
    assert here.get(f"/studies/{study}", FILES, If_None_Match=answer.headers["ETag"]).status_code == 304
    here.web.delete(f"/dicom-web/studies/{study}/series/{study}.1/instances/{study}.1.1", headers=here.hospital)
    assert here.get(f"/studies/{study}", FILES, If_None_Match=answer.headers["ETag"]).status_code == 200
