"""The stock `dicomweb-client` of PyPI, and bare sockets, against a served server."""

import gzip
import io
import json
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import imagecodecs
import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image
from pydicom import Dataset, dcmread

from imaging.dicomweb import iter_parts, multipart_related, parse_content_type
from tests.support.dicomweb import BOUNDARY, EXPLICIT_LE, HTJ2K_RPCL, ct, decoded, related
from tests.support.orthanc import Orthanc, needs_orthanc
from tests.support.serving import Served, fhir_imaging, serving

JPEG_2000 = "1.2.840.10008.1.2.4.90"
STUDY, SERIES = "1.2.3", "1.2.3.1"
FIRST = (STUDY, SERIES, "1.2.3.1.1")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with (
        tempfile.TemporaryDirectory(prefix="fhir-imaging-test-") as directory,
        serving(Path(directory) / "store") as running,
    ):
        yield running


@pytest.fixture(scope="module")
def token(served: Served) -> str:
    fhir_imaging("subscriber", "add", "c", "--register-images", "--receive-images", "--data-dir", served.data_dir)
    return fhir_imaging("token", "c", "--data-dir", served.data_dir).stdout.strip()


@pytest.fixture(scope="module")
def client(served: Served, token: str) -> Iterator[DICOMwebClient]:
    with create_session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        found = DICOMwebClient(url=f"{served.base_url}/dicom-web", session=session)
        files = [*(ct(number) for number in (1, 2, 3)), ct(1, series=2, frames=3, Modality="MR")]
        answer = found.store_instances([dcmread(io.BytesIO(data)) for data in files])
        assert len(answer.ReferencedSOPSequence) == 4
        assert "FailedSOPSequence" not in answer
        yield found


def pixels(number: int = 1) -> np.ndarray:
    return dcmread(io.BytesIO(ct(number))).pixel_array


def test_it_searches_studies_series_and_instances(client: DICOMwebClient) -> None:
    (study,) = client.search_for_studies(search_filters={"PatientID": "PAT-1"}, fields=["StudyDescription"], limit=5)
    series = client.search_for_series(STUDY, search_filters={"Modality": "MR"})
    instances = client.search_for_instances(STUDY, SERIES, get_remaining=True)

    assert Dataset.from_json(study).NumberOfStudyRelatedInstances == 4
    assert [Dataset.from_json(each).SeriesInstanceUID for each in series] == ["1.2.3.2"]
    assert [Dataset.from_json(each).InstanceNumber for each in instances] == [1, 2, 3]
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []
    assert len(client.search_for_series()) == 2
    assert len(client.search_for_instances()) == 4


def test_it_pages_through_everything(client: DICOMwebClient) -> None:
    first = client.search_for_instances(limit=2)
    second = client.search_for_instances(limit=2, offset=2)

    assert len({each["00080018"]["Value"][0] for each in first + second}) == 4


@pytest.mark.parametrize("media_types", [None, (("application/dicom", "*"),), (("application/dicom", JPEG_2000),)])
def test_it_retrieves_a_study(client: DICOMwebClient, media_types: tuple[tuple[str, str], ...] | None) -> None:
    found = client.retrieve_study(STUDY, media_types=media_types)

    assert len(found) == 4
    assert np.array_equal(decoded(found[0]), pixels())


def test_it_retrieves_a_series_piece_by_piece(client: DICOMwebClient) -> None:
    found = [ds.InstanceNumber for ds in client.iter_series(STUDY, SERIES)]

    assert found == [1, 2, 3]


def test_it_retrieves_an_instance(client: DICOMwebClient) -> None:
    found = client.retrieve_instance(*FIRST, media_types=(("application/dicom", EXPLICIT_LE),))

    assert found.file_meta.TransferSyntaxUID == EXPLICIT_LE
    assert np.array_equal(found.pixel_array, pixels())


def test_it_retrieves_metadata_at_every_level(client: DICOMwebClient) -> None:
    assert len(client.retrieve_study_metadata(STUDY)) == 4
    assert len(client.retrieve_series_metadata(STUDY, SERIES)) == 3
    assert Dataset.from_json(client.retrieve_instance_metadata(*FIRST), lambda *_: None).PatientID == "PAT-1"


def test_it_retrieves_frames(client: DICOMwebClient) -> None:
    address = (STUDY, "1.2.3.2", "1.2.3.2.1")
    expected = dcmread(io.BytesIO(ct(1, series=2, frames=3))).pixel_array

    plain = client.retrieve_instance_frames(*address, frame_numbers=[3, 1])
    stored = client.retrieve_instance_frames(
        *address, frame_numbers=[2], media_types=(("application/octet-stream", "*"),)
    )
    jp2 = client.retrieve_instance_frames(*address, frame_numbers=[1], media_types=("image/jp2",))

    assert plain == [expected[2].tobytes(), expected[0].tobytes()]
    assert [each[0][:2] for each in (stored, jp2)] == [b"\xff\x4f", b"\xff\x4f"]


