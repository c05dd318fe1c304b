"""A server on a real database with two subscribers, and files to send to it."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import imagecodecs
import numpy as np
import orjson
from flask.testing import FlaskClient
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import ExplicitVRLittleEndian
from pymongo import MongoClient
from pymongo.database import Database
from werkzeug.test import TestResponse

from fhir_server.access.contracts import Right
from fhir_server.app import Server, assemble
from fhir_server.doors import create_app
from imaging.dicomweb import iter_parts, multipart_related, parse_content_type
from tests.support.engine import settings
from tests.support.workitems import new_item

EXPLICIT_LE = "1.2.840.10008.1.2.1"
IMPLICIT_LE = "1.2.840.10008.1.2"
HTJ2K_RPCL = "1.2.840.10008.1.2.4.202"
CT = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True)
class Site:
    """A server with its test client and the headers of a registering and a receiving subscriber."""

    server: Server
    web: FlaskClient
    hospital: dict[str, str]
    clinic: dict[str, str]

    def get(self, path: str, accept: str | None = None, **headers: str) -> TestResponse:
        """GET as the receiving subscriber; `path` follows /dicom-web."""
        asked = {"Accept": accept} if accept else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.web.get(f"/dicom-web{path}", headers={**self.clinic, **asked, **named})

    def store(self, *files: bytes, path: str = "/studies", accept: str = "application/dicom+json") -> TestResponse:
        """POST files as the registering subscriber."""
        return self.web.post(
            f"/dicom-web{path}",
            data=related(*files),
            headers={**self.hospital, "Accept": accept},
            content_type=f'multipart/related; type="application/dicom"; boundary={BOUNDARY}',
        )

    def place(self, uid: str) -> None:
        """Place a work item."""
        headers = {**self.hospital, "Content-Type": "application/dicom+json"}
        data = orjson.dumps(new_item())
        answer = self.web.post(f"/dicom-web/workitems?{uid}", data=data, headers=headers)
        assert answer.status_code == 201, answer.get_data()

    def forget_images(self) -> None:
        """Remove all images and what shows them; subscribers, their tokens and the server's own resources stay."""
        database = self.server.database
        for name in ("instances", "series", "studies", "corrections", "garbage", "blobs.files", "blobs.chunks"):
            database[name].delete_many({})
        for name in ("resources", "history"):
            database[name].delete_many({"_id": {"$regex": "^(ImagingStudy|Patient|Observation|AuditEvent)/"}})


BOUNDARY = "boundary-of-a-test"


def related(*files: bytes) -> bytes:
    """Return a STOW-RS body."""
    return b"".join(multipart_related((({"Content-Type": "application/dicom"}, [data]) for data in files), BOUNDARY))


@contextmanager
def site(db: Database[dict[str, Any]], directory: Path, **changes: str) -> Iterator[Site]:
    """Give a server on `db`; `changes` are settings."""
    server = assemble(settings(directory, **changes), db)
    try:
        yield Site(
            server,
            create_app(server).test_client(),
            bearer(server, "Hospital", Right.REGISTER_IMAGES),
            bearer(server, "Clinic", Right.RECEIVE_IMAGES),
        )
    finally:
        server.archive.close()


@contextmanager
def site_of_a_module(mongo: MongoClient[dict[str, Any]], directory: Path, **changes: str) -> Iterator[Site]:
    """Give a server on a database of its own: made once for many tests, which call `forget_images` between them."""
    database = mongo[f"test_{uuid4().hex}"]
    try:
        with site(database, directory, **changes) as made:
            yield made
    finally:
        mongo.drop_database(database)


def bearer(server: Server, name: str, *rights: Right) -> dict[str, str]:
    """Return the Authorization header of a new subscriber with these rights."""
    server.principals.add(name, rights)
    return {"Authorization": f"Bearer {server.principals.mint(name)}"}


def parts_of(response: TestResponse) -> list[tuple[Mapping[str, str], bytes]]:
    """Return headers and body of each part of a multipart answer."""
    assert response.status_code == 200, response.get_data()[:500]
    kind = parse_content_type(response.headers["Content-Type"])
    assert kind.media_type == "multipart/related"
    body = io.BytesIO(response.get_data())
    return [(part.headers, bytes(part.body)) for part in iter_parts(body.read, kind.parameters["boundary"])]


def files_of(response: TestResponse) -> list[Dataset]:
    """Return the DICOM files of a multipart answer."""
    return [dcmread(io.BytesIO(body)) for _, body in parts_of(response)]


def decoded(ds: Dataset) -> Any:
    """Return the pixels of a file with one frame, also in syntaxes that pydicom has no decoder for here."""
    decoders = {HTJ2K_RPCL: imagecodecs.jpeg2k_decode, "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_decode}
    decoder = decoders.get(str(ds.file_meta.TransferSyntaxUID))
    return decoder(get_frame(ds.PixelData, 0, number_of_frames=1)) if decoder else ds.pixel_array


def sample(name: str) -> bytes:
    """Return a file that comes with pydicom."""
    return Path(str(get_testdata_file(name))).read_bytes()


def address_of(data: bytes) -> str:
    """Return the path of a file's instance below /dicom-web."""
    ds = dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
    return f"/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"


def ct(
    number: int = 1, *, study: str = "1.2.3", series: int = 1, frames: int = 1, side: int = 32, **more: Any
) -> bytes:
    """Return a small CT image of a study; its pixels are a ramp that depends on `number`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CT
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = f"{study}.{series}"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{study}.{series}.{number}"
    ds.PatientID, ds.PatientName, ds.Modality = "PAT-1", "Test^Patient", "CT"
    ds.PatientBirthDate, ds.PatientSex, ds.AccessionNumber, ds.StudyID = "19700101", "O", "ACC-1", "1"
    ds.StudyDate, ds.StudyTime, ds.SeriesNumber, ds.InstanceNumber = "20260102", "101500", series, number
    ds.Rows = ds.Columns = side
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelSpacing, ds.WindowCenter, ds.WindowWidth = [0.5, 0.5], 512, 1024
    if frames > 1:
        ds.NumberOfFrames = frames
    ramp = np.arange(frames * side * side, dtype="<u2").reshape(frames, side, side)
    ds.PixelData = ((ramp + number) % 4096).astype("<u2").tobytes()
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()
