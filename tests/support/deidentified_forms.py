"""The forms in which images are given, and what an answer in one of them says."""

import io
import zipfile
from typing import Any

from pydicom import dcmread
from pydicom.encaps import generate_frames

from fhir_server.web.capabilities import RESOURCES
from imaging.dicomweb import Offer, iter_parts, parse_content_type
from tests.support.deidentified import BASE, Recipient

BYTES = "application/octet-stream"
OFFSETS = (
    "OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity", "OffsetOfTheNextDirectoryRecord",
    "OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity", "OffsetOfReferencedLowerLevelDirectoryEntity",
)  # fmt: skip
FORMS: list[tuple[int, str, Offer]] = [
    (level, end, offer)
    for ends, resource in (
        ({1: "", 2: ""}, "study, series"), ({3: ""}, "instance"),
        ({1: "/metadata", 2: "/metadata"}, "metadata of a study or series"),
        ({3: "/metadata"}, "metadata of an instance"),
        ({1: "/bulkdata", 2: "/bulkdata", 3: "/bulkdata"}, "all bulk data"),
        ({1: "/rendered"}, "rendered study"), ({2: "/rendered"}, "rendered series"),
        ({3: "/rendered"}, "rendered instance or frame"), ({4: "/frames/1/rendered"}, "rendered instance or frame"),
        ({1: "/thumbnail", 2: "/thumbnail", 3: "/thumbnail", 4: "/frames/1/thumbnail"}, "thumbnail"),
    )
    for level, end in ends.items()
    for offer in RESOURCES[resource]
]  # fmt: skip
PIXELS: list[tuple[int, str, Offer]] = [
    *((level, "/pixeldata", offer) for level in (1, 2, 3) for offer in RESOURCES["all pixel data"]),
    *((4, "/frames/1", offer) for offer in RESOURCES["one frame"]),
    *((4, "/bulkdata/7FE00010", offer) for offer in RESOURCES["bulk data"]),
]


def address(registry: Recipient, sop_uid: str, *, level: int = 3) -> str:
    ds = registry.copies[sop_uid]
    parts = [("studies", ds.StudyInstanceUID), ("series", ds.SeriesInstanceUID), ("instances", ds.SOPInstanceUID)]
    return "".join(f"/{name}/{uid}" for name, uid in parts[:level])


def content(answer: Any) -> Any:
    """What an answer says, but for where it was asked and how a file is laid out."""
    assert answer.status_code == 200, (answer.status_code, answer.get_data()[:500])
    kind = parse_content_type(answer.headers["Content-Type"])
    if kind.media_type != "multipart/related":
        return kind.media_type, kind.parameters, said(answer.get_data())
    parts = iter_parts(io.BytesIO(answer.get_data()).read, kind.parameters["boundary"])
    return [
        ({name: said(each.encode()) for name, each in part.headers.items()}, said(bytes(part.body))) for part in parts
    ]


def said(body: bytes) -> Any:
    if body[128:132] == b"DICM":
        ds = dcmread(io.BytesIO(body))
        syntax, pixels = ds.file_meta.TransferSyntaxUID, ds.get("PixelData", b"")
        count = int(ds.get("NumberOfFrames", 1))
        frames = [
            each.rstrip(b"\0")
            for each in (
                generate_frames(pixels, number_of_frames=count) if syntax.is_encapsulated and pixels else [pixels]
            )
        ]
        # Offsets of a directory follow from the length of the UID of the set, which each set has of its own.
        for keyword in ("PixelData", *OFFSETS):
            ds.pop(keyword, None)
        for record in ds.get("DirectoryRecordSequence", ()):
            for keyword in OFFSETS:
                record.pop(keyword, None)
        return syntax, ds.to_json_dict(), frames
    if body[:2] == b"PK":
        packed = zipfile.ZipFile(io.BytesIO(body))
        return {name: said(packed.read(name)) for name in packed.namelist()}
    if body[:2] == b"\xff\xd8":
        return body.rstrip(b"\0")  # a fragment is padded to an even length
    return body.replace(BASE.encode(), b"/dicom-web")


def everything(answer: Any) -> bytes:
    """What was sent, headers and what is packed included."""
    body = answer.get_data()
    if answer.mimetype == "application/zip":
        packed = zipfile.ZipFile(io.BytesIO(body))
        body = b"".join(name.encode() + packed.read(name) for name in packed.namelist())
    return str(answer.headers).encode() + bytes(body)
