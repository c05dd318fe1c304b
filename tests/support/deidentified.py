"""A recipient of de-identified images at the door, and what of an image could name somebody."""

import io
from collections.abc import Iterator
from typing import Any

from pydicom import Dataset, dcmread

from fhir_server.access.contracts import Right
from fhir_server.deidentified import secret_name
from imaging.deidentify import Options, deidentify
from tests.support.dicomweb import Site, ct

BASE = "/dicom-web/deidentified"
SCANNED = {
    "PatientName": "Quimby^Odette",
    "ReferringPhysicianName": "Grey^Meredith", "InstitutionName": "Seattle Grace", "StationName": "ROOM-7",
    "StudyDescription": "Head of Test", "IssuerOfPatientID": "GRACE", "FrameOfReferenceUID": "1.2.3.77",
    "DeviceSerialNumber": "SERIAL-99", "PatientAddress": "15 Elm Street", "OtherPatientIDs": "OTHER-55",
}  # fmt: skip


class Recipient:
    """A subscriber at the door."""

    def __init__(self, here: Site, name: str, *rights: Right, **terms: Any) -> None:
        self.here = here
        added = here.server.principals.add(name, rights or (Right.RECEIVE_DEIDENTIFIED,), **terms)
        self.organization = added.organization
        self.copies: dict[str, Dataset] = {}
        self.headers = {"Authorization": f"Bearer {here.server.principals.mint(name)}"}

    def get(self, path: str, accept: str | None = None, **headers: str) -> Any:
        asked = {**self.headers, **({"Accept": accept} if accept else {}), **headers}
        return self.here.web.get(path if path.startswith("/dicom-web") else f"{BASE}{path}", headers=asked)

    def found(self, path: str) -> list[dict[str, Any]]:
        answer = self.get(path)
        assert answer.status_code in (200, 204), answer.get_data()
        return answer.json if answer.status_code == 200 else []

    def alias(self, original: str) -> str:
        """How a study is called here: as in a copy that is ordered for the same recipient."""
        key = self.here.server.secret(secret_name(self.organization))
        return str(dcmread(io.BytesIO(deidentify(ct(1, study=original), key, Options()))).StudyInstanceUID)


def value(row: dict[str, Any], tag: str) -> Any:
    return row[tag]["Value"][0]


def told(recipient: Recipient) -> list[tuple[str, str, str]]:
    """The addresses of everything that is found, as UIDs."""
    recipient_studies = [value(each, "0020000D") for each in recipient.found("/studies")]
    rows = [(study, row) for study in recipient_studies for row in recipient.found(f"/studies/{study}/instances")]
    return [(study, value(row, "0020000E"), value(row, "00080018")) for study, row in rows]


def identities(ds: Dataset) -> Iterator[str]:
    """What in a file could name somebody or something: names, numbers, places, dates, UIDs of instances."""
    for element in ds.iterall():
        values = [str(each) for each in (element.value if element.VM > 1 else [element.value]) if each is not None]
        if element.VR == "PN":
            yield from (word for each in values for word in each.split("^") if len(word) > 2)
        elif element.VR in ("LO", "SH", "ST", "LT", "DA") and element.keyword in NAMING:
            yield from (each for each in values if len(each) > 2)
        elif element.VR == "UI" and element.keyword in NAMING:
            yield from values


NAMING = {
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PatientID", "OtherPatientIDs",
    "PatientAddress", "InstitutionName", "InstitutionAddress", "StationName", "AccessionNumber", "IssuerOfPatientID",
    "StudyDescription", "DeviceSerialNumber", "PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate",
    "ContentDate", "InstanceCreationDate",
}  # fmt: skip


def secrets_of(*files: bytes) -> set[bytes]:
    """What files hold that could name somebody or something."""
    return {word.encode() for each in files for word in identities(dcmread(io.BytesIO(each)))}


def named_in(sent: bytes, secrets: set[bytes]) -> list[bytes]:
    """Which of these are in what was sent; UIDs are looked for as a whole: "1.2.3" is a part of many numbers."""
    return [each for each in secrets if each in sent and not (each[:2] == b"1." and not whole(each, sent))]


def whole(uid: bytes, text: bytes) -> bool:
    places = [n for n in range(len(text)) if text.startswith(uid, n)]
    ends = [(text[n - 1 : n], text[n + len(uid) : n + len(uid) + 1]) for n in places]
    return any(not (before.isdigit() or before == b"." or after.isdigit() or after == b".") for before, after in ends)
