"""The reference page of the imaging conditions, written from their table.

`python -m imaging.conditions_reference > docs/reference/imaging-conditions.md` writes it anew; a test compares the two.
"""

import sys
from collections.abc import Iterable

from imaging.conditions_reading import MAX_TEXT, MAX_VALUES
from imaging.conditions_table import CHAPTERS, DCM, ELEMENTS, LOINC, Kind, Row

_KINDS = {Kind.TEXT: "text", Kind.CODE: "code", Kind.DATE: "date", Kind.TIME: "time", Kind.DATETIME: "date-time"}
_SYSTEMS = {DCM: "DCM", LOINC: "LOINC"}

_INTRODUCTION = f"""# Imaging conditions

What the server reads out of each instance, and delivers as one FHIR Observation for each series (code `123016` *Imaging
Conditions*, one component for each value). This page is written from `imaging/conditions_table.py` by
`python -m imaging.conditions_reference`.

* **Names** are DICOM keywords in snake case.
* **Units** are UCUM codes. Values stay in the unit in which DICOM states them, with these exceptions: area dose
  products come in Gy.cm2 (DICOM: dGy.cm2), entrance and organ doses in mGy (DICOM: dGy), and the radionuclide dose
  always in Bq (DICOM: MBq in nuclear medicine, Bq in PET; a number above 100,000 in nuclear medicine cannot be MBq and
  is taken as Bq).
* **Codes**: every component has the code of its DICOM data element, code = keyword, system
  `{ELEMENTS}`
  (HL7's draft code system of the DICOM dictionary). Where PS3.16 or LOINC has a concept of the same meaning, it comes
  first. Attributes of enhanced objects also have the code of their classic twin, so that one search finds both:
  `EffectiveEchoTime` is coded as `EchoTime` too. The last column names these further codes.
* **Frames and instances**: equal values stay one value; numbers that differ become their range; texts and codes that
  differ become a sorted list of at most {MAX_VALUES}. A longer list of numbers becomes its range. Texts are cut at
  {MAX_TEXT} characters.
* **Nested attributes** are found in functional groups (shared and per-frame) and in the sequences named below.
* **Numbers** of single precision are given as their shortest decimal, of double precision in 15 digits.
* Empty and malformed values are left out.
"""


def reference_page() -> str:
    """Return the page in Markdown: an introduction, then a table for each chapter."""
    return _INTRODUCTION + "".join(_chapter(title, rows) for title, rows in CHAPTERS)


def _chapter(title: str, rows: Iterable[Row]) -> str:
    lines = [
        "",
        f"## {title}",
        "",
        "| name | unit | DICOM attribute | modalities | also coded as |",
        "|---|---|---|---|---|",
        *(f"| `{row.name}` | {_unit(row)} | {row.source} | {row.families} | {_further_codes(row)} |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def _unit(row: Row) -> str:
    if row.kind is not Kind.NUMBER:
        return _KINDS[row.kind]
    stated = f" (from {row.dicom_unit})" if row.dicom_unit != row.unit else ""
    return f"`{row.unit}`{stated}"


def _further_codes(row: Row) -> str:
    return ", ".join(
        f"{code.code} ({_SYSTEMS[code.system]}) {code.display}" if code.system in _SYSTEMS else f"`{code.code}`"
        for code in row.codes
        if code.code != row.keyword
    )


if __name__ == "__main__":
    sys.stdout.write(reference_page())