def test_it_retrieves_bulk_data_by_the_address_in_the_metadata(client: DICOMwebClient) -> None:
    (uri,) = [
        element["BulkDataURI"]
        for element in client.retrieve_instance_metadata(*FIRST).values()
        if "BulkDataURI" in element
    ]

    (value,) = client.retrieve_bulkdata(uri)

    assert value == pixels().tobytes()


def test_it_retrieves_rendered_images(client: DICOMwebClient) -> None:
    jpeg = client.retrieve_instance_rendered(*FIRST, media_types=("image/jpeg",), params={"viewport": "16,16"})
    png = client.retrieve_instance_frames_rendered(*FIRST, frame_numbers=[1], media_types=("image/png",))

    assert Image.open(io.BytesIO(jpeg)).size == (16, 16)
    assert Image.open(io.BytesIO(png)).size == (32, 32)


def test_it_retrieves_an_animation(client: DICOMwebClient) -> None:
    gif = client.retrieve_instance_rendered(STUDY, "1.2.3.2", "1.2.3.2.1", media_types=("image/gif",))

    assert Image.open(io.BytesIO(gif)).format == "GIF"


def test_it_deletes_a_study_that_it_registered(client: DICOMwebClient) -> None:
    client.store_instances([dcmread(io.BytesIO(ct(study="1.2.9")))])

    client.delete_study("1.2.9")

    assert client.search_for_studies(search_filters={"StudyInstanceUID": "1.2.9"}) == []


def test_a_chunked_upload_is_stored(served: Served, token: str) -> None:
    body = related(ct(7, study="1.2.7"), ct(8, study="1.2.7"))
    chunks = (body[start : start + 1000] for start in range(0, len(body), 1000))

    answer = requests.post(
        f"{served.base_url}/dicom-web/studies",
        data=chunks,
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": f"multipart/related; type=application/dicom; boundary={BOUNDARY}",
        },
        timeout=20,
    )

    assert (answer.status_code, len(answer.json()["00081199"]["Value"])) == (200, 2)


