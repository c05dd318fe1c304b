"""Rows of many studies as the archive's own code makes them, without files: for searches in a full store."""

from collections.abc import Iterator
from datetime import date, timedelta
from itertools import islice
from typing import Any

import orjson
from pymongo.database import Database

from imaging.archive import attributes, keys
from imaging.archive.attributes import STANDARD, Attributes

FIRST_DAY = date(2020, 1, 1)
DAYS = 365
MODALITIES = ("CT", "MR", "US", "CR")
BATCH = 2000


def fill(database: Database[dict[str, Any]], studies: int, *, first: int = 0) -> None:
    """Write studies of one series and one instance each, numbered from `first`; a patient has ten of them."""
    numbers = iter(range(first, first + studies))
    while some := list(islice(numbers, BATCH)):
        told = {number: metadata(number) for number in some}
        database.studies.insert_many(_study(number, each) for number, each in told.items())
        database.series.insert_many(_series(number, each) for number, each in told.items())
        database.instances.insert_many(_instance(number, each) for number, each in told.items())


def metadata(number: int) -> Attributes:
    """Return the metadata of the only instance of study `number`."""
    day = f"{FIRST_DAY + timedelta(days=number * 7 % DAYS):%Y%m%d}"
    return dict(sorted(_told(number, day)))


def _told(number: int, day: str) -> Iterator[tuple[str, dict[str, Any]]]:
    patient = number // 10
    plain = {
        "00080016": ("UI", "1.2.840.10008.5.1.4.1.1.2"), "00080018": ("UI", f"1.9.{number}.1.1"),
        "00080020": ("DA", day), "00080023": ("DA", day), "00080030": ("TM", f"{number % 24:02}1500"),
        "00080033": ("TM", f"{number % 24:02}1600"), "00080050": ("SH", f"ACC-{number}"),
        "00080060": ("CS", MODALITIES[number % 4]), "00080201": ("SH", "+0100"), "00081030": ("LO", "Study"),
        "00100020": ("LO", f"PAT-{patient}"), "0020000D": ("UI", f"1.9.{number}"),
        "0020000E": ("UI", f"1.9.{number}.1"), "00200010": ("SH", str(number)), "00200011": ("IS", 1),
        "00200013": ("IS", 1), "00280010": ("US", 512), "00280011": ("US", 512), "00400244": ("DA", day),
    }  # fmt: skip
    names = {"00080090": f"Doctor^{number % 50}", "00100010": f"Family{patient}^Given{number}"}
    items = {"00081032": ("00080100", f"C{number % 500}"), "00400275": ("00400009", f"STEP-{number}")}
    yield from ((tag, {"vr": vr, "Value": [value]}) for tag, (vr, value) in plain.items())
    yield from ((tag, {"vr": "PN", "Value": [{"Alphabetic": name}]}) for tag, name in names.items())
    for tag, (inside, value) in items.items():
        yield tag, {"vr": "SQ", "Value": [{inside: {"vr": "SH", "Value": [value]}}]}


def _study(number: int, told: Attributes) -> dict[str, Any]:
    modalities = told["00080060"]["Value"]
    found = attributes.study(
        told, STANDARD.studies, modalities=modalities, sop_classes=told["00080016"]["Value"], series=1, instances=1
    )
    row = {"_id": f"1.9.{number}", "first": f"1.9.{number}.1.1", "generation": 1, "projected": 1}
    return {**row, "attributes": orjson.dumps(found), **keys.searchable(found, STANDARD.studies)}


def _series(number: int, told: Attributes) -> dict[str, Any]:
    found = attributes.series(told, STANDARD.series, instances=1)
    row = {"_id": f"1.9.{number}.1", "study": f"1.9.{number}", "number": 1, "first": f"1.9.{number}.1.1"}
    return {**row, "attributes": orjson.dumps(found), **keys.searchable(found, STANDARD.series)}


def _instance(number: int, told: Attributes) -> dict[str, Any]:
    found = attributes.instance(told, STANDARD.instances, transfer_syntaxes=["1.2.840.10008.1.2.1"])
    row = {"_id": f"1.9.{number}.1.1", "study": f"1.9.{number}", "series": f"1.9.{number}.1", "number": 1}
    more = {"series_number": 1, "class": told["00080016"]["Value"][0]}
    return {**row, **more, "attributes": orjson.dumps(found), **keys.searchable(found, STANDARD.instances)}
