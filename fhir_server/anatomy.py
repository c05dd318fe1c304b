"""Body parts and lateralities of DICOM as SNOMED CT codings.

Hides where the codes come from: the context groups in pydicom's copy of PS3.16 (CID 4, CID 4031, CID 244) and a small
table for the defined terms of Body Part Examined that are not simply the meaning without spaces (PS3.16 Annex L).
A term that no table knows gives a display without a code.

pydicom's tables are large, and most commands need none of them: they are imported by what looks something up.
"""

from functools import cache
from typing import Any

from fhir_server.dicom_values import clean

SNOMED = "http://snomed.info/sct"

# Body Part Examined -> keyword in pydicom's SCT table, where the two differ.   Source: PS3.16 table L-1
DEFINED_TERMS = {
    "ABDOMENPELVIS": "AbdomenAndPelvis",
    "ACJOINT": "AcromioclavicularJoint",
    "ANKLE": "AnkleJoint",
    "ARM": "UpperArm",
    "BILEDUCT": "BileDuct",
    "BODY": "EntireBody",
    "CERVIX": "Cervix",
    "CHESTABDOMEN": "ChestAndAbdomen",
    "CHESTABDPELVIS": "ChestAbdomenAndPelvis",
    "CTSPINE": "CervicoThoracicSpine",
    "CSPINE": "CervicalSpine",
    "ELBOW": "ElbowJoint",
    "HEADNECK": "HeadAndNeck",
    "IAC": "InternalAuditoryCanal",
    "JAW": "JawRegion",
    "LEG": "LowerLeg",
    "LSPINE": "LumbarSpine",
    "LSSPINE": "LumboSacralSpine",
    "LUMBOSACRALSPINE": "LumboSacralSpine",
    "MASTOID": "MastoidBone",
    "NECKCHEST": "NeckAndChest",
    "NECKCHESTABDOMEN": "NeckChestAndAbdomen",
    "NECKCHESTABDPELV": "NeckChestAbdomenAndPelvis",
    "ORBIT": "OrbitalStructure",
    "SCJOINT": "SternoclavicularJoint",
    "SIJOINT": "SacroiliacJoint",
    "SSPINE": "Sacrum",
    "TMJ": "TemporomandibularJoint",
    "TLSPINE": "ThoracoLumbarSpine",
    "TSPINE": "ThoracicSpine",
    "WHOLEBODY": "EntireBody",
    "WRIST": "WristJoint",
}

LATERALITIES = {  # Laterality (0020,0060) -> keyword of CID 244
    "R": "Right",
    "L": "Left",
    "B": "Bilateral",
    "U": "Unilateral",
}
_SNOMED_SCHEMES = ("SCT", "SRT", "SNM3", "99SDM")  # PS3.16 8: the older ones hold SNOMED RT style codes


def body_site(term: str, code: tuple[str, str, str] | None) -> dict[str, Any] | None:
    """Return the Coding of a body site, None when the images name none.

    term   Body Part Examined as received, "" when absent
    code   first item of Anatomic Region Sequence as (value, scheme, meaning); wins over the term
    """
    if code is not None and (coded := _coding_from_code(*code)):
        return coded
    name = clean(term)
    if not name:
        return {"display": clean(code[2])} if code is not None and clean(code[2]) else None
    return _coding_from_keyword(_keywords().get(_key(name))) or {"display": name}


def laterality(value: str) -> dict[str, Any] | None:
    """Return the Coding of Laterality (0020,0060), None when absent or not a defined term."""
    return _coding_from_keyword(LATERALITIES.get(value.strip().upper()))


def _coding_from_code(value: str, scheme: str, meaning: str) -> dict[str, Any] | None:
    if scheme.strip() not in _SNOMED_SCHEMES:
        return None
    number = value.strip()
    if not number.isdigit():
        from pydicom.sr._snomed_dict import mapping

        number = mapping["SRT"].get(number, "")
    if not number:
        return None
    return {"system": SNOMED, "code": number, **({"display": clean(meaning)} if clean(meaning) else {})}


def _coding_from_keyword(keyword: str | None) -> dict[str, Any] | None:
    if keyword is None:
        return None
    from pydicom.sr.codedict import codes

    code = getattr(codes.SCT, keyword)
    return {"system": SNOMED, "code": code.value, "display": code.meaning}


@cache
def _keywords() -> dict[str, str]:
    """Defined term without spaces, in capitals -> keyword in pydicom's SCT table."""
    from pydicom.sr.codedict import codes

    known = [*codes.cid4.concepts, *codes.cid4031.concepts]
    return {_key(keyword): keyword for keyword in known} | DEFINED_TERMS


def _key(term: str) -> str:
    return "".join(character for character in term.upper() if character.isalnum())