def test_a_client_that_waits_for_continue_is_told_to_go_on(served: Served, token: str) -> None:
    body = related(ct(9, study="1.2.7"))
    with connected(served) as connection:
        connection.sendall(stow_head(served, token, len(body)) + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_an_upload_that_is_cut_off_stores_what_was_whole(served: Served, token: str, client: DICOMwebClient) -> None:
    whole = related(ct(1, study="1.2.8"), ct(2, study="1.2.8"))
    with connected(served) as connection:
        connection.sendall(stow_head(served, token, len(whole)) + b"\r\n" + whole[:-500])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    found = client.search_for_instances("1.2.8")

    assert [each["00080018"]["Value"][0] for each in found] == ["1.2.8.1.1"]


def test_the_refusal_of_a_large_body_is_heard(served: Served) -> None:
    answer = requests.post(
        f"{served.base_url}/dicom-web/studies",
        data=bytes(20 << 20),
        headers={"Content-Type": "multipart/related; boundary=x", "Authorization": "Bearer wrong"},
        timeout=20,
    )

    assert answer.status_code == 401


# ---- OHIF: what its DICOMweb data source asks, in its order


def test_the_requests_of_ohif_lead_to_pixels(served: Served, token: str, client: DICOMwebClient) -> None:
    def ask(path: str, accept: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}", "Accept": accept, "Origin": "http://viewer.example"}
        answer = requests.get(f"{served.base_url}/dicom-web{path}", headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer

    json = "application/dicom+json, */*"
    (study,) = ask(
        f"/studies?limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060&StudyInstanceUID={STUDY}",
        json,
    ).json()
    fields = "00080021%2C00080031%2C0008103E%2C00200011"
    series = ask(f"/studies/{study['0020000D']['Value'][0]}/series?includefield={fields}", json).json()
    instances = [
        each
        for found in series
        for each in ask(f"/studies/{STUDY}/series/{found['0020000E']['Value'][0]}/metadata", json).json()
    ]
    first = next(each for each in instances if each["00080018"]["Value"][0] == FIRST[2])
    size = first["00280010"]["Value"][0], first["00280011"]["Value"][0]
    frame = ask(
        "/studies/{}/series/{}/instances/{}/frames/1".format(*FIRST),
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
    )

    assert (len(series), len(instances), size) == (2, 4, (32, 32))
    ((headers, codestream),) = parts_in(frame)
    # The viewer takes the decoder that the part's transfer syntax names.
    assert headers["content-type"] == f"application/octet-stream; transfer-syntax={HTJ2K_RPCL}"
    assert np.array_equal(imagecodecs.jpeg2k_decode(codestream), pixels())


def parts_in(answer: requests.Response) -> list[tuple[Mapping[str, str], bytes]]:
    boundary = parse_content_type(answer.headers["Content-Type"]).parameters["boundary"]
    return [(part.headers, bytes(part.body)) for part in iter_parts(io.BytesIO(answer.content).read, boundary)]


# ---- Orthanc's DICOMweb client


@needs_orthanc
def test_orthanc_finds_and_pulls_a_study(served: Served, token: str, client: DICOMwebClient, tmp_path: Path) -> None:
    server = {"Url": f"{served.base_url}/dicom-web", "HttpHeaders": {"Authorization": f"Bearer {token}"}}
    orthanc = Orthanc(tmp_path, {"us": server})
    try:
        found = orthanc.get("/dicom-web/servers/us/qido", {"Uri": "/studies", "Arguments": {"PatientID": "PAT-1"}})
        orthanc.get("/dicom-web/servers/us/retrieve", {"Resources": [{"Study": STUDY}], "Synchronous": True})
        pulled = {ds.SOPInstanceUID: ds for ds in (dcmread(io.BytesIO(data)) for data in orthanc.files())}
    finally:
        orthanc.stop()

    assert STUDY.encode() in found
    assert set(pulled) == {"1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.3", "1.2.3.2.1"}
    assert np.array_equal(decoded(pulled["1.2.3.1.1"]), pixels())


@needs_orthanc
def test_orthanc_pushes_a_study(served: Served, token: str, client: DICOMwebClient, tmp_path: Path) -> None:
    server = {
        "Url": f"{served.base_url}/dicom-web", "HttpHeaders": {"Authorization": f"Bearer {token}"},
        "ChunkedTransfers": True,
    }  # fmt: skip
    files = [ct(number, study="1.2.80", PatientName="Test^Pushed") for number in (1, 2, 3)]
    orthanc = Orthanc(tmp_path, {"us": server})
    try:
        for data in files:
            orthanc.upload(data)
        (study,) = orthanc.json("/studies")
        orthanc.get("/dicom-web/servers/us/stow", {"Resources": [study], "Synchronous": True})
    finally:
        orthanc.stop()

    pushed = client.retrieve_study("1.2.80")
    assert [ds.SOPInstanceUID for ds in pushed] == ["1.2.80.1.1", "1.2.80.1.2", "1.2.80.1.3"]
    assert all(np.array_equal(decoded(ds), pixels(number)) for number, ds in enumerate(pushed, 1))


def test_a_deleted_study_comes_back_by_a_command(served: Served, token: str, client: DICOMwebClient) -> None:
    client.store_instances([dcmread(io.BytesIO(ct(1, study="1.2.81")))])
    client.delete_study("1.2.81")

    listed = fhir_imaging("images", "deleted", "--data-dir", served.data_dir).stdout
    back = fhir_imaging("images", "undelete", "1.2.81", "--data-dir", served.data_dir)

    assert "1.2.81" in listed
    assert back.stdout == "1 images are back\n"
    assert len(client.retrieve_study("1.2.81")) == 1


def test_what_is_agreed_by_a_command_is_asked_of_the_next_image(served: Served) -> None:
    fhir_imaging("subscriber", "add", "agreed", "--register-images", "--data-dir", served.data_dir)
    said = fhir_imaging("subscriber", "agree", "agreed", "--reject", "patient-id", "--data-dir", served.data_dir)
    unknown = fhir_imaging("subscriber", "agree", "agreed", "--flag", "nonsense", "--data-dir", served.data_dir)
    headers = {
        "Authorization": f"Bearer {fhir_imaging('token', 'agreed', '--data-dir', served.data_dir).stdout.strip()}",
        "Content-Type": "application/dicom",
    }

    answer = requests.post(
        f"{served.base_url}/dicom-web/studies", data=ct(1, study="1.2.83", PatientID=""), headers=headers, timeout=20
    )

    assert said.stdout == "agreed with agreed: patient-id: reject\n"
    assert unknown.returncode == 2
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]


def test_metadata_and_a_picture_become_an_instance(served: Served, token: str, client: DICOMwebClient) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.77.1.4", "XC"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.82", "1.2.82.1", "1.2.82.1.1"
    ds.PatientID, ds.PatientName = "PAT-82", "Test^Pictured"
    picture = io.BytesIO()
    Image.fromarray(np.full((30, 40, 3), 90, "u1")).save(picture, "JPEG")
    model = {**ds.to_json_dict(), "7FE00010": {"vr": "OB", "BulkDataURI": "photo"}}
    parts = [
        ({"Content-Type": "application/dicom+json"}, [json.dumps([model]).encode()]),
        ({"Content-Type": "image/jpeg", "Content-Location": "photo"}, [picture.getvalue()]),
    ]
    kind = f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Content-Encoding": "gzip"}
    body = gzip.compress(b"".join(multipart_related(parts, BOUNDARY)))

    answer = requests.post(f"{served.base_url}/dicom-web/studies", data=body, headers=headers, timeout=20)

    assert answer.status_code == 200, answer.text
    (found,) = client.retrieve_study("1.2.82")
    assert (found.Rows, found.Columns, found.LossyImageCompression) == (30, 40, "01")


# ---- bare sockets


def connected(served: Served) -> socket.socket:
    place = urlsplit(served.base_url)
    return socket.create_connection((place.hostname, place.port), timeout=20)


def stow_head(served: Served, token: str, length: int) -> bytes:
    return (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: {urlsplit(served.base_url).netloc}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {length}\r\nConnection: close\r\n"
        f"Content-Type: multipart/related; type=application/dicom; boundary={BOUNDARY}\r\n"
    ).encode()
